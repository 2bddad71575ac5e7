"""A callable from NumPy arrays to NumPy arrays as a target: what most other kinds come down to."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from oneway.checks import check_count, check_images
from oneway.contracts import Target
from oneway.errors import InvalidTensorError, OnewayError
from oneway.releases import release
from oneway.targets.answers import AnswerRules, Array, Outputs, to_array, to_float32
from oneway.targets.failure import failed

Answer = Callable[[Array], Array]
"""``(N, ...)`` float32 or float64 queries to ``(N, K)`` floating scores."""


class CallableTarget:
    """Answers queries with the confidences that a callable gives, as they are.

    Nothing is cached: a callable that answers the same query differently is seen to do so.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        batch_size: int = 512,
        fill_batches: bool = False,
        name: str = "the callable",
    ) -> None:
        """Wrap a callable.

        Args:
            answer: ``(N, C, H, W)`` images or ``(N, F)`` records, float32 (float64 if the
                queries are), to ``(N, K)`` probabilities.
            batch_size: Most queries that it sees at once.
            fill_batches: Each batch has exactly that size: the last query is repeated to fill
                the last batch, and its surplus answers are dropped.
            name: What messages call the target.

        Raises:
            InvalidOptionError: ``batch_size`` is below 1.
        """
        self._asked = _Asked(answer, AnswerRules(name, "confidences"), batch_size, fill_batches)

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with confidences.

        Args:
            images: ``(N, C, H, W)`` or ``(N, F)`` floating, at least one.

        Returns:
            ``(N, K)`` float32 probabilities on the images' device.

        Raises:
            InvalidTensorError: The images, or the answers, cannot be used.
            TargetFailedError: The callable raised.
        """
        return to_float32(self._asked(images))


class ScoredCallableTarget:
    """Answers queries with the release of the logits that a callable gives."""

    def __init__(
        self,
        answer: Answer,
        *,
        batch_size: int = 512,
        fill_batches: bool = False,
        name: str = "the callable",
    ) -> None:
        """Wrap a callable that answers with logits: see :class:`CallableTarget`.

        Raises:
            InvalidOptionError: ``batch_size`` is below 1.
        """
        self._asked = _Asked(answer, AnswerRules(name, "logits"), batch_size, fill_batches)

    def logits(self, images: Tensor) -> Tensor:
        """Return clean logits, ``(N, K)`` float32 or float64: for the defender only.

        Raises:
            InvalidTensorError: The images, or the answers, cannot be used.
            TargetFailedError: The callable raised.
        """
        scores = self._asked(images)
        return scores if scores.dtype == torch.float64 else scores.float()

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 confidences: what an undefended API would release."""
        return release(self.logits(images))


def callable_target(
    answer: Answer, outputs: Outputs, *, batch_size: int, fill_batches: bool = False, name: str
) -> Target:
    """Wrap a callable as the target that fits what it answers with."""
    kind = CallableTarget if outputs == "confidences" else ScoredCallableTarget
    return kind(answer, batch_size=batch_size, fill_batches=fill_batches, name=name)


class _Asked:
    """Asks a callable batch by batch, and checks each answer."""

    def __init__(
        self, answer: Answer, rules: AnswerRules, batch_size: int, fill_batches: bool
    ) -> None:
        check_count("batch_size", batch_size)
        self.answer, self.rules = answer, rules
        self.batch_size, self.fill_batches = batch_size, fill_batches

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        if not len(images):
            raise InvalidTensorError(
                f"images must hold at least one query for {self.rules.name}, but got shape "
                f"{tuple(images.shape)}."
            )
        parts = [self._ask(to_array(part)) for part in images.split(self.batch_size)]
        return torch.cat(parts).to(images.device)

    def _ask(self, queries: Array) -> Tensor:
        count = len(queries)
        if self.fill_batches and count < self.batch_size:
            surplus = np.repeat(queries[-1:], self.batch_size - count, axis=0)
            queries = np.concatenate([queries, surplus])
        asked = len(queries)
        try:
            answer = self.answer(queries)
        except OnewayError:
            raise
        except Exception as error:
            raise failed(self.rules.name, count, error) from error
        if not isinstance(answer, np.ndarray) or answer.dtype not in (
            np.float16,
            np.float32,
            np.float64,
        ):
            got = (
                f"an array of {answer.dtype}"
                if isinstance(answer, np.ndarray)
                else type(answer).__name__
            )
            raise InvalidTensorError(
                f"{self.rules.name} must answer with a NumPy array of float16, float32 or "
                f"float64, but gave {got}. Convert it, as by `np.asarray(scores, np.float32)`."
            )
        # A copy: a callable may answer the next batch in the same memory.
        scores = torch.tensor(answer)
        self.rules.check(scores, asked)
        return scores[:count]
