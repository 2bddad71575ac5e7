"""Everything that `oneway doctor` says, found once: packages, devices, folders, what is wrong."""

import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from oneway.errors import MissingExtraError
from oneway.installation.packages import (
    Conflict,
    Extra,
    Installed,
    Package,
    describe,
    find_conflicts,
    find_installed,
    read_extras,
)
from oneway.installation.places import Folder, download_folder, find_browser, measure_folder
from oneway.installation.probe import Import, try_imports

COMPANIONS = ("torchvision", "torchaudio")
"""Packages that must be built for the very torch that is there, and fail to load if they are not;
oneway does without, but what it guards may need them."""

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """Something that a person should know.

    Attributes:
        broken: Whether something that is installed does not work.
        what: The fact.
        remedy: What to do about it.
    """

    broken: bool
    what: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation.

    Attributes:
        version: Of the oneway that runs.
        core: What oneway always needs.
        extras: What it can do without.
        imports: What came of importing each module that is installed, by name.
        torch: Version and devices, see :mod:`oneway.installation.probe`; empty if it fails.
        folders: Where oneway writes.
        browser: What shows its pages; None: nothing was found.
        findings: What is broken, and what is worth knowing.
    """

    version: str
    core: tuple[Package, ...]
    extras: tuple[Extra, ...]
    imports: Mapping[str, Import]
    torch: Mapping[str, Any]
    folders: tuple[Folder, ...]
    browser: str | None
    findings: tuple[Finding, ...]

    @property
    def works(self) -> bool:
        """Whether the core is there, and nothing that is installed is broken."""
        return not any(one.broken for one in self.findings)

    def faults_of(self, package: Package) -> list[str]:
        """Return what is wrong with an installed package; nothing: it works."""
        faults = []
        if not package.in_range:
            faults.append(f"{package.version} is not {package.wanted}")
        for module in package.modules:
            error = self.imports[module].error if module in self.imports else None
            if error is not None:
                faults.append(error)
        return faults

    def state_of(self, extra: Extra) -> str:
        """Return "ready", "missing", "incomplete" or "broken"."""
        if any(self.faults_of(one) for one in extra.packages):
            return "broken"
        own = [one for one in extra.packages if one.through is None]
        if not extra.missing:
            return "ready"
        return "missing" if all(one.version is None for one in own) else "incomplete"

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "works": self.works,
            "oneway": self.version,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "torch": dict(self.torch),
            "core": [self._as_json(one) for one in self.core],
            "extras": [
                {
                    "name": extra.name,
                    "purpose": extra.purpose,
                    "state": self.state_of(extra),
                    "install": extra.command,
                    "packages": [self._as_json(one) for one in extra.packages],
                }
                for extra in self.extras
            ],
            "folders": [{**asdict(one), "path": str(one.path)} for one in self.folders],
            "browser": self.browser,
            "findings": [asdict(one) for one in self.findings],
        }

    def _as_json(self, package: Package) -> dict[str, Any]:
        return {
            "name": package.name,
            "wanted": package.wanted,
            "version": package.version,
            "through": package.through,
            "faults": self.faults_of(package),
        }


def diagnose(version: str, folders: Mapping[str, Path]) -> Diagnosis:
    """Look at the installation that runs this.

    Args:
        version: Of oneway, as it says itself.
        folders: Where oneway writes besides its downloads: by purpose.

    Raises:
        MissingDataError: oneway is not installed, but imported from a folder.
    """
    installed = find_installed()
    core, extras = read_extras(installed)
    conflicts = find_conflicts([one.name for one in core], installed)
    beside_torch = [describe(name, installed) for name in COMPANIONS if name in installed]
    wanted = [one for extra in extras for one in extra.packages]
    owners = [one.package for one in conflicts]
    first = [*_modules(core), *_modules(beside_torch), "oneway"]
    others = [one for one in _modules([*wanted, *owners]) if one not in first]
    # torch takes as long as all others together.
    with ThreadPoolExecutor(2) as both:
        found = [one for some in both.map(try_imports, (first, others)) for one in some]
    imports = {one.module: one for one in found}
    torch = imports["torch"].facts if "torch" in imports else {}
    places = [measure_folder(purpose, path) for purpose, path in folders.items()]
    with suppress(MissingExtraError):  # without its package nothing is downloaded
        places.append(measure_folder("downloaded data", download_folder()))
    unjudged = Diagnosis(
        version, core, extras, imports, torch, tuple(places), find_browser(), findings=()
    )
    findings = [
        *_of_versions(version, installed),
        *_of_packages(unjudged, [*core, *beside_torch, *wanted]),
        *_of_conflicts(unjudged, conflicts),
        *_of_devices(torch, NVIDIA_DRIVER.exists()),
        *_of_folders(places),
    ]
    return replace(unjudged, findings=tuple(dict.fromkeys(findings)))


def _modules(packages: Sequence[Package]) -> list[str]:
    return list(dict.fromkeys(module for package in packages for module in package.modules))


def _of_versions(version: str, installed: Installed) -> list[Finding]:
    """Hold this interpreter and this code against what the installation says of itself."""
    own, found = installed["oneway"], []
    python, wanted = platform.python_version(), own.metadata["Requires-Python"]
    if wanted and not SpecifierSet(wanted).contains(python, prereleases=True):
        found.append(Finding(True, f"Python {python} is not {wanted}.", "Use another Python."))
    if own.version != version:
        found.append(
            Finding(
                True,
                f"oneway {version} is imported, but {own.version} is installed: what "
                "is said here of its extras is of the latter.",
                "Install it again, or run where no other copy comes first.",
            )
        )
    return found


def _of_packages(unjudged: Diagnosis, packages: Sequence[Package]) -> list[Finding]:
    """Say which packages are wanted and not there, too old or new, or do not load."""
    found = []
    for one in packages:
        if one.version is None:
            if one in unjudged.core:
                what = f"{one.name} is not installed, and nothing works without it."
                found.append(Finding(True, what, "Run `pip install oneway`."))
            continue
        for fault in unjudged.faults_of(one):
            if one.name in COMPANIONS:
                remedy = (
                    f"Install the {one.name} that was built for torch "
                    f"{unjudged.torch.get('version', '')}, or remove it: oneway does without."
                )
            elif not one.in_range:
                remedy = f"Run `pip install '{one.name}{one.wanted}'`."
            else:
                remedy = f"Run `pip install --force-reinstall --no-deps {one.name}=={one.version}`."
            found.append(Finding(True, f"{one.name}: {fault.rstrip('.')}.", remedy))
    # A release that fails with torch has its reason there already.
    own = unjudged.imports["oneway"]
    if own.error is not None and not found:
        found.append(Finding(True, f"oneway: {own.error.rstrip('.')}.", "Install oneway again."))
    return found


def _of_conflicts(unjudged: Diagnosis, conflicts: Sequence[Conflict]) -> list[Finding]:
    """Say who wants other versions of oneway's packages; it is broken if it does not load."""
    return [
        Finding(
            any(unjudged.faults_of(one.package)),
            f"{one.package.name} {one.package.version} wants {one.wants}, but "
            f"{one.found} is installed.",
            f"Upgrade {one.package.name}, or give it an environment of its own.",
        )
        for one in conflicts
    ]


def _of_devices(torch: Mapping[str, Any], driver: bool) -> list[Finding]:
    """Say where torch and the machine's devices do not go together; all works, but slowly."""
    if not torch:
        return []
    found, built = [], torch["built_for_cuda"]
    if built and not torch["gpus"]:
        what = f"torch was built for GPUs (CUDA or ROCm {built}), but sees none: it uses the CPU."
        remedy = "Nothing to mend if there is none; its CPU build is gigabytes smaller."
        found.append(Finding(False, what, remedy))
    if driver and not built:
        what = "There is an NVIDIA driver, but torch was built for the CPU alone."
        remedy = "Install torch's CUDA build to use the GPU."
        found.append(Finding(False, what, remedy))
    if torch["mps"] and not torch["gpus"]:
        what = "There is an Apple GPU, which --device auto leaves aside."
        found.append(Finding(False, what, "Ask for it by --device mps; it is not tested."))
    cores = usable_cores()
    if torch["threads"] > cores:
        what = f"torch computes with {torch['threads']} threads on {cores} cores."
        found.append(Finding(False, what, f"Set OMP_NUM_THREADS={cores}."))
    return found


def _of_folders(folders: Sequence[Folder]) -> list[Finding]:
    return [
        Finding(
            False,
            f"{one.path} ({one.purpose}) cannot be written to.",
            "Run elsewhere, or pass the command another folder, such as --cache FOLDER.",
        )
        for one in folders
        if not one.writable
    ]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
