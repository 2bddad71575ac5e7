"""Packages that oneway can do without: each is imported where it is needed, or missed there."""

import importlib
from pathlib import Path
from typing import Any

from oneway.errors import MissingExtraError


def load_extra(module: str, *, extra: str, purpose: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: Its dotted name.
        extra: The extra of oneway that brings the package.
        purpose: What it is needed for, as the message begins.
        package: What it is installed as. None: as the module's first name.

    Raises:
        MissingExtraError: It is not installed.
    """
    parent = module.partition(".")[0]
    try:
        importlib.import_module(parent)
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package or parent, extra=extra, purpose=purpose) from error


def download_folder() -> Path:
    """Return the folder of downloads, in the user's cache folder.

    Raises:
        MissingExtraError: pooch, which downloads, is not installed.
    """
    pooch = load_extra("pooch", extra="demo", purpose="downloading 'mnist'")
    return Path(pooch.os_cache("oneway"))
