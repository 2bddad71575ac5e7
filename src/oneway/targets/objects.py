"""A model at hand as a Python object, or built by ``package.module:factory``, as a target."""

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
from oneway.targets.answers import Array, refuse_logits, require_outputs
from oneway.targets.callables import CallableTarget, RecordedTarget, callable_target
from oneway.targets.defended import DefendedTarget
from oneway.targets.estimator import estimator_target
from oneway.targets.modules import named_in_config, names_its_logits
from oneway.targets.onnx_file import session_target
from oneway.targets.torch_module import TorchTarget

OWN_TARGETS = (CallableTarget, DefendedTarget, RecordedTarget, ScoredTarget)

KINDS = (
    "a torch.nn.Module, an ONNX Runtime session, a scikit-learn classifier with predict_proba, a "
    "pipeline of transformers, an MLflow model, a target, or a callable from a NumPy array to a "
    "NumPy array"
)


def target_of(
    model: Any,
    *,
    outputs: Outputs | None,
    device: torch.device | None,
    batch_size: int = 512,
    name: str = "the model",
    said: str = "is",
    **options: Any,
) -> Target:
    """Take an object as a target.

    A target is one whose class is oneway's, has ``logits``, or derives from
    :class:`oneway.contracts.Target`; any other callable takes and gives NumPy arrays.

    Args:
        model: A ``torch.nn.Module``, of timm or transformers among others; an
            ``onnxruntime.InferenceSession``; a fitted classifier with ``predict_proba``; a
            pipeline of transformers that classifies images, which are asked in ``[0, 1]``; an
            MLflow model; a target; or a callable from a NumPy array to a NumPy array.
        outputs: What the model answers with, where its kind does not fix that.
        device: Where a module goes; None: it stays where it lies.
        batch_size: Most queries that the model gets at once.
        name: What messages call the model.
        said: The verb of the message that refuses another object.
        **options: Of a session: ``output_name``.

    Raises:
        InvalidOptionError: The object is of none of these kinds, ``outputs`` do not fit it, or it
            takes no such option.
    """
    if is_session(model):
        outputs = require_outputs(outputs, name)
        return session_target(model, outputs, batch_size=batch_size, name=name, **options)
    if options:
        raise InvalidOptionError(f"{name} takes no option {next(iter(options))!r}. Leave it out.")
    if isinstance(model, nn.Module):
        if outputs is None and names_its_logits(model):
            outputs = "logits"
        outputs = require_outputs(outputs, name)
        placed = model if device is None else model.to(device)
        return TorchTarget(placed, outputs=outputs, batch_size=batch_size, name=name)
    if isinstance(model, OWN_TARGETS) or Target in type(model).__mro__:
        refuse_logits(outputs, name, "it is a target already")
        target: Target = model
        return target
    if is_estimator(model):
        refuse_logits(outputs, name, "it has predict_proba")
        return estimator_target(model, batch_size=batch_size, name=name)
    if is_pipeline(model):
        return _pipeline_target(model, batch_size, name)
    score = model.predict if is_pyfunc(model) else model
    if callable(score) and not isinstance(score, type):
        outputs = require_outputs(outputs, name)
        return callable_target(score, outputs, batch_size=batch_size, name=name)
    got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    must = f"must {said.replace('returned', 'return')}" if said != "is" else "must be"
    raise InvalidOptionError(f"{name} {must} {KINDS}, but {said} {got}. Pass an instance of one.")


def is_estimator(model: Any) -> bool:
    """Say whether an object is a classifier, or a booster, that is asked by its methods.

    Also without ``predict_proba``, so that the message which refuses it says how to get one.
    """
    if isinstance(model, type):
        return False
    only_predicts = hasattr(model, "predict") and not callable(model) and not is_pyfunc(model)
    return hasattr(model, "predict_proba") or only_predicts


def is_session(model: Any) -> bool:
    """Say whether an object is an ONNX Runtime session, or is asked as one."""
    return all(callable(getattr(model, each, None)) for each in ("run", "get_inputs"))


def is_pyfunc(model: Any) -> bool:
    """Say whether an object is a model that ``mlflow.pyfunc.load_model`` returned."""
    return any(each.__name__ == "PyFuncModel" for each in type(model).__mro__)


def is_pipeline(model: Any) -> bool:
    """Say whether an object is a pipeline of transformers."""
    return isinstance(getattr(model, "model", None), nn.Module) and hasattr(model, "postprocess")


def _pipeline_target(pipeline: Any, batch_size: int, name: str) -> Target:
    """Return a pipeline that classifies images as a target of images in ``[0, 1]``."""
    prepare = getattr(pipeline, "image_processor", None)
    if pipeline.task != "image-classification" or prepare is None:
        raise InvalidOptionError(
            f"{name} must be a pipeline of transformers for 'image-classification', but is for "
            f"{pipeline.task!r}. Ask its model by a function of the arrays that it takes."
        )

    @torch.no_grad()
    def score(images: Array) -> Array:
        inputs = prepare(
            images=list(images),
            do_rescale=False,
            input_data_format="channels_first",
            return_tensors="pt",
        ).to(pipeline.model.device)
        scores: Array = pipeline.model(**inputs).logits.float().cpu().numpy()
        return scores

    target = callable_target(score, "logits", batch_size=batch_size, name=name)
    target.class_names = named_in_config(pipeline.model)
    return target


def open_entry_point(
    where: str, *, outputs: Outputs | None, device: torch.device, batch_size: int
) -> Target:
    """Call a factory without arguments, and open the model that it returns.

    The current directory is put on the path, and stays there, as with uvicorn and gunicorn:
    a model may import modules at its first query.

    Args:
        where: ``package.module:factory``. The factory returns a model as
            :func:`oneway.targets.target_of` takes it.
        outputs: What the model answers with, where its kind does not fix that.
        device: Where a module goes.
        batch_size: Most queries that the model gets at once.

    Raises:
        MissingDataError: There is no such module.
        UnknownNameError: The module has no such attribute.
        DataError: Importing the module, or calling the factory, raised.
        InvalidOptionError: The result is of none of these kinds, or ``outputs`` do not fit the
            result.
    """
    return target_of(
        _build(where),
        outputs=outputs,
        device=device,
        batch_size=batch_size,
        name=f"target {where!r}",
        said="returned",
    )


def imported(where: str, what: str) -> Any:
    """Import what ``package.module:name`` names; see :func:`open_entry_point`.

    Args:
        where: The module and the name in it.
        what: What is sought, for messages.

    Raises:
        MissingDataError: There is no such module.
        UnknownNameError: The module has no such attribute.
        DataError: Importing the module raised.
    """
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
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [
                name
                for name, value in vars(found).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            ]
            raise UnknownNameError(f"{what} in module {module_name!r}", attribute, known)
        found = getattr(found, part)
    return found


def _build(where: str) -> Any:
    factory = imported(where, "factory")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InvalidOptionError(
            f"{where!r} must be a function that takes nothing and returns the model, but is a "
            f"{type(factory).__name__}. Write one that returns it."
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        file = sys.modules[where.partition(":")[0]].__file__
        raise DataError(
            f"the factory {where!r}, called without arguments, raised {_described(error, file)}"
        ) from error


def _described(error: BaseException, file: str | None) -> str:
    """Describe an exception raised before there was any query."""
    text = f"{type(error).__name__}: {error} ({where_raised(error, file)})."
    cause = error.__cause__
    return text if cause is None else f"{text} Its cause: {type(cause).__name__}: {cause}."
