"""Which classifiers give one class to a query, and where a label stands in their scores.

Classifiers of scikit-learn, LightGBM, XGBoost and CatBoost, by what they offer: none is imported.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.checks import class_name, first_names
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets.answers import Array

_CLASSIFIERS = {
    "catboost": "CatBoostClassifier",
    "lightgbm": "LGBMClassifier",
    "xgboost": "XGBClassifier",
}

_ONE_VS_ALL = ("multiclassova", "multiclass_ova", "ova", "ovr", "MultiClassOneVsAll")
"""Objectives of LightGBM and CatBoost whose probabilities do not sum to 1."""

SUMS = 0.05
"""How far the sum of a row of probabilities may be from 1."""

_FUNCTION = (
    "a function that gives one probability for each class can be guarded by "
    "oneway.adapters.GuardedFunction, or opened as package.module:factory"
)

_ALL_CLASSES = (
    "Fit it with an objective of all classes (LightGBM: 'multiclass'; CatBoost: 'MultiClass'), or "
    f"divide each row by its sum: {_FUNCTION}."
)


def require_probabilities(model: Any, name: str | None = None) -> None:
    """Refuse a model that gives no probabilities of classes.

    Args:
        model: The classifier, fitted or not.
        name: What the message calls the classifier; None: its class.

    Raises:
        InvalidOptionError: It has no ``predict_proba``, or no ``predict``.
    """
    for method in ("predict_proba", "predict"):
        if hasattr(model, method):
            continue
        library = type(model).__module__.partition(".")[0]
        remedy = (
            f"Fit and save it as {_CLASSIFIERS[library]}; {_FUNCTION}. A booster of two classes "
            "gives one column p, which becomes `np.stack([1 - p, p], 1)`."
            if library in _CLASSIFIERS
            else "Wrap it in sklearn.calibration.CalibratedClassifierCV."
        )
        raise InvalidOptionError(f"{_called(model, name)} has no {method}. {remedy}")


def classes_of(model: Any, name: str | None = None) -> Array:
    """Return the ``(K)`` classes of a fitted classifier that gives one of them to each query.

    Args:
        model: The classifier.
        name: What the message calls the classifier; None: its class.

    Raises:
        InvalidOptionError: The classifier gives no probabilities, is not fitted, has several
            outputs, several labels for each query or fewer than two classes, its probabilities
            do not sum to 1, or it gives raw scores.
    """
    require_probabilities(model, name)
    name = _called(model, name)
    classes = getattr(model, "classes_", None)
    if classes is None or not len(classes):
        raise InvalidOptionError(f"{name} is not fitted, since it has no classes_. Fit it first.")
    if any(isinstance(output, list | np.ndarray) for output in classes):
        raise InvalidOptionError(
            f"{name} must have one output, but has {len(classes)}. Fit one classifier for each."
        )
    inner = _innermost(model)
    if _has_several_labels(inner):
        raise InvalidOptionError(
            f"{name} must give each query one label, but gives several (multi-label). Fit one "
            "classifier for each label."
        )
    if _objective(inner) in _ONE_VS_ALL:
        raise InvalidOptionError(
            f"probabilities of {name} must sum to 1 in each row, but are one against all "
            f"(objective {_objective(inner)!r}). {_ALL_CLASSES}"
        )
    if callable(_objective(inner)):
        raise InvalidOptionError(
            f"{name} has an objective of its own, so that LightGBM gives its raw scores in place "
            f"of probabilities and classes. Turn these scores into probabilities: {_FUNCTION}."
        )
    if len(classes) < 2:
        raise InvalidOptionError(
            f"{name} must have at least 2 classes, but has {len(classes)} class. With one, there "
            "is nothing to protect."
        )
    return np.asarray(classes)


def _called(model: Any, name: str | None) -> str:
    kind = type(model).__name__
    return kind if name is None else f"{name} ({kind})"


def check_sums(probabilities: Array, name: str) -> None:
    """Refuse the ``(N, K)`` answers of ``predict_proba`` unless each row sums to 1 within 0.05.

    Raises:
        InvalidTensorError: A row does not: it has one model for each class, or several labels.
    """
    off = int((np.abs(probabilities.sum(1) - 1) > SUMS).sum())
    if off:
        raise InvalidTensorError(
            f"predict_proba of {name} must sum to 1 in each row (within {SUMS}), but {off} of "
            f"{len(probabilities)} rows do not: it has one model for each class, or several labels "
            f"for a query. {_ALL_CLASSES}"
        )


def places_of(predicted: Any, classes: Array, rows: int, name: str) -> NDArray[np.int64]:
    """Return the column of the scores that each predicted label stands for.

    Args:
        predicted: What ``predict`` gave: see :func:`flat_labels`. Labels may have another type
            than ``classes``; or be their indices, where ``classes`` are texts.
        classes: ``(K)`` labels, in the order of the scores.
        rows: N, the number of queries.
        name: What messages call the classifier.

    Returns:
        ``(N)`` columns, from 0 to K - 1.

    Raises:
        InvalidTensorError: There is not one label for each query, or a label is no class.
    """
    labels = flat_labels(predicted, rows, name)
    known = classes.tolist()
    exact = {label: place for place, label in enumerate(known)}
    named = {class_name(label): place for place, label in enumerate(known)}
    given = labels.tolist()
    places = [exact.get(label, named.get(class_name(label))) for label in given]
    unknown = sum(place is None for place in places)
    are_texts = all(isinstance(label, str) for label in known)
    if unknown == rows and labels.dtype.kind in "iu" and are_texts:
        places = [label if 0 <= label < len(known) else None for label in given]
        unknown = sum(place is None for place in places)
    if unknown:
        raise InvalidTensorError(
            f"predict of {name} must give classes of classes_ ({first_names(list(named))}), but "
            f"{unknown} of {rows} answers, of type {labels.dtype.name}, are none of them."
        )
    return np.array(places, np.int64)


def flat_labels(predicted: Any, rows: int, name: str) -> Array:
    """Return what ``predict`` gave for N queries as ``(N)`` labels.

    Args:
        predicted: ``(N)`` labels, or ``(N, 1)``, as CatBoost gives them of 3 classes or more.
        rows: N, the number of queries.
        name: What messages call the classifier.

    Raises:
        InvalidTensorError: There is not one label for each query.
    """
    labels = np.asarray(predicted)
    if labels.shape == (rows, 1):
        labels = labels[:, 0]
    if labels.shape != (rows,):
        raise InvalidTensorError(
            f"predict of {name} must give one class for each of {rows} queries, but gave shape "
            f"{labels.shape}. A classifier with several labels for a query cannot be guarded: fit "
            "one classifier for each label."
        )
    return labels


def _innermost(model: Any) -> Any:
    """Return the classifier in a pipeline, a search or a wrapper."""
    while True:
        steps = getattr(model, "steps", None)
        inner = steps[-1][1] if steps else None
        for name in ("best_estimator_", "estimator_"):
            inner = inner or getattr(model, name, None)
        if inner is None:
            return model
        model = inner


def _has_several_labels(model: Any) -> bool:
    if hasattr(model, "get_booster"):  # XGBoost
        learner = json.loads(model.get_booster().save_config())["learner"]
        return int(learner["learner_model_param"].get("num_target", 1)) > 1
    binarizer = getattr(model, "_label_binarizer", None)  # scikit-learn's MLPClassifier
    return (
        getattr(model, "multilabel_", False) is True
        or str(getattr(binarizer, "y_type_", "")).startswith("multilabel")
        or _objective(model) in ("MultiLogloss", "MultiCrossEntropy")  # CatBoost
    )


def _objective(model: Any) -> Any:
    if hasattr(model, "get_all_params"):  # CatBoost
        return model.get_all_params().get("loss_function")
    return getattr(model, "objective_", None)  # LightGBM
