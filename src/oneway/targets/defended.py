"""A target with a defense before its clients: all that they and attackers may see."""

from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.checks import check_count, check_images, check_same_shape
from oneway.contracts import Defense, RepeatableDefense, ScoredTarget, Target
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError
from oneway.releases import logits_from_confidences, release
from oneway.targets.torch_module import TorchTarget


@dataclass(frozen=True)
class Trace:
    """One answer as the defender sees it, from clean scores to what was released.

    Attributes:
        clean_logits: ``(N, K)`` before the defense.
        defended_logits: ``(N, K)`` after it.
        released: ``(N, K)`` confidences, all that clients get.
    """

    clean_logits: Tensor
    defended_logits: Tensor
    released: Tensor


class DefendedTarget:
    """Answers queries with what a defense makes of a target's scores.

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
            target: The classifier. If it has ``logits``, those are defended; else the log of
                its confidences is (a defender who is a third party).
            defense: What changes the scores.
            dtype: Type of the released confidences: see :func:`oneway.release`.
            decimals: Decimals of the released confidences: see :func:`oneway.release`.
            batch_size: Most queries that are answered at once.

        Raises:
            InvalidOptionError: ``dtype``, ``decimals`` or ``batch_size`` is outside its range.
        """
        check_count("batch_size", batch_size)
        release(torch.zeros(1, 2), dtype=dtype, decimals=decimals)  # refuses what it cannot do
        self.target = target
        self.defense = defense
        self.dtype, self.decimals, self.batch_size = dtype, decimals, batch_size

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with defended confidences.

        Args:
            images: ``(N, C, H, W)`` queries, in the scale that the target takes.

        Returns:
            ``(N, K)`` probabilities of type ``dtype``. If the defense keeps the label, the
            clean arg max is the only maximum of each row.

        Raises:
            InvalidTensorError: ``images`` are no finite floating tensor.
            DefenseFailedError: The defense changed a label that it promised to keep, or gave
                something else than finite logits of the same shape.
        """
        return self.trace(images).released

    def trace(self, images: Tensor) -> Trace:
        """Answer once, and show the defender what became of the scores on the way.

        The same query asked again may be answered otherwise, if the defense is random.

        Raises:
            InvalidTensorError: See :meth:`__call__`.
            DefenseFailedError: See :meth:`__call__`.
        """
        check_images(images)
        parts = [self._answer(part) for part in images.split(self.batch_size)]
        return Trace(
            torch.cat([part.clean_logits for part in parts]),
            torch.cat([part.defended_logits for part in parts]),
            torch.cat([part.released for part in parts]),
        )

    def repeated(self, images: Tensor, count: int) -> Tensor:
        """Answer each query ``count`` times, as a client does who asks again and again.

        Args:
            images: ``(N, C, H, W)`` queries.
            count: How often, at least 1.

        Returns:
            ``(count, N, K)`` probabilities, of :meth:`__call__`'s kind.

        Raises:
            InvalidTensorError: See :meth:`__call__`.
            DefenseFailedError: See :meth:`__call__`.
            InvalidOptionError: ``count`` is below 1.
        """
        check_images(images)
        check_count("count", count)
        if self.defense.deterministic:
            return self(images).expand(count, -1, -1)
        if not isinstance(self.defense, RepeatableDefense):
            return torch.stack([self(images) for _ in range(count)])
        parts = []
        for some in images.split(self.batch_size):
            clean = self._clean_logits(some)
            asked = some if self.defense.requires_input else None
            draws = self.defense.draws(clean, asked, count)
            parts.append(self._released(clean.expand(count, -1, -1), draws))
        return torch.cat(parts, dim=1)

    def differentiable_logits(self, images: Tensor) -> Tensor:
        """Answer with defended logits that have a gradient in ``images``, straight through.

        The gradient is the target's own: the defense, which may round, look up a table or follow
        signs, is passed as if it added a constant. For an attacker who has model and defense.

        Args:
            images: ``(N, C, H, W)`` of which gradients are wanted.

        Returns:
            ``(N, K)`` defended logits; not checked, since nothing of this is released.

        Raises:
            InvalidOptionError: The target is no PyTorch module.

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
        asked = images.detach() if self.defense.requires_input else None
        defended = self.defense(clean.detach(), asked)
        # In this order the value is the defense's to the last digit.
        return defended.detach() + (clean - clean.detach())

    def _answer(self, images: Tensor) -> Trace:
        clean = self._clean_logits(images)
        defended = self.defense(clean, images if self.defense.requires_input else None)
        return Trace(clean, defended, self._released(clean, defended))

    def _clean_logits(self, images: Tensor) -> Tensor:
        if isinstance(self.target, ScoredTarget):
            return self.target.logits(images)
        return logits_from_confidences(self.target(images))

    def _released(self, clean: Tensor, defended: Tensor) -> Tensor:
        return checked_release(
            self.defense, clean, defended, dtype=self.dtype, decimals=self.decimals
        )


def checked_release(
    defense: Defense,
    clean: Tensor,
    defended: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    decimals: int | None = None,
) -> Tensor:
    """Return what may be released of the logits that a defense gave.

    Args:
        defense: The one that gave them; what it promises is held against it.
        clean: ``(..., K)`` logits that it was given.
        defended: What it made of them.
        dtype: See :func:`oneway.release`.
        decimals: See :func:`oneway.release`.

    Raises:
        DefenseFailedError: It changed a label that it promised to keep, or gave something else
            than finite logits of the same shape.
    """
    try:
        check_same_shape(defended, "the defense's logits", clean)
    except InvalidTensorError as error:
        # It is the defense that is wrong, not the client.
        raise DefenseFailedError(f"nothing is released: {error}") from error
    released = release(defended, dtype=dtype, decimals=decimals)
    if defense.keeps_label:
        changed = released.argmax(-1) != clean.argmax(-1)
        if changed.any():
            raise DefenseFailedError(
                f"{type(defense).__name__} promises to keep labels, but changed "
                f"{int(changed.sum())} of {changed.numel()}; nothing is released."
            )
    return released
