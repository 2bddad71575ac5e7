"""``package.module:factory``: a model that a function of the user builds."""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oneway.contracts import ScoredTarget, Target
from oneway.errors import (
    DataError,
    InvalidOptionError,
    MissingDataError,
    UnknownNameError,
    where_raised,
)
from oneway.releases import Outputs
from oneway.targets.answers import refuse_logits, require_outputs
from oneway.targets.callables import CallableTarget, callable_target
from oneway.targets.defended import DefendedTarget
from oneway.targets.estimator import estimator_target
from oneway.targets.recorded import RecordedTarget
from oneway.targets.torch_module import TorchTarget

OWN_TARGETS = (CallableTarget, DefendedTarget, RecordedTarget, ScoredTarget)


def open_entry_point(
    where: str, *, outputs: Outputs | None, device: torch.device, batch_size: int
) -> Target:
    """Call a factory without arguments, and open the model that it returns.

    The current directory is put on the path, and stays there, as with uvicorn and gunicorn:
    a model may import modules at its first query.

    A result counts as a target if its class is oneway's, has ``logits``, or derives from
    :class:`oneway.contracts.Target`; any other callable takes and gives NumPy arrays.

    Args:
        where: ``package.module:factory``. The factory returns a ``torch.nn.Module``, a
            scikit-learn classifier, a target, or a callable from NumPy arrays to NumPy arrays.
        outputs: What a module or callable answers with; the other two kinds fix it.
        device: Where a module goes.
        batch_size: Most queries that the model gets at once.

    Raises:
        MissingDataError: There is no such module.
        UnknownNameError: The module has no such attribute.
        DataError: Importing the module, or calling the factory, raised.
        InvalidOptionError: The result is of none of these kinds, or ``outputs`` do not fit the
            result.
    """
    name = f"target {where!r}"
    result = _build(where)
    if isinstance(result, nn.Module):
        outputs = require_outputs(outputs, name)
        return TorchTarget(result.to(device), outputs=outputs, batch_size=batch_size, name=name)
    if isinstance(result, OWN_TARGETS) or Target in type(result).__mro__:
        refuse_logits(outputs, name, "it is a target already")
        target: Target = result
        return target
    if hasattr(result, "predict_proba") and not isinstance(result, type):
        refuse_logits(outputs, name, "it has predict_proba")
        return estimator_target(result, batch_size=batch_size, name=name)
    if callable(result) and not isinstance(result, type):
        outputs = require_outputs(outputs, name)
        return callable_target(result, outputs, batch_size=batch_size, name=name)
    got = f"the class {result.__name__}" if isinstance(result, type) else type(result).__name__
    raise InvalidOptionError(
        f"the factory {where!r} must return a torch.nn.Module, a scikit-learn classifier with "
        "predict_proba, a target, or a callable from a NumPy array to a NumPy array, but "
        f"returned {got}. {_remedy(result)}"
    )


def _remedy(result: object) -> str:
    """Return what to do about the result of a factory that is no model as a target takes it."""
    if type(result).__name__ == "Booster" and hasattr(result, "predict"):
        return (
            "A booster's predict gives one column for two classes: return a function that gives "
            "two, as by `numpy.stack([1 - p, p], 1)`, or fit its scikit-learn class, such as "
            "LGBMClassifier or XGBClassifier."
        )
    return "Return an instance of one of these."


def _build(where: str) -> Any:
    module_name, _, attribute = where.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        ):
            raise MissingDataError(
                f"there is no module {error.name!r} for {where!r}, neither in {here} nor among "
                "the installed packages. Run oneway where the module lies, or install it."
            ) from error
        raise DataError(f"importing {module_name!r} raised {_described(error, None)}") from error
    factory: Any = module
    for part in attribute.split("."):
        if not hasattr(factory, part):
            known = [
                name
                for name, value in vars(factory).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            ]
            raise UnknownNameError(f"factory in module {module_name!r}", attribute, known)
        factory = getattr(factory, part)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InvalidOptionError(
            f"{where!r} must be a function that takes nothing and returns the model, but is a "
            f"{type(factory).__name__}. Write one that returns it."
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise DataError(
            f"the factory {where!r}, called without arguments, raised "
            f"{_described(error, module.__file__)}"
        ) from error


def _described(error: BaseException, file: str | None) -> str:
    """Describe an exception raised before there was any query."""
    text = f"{type(error).__name__}: {error} ({where_raised(error, file)})."
    cause = error.__cause__
    return text if cause is None else f"{text} Its cause: {type(cause).__name__}: {cause}."
