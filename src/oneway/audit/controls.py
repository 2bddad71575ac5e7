"""Controls: releases whose leak is known. An audit that misjudges a control is void."""

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
"""Largest G that attackers may measure on a release that hides nothing."""

HOLDS_ABOVE = 0.65
"""Smallest G that attackers may measure on a release that reveals the label alone."""

READ_ABOVE = 0.5
"""Smallest share of planted pixels' label-only error that an attacker must remove."""

CLEAR = 6
"""Smallest gap, in standard errors, that decides a control: G then is known to about a sixth."""

Expected = Literal["broken", "read", "holds"]

MakeControl = Callable[[Tensor, Generator], Defense]
"""Builds a control, from ``(P)`` flat indices of the pixels that differ most between images, and
from the control's source of randomness."""


@dataclass(frozen=True)
class Control:
    """A release whose leak is known, and the attacker that it vouches for.

    Attributes:
        make: Builds the release.
        expected: ``"broken"``: G must be about 0. ``"read"``: the planted pixels must be read.
            ``"holds"``: G must be about 1.
        input_transform: Input transform of the decoder that attacks the release.
        attack: Name of the attack. An audit without this attack leaves the control out.
        reference: Builds a release with the same information but without the difficulty. G is 0
            where the attack on the control reaches the reference's error. None: clean scores.
        least_classes: Least number of classes; with fewer, the control proves nothing.
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
        # The entries that this input transform reads; others read them no better than the label.
        lambda *_: NoisyTail(count=LEADING),
        "broken",
        input_transform="leading",
        reference=lambda *_: TopK(count=LEADING),
        # With one class fewer, a single entry is left, which cannot be noisy.
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
"""Releases whose leak is known by name, with the result that each must have."""


def controls_for(attacks: Collection[str], classes: int) -> tuple[str, ...]:
    """Return the names of the controls that vouch for attackers.

    Args:
        attacks: Names of the attacks of an audit.
        classes: Number of classes, K.
    """
    return tuple(
        name
        for name, control in CONTROLS.items()
        if control.attack in attacks and classes >= control.least_classes
    )


@dataclass(frozen=True)
class ControlResult:
    """The result of a control.

    Attributes:
        name: Key of ``CONTROLS``.
        expected: Result that a believable audit has.
        measured: G; for planted pixels, the share of the label-only error that the attack removes.
            None where clean scores, or the reference, add nothing to the label.
        passed: Whether the result is as expected; None: inconclusive.
        attack: Name of the attack that the control vouches for.
        input_transform: Input transform that the control vouches for.
    """

    name: str
    expected: Expected
    measured: float | None
    passed: bool | None
    attack: str
    input_transform: str


def planted_positions(images: Tensor, classes: int) -> Tensor:
    """Return the entries of a query that a planted leak reveals: the entries that vary most.

    Args:
        images: ``(N, ...)`` auxiliary queries.
        classes: Number of classes, K.

    Returns:
        ``(P)`` int64 flat indices in rising order, on the CPU; P is at most K - 1.
    """
    variances = images.flatten(1).double().var(0, correction=0)
    # A softmax ignores a constant, so that K probabilities carry K - 1 numbers.
    count = min(classes - 1, int((variances > 0).sum()))
    return variances.topk(max(1, count)).indices.sort().values.cpu()


def judge_control(name: str, errors: Tensor, clean: Tensor, label: Tensor) -> ControlResult:
    """Compare attacks on a control, on its reference, and on the label alone.

    Errors are of queries; for a planted leak, over the planted entries alone.

    Args:
        name: Key of ``CONTROLS``.
        errors: ``(N)`` errors of the attack on the control.
        clean: ``(N)`` errors of the same decoder on clean scores, or on the control's reference.
        label: ``(N)`` errors of the label-only attack.
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
    # A gap within the noise of the queries decides nothing.
    if float(gain.mean()) <= CLEAR * standard_error(gain):
        return result(None, None)
    gap = gap_or_none(float(errors.mean()), float(clean.mean()), float(label.mean()))
    if gap is None:
        return result(None, None)
    return result(gap, gap <= BROKEN_BELOW if control.expected == "broken" else gap >= HOLDS_ABOVE)


def failed_controls(results: Mapping[str, ControlResult]) -> list[str]:
    """Return the names of the controls that failed."""
    return [name for name, result in results.items() if result.passed is False]


def planted_errors(images: Tensor, reconstructions: Tensor, places: Tensor) -> Tensor:
    """Return ``(N)`` float64 mean squared errors per query over the planted entries alone.

    Args:
        images: ``(N, ...)`` true queries.
        reconstructions: Same shape.
        places: ``(P)`` int64 flat indices of the planted entries.
    """
    index = places.to(images.device)
    differences = images.flatten(1)[:, index] - reconstructions.flatten(1)[:, index]
    return differences.double().square().mean(1)
