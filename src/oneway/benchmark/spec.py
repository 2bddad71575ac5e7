"""What to run, as data: TOML in, frozen and validated dataclasses out."""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from oneway.benchmark.registry import ATTACKS, build_defense
from oneway.checks import check_count
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError, UnknownNameError
from oneway.inversion import FRONT_ENDS, HELD_OUT, TrainingSettings
from oneway.targets import TargetTrainingSettings


@dataclass(frozen=True)
class DataSpec:
    """Which data set, and how many images each split has."""

    name: str
    private: int
    auxiliary: int
    test: int


@dataclass(frozen=True)
class TargetSpec:
    """The classifier: width of its first block, number of blocks, and its training."""

    width: int = 32
    blocks: int = 3
    training: TargetTrainingSettings = field(default_factory=TargetTrainingSettings)


@dataclass(frozen=True)
class SurrogateSpec:
    """The defender's own inverter, trained on clean confidences of the auxiliary images."""

    width: int = 32
    hidden_layers_removed: int = 2
    front_end: str = "faithful"
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class AttackerSpec:
    """The attackers: who they are, and the decoders that each may choose from.

    Attributes:
        names: Registered attacks.
        front_ends: Input transforms to try.
        widths: Decoder widths to try.
        held_out: Share of the auxiliary images kept for choosing.
        training: Equal for every attack on every release.
    """

    names: tuple[str, ...] = tuple(ATTACKS)
    front_ends: tuple[str, ...] = FRONT_ENDS
    widths: tuple[int, ...] = (16, 32)
    held_out: float = HELD_OUT
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class ReleaseSpec:
    """One row of the table: what it is called, and which defense with which options."""

    name: str
    defense: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentSpec:
    """A whole experiment. The first release must be ``none``: it gives the clean floor."""

    name: str
    data: DataSpec
    releases: tuple[ReleaseSpec, ...]
    seed: int = 0
    target: TargetSpec = field(default_factory=TargetSpec)
    surrogate: SurrogateSpec = field(default_factory=SurrogateSpec)
    attackers: AttackerSpec = field(default_factory=AttackerSpec)

    def __post_init__(self) -> None:
        """Refuse what could not run, before any training.

        Raises:
            UnknownNameError: A defense, option, attack or front end does not exist.
            InvalidOptionError: A value is outside its range.
        """
        for release in self.releases:
            # Any module does for a surrogate here: this is about the options.
            build_defense(release.defense, release.options, nn.Identity())
        if not self.releases or self.releases[0].defense != "none":
            raise InvalidOptionError(
                "the first release must have defense = 'none': every closed gap needs it."
            )
        names = [release.name for release in self.releases]
        if len(set(names)) < len(names):
            raise InvalidOptionError(f"releases must have distinct names, but are {names}.")
        for attack in self.attackers.names:
            if attack not in ATTACKS:
                raise UnknownNameError("attack", attack, ATTACKS)
        if not {"label-only", "static"} <= set(self.attackers.names):
            raise InvalidOptionError(
                "attackers must include 'label-only' and 'static': they are the floors."
            )
        for front_end in (*self.attackers.front_ends, self.surrogate.front_end):
            if front_end not in FRONT_ENDS:
                raise UnknownNameError("front end", front_end, FRONT_ENDS)
        if not self.attackers.front_ends or not self.attackers.widths:
            raise InvalidOptionError("attackers need at least one front end and one width.")
        for width in (*self.attackers.widths, self.surrogate.width, self.target.width):
            check_count("width", width)
        check_count("blocks", self.target.blocks)
        check_count("hidden_layers_removed", self.surrogate.hidden_layers_removed, least=0)
        if not 0 < self.attackers.held_out < 1:
            raise InvalidOptionError(
                f"held_out must be between 0 and 1, but got {self.attackers.held_out}."
            )


def load_spec(path: Path) -> ExperimentSpec:
    """Read an experiment from a TOML file.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is not TOML in UTF-8.
        UnknownNameError: A key or name is unknown.
        InvalidOptionError: A value is missing, of another type, or outside its range.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no experiment file {path}.")
    return _parse(path.read_bytes(), str(path))


def bundled_spec(name: str) -> ExperimentSpec:
    """Read an experiment that ships with oneway, such as ``"demo-digits"``.

    Raises:
        UnknownNameError: There is none of that name.
    """
    folder = resources.files("oneway.benchmark") / "experiments"
    known = [Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".toml")]
    if name not in known:
        raise UnknownNameError("experiment", name, known)
    return _parse((folder / f"{name}.toml").read_bytes(), name)


def _parse(content: bytes, origin: str) -> ExperimentSpec:
    try:
        values = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{origin} is not TOML: {error}") from error
    spec = _from_mapping(ExperimentSpec, values, origin)
    assert isinstance(spec, ExperimentSpec)  # noqa: S101  narrows the type
    return spec


def _from_mapping(kind: Any, values: Any, where: str) -> Any:
    """Build ``kind`` from plain TOML values, refusing unknown keys and wrong types."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_from(kind, values, where)
    if origin is tuple and isinstance(values, list):
        (item, _) = typing.get_args(kind)
        return tuple(
            _from_mapping(item, value, f"{where}[{place}]") for place, value in enumerate(values)
        )
    if origin is not None and issubclass(origin, Mapping) and isinstance(values, dict):
        return values
    if kind is float and isinstance(values, int) and not isinstance(values, bool):
        return float(values)
    if origin is None and isinstance(values, kind) and isinstance(values, bool) == (kind is bool):
        return values
    wanted = getattr(kind, "__name__", str(kind))
    raise InvalidOptionError(f"{where} must be {wanted}, but is {type(values).__name__}.")


def _dataclass_from(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise InvalidOptionError(f"{where} must be a table, but is {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise UnknownNameError(f"key in {where}", key, fields)
    for key, entry in fields.items():
        required = (
            entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        )
        if required and key not in values:
            raise InvalidOptionError(f"{where} lacks the key {key!r}.")
    return kind(
        **{key: _from_mapping(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    )
