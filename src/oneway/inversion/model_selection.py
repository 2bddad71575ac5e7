"""Model selection: train several decoders, each paced by the best before it, and mix them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oneway.errors import InvalidOptionError, InvalidTensorError


@dataclass(frozen=True)
class DecoderSpec:
    """The input transform and the width of a decoder."""

    input_transform: str
    width: int


@dataclass(frozen=True)
class Trial:
    """A trained decoder with its spec, and its held-out error after each epoch."""

    spec: DecoderSpec
    decoder: nn.Module
    held_out_errors: Sequence[float]

    @property
    def best_error(self) -> float:
        """The lowest held-out error, which is the error of the kept weights."""
        return min(self.held_out_errors)


FitDecoder = Callable[[DecoderSpec, Sequence[float]], tuple[nn.Module, Sequence[float]]]
"""Trains a decoder, given the incumbent's held-out errors; returns it and its held-out errors."""


def decoder_grid(input_transforms: Iterable[str], widths: Iterable[int]) -> list[DecoderSpec]:
    """Return every input transform with every width; the likely winner (robust, wide) comes first.

    The first decoder sets the pace: training stops early for later decoders that trail it.

    Args:
        input_transforms: Keys of ``INPUT_TRANSFORMS``.
        widths: Widths of decoders.
    """
    grid = [
        DecoderSpec(input_transform, width)
        for input_transform, width in product(input_transforms, widths)
    ]
    return sorted(grid, key=lambda spec: (spec.input_transform != "standardized", -spec.width))


def train_each(specs: Sequence[DecoderSpec], fit: FitDecoder) -> list[Trial]:
    """Train each decoder in turn.

    Args:
        specs: Decoders to train, at least 1.
        fit: Trains a decoder. Training may stop early for a decoder that trails the incumbent,
            which is the best decoder before it.

    Returns:
        All trials, in the order of ``specs``.

    Raises:
        InvalidOptionError: ``specs`` is empty.
    """
    if not specs:
        raise InvalidOptionError(
            "model selection needs at least one decoder, but got none. Pass a DecoderSpec."
        )
    trials = list[Trial]()
    for spec in specs:
        incumbent = (
            min(trials, key=lambda trial: trial.best_error).held_out_errors if trials else ()
        )
        trials.append(Trial(spec, *fit(spec, incumbent)))
    return trials


Floats = NDArray[np.float64]

SWEEPS = 1000
"""Most sweeps of the coordinate descent, which ends earlier where no weight moves."""

STILL = 1e-9
"""Change of a weight that counts as none."""

ROWS = 512
"""Rows that decoders reconstruct at once."""


def non_negative_weights(candidates: Tensor, truth: Tensor) -> Tensor:
    """Return the non-negative weights whose mixture of candidates is closest to the truth.

    Non-negative least squares, over all rows and entries at once. A weight of zero leaves a
    candidate out, so that on the fitted rows no candidate errs less than the mixture. A candidate
    that is not finite, such as a decoder that diverged, has weight zero.

    Args:
        candidates: ``(C, N, ...)`` reconstructions by C candidates.
        truth: ``(N, ...)`` true inputs.

    Returns:
        ``(C)`` float64 weights of at least 0, on the device of the candidates.

    Raises:
        InvalidTensorError: The shapes differ, or there is no candidate.

    Source:
        Coordinate descent: Franc, Hlavac & Navara, "Sequential Coordinate-wise Algorithm for the
        Non-negative Least Squares Problem", CAIP 2005. Stacking with such weights: Breiman,
        "Stacked Regressions", Machine Learning 24, 1996.
    """
    if not len(candidates) or candidates.shape[1:] != truth.shape:
        raise InvalidTensorError(
            f"candidates must be of shape (C, {', '.join(map(str, truth.shape))}) with C >= 1, but "
            f"got {tuple(candidates.shape)}."
        )
    usable = candidates.flatten(1).isfinite().all(-1)
    rows, columns = candidates[usable].flatten(1), truth.flatten()
    weights = torch.zeros(len(candidates), dtype=torch.float64, device=candidates.device)
    # In parts: a float64 copy of all candidates at once would fill the memory.
    at_once = max(1, 2**24 // max(1, len(rows)))
    parts = zip(rows.split(at_once, 1), columns.split(at_once), strict=True)
    gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    moment = rows.new_zeros(len(rows), dtype=torch.float64)
    for part, aim in parts:
        wide = part.double()
        gram += wide @ wide.mT
        moment += wide @ aim.double()
    found = _descend(gram.cpu().numpy(), moment.cpu().numpy())
    weights[usable] = torch.from_numpy(found).to(weights.device)
    return weights


def _descend(gram: Floats, moment: Floats) -> Floats:
    """Minimise ``w G w / 2 - m w`` over weights of at least 0, from equal weights."""
    # In NumPy, whose calls on a few numbers cost a tenth of torch's.
    scale = np.maximum(gram.diagonal(), np.finfo(gram.dtype).tiny)
    weights = (gram.diagonal() > 0) / max(1, len(gram))
    for _ in range(SWEEPS):
        before = weights.copy()
        for place in range(len(gram)):
            step = (moment[place] - gram[place] @ weights) / scale[place]
            weights[place] = max(weights[place] + step, 0.0)
        if np.all(np.abs(weights - before) < STILL):
            break
    return weights


class Mixture(nn.Module):
    """Decoders, and the weight of each in their common reconstruction, clamped to ``[0, 1]``."""

    weights: Tensor

    def __init__(self, decoders: Sequence[nn.Module], weights: Tensor) -> None:
        """Mix decoders.

        Args:
            decoders: Networks from ``(N, K)`` confidences to ``(N, ...)`` inputs.
            weights: A weight of at least 0 for each; decoders of weight 0 are left out.
        """
        super().__init__()
        kept = weights > 0
        self.decoders = nn.ModuleList(
            decoder for decoder, used in zip(decoders, kept.tolist(), strict=True) if used
        )
        self.register_buffer("weights", weights[kept].float())
        self.eval()

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, ...)`` reconstructions."""
        made = [
            weight * decoder(confidences)
            for weight, decoder in zip(self.weights, self.decoders, strict=True)
        ]
        return torch.stack(made).sum(0).clamp(0, 1)


@torch.no_grad()
def mix_decoders(decoders: Sequence[nn.Module], confidences: Tensor, truth: Tensor) -> nn.Module:
    """Return the mixture of trained decoders that is best on held-out rows.

    Args:
        decoders: Networks in eval mode, at least one. A single decoder is returned as it is.
        confidences: ``(N, K)`` confidences of the held-out rows.
        truth: ``(N, ...)`` true inputs of the held-out rows.
    """
    if len(decoders) == 1:
        return decoders[0]
    made = [torch.cat([decoder(rows) for rows in confidences.split(ROWS)]) for decoder in decoders]
    weights = non_negative_weights(torch.stack(made), truth)
    # Decoders that answer zero everywhere have no weights; the first answers for them.
    return Mixture(decoders, weights) if bool((weights > 0).any()) else decoders[0]


class MeanInput(nn.Module):
    """A decoder that reads nothing: it answers every query with the mean of the inputs."""

    mean: Tensor

    def __init__(self, inputs: Tensor) -> None:
        """Take the mean of ``(N, ...)`` inputs."""
        super().__init__()
        self.register_buffer("mean", inputs.mean(0))

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, ...)`` copies of the mean."""
        return self.mean.expand(len(confidences), *self.mean.shape)
