"""Kernel ridge regression from released scores to inputs: seconds, and stronger than it looks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack, Workload
from oneway.attacks.label_means import label_means
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.inversion.input_transforms import INPUT_TRANSFORMS, InputTransform

KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "rough": lambda distances: distances.neg().exp(),
    "smooth": lambda distances: 1 / (1 + distances.square() / 2),
}
"""Kernels by name, as functions of the distance in length scales: the exponential kernel, and the
rational quadratic one of order 1. Which is better depends on the release; mixed they are better
than either."""

REGRESSIONS = (
    ("within-label", "rough"),
    ("within-label", "smooth"),
    ("standardized", "rough"),
    ("standardized", "smooth"),
    ("leading", "rough"),
)
"""Input transform and kernel of each regression."""

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Length scales of the kernel, as multiples of the median distance between two rows."""

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridge penalties, in units of the kernel at distance 0, which is 1."""

LANDMARKS = 10_000
"""Most rows with a weight of their own. With more rows, the others fit these weights (Nystrom)."""

CHOICE = 2000
"""Most training and most held-out rows that choose length scale and penalty."""

DIRECTIONS = 64
"""Random directions of the inputs that judge a choice; the regression itself predicts them all."""

ROWS = 1024
"""Rows whose kernel values are computed at once."""


class KernelRidge(InversionAttack):
    """Regress the difference from the label's mean input on released scores.

    Kernels are functions of the distance between transformed scores: a rough and a smooth one. Each
    pair of input transform and kernel has a regression, whose length scale and penalty have the
    lowest error on held-out rows. Up to 10,000 rows a regression is exact. With more rows it has
    10,000 weights, which all rows fit, so that memory stays bounded.

    Source:
        Saunders, Gammerman & Vovk, "Ridge Regression Learning Algorithm in Dual Variables", ICML
        1998. More rows than landmarks: Williams & Seeger, "Using the Nystrom Method to Speed Up
        Kernel Machines", NeurIPS 2000.
    """

    name: ClassVar = "kernel-ridge"
    knows: ClassVar = "released scores of its own images, read by kernel ridge regression"
    trains_decoders: ClassVar = False
    left_out: ClassVar = None
    numerics: ClassVar = 2
    regressions: ClassVar[tuple[tuple[str, str], ...]] = REGRESSIONS

    def multiplications(self, workload: Workload) -> float:
        """Return those of all regressions."""
        return multiplications(workload, len(self.regressions))

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Fit all regressions; see :meth:`InversionAttack.run`."""
        fitted = regress(knowledge.released, knowledge.images, knowledge.held_out, self.regressions)
        return {
            name: Reconstructor(partial(_first_answer, regression))
            for name, regression in fitted.items()
        }


def multiplications(workload: Workload, regressions: int = len(REGRESSIONS)) -> float:
    """Return those of Gram matrices that are factored and solved, and of the predictions.

    Args:
        workload: Size of the evaluation.
        regressions: Number of regressions.
    """
    held_out = workload.auxiliary // 8
    kept = workload.auxiliary - held_out
    few, landmarks = min(kept, CHOICE), min(kept, LANDMARKS)
    directions = min(workload.entries, DIRECTIONS)
    chosen = few**3 / 6 + (few**2 + few * min(held_out, CHOICE)) * directions
    fitted = landmarks**3 / 6 + landmarks**2 * workload.entries
    if kept > LANDMARKS:
        fitted += kept * landmarks * (landmarks / 2 + workload.entries)
    answered = (held_out + workload.test) * landmarks * workload.entries
    return regressions * (len(LENGTHS) * len(PENALTIES) * chosen + fitted + answered)


def regress(
    released: Tensor,
    inputs: Tensor,
    held_out: Tensor,
    regressions: Sequence[tuple[str, str]] = REGRESSIONS,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Fit kernel ridge regressions from released confidences to inputs.

    Args:
        released: ``(N, K)`` released confidences.
        inputs: ``(N, ...)`` their inputs.
        held_out: ``(N)`` bool, the rows that choose length scales and penalties.
        regressions: Input transform and kernel of each regression.

    Returns:
        Functions of ``(M, K)`` confidences that return ``(M, ...)`` reconstructions, by name.
    """
    kept, labels, classes = ~held_out, released.argmax(-1), released.shape[-1]
    means = label_means(inputs[kept], labels[kept], classes)
    residuals = (inputs - means[labels]).flatten(1)
    fitted: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, kernel in regressions:
        transform = INPUT_TRANSFORMS[name](classes).to(released.device)
        transform.fit(released[kept])
        features = transform(released)
        regression = _regression(
            kernel, features[kept], residuals[kept], features[~kept], residuals[~kept]
        )
        fitted[f"{name}, {kernel}"] = partial(_reconstruct, transform, regression, means)
    return fitted


@dataclass(frozen=True)
class _Regression:
    """A fitted regression.

    Attributes:
        kernel: Key of ``KERNELS``.
        landmarks: ``(m, F)`` float64 features of the rows with a weight.
        length: Length scale of the kernel.
        weights: ``(m, D)`` float64 weights.
    """

    kernel: str
    landmarks: Tensor
    length: float
    weights: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Map ``(N, F)`` features to ``(N, D)`` float64 predictions."""
        values = _kernel(self.kernel, features.double(), self.landmarks, self.length)
        return values @ self.weights


def _reconstruct(
    transform: InputTransform, regression: _Regression, means: Tensor, released: Tensor
) -> Tensor:
    """Return ``(M, ...)`` reconstructions from ``(M, K)`` confidences."""
    made = torch.cat([regression(transform(part)) for part in released.split(ROWS)])
    answers = means[released.argmax(-1)]
    return (answers + made.to(answers.dtype).view_as(answers)).clamp(0, 1)


def _first_answer(regression: Callable[[Tensor], Tensor], released: Tensor) -> Tensor:
    """Return ``(M, ...)`` reconstructions from ``(1, M, K)`` released confidences."""
    return regression(released[0])


def _regression(
    kernel: str, features: Tensor, residuals: Tensor, held_features: Tensor, held_residuals: Tensor
) -> _Regression:
    """Choose length scale and penalty on held-out rows, and fit to all training rows.

    Rows are in random order already: the attacker's split draws them.

    Args:
        kernel: Key of ``KERNELS``.
        features: ``(N, F)`` transformed scores of the training rows.
        residuals: ``(N, D)`` differences of their inputs from the labels' means.
        held_features: ``(H, F)`` those of the held-out rows.
        held_residuals: ``(H, D)`` those of the held-out rows.
    """
    rows = features.double()
    few, judges = _spread(len(rows), CHOICE), _spread(len(held_features), CHOICE)
    shown, asked = rows[few], held_features[judges].double()
    directions = _directions(residuals.shape[1]).to(rows)
    targets = residuals[few].double() @ directions
    truth = held_residuals[judges].double() @ directions
    unit = _median_distance(shown)
    best, least = (unit, PENALTIES[-1]), float("inf")
    value = KERNELS[kernel]
    among, across = _distances(shown, shown), _distances(asked, shown)
    for length in (factor * unit for factor in LENGTHS):
        gram, cross = value(among / length), value(across / length)
        for penalty in PENALTIES:
            guess = cross @ torch.cholesky_solve(targets, _factor(gram, penalty))
            error = float((guess - truth).square().mean())
            if error < least:
                best, least = (length, penalty), error
    return _fit(kernel, rows, residuals, *best)


def _fit(
    kernel: str, rows: Tensor, residuals: Tensor, length: float, penalty: float
) -> _Regression:
    """Fit exactly, or with the weights of landmarks where there are too many rows."""
    if len(rows) <= LANDMARKS:
        factor = _factor(_kernel(kernel, rows, rows, length), penalty)
        return _Regression(kernel, rows, length, torch.cholesky_solve(residuals.double(), factor))
    landmarks = rows[_spread(len(rows), LANDMARKS)]
    among = _kernel(kernel, landmarks, landmarks, length)
    normal, moment = penalty * among, rows.new_zeros(len(landmarks), residuals.shape[1])
    for part, aims in zip(rows.split(ROWS), residuals.split(ROWS), strict=True):
        across = _kernel(kernel, part, landmarks, length)
        for begin in range(0, len(landmarks), ROWS):
            # The factor reads the lower triangle alone.
            column = slice(begin, begin + ROWS)
            normal[begin:, column].addmm_(across[:, begin:].mT, across[:, column])
        moment.addmm_(across.mT, aims.double())
    return _Regression(
        kernel, landmarks, length, torch.cholesky_solve(moment, _factor(normal, 0.0))
    )


def _factor(gram: Tensor, penalty: float) -> Tensor:
    """Return the Cholesky factor of a Gram matrix with a penalty on its diagonal."""
    # Equal rows make a Gram matrix singular; without a penalty that would end the attack.
    jitter = 1e-8 * float(gram.diagonal().mean())
    ridged = gram.clone()
    ridged.diagonal().add_(penalty + jitter)
    factor: Tensor = torch.linalg.cholesky(ridged)
    return factor


def _kernel(kernel: str, rows: Tensor, columns: Tensor, length: float) -> Tensor:
    """Return ``(N, m)`` values of a kernel between float64 rows and columns."""
    value = KERNELS[kernel]
    return torch.cat([value(torch.cdist(part, columns) / length) for part in rows.split(ROWS)])


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``(N, m)`` distances between float64 rows and columns."""
    return torch.cat([torch.cdist(part, columns) for part in rows.split(ROWS)])


def _median_distance(rows: Tensor) -> float:
    """Return the median distance between different rows; 1 where all rows are equal."""
    few = rows[_spread(len(rows), 500)]
    distances = torch.pdist(few)
    apart = distances[distances > 0]
    return float(apart.median()) if len(apart) else 1.0


def _spread(count: int, most: int) -> Tensor:
    """Return at most ``most`` evenly spaced row numbers out of ``count``."""
    chosen = min(count, most)
    return torch.arange(chosen) * count // max(1, chosen)


def _directions(size: int) -> Tensor:
    """Return ``(D, d)`` directions: all of them, or random ones, the same each time."""
    if size <= DIRECTIONS:
        return torch.eye(size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, DIRECTIONS, generator=generator, dtype=torch.float64)
