"""Kernel ridge regression from released scores to inputs: seconds, and stronger than it looks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import JUDGING_ROWS, AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.inversion.input_transforms import INPUT_TRANSFORMS, InputTransform


@dataclass(frozen=True)
class Kernel:
    """A kernel of the distance between two rows.

    Attributes:
        norm: Order of the norm that measures the distance: 2, or 1 for the sum over features.
        value: Maps distances in length scales to values; 1 at distance 0.
    """

    norm: float
    value: Callable[[Tensor], Tensor]


KERNELS = {
    "exponential": Kernel(2, lambda distances: distances.neg().exp()),
    "Laplacian": Kernel(1, lambda distances: distances.neg().exp()),
    "rational quadratic": Kernel(2, lambda distances: 1 / (1 + distances.square() / 2)),
}
"""Kernels by name. The Laplacian kernel, a product over features, is the best where each score
carries noise of its own, such as the paper's; the rational quadratic one (of order 1) is smooth."""

REGRESSIONS = (
    ("within-label", "exponential"),
    ("standardized", "exponential"),
    ("unscaled", "exponential"),
    ("unscaled", "Laplacian"),
    ("leading", "exponential"),
)
"""Input transform and kernel of each regression."""

LABEL = 100.0
"""Variance of a label's mean input, in units of the kernel at distance 0. So wide that the
regression begins at the mean input of the label, and still a kernel, so that the error without a
row is exact."""

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Length scales of the kernel, as multiples of the median distance between two rows."""

PENALTIES = tuple(10 ** (step / 4) for step in range(-12, 7))
"""Ridge penalties, in units of the kernel at distance 0, which is 1."""

LANDMARKS = 4000
"""Most rows with a weight of their own. With more rows, the others fit these weights (Nystrom)."""

CHOICE = 1000
"""Most rows that choose length scale and penalty."""

DIRECTIONS = 64
"""Random directions of the inputs that judge a choice; the regression itself predicts them all."""

ROWS = 1024
"""Rows whose kernel values are computed at once."""

LEAST_SHARE = 1e-6
"""Least share of a row's residual that its own fit leaves over; rounding may end at 0."""


class KernelRidge(InversionAttack):
    """Regress inputs on released scores, beginning at the mean input of the label.

    Each pair of input transform and kernel has a regression, whose length scale and penalty have
    the lowest leave-one-out error. Up to 4,000 rows a regression is exact. With more rows it has
    4,000 weights, which all rows fit, so that memory stays bounded. No row is held out: that would
    cost more than anything else, and leave-one-out errors follow from the fit to all rows.

    Source:
        Saunders, Gammerman & Vovk, "Ridge Regression Learning Algorithm in Dual Variables", ICML
        1998. More rows than landmarks: Williams & Seeger, "Using the Nystrom Method to Speed Up
        Kernel Machines", NeurIPS 2000. Leave-one-out errors: Rifkin & Lippert, "Notes on
        Regularized Least Squares", MIT-CSAIL-TR-2007-025.
    """

    name: ClassVar = "kernel-ridge"
    knows: ClassVar = "released scores of its own images, read by kernel ridge regression"
    trains_decoders: ClassVar = False
    left_out: ClassVar[Literal["early", "late"] | None] = None
    numerics: ClassVar = 3
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
        fitted = regress(knowledge.released, knowledge.images, knowledge.judging, self.regressions)
        return {
            name: Reconstructor(partial(_first_answer, reconstruct), out_of_fold=made)
            for name, (reconstruct, made) in fitted.items()
        }


def multiplications(workload: Workload, regressions: int = len(REGRESSIONS)) -> float:
    """Return those of eigenvectors that choose, and of matrices that are factored and solved.

    Args:
        workload: Size of the evaluation.
        regressions: Number of regressions.
    """
    rows, judges = workload.auxiliary, min(workload.auxiliary, JUDGING_ROWS)
    few, landmarks = min(rows, CHOICE), min(rows, LANDMARKS)
    directions = min(workload.entries, DIRECTIONS)
    # Eigenvectors take about ten times as long as a product of two such matrices.
    chosen = len(LENGTHS) * (10 * few**3 + len(PENALTIES) * few**2 * (1 + directions))
    fitted = landmarks**3 / 3 + landmarks**2 * (rows + judges / 2 + 2 * workload.entries)
    fitted += landmarks * workload.entries * (rows + judges)
    answered = workload.test * landmarks * workload.entries
    return regressions * (chosen + fitted + answered)


Fitted = tuple[Callable[[Tensor], Tensor], Tensor]
"""A function of ``(M, K)`` confidences that returns ``(M, ...)`` reconstructions, and the
reconstructions of the judging rows, each by a fit without that row."""


def regress(
    released: Tensor,
    inputs: Tensor,
    judging: Tensor,
    regressions: Sequence[tuple[str, str]] = REGRESSIONS,
) -> dict[str, Fitted]:
    """Fit kernel ridge regressions from released confidences to inputs, to all rows.

    Args:
        released: ``(N, K)`` released confidences.
        inputs: ``(N, ...)`` their inputs.
        judging: ``(J)`` int64 numbers of the rows that are also predicted without themselves.
        regressions: Input transform and kernel of each regression.

    Returns:
        What reconstructs, and reconstructions of the judging rows, by name.
    """
    classes, fitted = released.shape[-1], dict[str, Fitted]()
    for name, kernel in regressions:
        transform = INPUT_TRANSFORMS[name](classes).to(released.device)
        transform.fit(released)
        regression, left_out = _fit(
            KERNELS[kernel], _features(transform, released), inputs.flatten(1), judging
        )
        reconstruct = partial(_reconstruct, transform, regression, inputs.shape[1:])
        made = left_out.to(inputs.dtype).view(-1, *inputs.shape[1:]).clamp(0, 1)
        fitted[f"{name}, {kernel}"] = reconstruct, made
    return fitted


@dataclass(frozen=True)
class _Rows:
    """Rows as a kernel reads them.

    Attributes:
        features: ``(N, F)`` float64.
        labels: ``(N)`` int64.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: Tensor | slice) -> "_Rows":
        return _Rows(self.features[chosen], self.labels[chosen])

    def parts(self) -> "list[_Rows]":
        """Return parts of at most ``ROWS`` rows."""
        return [self[begin : begin + ROWS] for begin in range(0, len(self), ROWS)]


def _features(transform: InputTransform, released: Tensor) -> _Rows:
    return _Rows(transform(released).double(), released.argmax(-1))


@dataclass(frozen=True)
class _Regression:
    """A fitted regression.

    Attributes:
        kernel: The kernel.
        landmarks: The rows with a weight.
        length: Length scale of the kernel.
        mean: ``(D)`` float64 mean input.
        weights: ``(m, D)`` float64 weights.
    """

    kernel: Kernel
    landmarks: _Rows
    length: float
    mean: Tensor
    weights: Tensor

    def __call__(self, rows: _Rows) -> Tensor:
        """Return ``(N, D)`` float64 predictions."""
        parts = [
            _values(self.kernel, part, self.landmarks, self.length) @ self.weights
            for part in rows.parts()
        ]
        return self.mean + torch.cat(parts)


def _reconstruct(
    transform: InputTransform, regression: _Regression, shape: Sequence[int], released: Tensor
) -> Tensor:
    """Return ``(M, ...)`` reconstructions from ``(M, K)`` confidences."""
    made = regression(_features(transform, released))
    return made.to(torch.get_default_dtype()).view(-1, *shape).clamp(0, 1)


def _first_answer(regression: Callable[[Tensor], Tensor], released: Tensor) -> Tensor:
    """Return ``(M, ...)`` reconstructions from ``(1, M, K)`` released confidences."""
    return regression(released[0])


def _fit(
    kernel: Kernel, rows: _Rows, inputs: Tensor, judging: Tensor
) -> tuple[_Regression, Tensor]:
    """Fit a regression to all rows, with the length scale and penalty of least error.

    In coordinates in which the kernel of landmarks is a plain product, the regression is an
    ordinary ridge regression. The influence of a row on its own prediction then gives the
    prediction without it.

    Args:
        kernel: The kernel.
        rows: Transformed scores and labels of the N rows.
        inputs: ``(N, D)`` their inputs.
        judging: ``(J)`` int64 row numbers.

    Returns:
        The regression, and ``(J, D)`` float64 predictions of the judging rows without themselves.
    """
    mean = inputs.double().mean(0)
    length, penalty = _choice(kernel, rows, inputs, mean)
    landmarks = rows[_some(len(rows), LANDMARKS)]
    root = _factor(_values(kernel, landmarks, landmarks, length))
    gram = penalty * torch.eye(len(landmarks), dtype=root.dtype, device=root.device)
    moment = gram.new_zeros(len(landmarks), inputs.shape[1])
    for part, aims in zip(rows.parts(), inputs.split(ROWS), strict=True):
        placed = _coordinates(root, kernel, landmarks, part, length)
        for begin in range(0, len(landmarks), ROWS):
            # The factor reads the lower triangle alone.
            column = slice(begin, begin + ROWS)
            gram[begin:, column].addmm_(placed[begin:], placed[column].mT)
        moment.addmm_(placed, aims.double() - mean)
    factor = _factor(gram)
    weights = torch.cholesky_solve(moment, factor)
    left_out = []
    for numbers in judging.split(ROWS):
        placed = _coordinates(root, kernel, landmarks, rows[numbers], length)
        influence = torch.linalg.solve_triangular(factor, placed, upper=False).square().sum(0)
        truth = inputs[numbers].double()
        residual = truth - mean - placed.mT @ weights
        left_out.append(truth - residual / (1 - influence).clamp_min(LEAST_SHARE).unsqueeze(-1))
    weights = torch.linalg.solve_triangular(root.mT, weights, upper=True)
    return _Regression(kernel, landmarks, length, mean, weights), torch.cat(left_out)


def _coordinates(
    root: Tensor, kernel: Kernel, landmarks: _Rows, rows: _Rows, length: float
) -> Tensor:
    """Return ``(m, n)`` coordinates of n rows, whose products are values of the kernel."""
    across = _values(kernel, landmarks, rows, length)
    placed: Tensor = torch.linalg.solve_triangular(root, across, upper=False)
    return placed


def _choice(kernel: Kernel, rows: _Rows, inputs: Tensor, mean: Tensor) -> tuple[float, float]:
    """Return the length scale and penalty of least leave-one-out error, on some of the rows."""
    few = _some(len(rows), CHOICE)
    shown = rows[few]
    targets = (inputs[few].double() - mean) @ _directions(inputs.shape[1]).to(mean)
    distances = torch.cdist(shown.features, shown.features, kernel.norm)
    same = LABEL * _same(shown, shown)
    unit = _median_distance(distances)
    best, least = (unit, PENALTIES[-1]), float("inf")
    for length in (factor * unit for factor in LENGTHS):
        values, vectors = torch.linalg.eigh(kernel.value(distances / length) + same)
        values = values.clamp_min(0)
        moment, squares = vectors.mT @ targets, vectors.square()
        for penalty in PENALTIES:
            inverse = (values + penalty).reciprocal()
            # A row's residual without it: its weight, over its entry of the inverse's diagonal.
            weights = vectors @ (inverse.unsqueeze(-1) * moment)
            error = float((weights / (squares @ inverse).unsqueeze(-1)).square().mean())
            if error < least:
                best, least = (length, penalty), error
    return best


def _factor(gram: Tensor) -> Tensor:
    """Return the Cholesky factor of a Gram matrix, whose diagonal it raises a little."""
    # Equal rows make a Gram matrix singular, which would end the attack.
    gram.diagonal().add_(1e-8 * float(gram.diagonal().mean()))
    factor: Tensor = torch.linalg.cholesky(gram)
    return factor


def _values(kernel: Kernel, rows: _Rows, columns: _Rows, length: float) -> Tensor:
    """Return ``(N, m)`` values of a kernel between rows and columns, of their labels included."""
    distances = torch.cdist(rows.features, columns.features, kernel.norm)
    return kernel.value(distances / length).add_(_same(rows, columns), alpha=LABEL)


def _same(rows: _Rows, columns: _Rows) -> Tensor:
    """Return ``(N, m)`` float64: 1 where the labels are the same."""
    return (rows.labels.unsqueeze(-1) == columns.labels).to(rows.features.dtype)


def _median_distance(distances: Tensor) -> float:
    """Return the median distance between different rows; 1 where all rows are equal."""
    few = distances[:500, :500]
    apart = few[few > 0]
    return float(apart.median()) if len(apart) else 1.0


def _some(count: int, most: int) -> Tensor:
    """Return at most ``most`` row numbers out of ``count``, drawn at random, the same each time."""
    # Evenly spaced rows could all be of the same classes.
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))[:most]


def _directions(size: int) -> Tensor:
    """Return ``(D, d)`` directions: all of them, or random ones, the same each time."""
    if size <= DIRECTIONS:
        return torch.eye(size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, DIRECTIONS, generator=generator, dtype=torch.float64)
