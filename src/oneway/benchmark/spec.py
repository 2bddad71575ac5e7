"""What to run, as data: TOML in, frozen and validated dataclasses out."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from oneway.attacks import LabelOnly, Static
from oneway.checks import check_count
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, UnknownNameError
from oneway.evaluation.parsing import build_from
from oneway.evaluation.records import json_values
from oneway.evaluation.settings import (
    AttackerSpec,
    ReleaseSpec,
    SurrogateSpec,
)
from oneway.evaluation.store import spec_key
from oneway.targets import TargetTrainingSettings

NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class DataSpec:
    """Which data sets, and how many images each split has.

    Attributes:
        name: Of the data set that private and test images come from.
        private: Number of images that train the target.
        auxiliary: Number of images that attackers and defender have.
        test: Number of queries that attacks are graded on.
        path: File or folder of the data set, where it needs one.
        side: Images are scaled to this many pixels a side; 0: as stored.
        auxiliary_name: Of the data set that auxiliary images come from; empty: the same.
        auxiliary_path: File or folder of that one.
        calibration: How many queries the operator has kept, to fit releases to; 0: fitted
            releases take the auxiliary images.
    """

    name: str
    private: int
    auxiliary: int
    test: int
    path: str = ""
    side: int = 0
    auxiliary_name: str = ""
    auxiliary_path: str = ""
    calibration: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes outside their range.

        Raises:
            InvalidOptionError: A size is not a whole number, or too small.
        """
        for split in ("private", "auxiliary", "test"):
            check_count(split, getattr(self, split))
        for name in ("calibration", "side"):
            check_count(name, getattr(self, name), least=0)


@dataclass(frozen=True)
class TargetSpec:
    """The classifier: width of its first block, number of blocks, and its training."""

    width: int = 32
    blocks: int = 3
    training: TargetTrainingSettings = field(default_factory=TargetTrainingSettings)

    def __post_init__(self) -> None:
        """Refuse sizes below 1.

        Raises:
            InvalidOptionError: A size is not a whole number, or below 1.
        """
        check_count("width", self.width)
        check_count("blocks", self.blocks)


@dataclass(frozen=True)
class ExperimentSpec:
    """A whole experiment. The first release must be ``none``: it gives the clean baseline."""

    name: str
    data: DataSpec
    releases: tuple[ReleaseSpec, ...]
    preset: str = ""
    seed: int = 0
    target: TargetSpec = field(default_factory=TargetSpec)
    surrogate: SurrogateSpec = field(default_factory=SurrogateSpec)
    attackers: AttackerSpec = field(default_factory=AttackerSpec)

    def __post_init__(self) -> None:
        """Refuse what could not run, before any training.

        Raises:
            InvalidOptionError: A value is outside its range, or a release or attack is missing.
        """
        if not NAME.fullmatch(self.name):
            raise InvalidOptionError(
                "name must be letters, digits, dots, dashes and underscores, since files are "
                f"named by it, but is {self.name!r}."
            )
        check_count("seed", self.seed, least=0)
        for repeats in self.attackers.repeats:
            check_count("repeats", repeats, least=2)
        if not self.releases or self.releases[0].defense != "none":
            raise InvalidOptionError(
                "the first release must have defense = 'none': every closed gap needs it."
            )
        names = [release.name for release in self.releases]
        if len(set(names)) < len(names):
            raise InvalidOptionError(f"releases must have distinct names, but are {names}.")
        if not {LabelOnly.name, Static.name} <= set(self.attackers_of(self.releases[0])):
            raise InvalidOptionError(
                f"attackers must include {LabelOnly.name!r} and {Static.name!r}: they are the "
                "baselines."
            )
        for release in self.releases:
            if LabelOnly.name not in self.attackers_of(release):
                raise InvalidOptionError(
                    f"release {release.name!r} is not attacked by {LabelOnly.name!r}: every "
                    "attacker may fall back on the label, so that each verdict needs it. Add it."
                )

    def attackers_of(self, release: ReleaseSpec) -> tuple[str, ...]:
        """Return who attacks a release."""
        return release.attackers or self.attackers.names


def cell_key(spec: ExperimentSpec, row: ReleaseSpec) -> str:
    """Return the hash of all that an experiment says about one record.

    That is the experiment but for its other rows; the first is in it, since baselines come from it.
    What the data sets held is not: see ``Experiment.data``.
    """
    whole = json_values(dataclasses.asdict(spec))
    del whole["releases"], whole["name"], whole["preset"], whole["attackers"]["names"]
    if not spec.data.calibration:
        # Nothing is kept, nothing is said: an experiment without it is what it was.
        del whole["data"]["calibration"]
    rows = {
        name: {**json_values(dataclasses.asdict(one)), "attackers": list(spec.attackers_of(one))}
        for name, one in (("baselines", spec.releases[0]), ("release", row))
    }
    return spec_key({"cell": whole, **rows})


def load_spec(path: Path, preset: str | None = None) -> ExperimentSpec:
    """Read an experiment from a TOML file.

    A file may hold presets: tables ``[presets.NAME]`` whose values take the place of the others.

    Args:
        path: The file.
        preset: Preset to apply.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is not TOML in UTF-8.
        UnknownNameError: A key or name is unknown.
        InvalidOptionError: A value is missing, of another type, or outside its range.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no experiment file {path}.")
    return _spec_from(read_toml(path.read_bytes(), str(path)), str(path), preset)


def bundled_spec(name: str, preset: str | None = None) -> ExperimentSpec:
    """Read an experiment that ships with oneway, such as ``"demo-digits"``.

    Args:
        name: Name of the experiment.
        preset: Which of its presets to apply, such as ``"cpu"`` or ``"paper"``.

    Raises:
        UnknownNameError: There is none of that name, or it has no such preset.
    """
    return _spec_from(bundled_toml(name), name, preset)


def bundled_toml(name: str) -> dict[str, Any]:
    """Read a TOML file that ships with oneway, by its name without the ending.

    Raises:
        UnknownNameError: There is none of that name.
    """
    folder = resources.files("oneway.benchmark") / "experiments"
    known = [
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    ]
    if name not in known:
        raise UnknownNameError("experiment", name, known)
    return read_toml((folder / f"{name}.toml").read_bytes(), name)


def read_toml(content: bytes, origin: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        CorruptDataError: It is not TOML in UTF-8.
    """
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise CorruptDataError(f"{origin} is not TOML: too deeply nested.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{origin} is not TOML: {error}") from error


def _spec_from(values: dict[str, Any], origin: str, preset: str | None) -> ExperimentSpec:
    presets = values.pop("presets", {})
    if not isinstance(presets, dict) or not all(isinstance(p, dict) for p in presets.values()):
        raise InvalidOptionError(f"presets of {origin} must be tables, [presets.NAME].")
    if preset is not None:
        if preset not in presets:
            raise UnknownNameError(f"preset of {origin}", preset, presets)
        values = _overlaid(values, {**presets[preset], "preset": preset})
    return build_from(ExperimentSpec, values, origin)


def _overlaid(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with those of ``over`` in their place, table by table.

    Rows of an array of tables are matched by their ``name``.
    """
    result = dict(values)
    for key, value in over.items():
        present = result.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            result[key] = _overlaid(present, value)
        elif present is not None and _are_named(value) and _are_named(present):
            changes = {row["name"]: row for row in value}
            unknown = [name for name in changes if name not in {row["name"] for row in present}]
            if unknown:
                raise UnknownNameError(f"row of {key}", unknown[0], [r["name"] for r in present])
            result[key] = [_overlaid(row, changes.get(row["name"], {})) for row in present]
        else:
            result[key] = value
    return result


def _are_named(rows: Any) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) and "name" in row for row in rows)
