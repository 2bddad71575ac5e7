"""Optional packages: imported where they are needed, or a message says how to install them."""

import importlib
from pathlib import Path
from typing import Any

from oneway.errors import MissingExtraError


def load_extra(module: str, *, extra: str, purpose: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: Dotted name of the module.
        extra: The extra of oneway that installs the package.
        purpose: What the module is needed for: the message begins with this text.
        package: Name of the package. None: the module's first name.

    Raises:
        MissingExtraError: The package is not installed.
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
