"""Diagnose an installation: packages, imports, devices, folders, and remedies."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import Message
from email.parser import HeaderParser
from functools import lru_cache
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from oneway.errors import MissingDataError
from oneway.extras import download_folder

PURPOSES = {
    "demo": "`oneway demo`: bundled digits, the download of MNIST, figures",
    "images": "photographs: celeba, facescrub, any folder of images",
    "audit": "`oneway audit`: its figure, and every query in a Parquet file",
    "http": "models behind somebody else's endpoint",
    "onnx": "models that are .onnx files",
    "export": "a codebook, or a model with one behind it, as ONNX",
    "records": "tables: audits of models of records, .csv and .parquet",
    "serve": "`oneway serve`: guarded HTTP servers",
    "grpc": "`oneway serve --grpc-port`: the same servers over gRPC",
    "sklearn": "scikit-learn models, and a guard around `predict_proba`",
    "mlflow": "a guard around an MLflow model",
    "art": "a guard as a postprocessor of ART",
    "otel": "traces of `oneway serve`, for OpenTelemetry",
    "playground": "`oneway playground`: a page to try defenses on, with bundled digits",
    "ray": "guards on Ray Serve and Ray Data, experiments on a cluster",
}
"""The use of each extra, in a line. The metadata of the installation lists the extras."""

COMPANIONS = ("torchvision", "torchaudio")
"""Packages that load only with the torch they were built for; some guarded models need them."""

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "microsoft-edge", "firefox")

NAME = re.compile(r"[\w.-]*")
"""The name with which a requirement begins."""

Installed = Mapping[str, Distribution]  # by canonical name
Wanted = tuple[Requirement, str | None]  # and the package that requires it; None: oneway
Import = tuple[str | None, dict[str, Any]]  # error as a line, None without; facts about torch
Json = dict[str, Any]


def diagnose(version: str, cache: Path, *, every: bool = False) -> Json:
    """Return the state of this installation, as `oneway doctor --json` prints it.

    Args:
        version: Version of the imported oneway.
        cache: Folder for trained networks.
        every: Whether to import every installed package, each in another process; False: oneway
            alone, and each package of its core if that fails.

    Raises:
        MissingDataError: oneway is imported from a folder, and is not installed.
    """
    installed = find_installed()
    if "oneway" not in installed:
        raise MissingDataError(
            "oneway is imported from a folder, but is not installed, so that nothing says what it "
            "needs. Run `pip install -e .` where its pyproject.toml is."
        )
    extras = _headers(installed["oneway"]).get_all("Provides-Extra") or []
    wanted = {extra: find_wanted(extra, installed) for extra in ("", *extras)}
    conflicts = find_conflicts({canonicalize_name(each.name) for each, _ in wanted[""]}, installed)
    wanted["companions"] = [(Requirement(each), None) for each in COMPANIONS if each in installed]
    wanted["owners"] = [(Requirement(owner), None) for owner, _ in conflicts]
    imports = try_imports(["oneway"])
    tried = chain(*wanted.values()) if every else wanted[""] if imports["oneway"][0] else ()
    imports |= try_imports([*chain(*(find_modules(each, installed) for each in tried))])
    packages = {
        name: [check_package(each, installed, imports) for each in group]
        for name, group in wanted.items()
    }
    core, owners = packages.pop(""), packages.pop("owners")
    torch = imports["oneway"][1] or imports.get("torch", ("", {}))[1]
    folders = [measure_folder("trained networks", cache)]
    if "pooch" in installed:
        folders.append(measure_folder("downloaded data", download_folder()))
    findings = [*_version_findings(version, installed["oneway"])]
    for package in chain(core, *packages.values()):
        findings += _package_findings(package, core, torch)
    if imports["oneway"][0] and not findings:  # else another finding is the reason
        findings.append(_fault(f"oneway: {imports['oneway'][0]}.", "Install oneway again."))
    for owner, (_, conflict) in zip(owners, conflicts, strict=True):
        statement = f"{owner['name']} {owner['version']} wants {conflict} is installed."
        remedy = f"Upgrade {owner['name']}, or install it into another environment."
        findings.append((_fault if owner["faults"] else _note)(statement, remedy))
    findings += _notes(torch, folders)
    return {
        "works": not any(each["broken"] for each in findings),
        "oneway": version,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch,
        "core": core,
        "extras": [_extra(extra, packages[extra]) for extra in extras],
        "folders": folders,
        "browser": find_browser(),
        "findings": [each for n, each in enumerate(findings) if each not in findings[:n]],
    }


def find_installed(path: Sequence[str] | None = None) -> Installed:
    """Return the packages in folders (None: ``sys.path``), the first of each name."""
    # Not `distributions()`, which the package importlib_metadata replaces once it is loaded.
    context = DistributionFinder.Context(path=list(sys.path if path is None else path))
    distributions = [*MetadataPathFinder.find_distributions(context)][::-1]
    # The folder of an interrupted installation has no name.
    return {
        canonicalize_name(name): each for each in distributions if (name := _headers(each)["Name"])
    }


@lru_cache(maxsize=4096)
def _headers(distribution: Distribution) -> Message:
    """Return what a distribution says of itself, without its description, which may be long."""
    texts = map(distribution.read_text, ("METADATA", "PKG-INFO", ""))  # the last: an egg's one file
    return HeaderParser().parsestr((next(filter(None, texts), "")).partition("\n\n")[0])


def find_wanted(extra: str, installed: Installed) -> list[Wanted]:
    """Return what an extra of oneway, or its core (""), requires; indirect requirements last."""
    wanted = sorted(_wanted("oneway", extra, installed), key=lambda each: each[1] is not None)
    return list({canonicalize_name(each[0].name): each for each in reversed(wanted)}.values())[::-1]


def _wanted(
    owner: str, extra: str, installed: Installed, within: Set[tuple[str, str]] = frozenset()
) -> Iterator[Wanted]:
    for each in _requirements(installed[owner], extra):
        name = canonicalize_name(each.name)
        if name != owner:
            yield each, None if owner == "oneway" else owner
        for inner in sorted(each.extras) if name in installed else ():
            if (name, inner) not in within:
                yield from _wanted(name, inner, installed, within | {(owner, extra), (name, inner)})


def _requirements(
    distribution: Distribution, extra: str = "", names: Set[str] | None = None
) -> Iterator[Requirement]:
    """Yield what a distribution requires on this machine: for an extra alone, or always ("").

    Args:
        distribution: The distribution.
        extra: The extra.
        names: Canonical names of packages that count; None: all.
    """
    texts = _headers(distribution).get_all("Requires-Dist")
    if texts is None and distribution.read_text("requires.txt"):  # an egg's
        texts = distribution.requires
    for text in texts or ():
        # Thousands of requirements are read faster than they are parsed.
        if names is not None and canonicalize_name(NAME.findall(text)[0]) not in names:
            continue
        each = Requirement(text)
        always, with_extra = (
            each.marker is None or each.marker.evaluate({"extra": name}) for name in ("", extra)
        )
        if with_extra and always != bool(extra):
            yield each


def find_conflicts(names: Set[str], installed: Installed) -> list[tuple[str, str]]:
    """Return packages that require another version of ``names``, each with its requirement."""
    return [
        (owner, f"{name}{each.specifier}, but {version}")
        for owner in sorted(installed.keys() - {"oneway"})
        for each in _requirements(installed[owner], names=names & installed.keys())
        if not each.specifier.contains(
            version := _headers(installed[name := canonicalize_name(each.name)])["Version"],
            prereleases=True,
        )
    ]


def find_modules(wanted: Wanted, installed: Installed) -> list[str]:
    """Return the modules to import: the module of the package's name, or all of its modules."""
    requirement, through = wanted
    name = canonicalize_name(requirement.name)
    record = "" if through or name not in installed else installed[name].read_text("RECORD") or ""
    modules = set(re.findall(r"^([A-Za-z]\w*)(?:/__init__)?\.py,", record, re.MULTILINE))
    return [same] if (same := name.replace("-", "_")) in modules else sorted(modules)


def check_package(wanted: Wanted, installed: Installed, imports: Mapping[str, Import]) -> Json:
    """Describe a package: its version, the required range, and why it does not work."""
    requirement, through = wanted
    package = installed.get(canonicalize_name(requirement.name))
    specifier = requirement.specifier
    version = None if package is None else _headers(package)["Version"]
    modules = [each for each in find_modules(wanted, installed) if each in imports]
    errors = [imports[module][0] for module in modules]
    # An installed pre-release counts as wanted.
    if version is not None and not specifier.contains(version, prereleases=True):
        errors.insert(0, f"{version} is not {specifier}")
    return {
        "name": requirement.name,
        "wanted": str(specifier),
        "version": version,
        "through": through,
        "faults": [error for error in errors if error],
    }


def _extra(name: str, packages: list[Json]) -> Json:
    """Describe an extra: its state is "ready", "missing", "incomplete" or "broken"."""
    present = [each for each in packages if each["version"] is not None]
    state = "ready" if len(present) == len(packages) else "incomplete"
    if all(each["through"] for each in present) and present != packages:
        state = "missing"
    if any(each["faults"] for each in packages):
        state = "broken"
    return {
        "name": name,
        "purpose": PURPOSES.get(name, ""),
        "state": state,
        "install": f"pip install 'oneway[{name}]'",
        "packages": packages,
    }


def _fault(statement: str, remedy: str) -> Json:
    """Return a finding about something that is installed and does not work."""
    return {"broken": True, "what": statement, "remedy": remedy}


def _note(statement: str, remedy: str) -> Json:
    """Return a finding about an installation that works."""
    return _fault(statement, remedy) | {"broken": False}


def _version_findings(version: str, distribution: Distribution) -> Iterator[Json]:
    """Compare this interpreter and this code with the metadata of the installation."""
    python, wanted = platform.python_version(), _headers(distribution)["Requires-Python"]
    if wanted and not SpecifierSet(wanted).contains(python, prereleases=True):
        yield _fault(f"Python {python} is not {wanted}.", "Use another Python.")
    if distribution.version != version:
        yield _fault(
            f"oneway {version} is imported, but {distribution.version} is installed, which is "
            "judged here.",
            "Install it again, or run where no other copy comes first.",
        )


def _package_findings(package: Json, core: list[Json], torch: Json) -> Iterator[Json]:
    """Yield the faults of a package, each with a command that mends it."""
    name, version = package["name"], package["version"]
    if version is None and package in core:
        statement = f"{name} is not installed, and nothing works without it."
        yield _fault(statement, "Run `pip install oneway`.")
    for error in package["faults"]:
        remedy = f"Run `pip install --force-reinstall --no-deps {name}=={version}`."
        if name in COMPANIONS:
            built = f"Install the {name} that was built for torch {torch.get('version', '')}"
            remedy = f"{built}, or remove it: oneway does without."
        elif error == f"{version} is not {package['wanted']}":
            remedy = f"Run `pip install '{name}{package['wanted']}'`."
        yield _fault(f"{name}: {error.rstrip('.')}.", remedy)


def _notes(torch: Json, folders: list[Json]) -> Iterator[Json]:
    """Yield notes on devices and cores that torch does not use well, and on read-only folders."""
    built, gpus, threads = (torch.get(key) for key in ("built_for_cuda", "gpus", "threads"))
    if built and not gpus:
        fact = f"torch was built for GPUs (CUDA or ROCm {built}), but sees none: it uses the CPU."
        yield _note(fact, "Nothing to mend without a GPU; the CPU build is gigabytes smaller.")
    if torch and NVIDIA_DRIVER.exists() and not built:
        fact = "There is an NVIDIA driver, but torch was built for the CPU alone."
        yield _note(fact, "Install torch's CUDA build to use the GPU.")
    if torch.get("mps") and not gpus:
        fact = "There is an Apple GPU, which --device auto leaves aside."
        yield _note(fact, "Choose it by --device mps; it is not tested.")
    if threads and threads > (cores := usable_cores()):
        fact = f"torch computes with {threads} threads on {cores} cores."
        yield _note(fact, f"Set OMP_NUM_THREADS={cores}.")
    for each in folders:
        if not each["writable"]:
            fact = f"{each['path']} ({each['purpose']}) cannot be written to."
            remedy = "Run elsewhere, or pass the command another folder, such as --cache FOLDER."
            yield _note(fact, remedy)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def measure_folder(purpose: str, path: Path) -> Json:
    """Measure a folder, without making it; its size is in bytes, None if it does not exist."""
    path = path.absolute()
    nearest = next(each for each in (path, *path.parents) if each.exists())
    sizes = [each.lstat().st_size for each in path.rglob("*") if each.is_file()]
    return {
        "purpose": purpose,
        "path": str(path),
        "size": sum(sizes) if path.is_dir() else None,
        "files": len(sizes),
        "writable": nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
    }


def find_browser() -> str | None:
    """Return the browser of this machine, or None."""
    for path in filter(None, map(shutil.which, BROWSERS)):  # on servers they are not registered
        return path
    with suppress(webbrowser.Error):
        return str(getattr(webbrowser.get(), "name", "the system's own"))
    return None


def try_imports(modules: Sequence[str]) -> dict[str, Import]:
    """Import each module in another process, since a broken module may end its interpreter."""
    names = list(dict.fromkeys(modules))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(try_import, names), strict=True))


def try_import(module: str, timeout_seconds: float = 120.0) -> Import:
    """Import a module in another process.

    Args:
        module: Name of the module.
        timeout_seconds: Most seconds that the import may take.
    """
    # -P: a file of the working folder must not replace a package.
    command = [sys.executable, "-P", "-m", "oneway.cli.probe", module]
    try:
        ended = subprocess.run(  # noqa: S603  our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not finish in {timeout_seconds:g} seconds", {}
    if ended.stdout:
        error, facts = json.loads(ended.stdout)
        return error, facts
    code = ended.returncode
    ending = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"the interpreter ended {ending} while importing it", {}
