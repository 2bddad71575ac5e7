"""Scores that somebody else's model gave, behind a guard: scores in, releases or a refusal out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oneway.defenses import ServableDefense
from oneway.errors import DefenseFailedError, InvalidTensorError, TargetFailedError
from oneway.releases import clean_logits_of, guarded_release, release
from oneway.serving.dialects import Scores
from oneway.serving.guarded_model import Released, check_guard, check_released, released_or_refused
from oneway.serving.refusals import upstream_failed

REPEAT_TOLERANCE = 1e-3
"""Most that a probability may differ when the same is asked again, as sums on a GPU do."""


@dataclass(frozen=True)
class Scored:
    """What a model answered to one request.

    Attributes:
        scores: ``(N, K)``.
        queries: ``(N, ...)`` float32, or None if they are not at hand.
    """

    scores: Scores
    queries: Tensor | None


class GuardedScores:
    """Answers with releases of scores that came from elsewhere."""

    def __init__(
        self,
        guard: ServableDefense,
        outputs: Literal["logits", "confidences"],
        *,
        device: torch.device,
        decimals: int | None = None,
    ) -> None:
        """Prepare. Call :meth:`check` with real scores before it serves.

        Args:
            guard: What stands before the scores.
            outputs: What they are.
            device: Where the guard computes.
            decimals: See :func:`oneway.release`.
        """
        self.guard, self.outputs, self.device, self.decimals = guard, outputs, device, decimals
        self.classes: int | None = None

    def answer(self, requests: Sequence[Scored]) -> list[Released]:
        """Return one release for each request.

        Raises:
            RefusedError: Scores or guard failed. It says nothing of why; the log says where.
        """
        return released_or_refused(lambda: [self._release(one) for one in requests])

    def check(self, probe: Scored, again: Scores) -> int:
        """Guard a model's own output, and refuse to serve if anything is amiss.

        Args:
            probe: What it answered.
            again: ``(N, K)`` what it answered to the same queries, asked a second time.

        Returns:
            K, the number of classes, which every answer must have from now on.

        Raises:
            OnewayError: The scores are not what they are said to be or are others the second
                time, or the guard fails or changes nothing.
        """
        self.classes = probe.scores.shape[1]
        clean = self._clean(probe)
        other = self._clean(Scored(again, probe.queries))
        if self.guard.name != "none" and (
            other.shape != clean.shape
            or bool(((release(other) - release(clean)).abs() > REPEAT_TOLERANCE).any())
        ):
            raise TargetFailedError(
                "the server to guard answers the same queries differently the second time, so that "
                "whoever repeats a query averages the guard away. Take the randomness out of it."
            )
        queries = self._queries(probe)
        if self.guard.defense.requires_input and (queries is None or len(queries) != len(clean)):
            raise DefenseFailedError(
                f"the guard {self.guard.name} needs the queries besides their scores, and they "
                "cannot be read from a request. Name the input, or use a guard that needs none."
            )
        self._release(probe)
        check_guard(self.guard, clean, queries)
        return self.classes

    def _release(self, asked: Scored) -> Released:
        clean = self._clean(asked)
        queries = self._queries(asked)
        answer = guarded_release(self.guard.defense, clean, queries, decimals=self.decimals)
        released = answer.confidences.cpu()
        check_released(released, len(clean), self.classes)
        return released.numpy()

    def _clean(self, asked: Scored) -> Tensor:
        if asked.scores.shape[1] != self.classes:
            raise upstream_failed("upstream_classes")
        if asked.queries is not None and len(asked.queries) != len(asked.scores):
            raise upstream_failed("upstream_rows")  # whose would they be?
        scores = torch.from_numpy(asked.scores)
        try:
            return clean_logits_of(scores, self.outputs).to(self.device)
        except InvalidTensorError:
            raise upstream_failed("upstream_scores") from None

    def _queries(self, asked: Scored) -> Tensor | None:
        return None if asked.queries is None else asked.queries.to(self.device)
