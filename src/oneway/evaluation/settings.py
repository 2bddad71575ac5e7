"""How releases are built and attacked: what audits and experiments are told alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from oneway.attacks.registry import ATTACKS
from oneway.contracts import Defense
from oneway.defenses import build_defense, needs_surrogate
from oneway.inversion import HELD_OUT, TrainingSettings


@dataclass(frozen=True)
class SurrogateSpec:
    """The defender's own inverter, trained on clean confidences of the auxiliary images.

    Attributes:
        width: Channels of its last hidden layer.
        hidden_layers_removed: How many it lacks of an attacker's.
        input_transform: Its input transform.
        adversarial_steps: How many steps of noise each batch is shown in min-max training;
            together they are as long as the defense's.
        training: How it is trained.
    """

    width: int = 32
    hidden_layers_removed: int = 2
    input_transform: str = "faithful"
    adversarial_steps: int = 4
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class AttackerSpec:
    """The attackers: who they are, and the decoders that each may choose from.

    Attributes:
        names: Registered attacks.
        input_transforms: Input transforms to try.
        widths: Decoder widths to try.
        held_out: Share of the auxiliary images kept for choosing.
        step_factors: What adversarial training multiplies the defender's step size by.
        repeats: How often averaging asks the same query.
        training: Equal for every attack on every release.
    """

    names: tuple[str, ...] = tuple(ATTACKS)
    input_transforms: tuple[str, ...] = ("faithful", "standardized")
    widths: tuple[int, ...] = (16, 32)
    held_out: float = HELD_OUT
    step_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    repeats: tuple[int, ...] = (10, 100)
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class ReleaseSpec:
    """One row of the table: what it is called, and which defense with which options.

    Attributes:
        name: What it is called.
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


SURROGATES = ("plain", "augmented", "min-max")


def is_copied(release: ReleaseSpec) -> bool:
    """Say whether an attacker can build copies of a release's defense: it has a surrogate."""
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
