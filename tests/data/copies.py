"""A copy of a folder, for a law that spoils it once for each combination."""

import shutil
import tempfile
from pathlib import Path


def copy_of(folder):
    return shutil.copytree(folder, Path(tempfile.mkdtemp(dir=folder.parent)) / "copy")
