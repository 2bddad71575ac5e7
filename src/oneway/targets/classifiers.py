"""Which classifiers give one class to a query, and where a label stands in their scores.

Classifiers of scikit-learn, LightGBM, XGBoost and CatBoost, by what they offer: none is imported.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets.answers import Array

_CLASSIFIERS = {
    "catboost": "CatBoostClassifier",
    "lightgbm": "LGBMClassifier",
    "xgboost": "XGBClassifier",
}

_ONE_VS_ALL = ("multiclassova", "multiclass_ova", "ova", "ovr", "MultiClassOneVsAll")
"""Objectives of LightGBM and CatBoost whose probabilities do not sum to 1."""


def require_probabilities(model: Any) -> None:
    """Refuse a model that gives no probabilities of classes.

    Raises:
        InvalidOptionError: It has no ``predict_proba``, or no ``predict``.
    """
    name = type(model).__name__
    for method in ("predict_proba", "predict"):
        if hasattr(model, method):
            continue
        library = type(model).__module__.partition(".")[0]
        remedy = (
            f"Fit it as {_CLASSIFIERS[library]}, or load its file by `load_model` of that class "
            "where it has one. Or guard a function of two columns or more by "
            "oneway.adapters.GuardedFunction: a binary booster gives one column p, which becomes "
            "`np.stack([1 - p, p], 1)`."
            if library in _CLASSIFIERS
            else "Wrap it in sklearn.calibration.CalibratedClassifierCV."
        )
        raise InvalidOptionError(f"{name} has no {method}. {remedy}")


def classes_of(model: Any) -> Array:
    """Return the ``(K)`` classes of a fitted classifier that gives one of them to each query.

    Raises:
        InvalidOptionError: The classifier gives no probabilities, is not fitted, has several
            outputs, several labels for each query or fewer than two classes, its probabilities
            do not sum to 1, or it gives raw scores.
    """
    require_probabilities(model)
    name = type(model).__name__
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
            f"(objective {_objective(inner)!r}). Fit it with an objective of all "
            "classes (LightGBM: 'multiclass', CatBoost: 'MultiClass'), or guard a function that "
            "divides each row by its sum, by oneway.adapters.GuardedFunction."
        )
    if callable(_objective(inner)):
        raise InvalidOptionError(
            f"{name} has an objective of its own, so that LightGBM gives its raw scores in place "
            "of probabilities and classes. Guard a function that turns these scores into "
            "probabilities, by oneway.adapters.GuardedFunction."
        )
    if len(classes) < 2:
        raise InvalidOptionError(
            f"{name} must have at least 2 classes, but has {len(classes)} class. With one, there "
            "is nothing to protect."
        )
    return np.asarray(classes)


def flat_labels(predicted: Any, name: str) -> Array:
    """Return what ``predict`` gave for N queries as ``(N)`` labels.

    Args:
        predicted: ``(N)`` labels, or ``(N, 1)``, as CatBoost gives them of 3 classes or more.
        name: What messages call the classifier.

    Raises:
        InvalidTensorError: There is not one label for each query.
    """
    labels = np.asarray(predicted)
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim == 1:
        return labels
    raise InvalidTensorError(
        f"predict of {name} must give each query one label, but gave an array of shape "
        f"{labels.shape}. Of a model with several labels for each query (multi-label), fit one "
        "classifier for each label."
    )


def columns_of(labels: Array, classes: Array, name: str) -> NDArray[np.int64]:
    """Return the column of the scores that each predicted label stands for.

    Args:
        labels: ``(N)`` labels of ``classes``, of the same type or as text; or their indices.
        classes: ``(K)`` labels, in the order of the scores.
        name: What messages call the classifier.

    Raises:
        InvalidTensorError: A label is no class.
    """
    given, known = labels.tolist(), classes.tolist()
    for spelled in (lambda label: label, str):
        columns = {spelled(label): column for column, label in enumerate(known)}
        if all(spelled(label) in columns for label in given):
            return np.array([columns[spelled(label)] for label in given], np.int64)
    if labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < len(known):
        return labels.astype(np.int64)
    raise InvalidTensorError(
        f"predict of {name} must give labels of classes_, {', '.join(map(str, known))}, or their "
        "indices, but gave others."
    )


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
