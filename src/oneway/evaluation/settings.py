"""Specs that audits and experiments share: surrogates, attackers and releases."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from oneway.attacks import inversion_attacks
from oneway.checks import check_above, check_count
from oneway.contracts import Defense
from oneway.defenses import build_defense, needs_surrogate
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.inversion import HELD_OUT, INPUT_TRANSFORMS, TrainingSettings

MOST_TIMES = 8
"""Epochs at which the search for convergence ends, as a multiple of those at which it begins."""

ENDS = ("first", "last")
"""Ends of an inverter that a surrogate's hidden layers may be removed from."""


@dataclass(frozen=True)
class SurrogateSpec:
    """The defender's inverter, trained on clean confidences of the auxiliary images.

    Attributes:
        width: Channels of the last hidden layer.
        hidden_layers_removed: Number of hidden layers that an attacker's decoder has in addition.
        removed: Which hidden layers those are: ``"first"`` or ``"last"``. Without the first, the
            first map is larger; without the last, the last layer enlarges its map further. The
            paper does not say which (section V-A3).
        input_transform: Key of ``INPUT_TRANSFORMS``.
        adversarial_steps: Steps of the noise on each batch in min-max training; their total length
            is that of the defense's steps.
        training: Training settings.
    """

    width: int = 32
    hidden_layers_removed: int = 2
    removed: Literal["first", "last"] = "first"
    input_transform: str = "faithful"
    adversarial_steps: int = 4
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        """Refuse a surrogate that could not be trained.

        Raises:
            UnknownNameError: The input transform, or an end to remove layers from, does not exist.
            InvalidOptionError: A size is outside its range.
        """
        check_input_transforms((self.input_transform,))
        UnknownNameError.check("removed", self.removed, ENDS)
        check_count("width", self.width)
        check_count("hidden_layers_removed", self.hidden_layers_removed, least=0)
        check_count("adversarial_steps", self.adversarial_steps)


@dataclass(frozen=True)
class AttackerSpec:
    """The attackers, and the decoders of their model selections.

    Attributes:
        names: Registered names of the attacks.
        input_transforms: Input transforms of the decoders.
        widths: Widths of the decoders.
        held_out: Share of the auxiliary images that selects epochs and decoders.
        step_factors: Step sizes of simulated defenses, as multiples of the defender's.
        repeats: Numbers of answers to the same query that averaging tries.
        training: Training settings of every decoder, with the epochs at which the search for
            convergence begins.
        most_epochs: Epochs at which that search ends; None: 8 times the first epochs.
    """

    names: tuple[str, ...] = field(
        default_factory=lambda: tuple(
            name for name, attack in inversion_attacks().items() if attack.by_default
        )
    )
    input_transforms: tuple[str, ...] = ("faithful", "standardized")
    widths: tuple[int, ...] = (16, 32)
    held_out: float = HELD_OUT
    step_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    repeats: tuple[int, ...] = (10, 100)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    most_epochs: int | None = None

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
