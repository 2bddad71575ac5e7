"""How releases are built and attacked: what audits and experiments are told alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from oneway.attacks import inversion_attacks
from oneway.checks import check_above, check_count
from oneway.contracts import Defense
from oneway.defenses import build_defense, needs_surrogate
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.inversion import HELD_OUT, INPUT_TRANSFORMS, TrainingSettings


@dataclass(frozen=True)
class SurrogateSpec:
    """The defender's own inverter, trained on clean confidences of the auxiliary images.

    Attributes:
        width: Channels of its last hidden layer.
        hidden_layers_removed: Hidden layers that an attacker's decoder has in addition.
        input_transform: Its input transform.
        adversarial_steps: How many steps of noise each batch is shown in min-max training;
            together they are as long as the defense's.
        training: Training settings.
    """

    width: int = 32
    hidden_layers_removed: int = 2
    input_transform: str = "faithful"
    adversarial_steps: int = 4
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        """Refuse what could not be trained.

        Raises:
            UnknownNameError: The input transform does not exist.
            InvalidOptionError: A size is outside its range.
        """
        check_input_transforms((self.input_transform,))
        check_count("width", self.width)
        check_count("hidden_layers_removed", self.hidden_layers_removed, least=0)
        check_count("adversarial_steps", self.adversarial_steps)


@dataclass(frozen=True)
class AttackerSpec:
    """The attackers: who they are, and the decoders that each may choose from.

    Attributes:
        names: Registered attacks.
        input_transforms: Input transforms to try.
        widths: Decoder widths to try.
        held_out: Share of the auxiliary images kept for choosing.
        step_factors: What adversarial training multiplies the defender's step size by.
        repeats: Numbers of answers to the same query that averaging tries.
        training: Equal for every attack on every release.
    """

    names: tuple[str, ...] = field(default_factory=lambda: tuple(inversion_attacks()))
    input_transforms: tuple[str, ...] = ("faithful", "standardized")
    widths: tuple[int, ...] = (16, 32)
    held_out: float = HELD_OUT
    step_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    repeats: tuple[int, ...] = (10, 100)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        """Refuse attackers that could not run.

        Raises:
            UnknownNameError: An attack or input transform does not exist.
            InvalidOptionError: A value is outside its range, or there are no decoders.
        """
        check_attacks(self.names)
        check_input_transforms(self.input_transforms)
        if not self.input_transforms or not self.widths:
            raise InvalidOptionError("attackers need at least one input transform and one width.")
        for width in self.widths:
            check_count("width", width)
        for repeats in self.repeats:
            check_count("repeats", repeats)
        if not self.step_factors:
            raise InvalidOptionError("step_factors must hold at least one factor.")
        for factor in self.step_factors:
            check_above("step_factors", factor, 0)
        if not 0 < self.held_out < 1:
            raise InvalidOptionError(f"held_out must be between 0 and 1, but got {self.held_out}.")


@dataclass(frozen=True)
class ReleaseSpec:
    """One row of the table: what it is called, and which defense with which options.

    Attributes:
        name: Name of the row.
        defense: A registered defense.
        options: Its own and its training's.
        surrogate: ``"plain"``, or one of two readings of the paper's "adversarial training
            version" (section V-D): ``"augmented"``, trained on scores that a plain surrogate's
            noise was put on, at several step sizes, with some clean ones; or ``"min-max"``,
            trained on noise against itself in every batch (Madry et al., ICLR 2018).
        attackers: Who attacks it; empty: all of the experiment's attackers.
    """

    name: str
    defense: str
    options: Mapping[str, Any] = field(default_factory=dict)
    surrogate: str = "plain"
    attackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could not be built or attacked, before any training.

        Raises:
            UnknownNameError: A defense, option, attack or kind of surrogate does not exist.
            InvalidOptionError: An option is missing or outside its range, or the defense has no
                surrogate to train otherwise.
        """
        sketch_defense(self)
        if self.surrogate not in SURROGATES:
            raise UnknownNameError("surrogate", self.surrogate, SURROGATES)
        if self.surrogate != "plain" and not is_simulated(self):
            raise InvalidOptionError(
                f"release {self.name!r} asks for a surrogate of kind {self.surrogate!r}, but "
                f"{self.defense!r} takes none whose step size could be varied. Leave `surrogate` "
                "out."
            )
        check_attacks(self.attackers)


SURROGATES = ("plain", "augmented", "min-max")


def check_attacks(names: Sequence[str]) -> None:
    """Refuse names of attacks that do not exist or reconstruct nothing.

    Raises:
        UnknownNameError: With the nearest name.
    """
    known = inversion_attacks()
    for name in names:
        if name not in known:
            raise UnknownNameError("attack", name, known)


def check_input_transforms(names: Sequence[str]) -> None:
    """Refuse names of input transforms that do not exist.

    Raises:
        UnknownNameError: With the nearest name.
    """
    for name in names:
        if name not in INPUT_TRANSFORMS:
            raise UnknownNameError("input transform", name, INPUT_TRANSFORMS)


def is_simulated(release: ReleaseSpec) -> bool:
    """Say whether attackers can simulate a release's defense: it has a surrogate and step size."""
    return needs_surrogate(release.defense) and "step_size" in release.options


def sketch_defense(release: ReleaseSpec) -> Defense:
    """Build a release's defense around stand-ins for networks, to ask what it promises.

    Raises:
        UnknownNameError: There is no such defense, or option of it.
        InvalidOptionError: An option of it or of its training is missing or outside its range.
    """
    return build_defense(
        release.defense,
        release.options,
        nn.Identity(),
        state=nn.Identity(),
        generator=torch.Generator(),
    )
