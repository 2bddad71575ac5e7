"""Base class of attacks that steal models, and what a thief has."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Generator, Tensor

from oneway.attacks.base import Attack, Threat

Copy = Callable[[Tensor], Tensor]
"""A copy of the model: ``(N, ...)`` queries to ``(N, K)`` logits."""


@dataclass(frozen=True)
class ThiefKnowledge:
    """What a thief has.

    Attributes:
        ask: Asks the service: ``(N, ...)`` queries to ``(N, K)`` released confidences. It raises
            :class:`~oneway.errors.InvalidOptionError` beyond ``budget`` queries.
        budget: Most queries that may be asked.
        own: ``(M, ...)`` unlabelled inputs like the victims' queries, in ``[0, 1]``, at least
            ``budget`` of them.
        train: Trains a copy of the thief's own architecture on queries and ``(N, K)``
            probabilities of their classes.
        generator: On the CPU.
        public: ``(P, ...)`` inputs of another kind, at least ``budget`` of them; None if the
            thief has none.
        cell_means: Maps ``(N, K)`` released confidences to the mean clean confidences of all
            queries with that answer, for a thief who knows the table; None where answers are no
            cells, or clean scores themselves.
        release: The thief's own copy of the guard, ``(N, K)`` logits to released confidences; None
            where the guard is secret, random, or needs the query.
    """

    ask: Callable[[Tensor], Tensor]
    budget: int
    own: Tensor
    train: Callable[[Tensor, Tensor], Copy]
    generator: Generator
    public: Tensor | None = None
    cell_means: Callable[[Tensor], Tensor] | None = None
    release: Callable[[Tensor], Tensor] | None = None

    @property
    def available(self) -> frozenset[str]:
        """Names of the fields that hold something."""
        names = (field.name for field in fields(self))
        return frozenset(name for name in names if getattr(self, name) is not None)


class StealingAttack(Attack):
    """An adversary that copies the model behind released confidences.

    A subclass writes :meth:`run`. No attack grades itself: an evaluation compares the copy's labels
    with the model's on other queries.
    """

    threat: ClassVar[Threat] = "stealing"

    @abstractmethod
    def run(self, knowledge: ThiefKnowledge) -> Mapping[str, Copy]:
        """Ask, and copy.

        Args:
            knowledge: The thief's data and access, with all fields that ``requires`` names.

        Returns:
            Copies by name; none where the attack does not apply to this model, or the budget is
            too small. Of several, the best counts.
        """
