"""Packages that only some kinds of target need."""

import importlib
from typing import Any

from oneway.errors import MissingExtraError


def load_extra(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: Its dotted name.
        extra: The extra of oneway that brings the package.
        purpose: What it is needed for, as the message begins.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(package, extra=extra, purpose=purpose) from error
