"""The detection limit: the smallest known leak that these attackers find, at these sizes.

Attackers who read no more than the label prove little by themselves: they may be blind. So leaks of
known worth are added to a release of the label alone, and the same attackers attack them, with the
same auxiliary rows, held-out rows and test queries. Leaks below the smallest that they find may
hide in any release on which they fail.

A leak's worth is the share of the gap (label - clean) that the best attacker would gain from it. It
follows from moments of the auxiliary rows, and from no attack. There are two kinds, since attackers
differ in what they read:

- ``cells``: a bit per row, the side of the label's mean on which the row lies along the principal
  direction within labels, flipped at random. The release is one of two vectors per label. The worth
  is that of the conditional mean given label and bit, which no attacker beats.
- ``drowned``: the projections on the K - 1 leading principal directions within labels, under
  Gaussian noise much larger than they are, so that each row has a vector of its own. The worth is
  that of the best attacker who is linear within each label. Under so much noise, other attackers
  gain hardly more.

Second moments that rows share with themselves would make every leak look larger than it is. So
products are taken across two halves of a label's rows, which errs in neither direction.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from oneway.attacks import LabelOnly, Workload, inversion_attacks
from oneway.attacks.label_means import label_means
from oneway.contracts import AttackerKnowledge
from oneway.data import no_progress
from oneway.evaluation.attackers import Attackers
from oneway.evaluation.convergence import check_time
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import numerics_of
from oneway.evaluation.store import fingerprint
from oneway.evaluation.verdict import beats_label

NUMERICS = 1
"""Part of the key of a stored limit. Raise it when the planted leaks or the rule change."""

LEVELS = (0.01, 0.02, 0.05, 0.1)
"""Worths of the planted leaks, as shares of the gap, in rising order."""

DETECTORS = ("cell-means", "kernel-ridge", "stack")
"""The cheap attackers, which look for planted leaks.

All attackers together find whatever these find, so that their limit is at most this one.
"""

FOUND = 0.5
"""Share of a leak's worth that attackers must gain to have found it."""

LEAD = 5.0
"""Lead of the label in a planted release, in nats."""

SMALL = 0.1
"""Standard deviation of what is planted beside the label, in nats."""

NOISE_DECADES = (-6.0, 12.0)
"""Least and most noise on projections: powers of 10, in variances of the first projection."""

SPARE = 10
"""Directions that are computed beside the leading ones, which makes those more exact."""

FARTHEST = 10.0
"""Most standard deviations of what is planted, so that the label always leads."""

STAGE = "planted leaks"


@dataclass(frozen=True)
class PlantedLeak:
    """A release of the label and of a leak of known worth.

    Attributes:
        worth: Fall of the mean squared error per pixel that the best attacker gains over the label.
        auxiliary: ``(N, K)`` released confidences of the auxiliary rows.
        test: ``(M, K)`` released confidences of the test queries.
    """

    worth: float
    auxiliary: Tensor
    test: Tensor


@dataclass(frozen=True)
class _Group:
    """The moments of a label's rows that decide what leaks are worth.

    Attributes:
        share: Share of the auxiliary rows with this label.
        above: Share of its rows whose bit is 1.
        bit: Squared length of the covariance of rows with their bit.
        variances: ``(J)`` variances of the projections, along the axes where they do not correlate.
        squares: ``(J)`` squared lengths of the covariances of rows with these projections.
    """

    share: float
    above: float
    bit: float
    variances: Tensor
    squares: Tensor


class Planter:
    """Plants leaks into a release of the label alone. Each row has one answer, whoever asks."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        test_images: Tensor,
        test_labels: Tensor,
        classes: int,
        seed: int,
    ) -> None:
        """Measure the auxiliary rows.

        Args:
            images: ``(N, ...)`` auxiliary rows.
            labels: ``(N)`` int64 labels, which the release reveals.
            test_images: ``(M, ...)`` test queries.
            test_labels: ``(M)`` int64 labels of the test queries.
            classes: Number of classes, K.
            seed: Seed of the noise.
        """
        self.classes, self.seed = classes, seed
        self.labels, self.test_labels = labels, test_labels
        means = label_means(images, labels, classes)
        residuals = (images - means[labels]).flatten(1)
        self.pixels = residuals.shape[1]
        directions = Stream(seed, "directions of planted leaks").call(
            lambda: _leading_directions(residuals, classes - 1), images.device
        )
        self.projected = (residuals @ directions).double()
        test_residuals = (test_images - means[test_labels]).flatten(1)
        self.test_projected = (test_residuals @ directions).double()
        order = Stream(seed, "halves of planted leaks").generator()
        self.groups = [
            _group(residuals[rows].double(), self.projected[rows], len(rows) / len(images))
            for rows in _rows_by_label(labels, order)
        ]

    def cells(self, worth: float) -> PlantedLeak | None:
        """Plant a bit per row, flipped as often as the worth asks for.

        Args:
            worth: Fall of the mean squared error per pixel that the leak is to be worth, above 0.

        Returns:
            The release; None where the bit is worth less even if it is never flipped.
        """
        flipped = _solve(self.worth_of_bits, worth, 0.0, 0.5)
        if flipped is None:
            return None
        drawn = self._drawn("planted bits", torch.rand, 1)
        both = (self.projected[:, :1], self.test_projected[:, :1])
        bits = [(side > 0) ^ (chance < flipped) for side, chance in zip(both, drawn, strict=True)]
        return self._released(worth, [2.0 * bit.double() - 1.0 for bit in bits])

    def drowned(self, worth: float) -> PlantedLeak | None:
        """Plant projections under as much noise as the worth asks for.

        Args:
            worth: Fall of the mean squared error per pixel that the leak is to be worth, above 0.

        Returns:
            The release; None where the projections are worth less even with hardly any noise.
        """
        variance = float(self.projected.square().mean(0).amax())
        if not variance > 0:
            return None
        decades = _solve(
            lambda power: self.worth_of_noise(variance * 10**power), worth, *NOISE_DECADES
        )
        if decades is None:
            return None
        noise = math.sqrt(variance * 10**decades)
        scale = math.hypot(noise, math.sqrt(variance))
        drawn = self._drawn("planted noise", torch.randn, self.projected.shape[1])
        both = (self.projected, self.test_projected)
        return self._released(
            worth,
            [(shown + noise * normal) / scale for shown, normal in zip(both, drawn, strict=True)],
        )

    def worth_of_bits(self, flipped: float) -> float:
        """Return what the best attacker gains from label and bit, per pixel.

        Args:
            flipped: Share of the bits that are flipped, from 0 to 0.5.
        """
        total = 0.0
        for group in self.groups:
            shown = group.above * (1 - flipped) + (1 - group.above) * flipped
            if 0 < group.above < 1:
                # A conditional mean given a bit varies by squared covariance over variance.
                kept = (1 - 2 * flipped) ** 2
                total += group.share * kept * group.bit / (shown * (1 - shown))
        return total / self.pixels

    def worth_of_noise(self, variance: float) -> float:
        """Return what the best attacker gains who is linear within each label, per pixel.

        Args:
            variance: Variance of the noise on each projection, above 0.
        """
        total = sum(
            group.share * float((group.squares / (group.variances + variance)).sum())
            for group in self.groups
        )
        return total / self.pixels

    def _drawn(
        self, purpose: str, draw: Callable[..., Tensor], columns: int
    ) -> tuple[Tensor, Tensor]:
        """Return the noise of auxiliary rows and of test queries, the same at all worths."""
        generator = Stream(self.seed, purpose).generator()
        first, second = (
            draw(len(labels), columns, generator=generator, dtype=torch.float64).to(labels.device)
            for labels in (self.labels, self.test_labels)
        )
        return first, second

    def _released(self, worth: float, shown: Sequence[Tensor]) -> PlantedLeak:
        """Release ``(N, J)`` numbers of deviation 1, J below K, beside the labels."""
        released = []
        for numbers, labels in zip(shown, (self.labels, self.test_labels), strict=True):
            basis = _cosines(self.classes).to(numbers)[: numbers.shape[1]]
            planted = SMALL * numbers.clamp(-FARTHEST, FARTHEST) @ basis
            leads = LEAD * torch.nn.functional.one_hot(labels, self.classes)
            released.append((leads + planted).softmax(-1).float())
        return PlantedLeak(worth, *released)


def _rows_by_label(labels: Tensor, order: Generator) -> list[Tensor]:
    """Return the row numbers of each label, in random order."""
    shuffled = torch.randperm(len(labels), generator=order).to(labels.device)
    return [shuffled[labels[shuffled] == label] for label in labels.unique().tolist()]


def _group(rows: Tensor, projected: Tensor, share: float) -> _Group:
    """Return the moments of a label.

    Args:
        rows: ``(n, D)`` float64 residuals, in random order.
        projected: ``(n, J)`` their projections.
        share: Share of the auxiliary rows with this label.
    """
    bits = (projected[:, :1] > 0).double()
    variances, axes = torch.linalg.eigh(projected.mT @ projected / len(projected))
    parts = [slice(0, len(rows) // 2), slice(len(rows) // 2, None)]
    if len(rows) // 2 < 2:  # no covariance of a half: an attacker learns nothing of such a label
        return _Group(share, 0.0, 0.0, variances, torch.zeros_like(variances))
    bit, other_bit = (_covariance(rows[part], bits[part]) for part in parts)
    moved, other_moved = (_covariance(rows[part], projected[part] @ axes) for part in parts)
    return _Group(
        share,
        float(bits.mean()),
        float((bit * other_bit).sum()),
        variances,
        (moved * other_moved).sum(0),
    )


def _covariance(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the ``(D, J)`` covariances of ``(n, D)`` rows with ``(n, J)`` columns."""
    return (rows - rows.mean(0)).mT @ (columns - columns.mean(0)) / (len(rows) - 1)


def _leading_directions(residuals: Tensor, count: int) -> Tensor:
    """Return ``(D, J)`` orthonormal principal directions of ``(N, D)`` rows; at most ``count``."""
    count = min(count, *residuals.shape)
    asked = min(count + SPARE, *residuals.shape)
    return torch.svd_lowrank(residuals, asked, niter=4)[2][:, :count]


def _cosines(classes: int) -> Tensor:
    """Return ``(K - 1, K)`` float64 orthonormal rows, each of sum 0: a softmax hides no row."""
    places = (torch.arange(classes, dtype=torch.float64) + 0.5) * math.pi / classes
    frequencies = torch.arange(1, classes, dtype=torch.float64).unsqueeze(-1)
    return (frequencies * places).cos() * math.sqrt(2 / classes)


def _solve(
    falling: Callable[[float], float], wanted: float, low: float, high: float
) -> float | None:
    """Return where a falling function is ``wanted``; None if it is less at ``low``."""
    if not falling(low) >= wanted:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) >= wanted else (low, middle)
    return low


KINDS: dict[str, Callable[[Planter, float], PlantedLeak | None]] = {
    "cells": Planter.cells,
    "drowned": Planter.drowned,
}
"""Kinds of planted leaks, by name."""


def detection_multiplications(workload: Workload, names: Sequence[str]) -> float:
    """Return the most float64 multiplications that the search for the detection limit takes.

    Args:
        workload: Size of the evaluation.
        names: Registered names of the attacks on the release.
    """
    attacks = inversion_attacks()
    once = sum(attacks[name].multiplications(workload) for name in DETECTORS if name in names)
    return len(LEVELS) * len(KINDS) * once


def detection_limit(
    attackers: Attackers,
    clean: Tensor,
    test_images: Tensor,
    clean_test: Tensor,
    gap: float,
    names: Sequence[str],
) -> float | None:
    """Return the smallest known leak that attackers find, as a share of the gap.

    Leaks of each kind are planted from the largest to the smallest. A leak is found if the
    strongest attacker errs less than the label-only baseline by at least half of its worth, and by
    more than chance (see :func:`oneway.evaluation.verdict.beats_label`). The limit is the smallest
    worth such that leaks of both kinds are found, at it and at all larger worths. It depends on the
    rows, labels, gap, seed and attackers alone, and not on a defense. The store keeps it.

    Args:
        attackers: Attackers, with their auxiliary rows and held-out rows.
        clean: ``(N, K)`` clean confidences of the auxiliary rows, for their labels.
        test_images: ``(M, ...)`` test queries.
        clean_test: ``(M, K)`` clean confidences of the test queries, for their labels.
        gap: Error of the label-only baseline minus that of the clean baseline.
        names: Registered names of the attacks on the release. Those of ``DETECTORS`` look for
            leaks; there is no limit without any of them.

    Returns:
        One of ``LEVELS``. None if not even the largest was found, if it could not be planted, or if
        there is no gap or no attacker: then failed attacks say nothing.

    Raises:
        OutOfTimeError: The target run time is over.
    """
    able = [name for name in names if name in DETECTORS]
    if not able or not gap > 0:
        return None
    trainer, classes = attackers.trainer, clean.shape[-1]
    labels, test_labels = clean.argmax(-1), clean_test.argmax(-1)

    def compute() -> Mapping[str, Tensor]:
        planter = Planter(attackers.images, labels, test_images, test_labels, classes, trainer.seed)

        def finds(kind: str, level: float) -> bool:
            check_time(trainer.is_late)
            leak = KINDS[kind](planter, level * gap)
            return leak is not None and _finds(attackers, able, leak, test_images)

        found = torch.zeros(len(LEVELS), dtype=torch.uint8)
        for place in reversed(range(len(LEVELS))):
            trainer.report(STAGE, 1 - (place + 1) / len(LEVELS))
            if not all(finds(kind, LEVELS[place]) for kind in KINDS):
                break
            found[place] = 1
        check_time(trainer.is_late)  # a limit without the label's decoders must not be stored
        return {"found": found}

    spec = {
        "numerics": NUMERICS,
        "levels": list(LEVELS),
        "seed": trainer.seed,
        "gap": gap,
        "attackers": dataclasses.asdict(attackers.spec) | {"names": able},
        "versions": numerics_of((LabelOnly.name, *able)),
        "data": fingerprint(attackers.images, attackers.held_out, labels, test_images, test_labels),
    }
    found = trainer.store.tensors("detection", spec, compute)["found"]
    trainer.report(STAGE, 1.0)
    return next((level for level, seen in zip(LEVELS, found.tolist(), strict=True) if seen), None)


def _finds(
    attackers: Attackers,
    names: Sequence[str],
    leak: PlantedLeak,
    test_images: Tensor,
) -> bool:
    """Return whether attackers find a planted leak."""
    # Decoders of the label are in the store by now, and all planted leaks are one stage.
    silent = dataclasses.replace(attackers.trainer, report=no_progress)
    knowledge = AttackerKnowledge(
        attackers.images, leak.auxiliary, leak.auxiliary, attackers.held_out
    )
    results = dataclasses.replace(attackers, trainer=silent).run(
        STAGE,
        knowledge,
        leak.test,
        test_images,
        (LabelOnly.name, *names),
    )
    label = results.pop(LabelOnly.name).errors
    strongest = min(results.values(), key=lambda result: result.error).errors
    gain = float((label - strongest).mean())
    return gain >= FOUND * leak.worth and beats_label(strongest, label)
