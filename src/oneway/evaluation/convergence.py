"""Convergence: double the epochs of a decoder until twice as many gain nothing of the gap."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from oneway.evaluation.flags import FLAGS, Flag

LEAST_GAIN = 0.01
"""Share of the gap that twice the epochs must remove from the error to count as a gain."""


@dataclass(frozen=True)
class Convergence:
    """The length of a model selection's trainings, and whether twice the length gains nothing.

    Attributes:
        epochs: Epochs that each decoder was trained. Where ``shown``, twice as many gain nothing,
            as the first decoder showed, which was trained for both.
        gain: Fall of the held-out error at the last doubling of the epochs, as a share of the gap
            between the label and clean scores; as a share of the error where that gap is not
            positive. None: the epochs were never doubled, or an error is not finite.
        shown: Whether the gain is below ``LEAST_GAIN``.
    """

    epochs: int
    gain: float | None
    shown: bool


Gap = Callable[[float], float]
"""Returns the gap between the held-out errors of the label's mean images and of the best attacker
on clean scores, given the held-out error of the decoder in hand."""


def no_gap(held_out_error: float) -> float:  # noqa: ARG001  a Gap
    """Return 0: there is no gap, or none is known."""
    return 0.0


class OutOfTimeError(Exception):
    """The target run time is over. An evaluation leaves out the part that raised this."""


IsLate = Callable[[], bool]
"""Returns whether the target run time is over."""


def never_late() -> bool:
    """Return False: there is always time."""
    return False


def check_time(is_late: IsLate) -> None:
    """Raise OutOfTimeError if the target run time is over."""
    if is_late():
        raise OutOfTimeError


def search_epochs(
    first: int,
    most: int,
    held_out_error: Callable[[int], float],
    gap: Gap = no_gap,
) -> Convergence:
    """Double the epochs until twice as many lower the error by less than 1 % of the gap.

    The shorter of the two last trainings is then long enough. Where the gap is not positive, the
    error must fall by less than 1 % of itself.

    Args:
        first: Epochs to begin with, at least 1.
        most: Most epochs, at least ``first``.
        held_out_error: Trains a decoder for a number of epochs; returns its held-out error. If a
            longer training than the first raises OutOfTimeError, the search ends before it.
        gap: Returns the gap, given the held-out error of the longer training.
    """
    epochs, gain, error = first, None, held_out_error(first)
    while 2 * epochs <= most:
        try:
            longer = held_out_error(2 * epochs)
        except OutOfTimeError:
            break
        width = gap(longer)
        unit = width if 0 < width < math.inf else error
        fall = (error - longer) / unit if unit else 0.0
        gain = fall if math.isfinite(fall) else None
        if gain is not None and gain < LEAST_GAIN:
            return Convergence(epochs, gain, shown=True)
        epochs, error = 2 * epochs, longer
    return Convergence(epochs, gain, shown=False)


def least_converged(selections: Iterable[Convergence]) -> Convergence | None:
    """Return the convergence of the model selection that might still gain most.

    Args:
        selections: Convergence of each model selection, of an attack or of several seeds.

    Returns:
        One of them; None where there is none.
    """
    return max(
        selections,
        key=lambda each: (not each.shown, math.inf if each.gain is None else each.gain),
        default=None,
    )


def least_by_name(seeds: Iterable[Mapping[str, Convergence]]) -> dict[str, Convergence]:
    """Return the convergence of each attacker on the seed that converged least, by name.

    Args:
        seeds: Convergence of each attacker, by name, of each seed.
    """
    by_name: dict[str, list[Convergence]] = {}
    for seed in seeds:
        for name, each in seed.items():
            by_name.setdefault(name, []).append(each)
    least = {name: least_converged(each) for name, each in by_name.items()}
    return {name: each for name, each in least.items() if each is not None}


def not_trained_out(convergence: Mapping[str, Convergence], scores: str = "") -> list[Flag]:
    """Return a flag that names the attackers whose decoders might still gain; no flag without any.

    Args:
        convergence: Convergence of each attacker, by name.
        scores: The attacked scores in words, such as ``"clean scores"``; empty: the release.
    """
    names = [name for name, each in convergence.items() if not each.shown]
    if not names:
        return []
    place = f" on {scores}" if scores else ""
    statement = FLAGS["not-trained-out"].statement
    return [Flag("not-trained-out", f"{', '.join(names)}{place} {statement}")]
