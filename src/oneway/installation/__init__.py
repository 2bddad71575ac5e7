"""What is installed, where, and whether it works: what `oneway doctor` says."""

from oneway.installation.diagnosis import Diagnosis, Finding, diagnose
from oneway.installation.packages import (
    PURPOSES,
    Conflict,
    Extra,
    Package,
    find_conflicts,
    find_installed,
    read_extras,
)
from oneway.installation.places import Folder, download_folder, find_browser, measure_folder
from oneway.installation.probe import Import, try_imports

__all__ = [
    "PURPOSES",
    "Conflict",
    "Diagnosis",
    "Extra",
    "Finding",
    "Folder",
    "Import",
    "Package",
    "diagnose",
    "download_folder",
    "find_browser",
    "find_conflicts",
    "find_installed",
    "measure_folder",
    "read_extras",
    "try_imports",
]
