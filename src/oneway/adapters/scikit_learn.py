"""A scikit-learn classifier whose ``predict_proba`` is guarded."""

import warnings
from typing import Any, Self

import numpy as np

from oneway.adapters.function import as_numbers, copied, count_rows, unmatched_columns
from oneway.adapters.guard import Array, Guard
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError, MissingExtraError
from oneway.extras import load_extra
from oneway.targets.answers import lift_labels
from oneway.targets.classifiers import (
    check_sums,
    classes_of,
    flat_labels,
    places_of,
    require_probabilities,
)
from oneway.targets.failure import REMEDY, redacted
from oneway.targets.fitted_columns import feature_names

NEEDED = {"extra": "sklearn", "purpose": "guarding a scikit-learn classifier"}
_base: Any = load_extra("sklearn.base", **NEEDED)
_validation: Any = load_extra("sklearn.utils.validation", **NEEDED)


class GuardedClassifier(
    _base.ClassifierMixin,  # type: ignore[misc] # scikit-learn carries no types
    _base.MetaEstimatorMixin,  # type: ignore[misc]
    _base.BaseEstimator,  # type: ignore[misc]
):
    """A classifier that fits another one, and answers with its guarded probabilities.

    ``predict`` is the estimator's own, also where that is not the arg max of its probabilities
    (tuned thresholds, ``SVC``); ``predict_proba`` releases this label strictly on top. There is
    no ``decision_function``. It is a door, not a safe: whoever holds this object, or its pickle,
    holds ``estimator_``, the model itself.

    A frame reaches the estimator as a frame, its columns in the order of the fit.
    """

    def __init__(self, estimator: Any, defense: Defense, *, decimals: int | None = None) -> None:
        """Keep the options; as usual in scikit-learn, :meth:`fit` checks them.

        Args:
            estimator: A classifier with ``predict_proba``; :meth:`fit` fits a clone.
            defense: Changes the scores. A defense that needs the queries gets ``X``.
            decimals: Decimals of the released probabilities; None: all.
        """
        self.estimator = estimator
        self.defense = defense
        self.decimals = decimals

    @classmethod
    def of_fitted(cls, estimator: Any, defense: Defense, *, decimals: int | None = None) -> Self:
        """Guard a fitted classifier, without fitting it again.

        Raises:
            InvalidOptionError: The classifier is not fitted, has no ``predict_proba``, several
                outputs, several labels for each query or fewer than two classes; or its
                probabilities do not sum to 1; or the guard's options are outside their range.
        """
        guarded = cls(estimator, defense, decimals=decimals)
        guarded._take(estimator)
        return guarded

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Self:  # noqa: N803  scikit-learn's name
        """Fit a clone of the classifier.

        Args:
            X: Queries as the classifier takes them.
            y: ``(N)`` classes, at least two of them.
            **fit_params: Passed on to the classifier's ``fit``.

        Raises:
            InvalidOptionError: The classifier cannot be cloned, or cannot be guarded: see
                :meth:`of_fitted`; or the guard's options are outside their range.
        """
        require_probabilities(self.estimator)
        if len(getattr(y, "shape", ())) == 2 and y.shape[1] > 1:
            raise InvalidOptionError(
                f"a guarded classifier has one output, but y has {y.shape[1]} columns. Fit one "
                "classifier for each."
            )
        if getattr(y, "shape", ())[1:] == (1,):
            y = _validation.column_or_1d(y, warn=True)
        self._take(self._cloned().fit(X, y, **fit_params))
        return self

    def _cloned(self) -> Any:
        try:
            return _base.clone(self.estimator)
        except RuntimeError:
            pass
        raise InvalidOptionError(
            f"{type(self.estimator).__name__} cannot be cloned, since it changes its own options. "
            "Pass those to fit, as by `fit(X, y, cat_features=...)`; or fit the classifier, and "
            "guard it by GuardedClassifier.of_fitted."
        )

    def _take(self, fitted: Any) -> None:
        self.classes_ = classes_of(fitted)
        self._guard = Guard(self.defense, "confidences", decimals=self.decimals)
        self.estimator_, self._warned = fitted, False
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))
            elif hasattr(self, name):  # of an earlier fit
                delattr(self, name)
        names = feature_names(fitted)
        if names is not None and not hasattr(fitted, "feature_names_in_"):  # CatBoost
            self.feature_names_in_ = np.array(names, dtype=object)

    def predict_proba(self, X: Any) -> Array:  # noqa: N803  scikit-learn's name
        """Return guarded probabilities; the label of :meth:`predict` is strictly on top.

        Args:
            X: N queries as the classifier takes them. Not modified.

        Returns:
            ``(N, K)`` probabilities, column k for ``classes_[k]``.

        Raises:
            sklearn.exceptions.NotFittedError: :meth:`fit` was not called.
            InvalidTensorError: The classifier refused ``X``, or gave anything but probabilities;
                or the defense needs the queries, and ``X`` is not of numbers.
            TargetFailedError: The classifier failed. Its text is left out.
            DefenseFailedError: The defense failed.
        """
        _validation.check_is_fitted(self)
        queries = as_numbers(X) if self._guard.requires_input else None
        named = self._named(X)
        scores = self._ask("predict_proba", named)
        rows, name = count_rows(X), type(self.estimator_).__name__
        if not isinstance(scores, np.ndarray) or scores.shape != (rows, len(self.classes_)):
            got = scores.shape if isinstance(scores, np.ndarray) else type(scores).__name__
            raise InvalidTensorError(
                f"predict_proba of {name} must give {rows} queries one column for each of "
                f"{len(self.classes_)} classes, but gave {got}."
            )
        check_sums(scores, name)
        places = places_of(self._ask("predict", named), self.classes_, rows, name)
        return self._guard(lift_labels(scores, places), queries)

    def _ask(self, method: str, queries: Any) -> Any:
        rows = count_rows(queries)
        name = f"{method} of {type(self.estimator_).__name__}"
        try:
            return getattr(self.estimator_, method)(copied(queries))
        except Exception as error:  # noqa: BLE001  raised as ours, without its text
            refusal = redacted(name, rows, error, self._remedy(queries))
            if isinstance(error, ValueError | TypeError | KeyError):
                # By these, estimators refuse queries; and callers of scikit-learn expect them.
                refusal = InvalidTensorError(str(refusal))
        raise refusal  # not within the handler: the context's text may quote a query

    def _remedy(self, queries: Any) -> str:
        """Return what may help an estimator that raised, by the names and the shape of queries."""
        shape: tuple[int, ...] = getattr(queries, "shape", ())
        if hasattr(queries, "columns") and hasattr(self, "feature_names_in_"):
            names = [str(name) for name in self.feature_names_in_]
            unmatched = unmatched_columns(queries, names, names)
            if unmatched and not self._in_order(queries):
                return f"{REMEDY} {unmatched}"
        features = getattr(self, "n_features_in_", None)
        if len(shape) == 2 and features and shape[1] != features:
            return (
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {features} "
                "features as input."
            )
        if len(shape) == 1:
            return f"{REMEDY} Reshape your data, as by `X.reshape(1, -1)` for one query."
        return (
            "Check that X has the columns and the types of the fit, no new categories, and neither "
            "NaN nor inf where the model takes none; and that the model takes sparse matrices if "
            "it is one."
        )

    def _named(self, queries: Any) -> Any:
        """Return queries with the columns of the fit, in its order.

        A frame of the same columns in another order is put in order, since not every estimator
        looks at names. A plain array gets the names, without which an estimator that was fitted
        on a frame warns at every call; it is said once.
        """
        names = getattr(self, "feature_names_in_", None)
        if names is None:
            return queries
        columns = getattr(queries, "columns", None)
        if columns is None:
            return self._framed(queries, list(names))
        ordered = self._in_order(queries)
        return queries[ordered] if ordered else queries

    def _in_order(self, frame: Any) -> list[Any] | None:
        """Return a frame's columns in the order of the fit; None if they are not the same."""
        columns, names = list(frame.columns), list(self.feature_names_in_)
        # LightGBM knows no spaces.
        for spelled in (columns, [str(column).replace(" ", "_") for column in columns]):
            given = dict(zip(spelled, columns, strict=True))
            if len(given) == len(columns) and given.keys() == set(names):
                return [given[name] for name in names]
        return None

    def _framed(self, queries: Any, names: list[str]) -> Any:
        model = self.estimator_
        if not isinstance(queries, np.ndarray) or queries.shape[1:] != (len(names),):
            return queries
        # LightGBM takes codes of categories from arrays, and not from frames.
        if getattr(getattr(model, "booster_", None), "pandas_categorical", None):
            return queries
        try:
            pandas = load_extra("pandas", **NEEDED)
        except MissingExtraError:  # fitted on a frame of another library
            return queries
        if not self._warned:
            self._warned = True
            warnings.warn(
                "X has no column names, so its columns are taken in the order of the fit: "
                f"{', '.join(map(str, names))}. This is said once.",
                stacklevel=4,
            )
        return pandas.DataFrame(queries, columns=names)

    def predict_log_proba(self, X: Any) -> Array:  # noqa: N803  scikit-learn's name
        """Return the logarithms of :meth:`predict_proba`, ``(N, K)``."""
        with np.errstate(divide="ignore"):
            logs: Array = np.log(self.predict_proba(X))
        return logs

    def predict(self, X: Any) -> Array:  # noqa: N803  scikit-learn's name
        """Return the ``(N)`` labels that the estimator's own ``predict`` gives.

        Raises:
            sklearn.exceptions.NotFittedError: :meth:`fit` was not called.
            InvalidTensorError: The classifier refused ``X``, or gave anything but one class of
                ``classes_`` for each query.
            TargetFailedError: The classifier failed. Its text is left out.
        """
        _validation.check_is_fitted(self)
        rows, name = count_rows(X), type(self.estimator_).__name__
        labels = flat_labels(self._ask("predict", self._named(X)), rows, name)
        # With an objective of its own, LightGBM's `predict` gives the clean scores.
        places_of(labels, self.classes_, rows, name)
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if hasattr(self.estimator, "__sklearn_tags__"):  # not every classifier inherits them
            inner = load_extra("sklearn.utils", **NEEDED).get_tags(self.estimator)
            tags.input_tags, tags.non_deterministic = inner.input_tags, inner.non_deterministic
            tags.classifier_tags.multi_class = inner.classifier_tags.multi_class
        return tags
