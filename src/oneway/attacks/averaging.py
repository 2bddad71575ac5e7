"""Against random releases: ask the same query again and again, and average the noise away."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import AttackerKnowledge, Query, Reconstructor, TrainDecoder

ROWS = 512
"""Queries that are repeated at once, so that K numbers times R fit in memory."""


class Averaging(InversionAttack):
    """Train on the mean of R answers to each query, for several R; ask R times when it counts.

    Logs are averaged, not probabilities: noise on logits then cancels.
    """

    name: ClassVar = "averaging"
    knows: ClassVar = "that answers are random: it asks each query many times"
    requires: ClassVar = frozenset({"query", "random"})
    attacks_clean_scores: ClassVar = False  # clean answers are the same each time
    left_out: ClassVar = None

    def model_selections(self, workload: Workload) -> int:
        """Return one for each R."""
        return len(workload.repeats)

    def extra_queries(self, workload: Workload) -> float:
        """Return R answers to each row, for each R."""
        return (workload.auxiliary + workload.test) * sum(workload.repeats)

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Ask again and train on means; see :meth:`InversionAttack.run`."""
        assert knowledge.query is not None  # noqa: S101  required
        reconstructors = {}
        for repeats in knowledge.repeats:
            answers = _mean_answers(knowledge.query, knowledge.images, repeats)
            decoder = train(answers, knowledge.images, knowledge.held_out)
            reconstructors[f"R = {repeats}"] = Reconstructor(
                partial(_reconstruct, decoder), repeats
            )
        return reconstructors


def _reconstruct(decoder: nn.Module, released: Tensor) -> Tensor:
    images: Tensor = decoder(mean_answer(released))
    return images


def mean_answer(released: Tensor) -> Tensor:
    """Return ``(M, K)`` confidences, the normalised geometric means of ``(R, M, K)``."""
    smallest = torch.finfo(released.dtype).tiny
    return released.clamp_min(smallest).log().mean(0).softmax(-1)


def _mean_answers(query: Query, images: Tensor, repeats: int) -> Tensor:
    return torch.cat([mean_answer(query(batch, repeats)) for batch in images.split(ROWS)])
