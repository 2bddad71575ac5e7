"""Controls: releases whose leak is known. An audit that misjudges a control is void."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Generator, Tensor, nn

from oneway.auditing.planted import Planted, PlantedScores, level_borders
from oneway.contracts import Defense
from oneway.defenses.controls import (
    ClassOffsets,
    NoisyTail,
    Permutation,
    PlantedLeak,
    PlantedLevels,
)
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

FEW_ENTRIES = 9
"""Most planted entries for attackers who learn each by itself, as many as ten classes carry."""

FEW_ROWS = 1000
"""Most auxiliary rows of an attack that takes long with more, and needs no more."""

Expected = Literal["broken", "read", "holds"]

MakeControl = Callable[[Planted, Generator], Defense]
"""Builds a control, from the planted entries and from the control's source of randomness."""

MakeModel = Callable[[Planted], nn.Module]
"""Builds the model of a control, from the planted entries."""


@dataclass(frozen=True)
class Control:
    """A release whose leak is known, and the attacker that it vouches for.

    Attributes:
        make: Builds the release.
        expected: ``"broken"``: G must be about 0. ``"read"``: the planted pixels must be read.
            ``"holds"``: G must be about 1.
        input_transform: Input transform of the decoder that attacks the release; None: the attack
            trains no decoder.
        attack: Name of the attack. An audit without this attack leaves the control out.
        reference: Builds a release with the same information but without the difficulty. G is 0
            where the attack on the control reaches the reference's error. None: clean scores.
        least_classes: Least number of classes; with fewer, the control proves nothing.
        entries: Most planted entries; None: one less than there are classes.
        rows: Most auxiliary rows; None: as many as for other controls.
        copies: Whether the attacker has copies of the release instead of its answers, so that only
            an attacker who simulates the release can read it.
        model: Builds a model that is queried instead of the audited model. The attacker has its
            gradient, and the mean query instead of a trained decoder, so that only the attack
            itself can read the scores.
    """

    make: MakeControl
    expected: Expected
    input_transform: str | None = "within-label"
    attack: str = "retrained"
    reference: MakeControl | None = None
    least_classes: int = 2
    entries: int | None = None
    rows: int | None = None
    copies: bool = False
    model: MakeModel | None = None


def _planted_leak(planted: Planted, _: Generator) -> Defense:
    return PlantedLeak(positions=planted.positions.tolist())


def _planted_levels(planted: Planted, _: Generator) -> Defense:
    return PlantedLevels(position=int(planted.positions), borders=level_borders(planted.values))


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
    "copied-permutation": Control(
        # Whoever reads these scores under the classes' own names gets labels wrong.
        lambda *_: Permutation(),
        "broken",
        attack="adversarial-training",
        copies=True,
    ),
    "planted-leak": Control(_planted_leak, "read"),
    "planted-levels": Control(
        _planted_levels,
        "read",
        input_transform=None,
        attack="cell-means",
        entries=1,
    ),
    "planted-scores": Control(
        lambda *_: Identity(),
        "read",
        input_transform=None,
        attack="kernel-ridge",
        entries=FEW_ENTRIES,
        rows=FEW_ROWS,
        model=PlantedScores,
    ),
    "searched-scores": Control(
        lambda *_: Identity(),
        "read",
        input_transform=None,
        attack="optimising",
        entries=FEW_ENTRIES,
        model=PlantedScores,
    ),
    "label-only": Control(lambda *_: LabelOnly(), "holds"),
}
"""Releases whose leak is known by name, with the result that each must have."""


def controls_for(attacks: Collection[str], classes: int) -> tuple[str, ...]:
    """Return the names of the controls that vouch for attackers."""
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
        input_transform: Input transform that the control vouches for; None: the attack trains no
            decoder.
    """

    name: str
    expected: Expected
    measured: float | None
    passed: bool | None
    attack: str
    input_transform: str | None


def judge_control(name: str, errors: Tensor, clean: Tensor, label: Tensor) -> ControlResult:
    """Compare attacks on a control, on its reference, and on the label alone.

    Args:
        name: Key of ``CONTROLS``, a control that must be broken or hold.
        errors: ``(N)`` errors of the attack on the control.
        clean: ``(N)`` errors of the same decoder on clean scores, or on the control's reference.
        label: ``(N)`` errors of the label-only attack.
    """
    gain = label - clean
    # A gap within the noise of the queries decides nothing.
    if float(gain.mean()) <= CLEAR * standard_error(gain):
        return _result(name, None, None)
    gap = gap_or_none(float(errors.mean()), float(clean.mean()), float(label.mean()))
    if gap is None:
        return _result(name, None, None)
    broken = CONTROLS[name].expected == "broken"
    return _result(name, gap, gap <= BROKEN_BELOW if broken else gap >= HOLDS_ABOVE)


def judge_planted(name: str, errors: Tensor, label: Tensor) -> ControlResult:
    """Compare the attack on planted entries with the label-only attack.

    Args:
        name: Key of ``CONTROLS``, a control that must be read.
        errors: ``(N)`` errors of the attack, over the planted entries alone.
        label: ``(N)`` errors of the label-only attack over the same entries.
    """
    share = 1 - float(errors.mean()) / max(float(label.mean()), 1e-12)
    return _result(name, share, share >= READ_ABOVE)


def _result(name: str, measured: float | None, passed: bool | None) -> ControlResult:
    control = CONTROLS[name]
    return ControlResult(
        name, control.expected, measured, passed, control.attack, control.input_transform
    )


def failed_controls(results: Mapping[str, ControlResult]) -> list[str]:
    """Return the names of the controls that failed."""
    return [name for name, result in results.items() if result.passed is False]
