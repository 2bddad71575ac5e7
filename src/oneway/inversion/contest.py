"""Several decoders compete; the one with the lowest error on held-out rows is the attacker's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn

from oneway.errors import InvalidOptionError


@dataclass(frozen=True)
class DecoderSpec:
    """One decoder of a contest: its input transform and its width."""

    front_end: str
    width: int


@dataclass(frozen=True)
class Entry:
    """What became of one decoder: its spec and its held-out error after each epoch."""

    spec: DecoderSpec
    held_out_errors: Sequence[float]

    @property
    def best_error(self) -> float:
        """The lowest held-out error, that of the weights kept."""
        return min(self.held_out_errors)


FitDecoder = Callable[[DecoderSpec, Sequence[float]], tuple[nn.Module, Sequence[float]]]
"""Trains one decoder, given the leader's held-out errors; returns it and its own."""


def decoder_grid(front_ends: Iterable[str], widths: Iterable[int]) -> list[DecoderSpec]:
    """Return every front end with every width, the likely winner (robust, wide) first.

    The first to train sets the pace that later ones are given up for trailing.
    """
    grid = [DecoderSpec(front_end, width) for front_end, width in product(front_ends, widths)]
    return sorted(grid, key=lambda spec: (spec.front_end != "standardized", -spec.width))


def hold_contest(specs: Sequence[DecoderSpec], fit: FitDecoder) -> tuple[nn.Module, list[Entry]]:
    """Train each decoder in turn and return the best, with what became of each.

    Args:
        specs: Who takes part; at least one.
        fit: How one is trained. It may give up a decoder that trails the leader.

    Returns:
        The decoder with the lowest held-out error (the first, if they tie), and all entries.

    Raises:
        InvalidOptionError: Nobody takes part.
    """
    winner, entries = None, list[Entry]()
    for spec in specs:
        leader = min(entries, key=lambda entry: entry.best_error).held_out_errors if entries else ()
        decoder, errors = fit(spec, leader)
        entry = Entry(spec, errors)
        if winner is None or entry.best_error < min(e.best_error for e in entries):
            winner = decoder
        entries.append(entry)
    if winner is None:
        raise InvalidOptionError("a contest needs at least one decoder, but none takes part.")
    return winner, entries
