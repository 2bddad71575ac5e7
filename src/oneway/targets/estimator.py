"""A scikit-learn classifier as a target, from Python or from a file."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from oneway.checks import check_switch
from oneway.contracts import Target
from oneway.errors import CorruptDataError, InvalidOptionError, InvalidTensorError
from oneway.extras import load_extra
from oneway.releases import Outputs
from oneway.targets.answers import Array, refuse_logits
from oneway.targets.callables import callable_target


def estimator_target(estimator: Any, *, batch_size: int, name: str) -> Target:
    """Wrap a fitted classifier that has ``predict_proba``.

    Column ``k`` of its answers is the class ``estimator.classes_[k]``. Images are flattened in
    row-major order, ``(N, C, H, W)`` to ``(N, C * H * W)``.

    Args:
        estimator: The classifier.
        batch_size: Most queries that the classifier gets at once.
        name: What messages call the target.

    Raises:
        InvalidOptionError: The classifier has no ``predict_proba``, is not fitted, or has several
            outputs.
    """
    for attribute, remedy in (
        ("predict_proba", "Wrap it in sklearn.calibration.CalibratedClassifierCV"),
        ("classes_", "Fit it, or return the fitted one"),
    ):
        if not hasattr(estimator, attribute):
            raise InvalidOptionError(
                f"{name} must be a fitted scikit-learn classifier, but its "
                f"{type(estimator).__name__} has no {attribute}. {remedy}."
            )
    if any(isinstance(label, np.ndarray) for label in estimator.classes_):
        raise InvalidOptionError(
            f"{name} must have one output, but its {type(estimator).__name__} has "
            f"{len(estimator.classes_)}. Fit one classifier for each."
        )
    return callable_target(
        _Probabilities(estimator, name), "confidences", batch_size=batch_size, name=name
    )


class _Probabilities:
    """Answers with ``predict_proba``, and checks that ``predict`` gives its arg max."""

    def __init__(self, estimator: Any, name: str) -> None:
        self.estimator, self.name = estimator, name
        # Labels may be of any type, and in any order.
        self.columns = {label: column for column, label in enumerate(estimator.classes_)}

    def __call__(self, queries: Array) -> Array:
        rows = queries.reshape(len(queries), -1)
        features = getattr(self.estimator, "n_features_in_", rows.shape[1])
        if features != rows.shape[1]:
            raise InvalidTensorError(
                f"{self.name} was fitted on {features} features, but queries of shape "
                f"{queries.shape} have {rows.shape[1]} each. Prepare them as the fit did."
            )
        # A copy: the classifier may write to its input, which `predict` needs again.
        answer = self.estimator.predict_proba(rows.copy())
        if not isinstance(answer, np.ndarray) or answer.shape != (len(rows), len(self.columns)):
            raise InvalidTensorError(
                f"{self.name} must answer {len(rows)} queries with an array of shape "
                f"({len(rows)}, {len(self.columns)}), one column for each of classes_, but gave "
                f"{getattr(answer, 'shape', type(answer).__name__)}."
            )
        return self._led_by_prediction(answer, self.estimator.predict(rows))

    def _led_by_prediction(self, answer: Array, predicted: Array) -> Array:
        label = np.array([self.columns[value] for value in predicted])[:, None]
        probability = np.take_along_axis(answer, label, 1)
        top = answer.max(1, keepdims=True)
        behind = int((probability < top).sum())
        if behind:
            raise InvalidTensorError(
                f"predict of {self.name} must say classes_[argmax] of predict_proba, but says "
                f"another class for {behind} of {len(answer)} queries. SVC(probability=True) "
                "does; wrap the model in sklearn.calibration.CalibratedClassifierCV, or open a "
                "function that gives the probabilities that you release."
            )
        # Probabilities can tie where the scores behind them do not.
        other = answer.argmax(1)[:, None] != label
        answer = answer.copy()
        lifted = np.where(other, np.nextafter(top, np.inf), probability)
        np.put_along_axis(answer, label, lifted, 1)
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
            "with `skops.io.dump` instead, or pass trust_pickle=True if you made the file."
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
