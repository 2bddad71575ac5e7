"""Model selection: train several decoders, and keep the lowest error on held-out rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from oneway.errors import InvalidOptionError


@dataclass(frozen=True)
class DecoderSpec:
    """The input transform and the width of a decoder."""

    input_transform: str
    width: int


@dataclass(frozen=True)
class Trial:
    """A trained decoder's spec, and its held-out error after each epoch."""

    spec: DecoderSpec
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


def select_model(specs: Sequence[DecoderSpec], fit: FitDecoder) -> tuple[nn.Module, list[Trial]]:
    """Train each decoder in turn, and return the best.

    Args:
        specs: Decoders to train, at least 1.
        fit: Trains a decoder. Training may stop early for a decoder that trails the incumbent.

    Returns:
        The decoder with the lowest held-out error (of a tie, the first), and all trials.

    Raises:
        InvalidOptionError: ``specs`` is empty.
    """
    winner, trials = None, list[Trial]()
    for spec in specs:
        incumbent = (
            min(trials, key=lambda trial: trial.best_error).held_out_errors if trials else ()
        )
        decoder, errors = fit(spec, incumbent)
        trial = Trial(spec, errors)
        if winner is None or trial.best_error < min(other.best_error for other in trials):
            winner = decoder
        trials.append(trial)
    if winner is None:
        raise InvalidOptionError(
            "model selection needs at least one decoder, but got none. Pass a DecoderSpec."
        )
    return winner, trials
