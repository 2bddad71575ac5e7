"""A scikit-learn classifier as a target, from Python or from a file, which may be a pickle."""

import pickle
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import check_count, check_images, check_switch, class_name, first_names
from oneway.contracts import Target
from oneway.errors import CorruptDataError, InvalidOptionError, InvalidTensorError, OnewayError
from oneway.extras import load_extra
from oneway.releases import Outputs, logits_from_confidences
from oneway.targets.answers import (
    AnswerRules,
    Array,
    FrameRowsTarget,
    RowsTarget,
    lift_labels,
    refuse_logits,
    to_array,
    to_float32,
)
from oneway.targets.classifiers import check_sums, classes_of, places_of
from oneway.targets.failure import failed
from oneway.targets.fitted_columns import (
    feature_count,
    feature_names,
    fitted_categories,
    match_columns,
)


class EstimatorTarget(RowsTarget):
    """A fitted classifier that has ``predict_proba``.

    Column ``k`` of its answers is the class ``estimator.classes_[k]``. Images are flattened in
    row-major order, ``(N, C, H, W)`` to ``(N, C * H * W)``.

    The label of a query is what ``predict`` says. With a tuned threshold, or as an SVC, a model
    may predict another class than the likeliest. Then two answers differ: an undefended API gives
    the probabilities as they are, which this target answers with, while a guard must release the
    label as the only maximum. So a guard gets :attr:`logits`, in which the label is lifted just
    above the largest probability. Where both agree, the logits are the logarithms of the answers.

    Attributes:
        estimator: The classifier.
        class_names: ``classes_`` as text.
        features: How many features it was fitted on; None if it does not say.
        lifts_labels: True: answers are not the softmax of the logits where a label was lifted.
    """

    lifts_labels = True

    def __init__(self, estimator: Any, *, batch_size: int, name: str) -> None:
        """Wrap a classifier; see :func:`estimator_target`."""
        check_count("batch_size", batch_size)
        self.estimator, self.batch_size = estimator, batch_size
        self.rules = AnswerRules(name, "confidences")
        self._classes = classes_of(estimator, name)
        self.class_names = tuple(map(class_name, self._classes))
        self.features = feature_count(estimator)
        self._columns: tuple[str, ...] = ()

    def naming(self, columns: Sequence[str]) -> "EstimatorTarget":
        """Return this target with names of its features for messages."""
        named = copy(self)
        named._columns = tuple(columns)
        return named

    def _rows(self, images: Tensor) -> Any:
        """Return queries as the classifier takes them."""
        missing = images.isnan() if isinstance(images, Tensor) else None
        check_images(images if missing is None else images.masked_fill(missing, 0))
        rows = to_array(images).reshape(len(images), -1)
        if self.features not in (None, rows.shape[1]):
            raise InvalidTensorError(
                f"{self.rules.name} was fitted on {self.features} features, but queries of shape "
                f"{tuple(images.shape)} have {rows.shape[1]} each. Prepare them as the fit did."
            )
        return rows

    def _confidences(self, rows: Any) -> Tensor:
        return to_float32(torch.from_numpy(self._answers(rows)[0]))

    def _logits(self, rows: Any) -> Tensor:
        answers, labels = self._answers(rows)
        behind = np.take_along_axis(answers, labels[:, None], 1) < answers.max(1, keepdims=True)
        lifted = np.where(behind, lift_labels(answers, labels), answers)
        # As float32, so that a defense sees the same numbers as the clients of an undefended API.
        return logits_from_confidences(to_float32(torch.from_numpy(lifted)))

    def _answers(self, rows: Any) -> tuple[Array, NDArray[np.int64]]:
        """Return ``(N, K)`` probabilities and ``(N)`` labels of all queries."""
        if not len(rows):
            raise InvalidTensorError(f"there must be at least one query for {self.rules.name}.")
        pick = rows if isinstance(rows, np.ndarray) else rows.iloc
        parts = [
            self._batch(pick[start : start + self.batch_size])
            for start in range(0, len(rows), self.batch_size)
        ]
        answers, labels = zip(*parts, strict=True)
        return np.concatenate(answers), np.concatenate(labels)

    def _batch(self, rows: Any) -> tuple[Array, NDArray[np.int64]]:
        try:
            # Copies: the classifier may write to its input.
            answer = self.estimator.predict_proba(rows.copy())
            predicted = self.estimator.predict(rows.copy())
        except OnewayError:
            raise
        except Exception as error:
            raise failed(self.rules.name, len(rows), error, remedy=self._remedy(rows)) from error
        self._check_probabilities(answer, len(rows))
        labels = places_of(predicted, self._classes, len(rows), self.rules.name)
        return _broken_ties(answer, labels), labels

    def _remedy(self, rows: Any) -> str:
        """Say what to look at after the classifier raised."""
        if isinstance(rows, np.ndarray):
            places = np.flatnonzero(np.isnan(rows).any(0)).tolist()
            missing = [self._columns[p] if self._columns else f"number {p + 1}" for p in places]
        else:
            missing = [str(name) for name in rows if rows[name].isna().any()]
        if missing:
            return (
                f"Columns with missing values: {first_names(list(map(repr, missing)))}. If the "
                "model cannot take these, fill them in as its training did, or put an imputer "
                "into its pipeline."
            )
        if isinstance(rows, np.ndarray):
            return "Check that the model takes queries of this shape and type."
        return (
            "Check that the table's columns have the types that the model was fitted on; .parquet "
            "files keep types and pandas categories. Of .csv files, --categorical COLUMN keeps "
            "codes such as 007 as texts."
        )

    def _check_probabilities(self, answer: Any, rows: int) -> None:
        wanted = (rows, len(self.class_names))
        if not isinstance(answer, np.ndarray) or answer.shape != wanted:
            raise InvalidTensorError(
                f"{self.rules.name} must answer {rows} queries with an array of shape {wanted}, "
                "one column for each of classes_, but gave "
                f"{getattr(answer, 'shape', type(answer).__name__)}."
            )
        if (answer >= 0).all() and (answer <= 1).all():
            check_sums(answer, self.rules.name)
        self.rules.check(torch.tensor(answer), rows)


class FrameEstimatorTarget(EstimatorTarget, FrameRowsTarget):
    """An :class:`EstimatorTarget` that was fitted on a DataFrame, and is asked with one."""

    def __init__(
        self, estimator: Any, names: tuple[str, ...], *, batch_size: int, name: str
    ) -> None:
        """Wrap a classifier; see :func:`estimator_target`."""
        super().__init__(estimator, batch_size=batch_size, name=name)
        self.feature_names, self.features = names, len(names)
        self._categories = fitted_categories(estimator, name)

    def _fitted(self, frame: Any) -> Any:
        """Return the columns of a frame as the classifier was fitted on them."""
        if not hasattr(frame, "iloc"):
            raise InvalidTensorError(
                f"{self.rules.name} is asked with a pandas DataFrame, but got "
                f"{type(frame).__name__}. Convert it, as by `frame.to_pandas()`."
            )
        columns = match_columns(self.feature_names, list(frame.columns), self.rules.name)
        fitted = frame[columns].set_axis(list(self.feature_names), axis=1)
        return self._categories.cast(fitted, self.rules.name) if self._categories else fitted

    def _rows(self, images: Tensor) -> Any:
        pandas = load_extra("pandas", extra="records", purpose="asking a model with a table")
        if self._categories:
            raise InvalidTensorError(
                f"{self.rules.name} was fitted on pandas categories, so that it takes tables and "
                "no numbers alone. Ask it with a DataFrame: frame_confidences."
            )
        return pandas.DataFrame(super()._rows(images), columns=list(self.feature_names))


def estimator_target(estimator: Any, *, batch_size: int, name: str) -> EstimatorTarget:
    """Wrap a fitted classifier that has ``predict_proba``.

    Args:
        estimator: The classifier, such as one of scikit-learn, LightGBM, XGBoost or CatBoost.
        batch_size: Most queries that the classifier gets at once.
        name: What messages call the target.

    Returns:
        A :class:`FrameEstimatorTarget` if the classifier was fitted on a DataFrame.

    Raises:
        InvalidOptionError: The classifier has no ``predict_proba``, is not fitted, has several
            outputs or labels, or is an XGBoost model without the categories of its fit.
    """
    names = feature_names(estimator)
    if names is None:
        return EstimatorTarget(estimator, batch_size=batch_size, name=name)
    return FrameEstimatorTarget(estimator, names, batch_size=batch_size, name=name)


def _broken_ties(answer: Array, labels: NDArray[np.int64]) -> Array:
    """Lift a label that ties for the maximum: scores behind the probabilities may not tie."""
    index = labels[:, None]
    probability = np.take_along_axis(answer, index, 1)
    top = answer.max(1, keepdims=True)
    ties = (probability == top) & (answer.argmax(1)[:, None] != index)
    answer = answer.copy()
    np.put_along_axis(answer, index, np.where(ties, np.nextafter(top, np.inf), probability), 1)
    return answer


def open_skops(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,  # noqa: ARG001  one signature for all kinds
    batch_size: int,
    trusted: Sequence[str] = (),
) -> Target:
    """Open a classifier saved with ``skops.io.dump``.

    Args:
        where: The file.
        outputs: None or ``"confidences"``.
        device: Not used: scikit-learn computes on the CPU.
        batch_size: Most queries that the classifier gets at once.
        trusted: Names of types that may be built, beyond those that skops trusts.

    Raises:
        MissingExtraError: skops is not installed.
        CorruptDataError: The file is no skops file.
        InvalidOptionError: The file holds types that are not trusted, or ``outputs`` are logits.
    """
    name = f"target {where!r}"
    refuse_logits(outputs, name, "it has predict_proba")
    if isinstance(trusted, str):
        raise InvalidOptionError(
            f"trusted must be a sequence of type names, but got the text {trusted!r}. "
            f"Pass ({trusted!r},)."
        )
    skops = load_extra("skops.io", extra="sklearn", purpose="opening a .skops file")
    path = Path(where)
    try:
        unknown = sorted(set(skops.get_untrusted_types(file=path)) - set(trusted))
        if unknown:
            raise InvalidOptionError(
                f"{where} holds types that skops does not know to be safe: {', '.join(unknown)}. "
                f"If you trust each of them, pass trusted={tuple(unknown)!r}."
            )
        estimator = skops.load(path, trusted=list(trusted))
    except InvalidOptionError:
        raise
    except (BadZipFile, KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise CorruptDataError(
            f"{where} cannot be opened by skops ({type(error).__name__}: {error}). Save it with "
            "`skops.io.dump`, with the versions of skops and scikit-learn that are installed here."
        ) from error
    return estimator_target(estimator, batch_size=batch_size, name=name)


def open_pickle(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,  # noqa: ARG001  one signature for all kinds
    batch_size: int,
    trust_pickle: bool = False,
) -> Target:
    """Open a classifier saved with joblib or pickle; loading it runs code of the file.

    Args:
        where: The file.
        outputs: None or ``"confidences"``.
        device: Not used: scikit-learn computes on the CPU.
        batch_size: Most queries that the classifier gets at once.
        trust_pickle: Allow the file's author to run code here.

    Raises:
        InvalidOptionError: ``trust_pickle`` is not True, or ``outputs`` are logits.
        MissingExtraError: joblib is not installed.
        CorruptDataError: The file cannot be loaded.
    """
    name = f"target {where!r}"
    check_switch("trust_pickle", trust_pickle)
    if not trust_pickle:
        raise InvalidOptionError(
            f"{where} is a pickle, and loading it runs whatever code is in it. Save the model "
            "with `skops.io.dump` instead, or if you made the file pass --model-option "
            "trust_pickle=true (in Python, trust_pickle=True)."
        )
    refuse_logits(outputs, name, "it has predict_proba")
    joblib = load_extra("joblib", extra="sklearn", purpose="opening a .joblib or .pkl file")
    try:
        estimator = joblib.load(where)
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        ImportError,
    ) as error:
        raise CorruptDataError(
            f"{where} cannot be loaded ({type(error).__name__}: {error}). Load it where its "
            "packages are installed, in the versions that it was saved with."
        ) from error
    return estimator_target(estimator, batch_size=batch_size, name=name)
