"""Model selection: train several decoders, each paced by the best before it."""

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
