"""Controls: releases whose leak is known. An audit that misjudges one is void."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Generator, Tensor

from oneway.contracts import Defense
from oneway.defenses.controls import ClassOffsets, NoisyTail, Permutation, PlantedLeak
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.temperature import Temperature
from oneway.defenses.top_k import TopK
from oneway.evaluation.verdict import gap_or_none, standard_error
from oneway.inversion import LEADING

BROKEN_BELOW = 0.35
"""Largest closed gap of a release that hides nothing, for attackers who are to be believed."""

HOLDS_ABOVE = 0.65
"""Smallest closed gap of a release that tells the label alone."""

READ_ABOVE = 0.5
"""Share of planted pixels' label-only error that an attacker must have removed."""

CLEAR = 6
"""Standard errors that the gap must measure: a closed gap then is known to about a sixth."""

Expected = Literal["broken", "read", "holds"]

MakeControl = Callable[[Tensor, Generator], Defense]
"""Builds a control, given which pixels differ most between images, as ``(P)`` flat indices, and
its randomness."""


@dataclass(frozen=True)
class Control:
    """One release with a known leak, and whom it vouches for.

    Attributes:
        make: Builds it.
        expected: ``"broken"``: G must be about 0. ``"read"``: the planted pixels must be found.
            ``"holds"``: G must be about 1.
        input_transform: The input transform of the decoder that attacks it.
        attack: The attacker; the control is left out of an audit that lacks this one.
        reference: A release without what makes it hard, that must be no easier: G is 0 where its
            error is reached. None: clean scores.
        least_classes: With fewer there is nothing to vouch for.
    """

    make: MakeControl
    expected: Expected
    input_transform: str = "within-label"
    attack: str = "retrained"
    reference: MakeControl | None = None
    least_classes: int = 2


CONTROLS: dict[str, Control] = {
    "identity": Control(lambda *_: Identity(), "broken"),
    "permutation": Control(lambda *_: Permutation(), "broken"),
    "temperature": Control(lambda *_: Temperature(temperature=2.0), "broken"),
    "class-offsets": Control(lambda *_: ClassOffsets(), "broken"),
    "noisy-tail": Control(
        # All that this input transform looks at; the others read it no better than the label.
        lambda *_: NoisyTail(count=LEADING),
        "broken",
        input_transform="leading",
        reference=lambda *_: TopK(count=LEADING),
        # A single further entry is what is left: no noise.
        least_classes=LEADING + 2,
    ),
    "averaged-noise": Control(
        lambda _, generator: GaussianNoise(standard_deviation=1.5, generator=generator),
        "broken",
        attack="averaging",
    ),
    "planted-leak": Control(lambda places, _: PlantedLeak(positions=places.tolist()), "read"),
    "label-only": Control(lambda *_: LabelOnly(), "holds"),
}
"""Releases whose leak is known, and what must be found of each."""


def controls_for(attacks: Collection[str], classes: int) -> tuple[str, ...]:
    """Return the names of the controls that vouch for these attackers.

    Args:
        attacks: Names of the attacks that take part.
        classes: K.
    """
    return tuple(
        name
        for name, control in CONTROLS.items()
        if control.attack in attacks and classes >= control.least_classes
    )


@dataclass(frozen=True)
class ControlResult:
    """How one control went.

    Attributes:
        name: A key of ``CONTROLS``.
        expected: Result that a believable audit has.
        measured: G; or, of planted pixels, the share of the label-only error that is gone. None
            where clean scores, or the reference, tell no more than the label: then nothing can be
            broken.
        passed: Whether it is as expected; None where that cannot be decided.
        attack: The attack that the control vouches for.
        input_transform: The input transform that the control vouches for.
    """

    name: str
    expected: Expected
    measured: float | None
    passed: bool | None
    attack: str
    input_transform: str


def planted_positions(images: Tensor, classes: int) -> Tensor:
    """Return which entries of a query a planted leak tells: those that vary most.

    Args:
        images: ``(N, ...)`` auxiliary queries.
        classes: K, the most that one release can tell.
    """
    variances = images.flatten(1).double().var(0, correction=0)
    # A softmax forgets what all scores have in common: K of them tell K - 1 numbers.
    count = min(classes - 1, int((variances > 0).sum()))
    return variances.topk(max(1, count)).indices.sort().values.cpu()


def judge_control(name: str, errors: Tensor, clean: Tensor, label: Tensor) -> ControlResult:
    """Compare an attack on a control with one on its reference, and with the label.

    Args:
        name: A key of ``CONTROLS``.
        errors: ``(N)`` of the attack on the control; of a planted leak, over the planted entries
            alone.
        clean: ``(N)`` of the same decoder on clean scores, or on the control's reference.
        label: ``(N)`` given the label alone; of a planted leak, over the planted entries.
    """
    control = CONTROLS[name]

    def result(measured: float | None, passed: bool | None) -> ControlResult:
        return ControlResult(
            name, control.expected, measured, passed, control.attack, control.input_transform
        )

    if control.expected == "read":
        share = 1 - float(errors.mean()) / max(float(label.mean()), 1e-12)
        return result(share, share >= READ_ABOVE)
    gain = label - clean
    # A gap that is lost in the noise of the queries cannot be closed or left open.
    if float(gain.mean()) <= CLEAR * standard_error(gain):
        return result(None, None)
    gap = gap_or_none(float(errors.mean()), float(clean.mean()), float(label.mean()))
    if gap is None:
        return result(None, None)
    return result(gap, gap <= BROKEN_BELOW if control.expected == "broken" else gap >= HOLDS_ABOVE)


def failed_controls(results: Mapping[str, ControlResult]) -> list[str]:
    """Return the names of controls that were misjudged."""
    return [name for name, result in results.items() if result.passed is False]


def planted_errors(images: Tensor, reconstructions: Tensor, places: Tensor) -> Tensor:
    """Return ``(N)`` float64 squared errors per query over the planted entries alone."""
    index = places.to(images.device)
    differences = images.flatten(1)[:, index] - reconstructions.flatten(1)[:, index]
    return differences.double().square().mean(1)
