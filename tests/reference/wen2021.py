"""Wen, Yiu & Hui (IEEE CSR 2021) once more, slowly: NumPy, float64, one row at a time.

Shares no code with the library: not even a gradient, which is written out by hand here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def softmax(logits: Vector) -> Vector:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def first_maximum(row: Vector) -> int:
    best = 0
    for position, value in enumerate(row):
        if value > row[best]:
            best = position
    return best


def keep_label_row(logits: Vector, label: int, margin: float) -> Vector:
    """Equation 2, with a margin: the label leads every rival by it, or by one float."""
    rival = max(value for position, value in enumerate(logits) if position != label)
    kept = logits.copy()
    kept[label] = max(logits[label], rival + margin, np.nextafter(rival, np.inf))
    return kept


def keep_label(logits: Matrix, labels: NDArray[np.int64], margin: float = 1e-3) -> Matrix:
    return np.stack(
        [keep_label_row(row, label, margin) for row, label in zip(logits, labels, strict=True)]
    )


def size(noise: Vector, norm: float) -> float:
    magnitudes = np.abs(noise)
    if norm == np.inf:
        return float(magnitudes.max())
    if norm == 1:
        return float(magnitudes.sum())
    return float(np.sqrt((magnitudes**2).sum()))


def project(noise: Vector, budget: float | None, norm: float) -> Vector:
    """Lines 7 to 9 of Algorithm 1."""
    measured = size(noise, norm)
    return noise * budget / measured if budget is not None and measured > budget else noise


def part_from_ties(clean: Vector, noise: Vector, label: int) -> Vector:
    """Where rounding lets a rival catch up, raise the label's noise until it leads by a float."""
    noise, total = noise.copy(), clean + noise
    rival = max(value for position, value in enumerate(total) if position != label)
    if total[label] <= rival:
        noise[label] = rival - clean[label]
    while clean[label] + noise[label] <= rival:
        noise[label] += np.spacing(max(abs(rival), abs(clean[label]), abs(noise[label])))
    return noise


def noise_row(
    clean: Vector,
    current: Vector,
    gradient: Vector,
    *,
    step_size: float,
    budget: float | None,
    norm: float,
    margin: float = 1e-3,
) -> Vector:
    """Algorithm 1."""
    label = first_maximum(clean)
    kept = keep_label_row(current + step_size * np.sign(gradient), label, margin)
    return part_from_ties(clean, project(kept - clean, budget, norm), label)


def noise_vector(
    clean: Matrix,
    current: Matrix,
    gradients: Matrix,
    *,
    step_size: float,
    budget: float | None = None,
    norm: float = 1,
    margin: float = 1e-3,
) -> Matrix:
    return np.stack(
        [
            noise_row(*rows, step_size=step_size, budget=budget, norm=norm, margin=margin)
            for rows in zip(clean, current, gradients, strict=True)
        ]
    )


@dataclass
class SmallInverter:
    """Confidences, clamp-free logs plus 50, lifted; linear, BatchNorm, tanh, linear, sigmoid."""

    first_weight: Matrix
    first_bias: Vector
    running_mean: Vector
    running_variance: Vector
    scale: Vector
    shift: Vector
    last_weight: Matrix
    last_bias: Vector
    epsilon: float = 1e-5

    def _forward(self, logits: Vector) -> tuple[Vector, Vector, Vector, Vector, Vector]:
        confidences = softmax(logits)
        logs = np.log(confidences) + 50
        features = logs + max(0.0, -logs.min())
        slope = self.scale / np.sqrt(self.running_variance + self.epsilon)
        first = self.first_weight @ features + self.first_bias
        hidden = np.tanh(slope * (first - self.running_mean) + self.shift)
        pixels = 1 / (1 + np.exp(-(self.last_weight @ hidden + self.last_bias)))
        return confidences, logs, slope, hidden, pixels

    def error(self, logits: Vector, pixels: Vector) -> float:
        """R(x, A(softmax(c))): the mean squared error over pixels."""
        return float(np.mean((self._forward(logits)[-1] - pixels) ** 2))

    def gradient(self, logits: Vector, pixels: Vector) -> Vector:
        """Of :meth:`error` in the logits, by the chain rule from the pixels back."""
        confidences, logs, slope, hidden, reconstruction = self._forward(logits)
        at_pixels = 2 * (reconstruction - pixels) / len(pixels)
        at_last = at_pixels * reconstruction * (1 - reconstruction)
        at_hidden = self.last_weight.T @ at_last
        at_features = self.first_weight.T @ (at_hidden * (1 - hidden**2) * slope)
        at_logs = at_features.copy()
        if logs.min() < 0:
            at_logs[logs.argmin()] -= at_features.sum()
        return at_logs - confidences * at_logs.sum()


def defend_row(
    clean: Vector,
    pixels: Vector,
    inverter: SmallInverter,
    *,
    step_size: float,
    steps: int,
    budget: float | None,
    norm: float,
    update: str,
    margin: float = 1e-3,
) -> Vector:
    """Algorithm 2 (``update="project"``) or Equation 3 (``"rescale"``)."""
    label = first_maximum(clean)
    current = clean.copy()
    for _ in range(steps):
        gradient = inverter.gradient(current, pixels)
        if update == "project":
            current = clean + noise_row(
                clean,
                current,
                gradient,
                step_size=step_size,
                budget=budget,
                norm=norm,
                margin=margin,
            )
        else:
            stepped = keep_label_row(current + step_size * np.sign(gradient), label, margin)
            noise = stepped - current
            if size(noise, norm) > 0:
                noise = noise * budget / size(noise, norm)
            noise = keep_label_row(current + noise, label, margin) - current
            noise = part_from_ties(current, project(noise, budget, norm), label)
            current = current + noise
    return current


def defend(clean: Matrix, pixels: Matrix, inverter: SmallInverter, **options: object) -> Matrix:
    return np.stack(
        [
            defend_row(row, image, inverter, **options)
            for row, image in zip(clean, pixels, strict=True)
        ]
    )
