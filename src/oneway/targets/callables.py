"""A function from NumPy arrays to NumPy arrays as a target, and a target of recorded answers."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from oneway.checks import check_confidences, check_count, check_images
from oneway.errors import InvalidOptionError, InvalidTensorError, OnewayError
from oneway.releases import Outputs, release
from oneway.targets.answers import AnswerRules, Array, RuledTarget, to_array, to_float32
from oneway.targets.failure import failed

Answer = Callable[[Array], Array]
"""``(N, ...)`` float32 or float64 queries to ``(N, K)`` floating scores."""


class CallableTarget(RuledTarget):
    """Answers queries with the confidences that a callable gives, as they are.

    Nothing is cached, so a callable that answers at random stays random. The callable gets
    copies of the queries, so it may work in place.
    """

    outputs: Outputs = "confidences"

    def __init__(
        self,
        answer: Answer,
        *,
        batch_size: int = 512,
        fill_batches: bool = False,
        name: str = "the callable",
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Wrap a callable.

        Args:
            answer: ``(N, C, H, W)`` images or ``(N, F)`` records, float32 (float64 if the
                queries are), to ``(N, K)`` scores: probabilities here, logits for a
                :class:`ScoredCallableTarget`.
            batch_size: Most queries that the callable gets at once.
            fill_batches: Make each batch exactly that size: the last query is repeated to fill
                the last batch, and the surplus answers are dropped.
            name: What messages call the target.
            class_names: Names of the K classes, in the order of the scores; None if unknown.

        Raises:
            InvalidOptionError: ``answer`` is no function of arrays, ``batch_size`` is below 1, or
                ``class_names`` are no names.
        """
        check_count("batch_size", batch_size)
        if not callable(answer) or isinstance(answer, type | nn.Module):
            remedy = (
                "wrap a torch.nn.Module in TorchTarget"
                if isinstance(answer, nn.Module)
                else ("pass a function, such as the model's predict_proba")
            )
            raise InvalidOptionError(
                f"{name} must be a function of a NumPy array, but is {_kind(answer)}: {remedy}."
            )
        self.answer, self.rules = answer, AnswerRules(name, self.outputs, class_names)
        self.batch_size, self.fill_batches = batch_size, fill_batches

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with confidences.

        Args:
            images: ``(N, C, H, W)`` or ``(N, F)`` floating, at least one query. Not modified.

        Returns:
            ``(N, K)`` float32 probabilities on the images' device.

        Raises:
            InvalidTensorError: The images, or the answers, cannot be used.
            TargetFailedError: The callable raised.
        """
        return to_float32(self._scores(images))

    def _scores(self, images: Tensor) -> Tensor:
        """Return the ``(N, K)`` scores of all queries, checked batch by batch."""
        check_images(images)
        if not len(images):
            raise InvalidTensorError(
                f"images must hold at least one query for {self.rules.name}, but got shape "
                f"{tuple(images.shape)}."
            )
        parts = [self._batch(to_array(part)) for part in images.split(self.batch_size)]
        return torch.cat(parts).to(images.device)

    def _batch(self, queries: Array) -> Tensor:
        count = len(queries)
        if self.fill_batches and count < self.batch_size:
            surplus = np.repeat(queries[-1:], self.batch_size - count, axis=0)
            queries = np.concatenate([queries, surplus])
        rows = len(queries)
        try:
            answer = self.answer(queries)
        except OnewayError:
            raise
        except Exception as error:
            remedy = f"Check that it takes a NumPy array of {queries.dtype}, {queries.shape}."
            raise failed(self.rules.name, count, error, remedy=remedy) from error
        is_array = isinstance(answer, np.ndarray)
        if not is_array or answer.dtype not in (np.float16, np.float32, np.float64):
            got = f"an array of {answer.dtype}" if is_array else type(answer).__name__
            raise InvalidTensorError(
                f"{self.rules.name} must answer with a NumPy array of float16, float32 or "
                f"float64, but gave {got}. Convert it, as by `np.asarray(scores, np.float32)`."
            )
        # A copy: a callable may answer the next batch in the same memory.
        scores = torch.tensor(answer)
        self.rules.check(scores, rows)
        return scores[:count]


def _kind(answer: object) -> str:
    return f"the class {answer.__name__}" if isinstance(answer, type) else type(answer).__name__


class ScoredCallableTarget(CallableTarget):
    """Answers queries with the release of the logits that a callable gives."""

    outputs: Outputs = "logits"

    def logits(self, images: Tensor) -> Tensor:
        """Return clean ``(N, K)`` logits, float32 or float64, in nats: for the defender only.

        Raises:
            InvalidTensorError: The images, or the answers, cannot be used.
            TargetFailedError: The callable raised.
        """
        scores = self._scores(images)
        return scores if scores.dtype == torch.float64 else scores.float()

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float32 confidences: the answers of an undefended API."""
        return release(self.logits(images))


def callable_target(
    answer: Answer, outputs: Outputs, *, batch_size: int, fill_batches: bool = False, name: str
) -> CallableTarget:
    """Wrap a callable as the kind of target that fits its outputs: see :class:`CallableTarget`.

    Raises:
        InvalidOptionError: ``batch_size`` is below 1.
    """
    kind = CallableTarget if outputs == "confidences" else ScoredCallableTarget
    return kind(answer, batch_size=batch_size, fill_batches=fill_batches, name=name)


class RecordedTarget:
    """Answers recorded images with the confidences recorded for each."""

    def __init__(self, images: Tensor, confidences: Tensor) -> None:
        """Record answers.

        Args:
            images: ``(N, ...)`` queries, floating, finite. Not modified.
            confidences: ``(N, K)`` probabilities, one row per image. Copied.

        Raises:
            InvalidTensorError: The tensors are not as above, or one image has two answers.
        """
        check_confidences(confidences)
        check_images(images, rows=len(confidences))
        self._answers: dict[Key, Tensor] = {}
        self._classes = confidences.shape[-1]
        for image, answer in zip(images, confidences.detach().clone(), strict=True):
            known = self._answers.setdefault(_key(image), answer)
            if not torch.equal(known, answer):
                raise InvalidTensorError(
                    "one image is recorded with two answers. Record each image once, or average "
                    "the answers of a random target first."
                )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the recorded ``(N, K)`` confidences of ``(N, ...)`` images, as a copy.

        Raises:
            InvalidTensorError: An image has no recorded answer.
        """
        check_images(images)
        answers = [self._answers.get(_key(image)) for image in images]
        known = [answer for answer in answers if answer is not None]
        if len(known) < len(answers):
            raise InvalidTensorError(
                f"{len(answers) - len(known)} of {len(answers)} images have no recorded answer. "
                "Query with the very images that were recorded."
            )
        return torch.stack(known) if known else torch.empty(0, self._classes)


Key = tuple[torch.dtype, torch.Size, bytes]


def _key(image: Tensor) -> Key:
    plain = image.detach().cpu().contiguous()
    return plain.dtype, plain.shape, plain.flatten().view(torch.uint8).numpy().tobytes()
