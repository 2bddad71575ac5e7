"""A scikit-learn classifier whose ``predict_proba`` is guarded."""

from typing import Any, Self

import numpy as np

from oneway.adapters.function import copied
from oneway.adapters.guard import Array, Guard
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.extras import load_extra

NEEDED = {"extra": "sklearn", "purpose": "guarding a scikit-learn classifier"}
_base: Any = load_extra("sklearn.base", **NEEDED)
_validation: Any = load_extra("sklearn.utils.validation", **NEEDED)


class GuardedClassifier(
    _base.ClassifierMixin,  # type: ignore[misc] # scikit-learn carries no types
    _base.MetaEstimatorMixin,  # type: ignore[misc]
    _base.BaseEstimator,  # type: ignore[misc]
):
    """A classifier that fits another one, and answers with its guarded probabilities.

    ``predict`` is ``classes_[argmax]`` of what ``predict_proba`` releases. There is no
    ``decision_function``. It is a door, not a safe: whoever holds this object, or its pickle,
    holds ``estimator_``, the model itself.
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
            InvalidOptionError: The classifier is not fitted, or cannot be guarded.
        """
        guarded = cls(estimator, defense, decimals=decimals)
        if not hasattr(estimator, "classes_"):
            raise InvalidOptionError(
                f"{type(estimator).__name__} is not fitted. Fit it, or the guarded one."
            )
        guarded._take(estimator)
        return guarded

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Self:  # noqa: N803  scikit-learn's name
        """Fit a clone of the classifier.

        Args:
            X: Queries as the classifier takes them.
            y: The classes, at least two.
            **fit_params: Passed on to the classifier's ``fit``.

        Raises:
            InvalidOptionError: The classifier has no ``predict_proba``, fewer than two classes or
                several outputs, or the guard's options are outside their range.
        """
        fitted = _base.clone(self.estimator)
        if not hasattr(fitted, "predict_proba"):
            raise InvalidOptionError(
                f"{type(fitted).__name__} has no predict_proba, so there is nothing to guard. "
                "Wrap it in sklearn.calibration.CalibratedClassifierCV."
            )
        if getattr(y, "shape", ())[1:] == (1,):
            y = _validation.column_or_1d(y, warn=True)
        self._take(fitted.fit(X, y, **fit_params))
        return self

    def _take(self, fitted: Any) -> None:
        classes = fitted.classes_
        if isinstance(classes, list):
            raise InvalidOptionError(
                f"a guarded classifier has one output, but this one has {len(classes)}. Fit and "
                "guard one for each."
            )
        if len(classes) < 2:
            raise InvalidOptionError(
                f"a guarded classifier needs at least 2 classes, but got {len(classes)} class. "
                "With one, there is nothing to protect."
            )
        self._guard = Guard(self.defense, "confidences", decimals=self.decimals)
        self.estimator_, self.classes_ = fitted, classes
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted, name):
                setattr(self, name, getattr(fitted, name))

    def predict_proba(self, X: Any) -> Array:  # noqa: N803  scikit-learn's name
        """Return ``(N, K)`` guarded probabilities, column k for ``classes_[k]``.

        Raises:
            sklearn.exceptions.NotFittedError: :meth:`fit` was not called.
            InvalidTensorError: The classifier gave anything but probabilities.
            DefenseFailedError: The defense failed.
        """
        _validation.check_is_fitted(self)
        scores = self.estimator_.predict_proba(copied(X))
        if not isinstance(scores, np.ndarray) or scores.shape[1:] != self.classes_.shape:
            got = scores.shape if isinstance(scores, np.ndarray) else type(scores).__name__
            raise InvalidTensorError(
                f"predict_proba of {type(self.estimator_).__name__} must give one column for "
                f"each of {len(self.classes_)} classes, but gave {got}."
            )
        queries = np.asarray(X, np.float64) if self._guard.requires_input else None
        return self._guard(scores, queries)

    def predict_log_proba(self, X: Any) -> Array:  # noqa: N803  scikit-learn's name
        """Return the logarithms of :meth:`predict_proba`, ``(N, K)``."""
        with np.errstate(divide="ignore"):
            logs: Array = np.log(self.predict_proba(X))
        return logs

    def predict(self, X: Any) -> Array:  # noqa: N803  scikit-learn's name
        """Return ``classes_[argmax]`` of :meth:`predict_proba`, ``(N)``."""
        chosen = self.predict_proba(X).argmax(1)  # scikit-learn asks whether it is fitted first
        labels: Array = self.classes_[chosen]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = load_extra("sklearn.utils", **NEEDED).get_tags(self.estimator)
        tags.input_tags, tags.non_deterministic = inner.input_tags, inner.non_deterministic
        tags.classifier_tags.multi_class = inner.classifier_tags.multi_class
        return tags
