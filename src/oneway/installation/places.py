"""Where oneway keeps files on this machine, and what shows its pages."""

import os
import shutil
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from oneway.extras import load_extra

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "microsoft-edge", "firefox")
"""Commands looked for where no browser is registered, as on a server without a screen."""


@dataclass(frozen=True)
class Folder:
    """A folder that oneway writes to.

    Attributes:
        purpose: What is kept there.
        path: Where it is, or would be made.
        size: Bytes of the files in it; None: it is not there yet.
        files: How many those are.
        writable: Whether files can be made in it, or it can be made.
    """

    purpose: str
    path: Path
    size: int | None
    files: int
    writable: bool


def measure_folder(purpose: str, path: Path) -> Folder:
    """Look at a folder, without making it."""
    there = path.absolute()
    nearest = next(one for one in (there, *there.parents) if one.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    if not there.is_dir():
        return Folder(purpose, there, None, 0, writable)
    sizes = [one.lstat().st_size for one in there.rglob("*") if one.is_file()]
    return Folder(purpose, there, sum(sizes), len(sizes), writable)


def download_folder() -> Path:
    """Return where downloads are kept: in the user's cache folder.

    Raises:
        MissingExtraError: pooch, which downloads, is not installed.
    """
    pooch = load_extra("pooch", extra="demo", purpose="downloading 'mnist'")
    return Path(pooch.os_cache("oneway"))


def find_browser() -> str | None:
    """Return which browser shows pages here; None: none was found."""
    for name in BROWSERS:
        path = shutil.which(name)
        if path is not None:
            return path
    try:
        return str(getattr(webbrowser.get(), "name", "the system's own"))
    except webbrowser.Error:
        return None
