"""Which packages oneway asks for, by extra, and which of them are there: from metadata alone."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from oneway.errors import MissingDataError

PURPOSES = {
    "demo": "`oneway demo`: bundled digits, the download of MNIST, figures",
    "images": "photographs: celeba, facescrub, any folder of images",
    "audit": "`oneway audit`: its figure, and every query in a Parquet file",
    "http": "models behind somebody else's endpoint",
    "onnx": "models that are .onnx files",
    "export": "a codebook, or a model with one behind it, as ONNX",
    "records": "tables: audits of models of records, .csv and .parquet",
    "serve": "`oneway serve`: guarded HTTP servers",
    "sklearn": "scikit-learn models, and a guard around `predict_proba`",
    "mlflow": "a guard around an MLflow model",
    "playground": "`oneway playground`: a page to try defenses on, with bundled digits",
    "ray": "guards on Ray Serve and Ray Data, experiments on a cluster",
}
"""What each extra is for, in a line. Which extras there are, the metadata says."""


@dataclass(frozen=True)
class Package:
    """One package that is asked for.

    Attributes:
        name: As the index spells it.
        wanted: The range of versions, such as ``">=1.26"``; empty: any.
        version: What is installed; None: nothing is.
        in_range: Whether that is what is wanted; True if nothing is installed.
        modules: What it is imported as; empty if that is not known, or of no interest since
            another package brings it.
        through: The package that brings it, for one that oneway does not ask for itself.
    """

    name: str
    wanted: str
    version: str | None
    in_range: bool
    modules: tuple[str, ...] = ()
    through: str | None = None


@dataclass(frozen=True)
class Extra:
    """One extra of oneway.

    Attributes:
        name: As in ``oneway[name]``.
        purpose: What it is for; empty for one that :data:`PURPOSES` does not know.
        packages: What it asks for.
    """

    name: str
    purpose: str
    packages: tuple[Package, ...]

    @property
    def missing(self) -> tuple[Package, ...]:
        """Its packages that are not installed."""
        return tuple(one for one in self.packages if one.version is None)

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install 'oneway[{self.name}]'"


@dataclass(frozen=True)
class Conflict:
    """An installed package that wants another version of one of oneway's own packages.

    Attributes:
        package: Who wants it, and what it is imported as.
        wants: The requirement, such as ``"torch==2.12.0"``.
        found: The version that is installed.
    """

    package: Package
    wants: str
    found: str


Installed = Mapping[str, Distribution]
"""Installed distributions by canonical name."""


def find_installed(path: Sequence[str] | None = None) -> Installed:
    """Return what is installed; of two with one name the first, which is the one imported.

    Args:
        path: Folders to look in. None: ``sys.path``.
    """
    # Not `distributions()`: the package importlib_metadata, once loaded, puts its own in its place.
    places = sys.path if path is None else path
    every = MetadataPathFinder.find_distributions(DistributionFinder.Context(path=list(places)))
    found: dict[str, Distribution] = {}
    for one in every:
        # A folder that an interrupted installation left has no name.
        name = one.metadata["Name"]
        if name:
            found.setdefault(canonicalize_name(name), one)
    return found


def read_extras(installed: Installed) -> tuple[tuple[Package, ...], tuple[Extra, ...]]:
    """Return what oneway's core asks for, and its extras, from the metadata of its installation.

    Args:
        installed: From :func:`find_installed`.

    Raises:
        MissingDataError: oneway runs from a folder, and is not installed.
    """
    if "oneway" not in installed:
        raise MissingDataError(
            "oneway is imported from a folder, but is not installed, so that nothing says what it "
            "needs. Run `pip install -e .` where its pyproject.toml is."
        )
    own = installed["oneway"]
    names = own.metadata.get_all("Provides-Extra") or []
    extras = (Extra(name, PURPOSES.get(name, ""), _all_asked(name, installed)) for name in names)
    return _all_asked("", installed), tuple(extras)


def find_conflicts(names: Iterable[str], installed: Installed) -> list[Conflict]:
    """Return which installed packages want other versions of some than are there.

    Args:
        names: Of those some, such as torch.
        installed: From :func:`find_installed`.
    """
    watched = {canonicalize_name(name) for name in names}
    found = []
    for owner, distribution in sorted(installed.items()):
        if owner == "oneway":
            continue
        for requirement in _requirements(distribution, "", watched & installed.keys()):
            name = canonicalize_name(requirement.name)
            version = installed[name].version
            if not requirement.specifier.contains(version, prereleases=True):
                package = describe(owner, installed)
                found.append(Conflict(package, f"{name}{requirement.specifier}", version))
    return found


def describe(name: str, installed: Installed) -> Package:
    """Return one package by name, whatever asks for it."""
    return _package(Requirement(name), installed, None)


def _all_asked(extra: str, installed: Installed) -> tuple[Package, ...]:
    """Return what an extra of oneway asks for, each package once: its own ones first."""
    found: dict[str, Package] = {}
    for one in sorted(_asked("oneway", extra, installed), key=lambda one: one.through is not None):
        found.setdefault(canonicalize_name(one.name), one)
    return tuple(found.values())


def _asked(
    owner: str, extra: str, installed: Installed, within: Set[tuple[str, str]] = frozenset()
) -> Iterator[Package]:
    """Give what an extra of an installed package asks for; extra "": what it always does."""
    if (owner, extra) in within:
        return
    for requirement in _requirements(installed[owner], extra):
        name = canonicalize_name(requirement.name)
        if name != owner:
            yield _package(requirement, installed, None if owner == "oneway" else owner)
        if name in installed:
            for one in sorted(requirement.extras):
                yield from _asked(name, one, installed, within | {(owner, extra)})


def _requirements(
    distribution: Distribution, extra: str, names: Set[str] | None = None
) -> Iterator[Requirement]:
    """Give what a distribution requires for an extra, or always; only ``names``, if given."""
    for text in distribution.requires or ():
        # Of thousands of requirements few are looked for, and parsing takes a while.
        if names is not None and canonicalize_name(re.split(r"[^\w.-]", text)[0]) not in names:
            continue
        requirement = Requirement(text)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always != bool(extra) and (marker is None or marker.evaluate({"extra": extra})):
            yield requirement


def _package(requirement: Requirement, installed: Installed, through: str | None) -> Package:
    found = installed.get(canonicalize_name(requirement.name))
    wanted = str(requirement.specifier)
    if found is None:
        return Package(requirement.name, wanted, None, in_range=True, through=through)
    # Who has installed a pre-release knows.
    in_range = requirement.specifier.contains(found.version, prereleases=True)
    modules = () if through else _modules(requirement.name, found)
    return Package(requirement.name, wanted, found.version, in_range, modules, through)


def _modules(name: str, distribution: Distribution) -> tuple[str, ...]:
    """Return what a package is imported as: of its own name, or all that it brings."""
    record = distribution.read_text("RECORD") or ""
    brought = set(re.findall(r"^([A-Za-z]\w*)(?:/__init__)?\.py,", record, re.MULTILINE))
    own = canonicalize_name(name).replace("-", "_")
    return (own,) if own in brought else tuple(sorted(brought))
