"""A defended target: the API that clients and attackers may ask."""

from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import LooksLikeProbabilities, check_count, check_images, check_logits
from oneway.contracts import Defense, ScoredTarget, Target
from oneway.errors import InvalidOptionError
from oneway.releases import (
    check_defense,
    check_release_options,
    guarded_release,
    logits_from_confidences,
    release_checked,
)
from oneway.targets.answers import class_names_of
from oneway.targets.graphs import refuse_graphs
from oneway.targets.torch_module import TorchTarget


@dataclass(frozen=True)
class Trace:
    """The scores of one answer, from clean logits to released confidences, for the defender.

    Attributes:
        clean_logits: ``(N, K)`` logits before the defense, in nats.
        defended_logits: ``(N, K)`` logits after the defense.
        released: ``(N, K)`` probabilities: all that clients get.
    """

    clean_logits: Tensor
    defended_logits: Tensor
    released: Tensor


class DefendedTarget:
    """Answers queries with a target's scores after a defense.

    It fails closed: where the defense raises, or breaks its promise, nothing is released.
    """

    def __init__(
        self,
        target: Target,
        defense: Defense,
        *,
        dtype: torch.dtype = torch.float32,
        decimals: int | None = None,
        batch_size: int = 512,
    ) -> None:
        """Put ``defense`` between ``target`` and its clients.

        Args:
            target: The classifier; it gets copies of the queries. The defense changes its
                ``logits``, or, for a third party that sees none, the logarithms of its
                confidences.
            defense: Changes the logits.
            dtype: Type of the released confidences: see :func:`oneway.release`.
            decimals: Decimals of the released confidences: see :func:`oneway.release`.
            batch_size: Most queries that are answered at once.

        Raises:
            InvalidOptionError: ``dtype``, ``decimals`` or ``batch_size`` is outside its range, or
                ``defense`` is no defense.
        """
        check_count("batch_size", batch_size)
        check_release_options(dtype, decimals)
        check_defense(defense)
        self.target = target
        self.defense = defense
        self.dtype, self.decimals, self.batch_size = dtype, decimals, batch_size
        self._watch = LooksLikeProbabilities("the logits of the target")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the target's classes, in the order of the scores; None if they are unknown."""
        return class_names_of(self.target)

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with defended confidences.

        Args:
            images: ``(N, C, H, W)`` queries, in the scale that the target takes. Not modified.

        Returns:
            ``(N, K)`` probabilities of type ``dtype``. If the defense keeps the label, the
            clean arg max is the only maximum of each row.

        Raises:
            InvalidTensorError: ``images`` are no finite floating tensor.
            DefenseFailedError: The defense failed: see :func:`oneway.releases.guarded_release`.
        """
        return self.trace(images).released

    def trace(self, images: Tensor) -> Trace:
        """Answer once, and return clean and defended logits with the released confidences.

        A random defense may answer the same query differently next time.

        Raises:
            OnewayError: See :meth:`__call__`.
        """
        return self._trace(images, None)

    def repeated(self, images: Tensor, count: int) -> Tensor:
        """Answer each query ``count`` times, as for a client that repeats its queries.

        Args:
            images: ``(N, C, H, W)`` queries. Not modified.
            count: Number of answers to each query, at least 1.

        Returns:
            ``(count, N, K)`` probabilities, as of :meth:`__call__`.

        Raises:
            InvalidOptionError: ``count`` is below 1.
            OnewayError: See :meth:`__call__`.
        """
        check_count("count", count)
        return self._trace(images, count).released

    def differentiable_logits(self, images: Tensor) -> Tensor:
        """Answer with defended logits that have a gradient in ``images``, straight through.

        The gradient is the target's: the defense, which may round, look up a table or follow
        signs, counts as if it added a constant. For an attacker who has model and defense.

        Args:
            images: ``(N, C, H, W)`` of which gradients are wanted.

        Returns:
            ``(N, K)`` defended logits, on the autograd graph of ``images``.

        Raises:
            InvalidOptionError: The target is no PyTorch module.
            OnewayError: See :meth:`__call__`.

        Source:
            Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML
            2018: backward pass differentiable approximation (BPDA).
        """
        if not isinstance(self.target, TorchTarget):
            raise InvalidOptionError(
                f"a target of type {type(self.target).__name__} has no gradients to follow. "
                "Give the model itself, as a PyTorch module."
            )
        clean = self.target.differentiable_logits(images)
        defended = guarded_release(self.defense, clean, images).defended_logits
        # In this order the value is the defense's to the last digit.
        return defended + (clean - clean.detach())

    def _trace(self, images: Tensor, repeats: int | None) -> Trace:
        refuse_graphs()
        check_images(images)
        clean = torch.cat([self._clean_logits(part) for part in images.split(self.batch_size)])
        answer = release_checked(
            self.defense,
            clean,
            images,
            dtype=self.dtype,
            decimals=self.decimals,
            repeats=repeats,
            batch_size=self.batch_size,
        )
        return Trace(clean, answer.defended_logits, answer.confidences)

    def _clean_logits(self, images: Tensor) -> Tensor:
        queries = images.detach().clone()  # a target may work in place
        if not isinstance(self.target, ScoredTarget):
            return logits_from_confidences(self.target(queries))
        logits = self.target.logits(queries)
        check_logits(logits, "the logits of the target")
        self._watch.check(logits)
        return logits
