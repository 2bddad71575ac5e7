"""Are the cells of answers still distributed as in the certificate? A test that may look any time.

Answers are taken in blocks. Each block is compared with the *bag* of all counts before it: those of
the certified queries, and those of the stream so far. If both are independent draws of one
distribution, then, given the bag and the block together, the block is any part of them as likely as
any other, whatever the distribution is. So the rank of its distance from the bag, among those of
parts that are drawn at random, is a p-value that is exactly uniform and independent of those of
earlier blocks. Nothing takes the shares of the certified queries for the true ones.

Bets on these p-values make the wealth of a gambler who begins with 1. Against uniform p-values it
ever reaches 1 / risk with probability ``risk`` at most, over certified queries and stream together
(Ville's inequality). A part of the money is kept for each block from which the distribution may
have changed, so that a change after a million answers is found nearly as soon as one after a
hundred. Small blocks find large changes soon, large blocks find small changes: there is a gambler
for each, with half of the risk.

What it cannot see: a change within cells (one image per cell keeps every share, and an attacker
errs by nothing), and a change so slow that the bag follows it. Queries of one client in a row are
no independent draws: they look like a change of the traffic, and are one.

Source: Vovk, Nouretdinov & Gammerman, "Testing exchangeability on-line" (ICML 2003), for
martingales of p-values; Volkhonskiy et al., "Inductive conformal martingales for change-point
detection" (COPA 2017), for restarts. P-values of blocks of counts, and how the money is kept, are
ours.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from oneway.defenses.codebook.certificate import Certificate
from oneway.errors import InvalidOptionError

BLOCKS = (50, 400)
"""Answers in a block of each gambler."""

DRAWS = 999
"""Parts that are drawn to compare a block with; of very large tables fewer."""

LEAST_DRAWS = 99

NUMBERS_AT_ONCE = 2**21

LARGEST_BAG = 2**17
"""Counts that a bag is thinned to, at random, when it has twice as many."""

POWERS = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Exponents e of the bets e * p^(e - 1): the smaller, the bolder."""

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Drift:
    """A change of the shares of cells that was seen.

    Attributes:
        since: Unix time of the first of the blocks that speak for a change.
        answers: Number of answers that were counted until it was seen.
    """

    since: float
    answers: int


class DriftTest:
    """Counts the cells of answers, and tests whether their shares have changed; see the module.

    Attributes:
        risk: Probability of seeing a change, ever, where there is none.
        answers: Number of answers that were counted.
        drift: The change that was seen, or None. It stays: a certificate of the changed traffic
            begins another test.
    """

    def __init__(
        self,
        reference: Sequence[int],
        *,
        risk: float = 0.01,
        generator: np.random.Generator | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin a test.

        Args:
            reference: Number of queries in each cell: independent draws from the traffic, which the
                table was not fitted to.
            risk: Probability of seeing a change, ever, where there is none, in (0, 1).
            generator: Draws the parts that blocks are compared with; None: one that nobody can
                predict.
            clock: Gives Unix time, in seconds.

        Raises:
            InvalidOptionError: ``risk`` is outside its range, or there are no queries.
        """
        if isinstance(risk, bool) or not isinstance(risk, float) or not 0 < risk < 1:
            raise InvalidOptionError(f"risk must be between 0 and 1, but got {risk!r}.")
        if not all(_is_count(count) for count in reference) or not sum(reference):
            raise InvalidOptionError(
                "reference must be a number of queries for each cell, and not all 0. Pass "
                "`certificate.traffic.cells`."
            )
        self.risk, self.answers = risk, 0
        self.drift: Drift | None = None
        self._generator, self._clock = generator or np.random.default_rng(), clock
        self._gamblers = [_Gambler(size, np.array(reference, np.int64)) for size in BLOCKS]

    @classmethod
    def of(cls, certificate: Certificate, *, risk: float = 0.01) -> "DriftTest":
        """Begin a test against the queries of a certificate.

        Args:
            certificate: Of a table.
            risk: See the class.

        Raises:
            InvalidOptionError: The certified queries are no independent draws of the traffic that
                the table was not fitted to, or ``risk`` is outside its range.
        """
        fault = fault_of_reference(certificate)
        if fault is not None:
            raise InvalidOptionError(
                "the certified queries must be independent draws of the traffic that the guard was "
                f"not fitted to, but they {fault[0]}. Certify the guard again, by `oneway certify "
                f"GUARD FILE --write`, on {fault[1]}"
            )
        return cls(certificate.traffic.cells, risk=risk)

    @property
    def wealth(self) -> float:
        """The larger wealth of both gamblers, 1 at first; a change is seen at 2 / ``risk``."""
        return max(gambler.wealth for gambler in self._gamblers)

    def see(self, cells: Tensor) -> Drift | None:
        """Count the cells of answers; after a change was seen, none are counted.

        Args:
            cells: ``(N)`` int64, from the table.

        Returns:
            The change, if these answers show it; None if it was seen before, or there is none.
        """
        if self.drift is not None:
            return None
        numbers = cells.cpu().numpy()
        while len(numbers) and self.drift is None:
            # Up to where a block ends: the same stream gives the same test in any batches.
            room = min(gambler.room for gambler in self._gamblers)
            counts = np.bincount(numbers[:room], minlength=len(self._gamblers[0].bag))
            self.answers += len(numbers[:room])
            numbers = numbers[room:]
            for gambler in self._gamblers:
                gambler.see(counts, self._generator, self._clock)
                if gambler.began is not None and gambler.wealth >= len(BLOCKS) / self.risk:
                    self.drift = self.drift or Drift(gambler.began, self.answers)
        return self.drift

    def as_json(self) -> dict[str, Any]:
        """Return the state of the test as JSON values. They are counts of cells: private."""
        return {
            "answers": self.answers,
            "drift": None if self.drift is None else asdict(self.drift),
            "gamblers": [gambler.as_json() for gambler in self._gamblers],
        }

    def resume(self, values: Mapping[str, Any]) -> None:
        """Go on where another test of the same reference was when it gave ``as_json``.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: ``values`` are something else.
        """
        if not _is_count(values["answers"]):
            raise ValueError
        drift = None if values["drift"] is None else Drift(**values["drift"])
        for gambler, each in zip(self._gamblers, values["gamblers"], strict=True):
            gambler.resume(each)
        self.answers, self.drift = values["answers"], drift


class _Gambler:
    """Bets on blocks of one size."""

    def __init__(self, size: int, bag: Counts) -> None:
        self.size, self.bag, self.block = size, bag, np.zeros_like(bag)
        self.wealths, self.blocks = np.zeros(len(POWERS)), 0
        self.began: float | None = None

    @property
    def wealth(self) -> float:
        """What is won by now, and what is kept for later blocks."""
        return float(self.wealths.mean()) + _kept(self.blocks)

    @property
    def room(self) -> int:
        """How many answers are missing in the block."""
        return self.size - int(self.block.sum())

    def see(
        self, counts: Counts, generator: np.random.Generator, clock: Callable[[], float]
    ) -> None:
        """Count answers, at most as many as are missing in the block; bet if it is whole."""
        self.block = self.block + counts
        if self.room:
            return
        bag = self.bag + self.block
        chance = chance_of_block(self.block, bag, generator)
        stake = _kept(self.blocks) - _kept(self.blocks + 1)
        self.wealths = (self.wealths + stake) * POWERS * chance ** (POWERS - 1)
        self.blocks += 1
        if bag.sum() >= 2 * LARGEST_BAG:
            # A random part of independent draws is independent draws.
            bag = generator.multivariate_hypergeometric(bag, LARGEST_BAG, method="count")
        self.bag, self.block = bag, np.zeros_like(bag)
        if self.wealth <= 1:
            self.began = None
        elif self.began is None:
            self.began = clock()

    def as_json(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("bag", "block", "wealths")}
        return {"size": self.size, "blocks": self.blocks, "began": self.began, **arrays}

    def resume(self, values: Mapping[str, Any]) -> None:
        if not all(_is_count(count) for name in ("bag", "block") for count in values[name]):
            raise TypeError
        bag, block = (np.array(values[name], np.int64) for name in ("bag", "block"))
        wealths, began = np.array(values["wealths"], np.float64), values["began"]
        if (
            (bag.shape, block.shape, wealths.shape)
            != (self.bag.shape, self.block.shape, self.wealths.shape)
            or block.sum() >= self.size
            or not _is_count(values["blocks"])
            or not (np.isfinite(wealths) & (wealths >= 0)).all()
            or values["size"] != self.size
        ):
            raise ValueError
        self.bag, self.block, self.wealths = bag, block, wealths
        self.blocks, self.began = values["blocks"], None if began is None else float(began)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def fault_of_reference(certificate: Certificate) -> tuple[str, str] | None:
    """Return why answers cannot be compared with certified queries, and with which they could.

    Returns:
        What the queries are, and a remedy; None if answers can be compared with them.
    """
    if certificate.held_out.answer == "no":
        return "were fitted, too", "queries that were not fitted."
    if certificate.traffic.copies == "dropped":
        return "were stripped of their copies", "queries with their copies."
    if certificate.traffic.groups is not None:
        return (
            "depend on each other within groups",
            "independent queries, such as one of each group, without --groups.",
        )
    return None


def chance_of_block(block: Counts, bag: Counts, generator: np.random.Generator) -> float:
    """Return how likely a random part of a bag is at least as far from the bag as a block is.

    Args:
        block: ``(C)`` counts, at most those of ``bag``.
        bag: ``(C)`` counts, with those of the block.
        generator: Draws parts of the bag, and where the block stands among those as far as it is.

    Returns:
        A number in (0, 1], uniform if the block is itself a random part of the bag.
    """
    draws = max(LEAST_DRAWS, min(DRAWS, NUMBERS_AT_ONCE // len(bag)))
    size = int(block.sum())
    parts = generator.multivariate_hypergeometric(bag, size, draws, method="count")
    expected = bag * (size / bag.sum())
    # One more in the divisor keeps a rare cell from deciding alone.
    distances = (np.square(np.vstack([block, parts]) - expected) / (expected + 1)).sum(-1)
    farther = int((distances[1:] > distances[0]).sum())
    equal = int((distances == distances[0]).sum())  # the block among them
    return (farther + equal * (1.0 - generator.random())) / (draws + 1)


def _kept(blocks: int) -> float:
    """Return the share of the money that is kept for later blocks: it falls slowly, from 1."""
    return 1 / math.log2(blocks + 2)
