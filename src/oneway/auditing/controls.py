"""Controls: releases whose leak is known, some by planted entries. One misjudged voids an audit."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

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

HALVINGS = 3
"""Times that the values of a planted entry are halved: at most ``2 ** 3`` levels."""

SCALE = 4.0
"""Nats that a planted entry which is 1 larger adds to a score of :class:`PlantedScores`."""


@dataclass(frozen=True)
class Planted:
    """The planted entries of the queries.

    Attributes:
        positions: ``(P)`` int64 flat indices in rising order, on the CPU; P is at most K - 1.
        values: ``(N, P)`` values of these entries in the auxiliary queries.
        classes: Number of classes, K.
    """

    positions: Tensor
    values: Tensor
    classes: int


def plant(images: Tensor, classes: int, most: int | None = None) -> Planted:
    """Plant the entries that vary most.

    Args:
        images: ``(N, ...)`` auxiliary queries.
        classes: Number of classes, K.
        most: Most entries to plant; None: K - 1.
    """
    positions = planted_positions(images, classes if most is None else min(classes, most + 1))
    return Planted(positions, images.flatten(1)[:, positions.to(images.device)], classes)


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


def level_borders(values: Tensor) -> tuple[float, ...]:
    """Return rising borders between levels: the mean, then the means of both halves, and so on.

    Values on both sides of each mean make levels for binary entries as well as for smooth ones.

    Args:
        values: ``(N)`` values of an entry.
    """
    groups, borders = [values.double().flatten()], set[float]()
    for _ in range(HALVINGS):
        halves = list[Tensor]()
        for group in groups:
            mean = group.mean()
            low, high = group[group <= mean], group[group > mean]
            if len(low) and len(high):
                borders.add(float(mean))
                halves += [low, high]
        groups = halves
    return tuple(sorted(borders))


class PlantedScores(nn.Module):
    """A model whose logits are the planted entries: its scores determine them.

    The entries repeat over all classes but the last, whose logit is 0.
    """

    positions: Tensor

    def __init__(self, planted: Planted) -> None:
        """Take the planted entries."""
        super().__init__()
        repeated = torch.arange(planted.classes - 1) % len(planted.positions)
        self.register_buffer("positions", planted.positions[repeated])

    def forward(self, queries: Tensor) -> Tensor:
        """Map ``(N, ...)`` queries to ``(N, K)`` logits."""
        entries = SCALE * queries.flatten(1)[:, self.positions.to(queries.device)]
        return nn.functional.pad(entries, (0, 1))


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

FEWER_ROWS = 300
"""The same for networks that are trained: seconds."""

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


def _scores_read_by(
    attack: str, rows: int | None = FEW_ROWS, make: MakeControl = lambda *_: Identity()
) -> Control:
    """Return a control whose model answers with entries of the query, for one attack.

    Args:
        attack: Name of the attack.
        rows: Most auxiliary rows; None: as many as for other controls.
        make: Builds the release of the model.
    """
    return Control(
        make,
        "read",
        input_transform=None,
        attack=attack,
        entries=FEW_ENTRIES,
        rows=rows,
        model=PlantedScores,
    )


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
    "planted-scores": _scores_read_by("kernel-ridge"),
    "smoothed-scores": _scores_read_by("smooth-kernel-ridge"),
    "bagged-scores": _scores_read_by("bagged-perceptrons", FEWER_ROWS),
    "averaged-scores": _scores_read_by(
        "averaging",
        # One answer reads less than half of the entries, the mean of ten most of them.
        make=lambda _, generator: GaussianNoise(standard_deviation=1.5, generator=generator),
    ),
    "searched-scores": _scores_read_by("optimising", None),
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
