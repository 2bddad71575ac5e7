"""Specs of experiments: frozen dataclasses, read from TOML and checked."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from oneway.attacks import LabelOnly, Static, inversion_attacks
from oneway.benchmark.recorded import RecordedScores
from oneway.checks import check_count
from oneway.data import check_split_size
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, UnknownNameError
from oneway.evaluation.records import json_values
from oneway.evaluation.settings import (
    AttackerSpec,
    ReleaseSpec,
    SurrogateSpec,
    is_simulated,
    sketch_defense,
)
from oneway.evaluation.store import spec_key
from oneway.options import Options, option
from oneway.parsing import build_from
from oneway.targets import TargetTrainingSettings

NAME = re.compile(r"\w[\w.-]*")

LATER = (("target", "training", "schedule", "one-cycle"), ("surrogate", "removed", "first"))
"""Fields that older records lack, each with the value that these records were made with."""


class DataSpec(Options):
    """The data sets of an experiment, and the size of each split.

    A size is a number of images, or a share of those that are there: 0.8, or 1.0 for all of them.
    """

    name: str = option("Name of the data set of private and test images.")
    private: int | float = option(
        "Size of the split that trains the target.", check=check_split_size
    )
    auxiliary: int | float = option(
        "Size of the split of attackers and defender.", check=check_split_size
    )
    test: int | float = option(
        "Size of the split of queries that attacks are graded on.", check=check_split_size
    )
    path: str = option(
        "File or folder of the data set; empty: the data set needs none.", default=""
    )
    side: int = option(
        "Side of the scaled images, in pixels; 0: images are not scaled.", default=0, least=0
    )
    auxiliary_name: str = option(
        "Name of the data set of auxiliary images; empty: the same data set.", default=""
    )
    auxiliary_path: str = option("File or folder of the auxiliary data set.", default="")
    calibration: int | float = option(
        "Size of the split of queries that the operator has kept to fit releases to; 0: releases "
        "are fitted to auxiliary images.",
        default=0,
        check=partial(check_split_size, least=0),
    )


class TargetSpec(Options):
    """The classifier of an experiment."""

    width: int = option("Channels of the first block.", default=32)
    blocks: int = option("Number of blocks.", default=3)
    training: TargetTrainingSettings = option(
        "Training settings.", default=TargetTrainingSettings()
    )


@dataclass(frozen=True)
class ExperimentSpec:
    """An experiment.

    Attributes:
        name: Name of the experiment, which files are named by.
        data: Data sets and sizes of splits.
        releases: Releases to compare. The first must be ``none``, which gives the clean baseline.
        preset: Name of the applied preset; empty: none.
        seed: Seed of all random streams, at least 0.
        target: The classifier.
        surrogate: Surrogate of the defender.
        attackers: Attackers and their decoders.
    """

    name: str
    data: DataSpec
    releases: tuple[ReleaseSpec, ...]
    preset: str = ""
    seed: int = 0
    target: TargetSpec = field(default_factory=TargetSpec)
    surrogate: SurrogateSpec = field(default_factory=SurrogateSpec)
    attackers: AttackerSpec = field(default_factory=AttackerSpec)

    def __post_init__(self) -> None:
        """Refuse an experiment that could not run, before any training.

        Raises:
            InvalidOptionError: A value is outside its range, or a release or attack is missing.
        """
        if not NAME.fullmatch(self.name):
            raise InvalidOptionError(
                "name must be letters, digits, dots, dashes and underscores, since it is part of "
                f"file names, but is {self.name!r}."
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
        """Return the names of the attacks on a release."""
        return release.attackers or self.attackers.names

    def applying_attackers(self, release: ReleaseSpec) -> tuple[str, ...]:
        """Return the names of the attacks that apply to a release, by what its defense declares."""
        defense = sketch_defense(release)
        available = {"clean", "candidates", "train_prior"}
        if not isinstance(defense, RecordedScores):
            available |= {"query", "differentiable_logits"}
        available |= set() if defense.deterministic else {"random"}
        available |= {"simulated_defenses"} if is_simulated(release) else set()
        attacks = inversion_attacks()
        return tuple(
            name for name in self.attackers_of(release) if attacks[name].applies(available)
        )


def cell_key(spec: ExperimentSpec, row: ReleaseSpec) -> str:
    """Return the hash of all that an experiment says about a record.

    The other releases have no part in it, except the first, which gives the baselines. The content
    of the data sets has no part in it either; see ``Experiment.data``.
    """
    whole = without_later_fields(json_values(dataclasses.asdict(spec)))
    del whole["releases"], whole["name"], whole["preset"], whole["attackers"]["names"]
    rows = {
        part: {**json_values(dataclasses.asdict(each)), "attackers": list(spec.attackers_of(each))}
        for part, each in (("baselines", spec.releases[0]), ("release", row))
    }
    return spec_key({"cell": whole, **rows})


def without_later_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's values as if fields that say nothing new had not been added.

    So older records keep their keys, and are averaged with new ones.

    Args:
        values: JSON values of an experiment, also of one that an older version wrote.
    """
    result = json_values(values)
    for *path, name, value in LATER:
        table = result
        for part in path:
            table = table.get(part, {})
        if table.get(name) == value:
            del table[name]
    return result  # type: ignore[no-any-return]


def load_spec(path: Path, preset: str | None = None) -> ExperimentSpec:
    """Read an experiment from a TOML file.

    A file may hold presets: tables ``[presets.NAME]`` with values that replace the file's.

    Args:
        path: The file.
        preset: Name of the preset to apply; None: no preset.

    Raises:
        MissingDataError: The file does not exist.
        CorruptDataError: The file is not TOML in UTF-8.
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
        preset: Name of the preset to apply, such as ``"cpu"`` or ``"paper"``; None: no preset.

    Raises:
        UnknownNameError: The experiment or the preset does not exist.
    """
    return _spec_from(bundled_toml(name), name, preset)


def bundled_toml(name: str) -> dict[str, Any]:
    """Read a TOML file that ships with oneway, by its name without the ending.

    Raises:
        UnknownNameError: The file does not exist.
    """
    folder = resources.files("oneway.benchmark") / "experiments"
    known = [
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    ]
    UnknownNameError.check("experiment", name, known)
    return read_toml((folder / f"{name}.toml").read_bytes(), name)


def read_toml(content: bytes, origin: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        CorruptDataError: The content is not TOML in UTF-8.
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
        UnknownNameError.check(f"preset of {origin}", preset, presets)
        values = _overlaid(values, {**presets[preset], "preset": preset})
    return build_from(ExperimentSpec, values, origin)


def _overlaid(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values``, replaced by the values of ``over`` table by table.

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
