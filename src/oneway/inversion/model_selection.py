"""Several decoders compete; the one with the lowest error on held-out rows is the attacker's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from oneway.errors import InvalidOptionError


@dataclass(frozen=True)
class DecoderSpec:
    """One decoder of a contest: its input transform and its width."""

    input_transform: str
    width: int


@dataclass(frozen=True)
class Trial:
    """What became of one decoder: its spec and its held-out error after each epoch."""

    spec: DecoderSpec
    held_out_errors: Sequence[float]

    @property
    def best_error(self) -> float:
        """The lowest held-out error, that of the weights kept."""
        return min(self.held_out_errors)


FitDecoder = Callable[[DecoderSpec, Sequence[float]], tuple[nn.Module, Sequence[float]]]
"""Trains one decoder, given the incumbent's held-out errors; returns it and its own."""


def decoder_grid(input_transforms: Iterable[str], widths: Iterable[int]) -> list[DecoderSpec]:
    """Return every input transform with every width, the likely winner (robust, wide) first.

    The first to train sets the pace that later ones are given up for trailing.
    """
    grid = [
        DecoderSpec(input_transform, width)
        for input_transform, width in product(input_transforms, widths)
    ]
    return sorted(grid, key=lambda spec: (spec.input_transform != "standardized", -spec.width))


def select_model(specs: Sequence[DecoderSpec], fit: FitDecoder) -> tuple[nn.Module, list[Trial]]:
    """Train each decoder in turn and return the best, with what became of each.

    Args:
        specs: Who takes part; at least one.
        fit: How one is trained. It may give up a decoder that trails the incumbent.

    Returns:
        The decoder with the lowest held-out error (the first, if they tie), and all trials.

    Raises:
        InvalidOptionError: Nobody takes part.
    """
    winner, trials = None, list[Trial]()
    for spec in specs:
        incumbent = (
            min(trials, key=lambda trial: trial.best_error).held_out_errors if trials else ()
        )
        decoder, errors = fit(spec, incumbent)
        trial = Trial(spec, errors)
        if winner is None or trial.best_error < min(e.best_error for e in trials):
            winner = decoder
        trials.append(trial)
    if winner is None:
        raise InvalidOptionError("a contest needs at least one decoder, but none takes part.")
    return winner, trials
