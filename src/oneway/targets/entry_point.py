"""``package.module:name``: a model that a function of the user builds, or a class of the user."""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oneway.contracts import Target
from oneway.errors import (
    DataError,
    InvalidOptionError,
    MissingDataError,
    UnknownNameError,
    where_raised,
)
from oneway.releases import Outputs
from oneway.targets.objects import target_of


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
