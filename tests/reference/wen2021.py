"""Wen, Yiu & Hui (IEEE CSR 2021) once more, slowly: NumPy, float64, one row at a time.

With the random start of Madry et al. (ICLR 2018), our keyed one, and the momentum of Dong et al.
(CVPR 2018).
Shares no code with the library: not even a gradient, which is written out by hand here.
"""

import hashlib
import math
import struct
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
    if budget is None or size(noise, norm) <= budget:
        return noise
    return noise * budget / size(noise, norm)


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


def keyed_starts(clean: Matrix, key: bytes, radius: float) -> Matrix:
    """Return each row's start: uniform to whoever lacks the key, decided by what the row rounds to.

    One 64-bit number per entry, of SHAKE-256 over the key and the log probabilities in multiples
    of 0.01, of which those below -100 count as -100; its upper 53 bits are a fraction of 1.
    """
    starts = []
    for row in clean.tolist():
        largest = max(row)
        total = math.log(sum(math.exp(value - largest) for value in row)) + largest
        logs = [round(max(value - total, -100.0) * 100) / 100 + 0.0 for value in row]
        stream = hashlib.shake_256(key + struct.pack(f"<{len(row)}d", *logs)).digest(8 * len(row))
        words = struct.unpack(f"<{len(row)}Q", stream)
        starts.append([radius * (2 * (word // 2**11) / 2**53 - 1) for word in words])
    return np.array(starts)


def normalized(gradient: Vector) -> Vector:
    """Divide by the sum of magnitudes, unless it is 0."""
    total = sum(abs(value) for value in gradient)
    return np.array([value / total if total > 0 else 0.0 for value in gradient])


def defend_row(
    clean: Vector,
    pixels: Vector,
    inverter: SmallInverter,
    start: Vector | None,
    *,
    step_size: float,
    steps: int,
    budget: float | None,
    norm: float,
    update: str,
    margin: float = 1e-3,
    decay: float | None = None,
) -> Vector:
    """Algorithm 2 (``update="project"``) or Equation 3 (``"rescale"``).

    From ``start``, if there is one; along the sum of Dong et al., if there is a ``decay``.
    """
    label = first_maximum(clean)
    before, current = clean.copy(), clean.copy()
    if start is not None:
        kept = keep_label_row(clean + start, label, margin)
        current = clean + project(kept - clean, budget, norm)
    history: list[Vector] = []
    for _ in range(steps):
        gradient = inverter.gradient(current, pixels)
        if decay is not None:
            history.append(normalized(gradient))
            ages = range(len(history) - 1, -1, -1)
            gradient = sum(decay**age * old for age, old in zip(ages, history, strict=True))
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
            noise = stepped - before
            if size(noise, norm) > 0:
                noise = noise * budget / size(noise, norm)
            noise = keep_label_row(before + noise, label, margin) - before
            noise = part_from_ties(before, project(noise, budget, norm), label)
            before = current = before + noise
    return current


def defend(
    clean: Matrix,
    pixels: Matrix,
    inverter: SmallInverter,
    starts: Matrix | None = None,
    **options: object,
) -> Matrix:
    drawn = [None] * len(clean) if starts is None else starts
    return np.stack(
        [
            defend_row(row, image, inverter, start, **options)
            for row, image, start in zip(clean, pixels, drawn, strict=True)
        ]
    )
