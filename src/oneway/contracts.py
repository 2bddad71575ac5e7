"""The architecture on one page: who passes what to whom.

A :class:`Target` answers queries. A :class:`Defense` changes a target's logits before release.
An :class:`Attack` sees what was released, and proposes reconstructions; the audit grades them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Target(Protocol):
    """What answers queries: all that clients and attackers may see of a classifier."""

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with confidences.

        Args:
            images: ``(N, C, H, W)`` floating, in ``[0, 1]``.

        Returns:
            ``(N, K)`` probabilities, one row per image, without gradient.
        """
        ...


@runtime_checkable
class ScoredTarget(Target, Protocol):
    """A target whose logits are at hand, too: the defender's own model, before release."""

    def logits(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` logits, in nats, without gradient."""
        ...


@runtime_checkable
class Defense(Protocol):
    """A release-time defense: clean logits in, logits to release out.

    Attributes:
        requires_input: It needs the queried images besides their logits.
        keeps_label: It promises that the arg max stays, strictly; a caller checks.
        deterministic: The same query is answered the same, always.
    """

    @property
    def requires_input(self) -> bool: ...  # noqa: D102  described in the class

    @property
    def keeps_label(self) -> bool: ...  # noqa: D102  described in the class

    @property
    def deterministic(self) -> bool: ...  # noqa: D102  described in the class

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Change logits before release.

        Args:
            logits: ``(N, K)`` clean scores, float32 or float64, finite. Not modified.
            images: ``(N, ...)`` the queries that gave them; ignored unless ``requires_input``.

        Returns:
            ``(N, K)`` logits of the same type. No row depends on any other row.
        """
        ...


@dataclass(frozen=True)
class Observations:
    """What an attacker has: auxiliary images, and what an API answered about them.

    Attributes:
        images: ``(N, C, H, W)`` auxiliary images in ``[0, 1]``, disjoint from private and test.
        clean: ``(N, K)`` confidences of the undefended target, or None if it never saw them.
        released: ``(N, K)`` confidences of the target as it answers today.
        held_out: ``(N)`` bool, the rows kept from training, for choosing among decoders.
    """

    images: Tensor
    clean: Tensor | None
    released: Tensor
    held_out: Tensor


TrainDecoder = Callable[[Tensor, Tensor, Tensor], nn.Module]
"""Trains decoders on ``(confidences, images, held_out)`` and returns the best on held-out rows.

An attack takes one as an argument, so that it neither trains nor stores networks itself.
"""


class Attack(Protocol):
    """An adversary, named by what it knows. It proposes; it never grades itself."""

    def __call__(
        self, observations: Observations, train: TrainDecoder
    ) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Prepare the attack.

        Args:
            observations: What the attacker has.
            train: How it trains a decoder.

        Returns:
            Candidates by name: each maps ``(M, K)`` released confidences to ``(M, C, H, W)``
            reconstructions. More than one where the best of several counts.
        """
        ...
