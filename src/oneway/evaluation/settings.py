"""Specs that audits and experiments share: surrogates, attackers and releases."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from oneway.attacks import inversion_attacks
from oneway.checks import check_count
from oneway.contracts import Defense
from oneway.defenses import build_defense, needs_surrogate
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.inversion import HELD_OUT, INPUT_TRANSFORMS, TrainingSettings
from oneway.options import Options, option

MOST_TIMES = 8
"""Epochs at which the search for convergence ends, as a multiple of those at which it begins."""


class SurrogateSpec(Options):
    """The defender's inverter, trained on clean confidences of the auxiliary images."""

    width: int = option("Channels of the last hidden layer.", default=32)
    hidden_layers_removed: int = option(
        "Number of hidden layers that an attacker's decoder has in addition.", default=2, least=0
    )
    removed: Literal["first", "last"] = option(
        "Which hidden layers those are. Without the first, the first map is larger; without the "
        "last, the last layer enlarges its map further. The paper does not say which (section "
        "V-A3).",
        default="first",
    )
    input_transform: str = option(
        "Key of ``INPUT_TRANSFORMS``.",
        default="faithful",
        check=lambda _, name: check_input_transforms((name,)),
    )
    adversarial_steps: int = option(
        "Steps of the noise on each batch in min-max training; their total length is that of the "
        "defense's steps.",
        default=4,
    )
    training: TrainingSettings = option("Training settings.", default=TrainingSettings())


class AttackerSpec(Options):
    """The attackers, and the decoders of their model selections."""

    names: tuple[str, ...] = option(
        "Registered names of the attacks.",
        default_factory=lambda: tuple(
            name for name, attack in inversion_attacks().items() if attack.by_default
        ),
        check=lambda _, names: check_attacks(names),
    )
    input_transforms: tuple[str, ...] = option(
        "Input transforms of the decoders.", default=("faithful", "standardized")
    )
    widths: tuple[int, ...] = option("Widths of the decoders.", default=(16, 32))
    held_out: float = option(
        "Share of the auxiliary images that selects epochs and decoders.",
        default=HELD_OUT,
        above=0,
        below=1,
    )
    step_factors: tuple[float, ...] = option(
        "Step sizes of simulated defenses, as multiples of the defender's.",
        default=(0.5, 1.0, 2.0),
        above=0,
    )
    repeats: tuple[int, ...] = option(
        "Numbers of answers to the same query that averaging tries.", default=(10, 100)
    )
    training: TrainingSettings = option(
        "Training settings of every decoder, with the epochs at which the search for convergence "
        "begins.",
        default=TrainingSettings(),
    )
    most_epochs: int | None = option(
        "Epochs at which that search ends; None: 8 times the first epochs.", default=None
    )

    def __post_init__(self) -> None:
        """Refuse attackers that could not run.

        Raises:
            UnknownNameError: An attack or input transform does not exist.
            InvalidOptionError: A value is outside its range, or there are no decoders.
        """
        super().__post_init__()
        check_input_transforms(self.input_transforms)
        if self.most_epochs is not None:
            check_count("most_epochs", self.most_epochs, least=self.training.epochs)

    @property
    def longest(self) -> int:
        """Most epochs of a decoder."""
        return MOST_TIMES * self.training.epochs if self.most_epochs is None else self.most_epochs

    def training_for(self, epochs: int) -> TrainingSettings:
        """Return the training settings of decoders that are trained for so many epochs.

        Grace and patience grow with the epochs, so that they stay the same shares of the training.

        Args:
            epochs: Epochs, at least those of ``training``.
        """
        training = self.training
        grace, patience = (
            epochs * waited // training.epochs for waited in (training.grace, training.patience)
        )
        return dataclasses.replace(training, epochs=epochs, grace=grace, patience=patience)


@dataclass(frozen=True)
class ReleaseSpec:
    """A row of a table of releases: its name, its defense and the defense's options.

    Attributes:
        name: Name of the release.
        defense: Registered name of the defense.
        options: Options of the defense and of its training.
        surrogate: ``"plain"``, ``"augmented"`` or ``"min-max"``. The last two are readings of the
            paper's "adversarial training version" (section V-D). An augmented surrogate is trained
            on clean scores and on scores with a plain surrogate's noise, at several step sizes. A
            min-max surrogate is trained on noise against itself in every batch (Madry et al., ICLR
            2018).
        attackers: Registered names of the attacks on the release; empty: all of the experiment's.
    """

    name: str
    defense: str
    options: Mapping[str, Any] = field(default_factory=dict)
    surrogate: str = "plain"
    attackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a release that could not be built or attacked, before any training.

        Raises:
            UnknownNameError: A defense, option, attack or kind of surrogate does not exist.
            InvalidOptionError: An option is missing or outside its range, or the defense has no
                surrogate with a step size.
        """
        sketch_defense(self)
        UnknownNameError.check("surrogate", self.surrogate, SURROGATES)
        if self.surrogate != "plain" and not is_simulated(self):
            raise InvalidOptionError(
                f"release {self.name!r} has a surrogate of kind {self.surrogate!r}, which needs a "
                f"defense with a surrogate and a step size, but {self.defense!r} lacks them. Leave "
                "`surrogate` out."
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
        UnknownNameError.check("attack", name, known)


def check_input_transforms(names: Sequence[str]) -> None:
    """Refuse names of input transforms that do not exist.

    Raises:
        UnknownNameError: With the nearest name.
    """
    for name in names:
        UnknownNameError.check("input transform", name, INPUT_TRANSFORMS)


def is_simulated(release: ReleaseSpec) -> bool:
    """Return whether attackers can simulate a release's defense, with a surrogate and step size."""
    return needs_surrogate(release.defense) and "step_size" in release.options


def sketch_defense(release: ReleaseSpec) -> Defense:
    """Build a release's defense around stand-ins for networks, to read what it declares.

    Raises:
        UnknownNameError: The defense or an option does not exist.
        InvalidOptionError: An option of the defense or of its training is missing or outside its
            range.
    """
    return build_defense(
        release.defense,
        release.options,
        nn.Identity(),
        state=nn.Identity(),
        generator=torch.Generator(),
    )
