"""The attacker of random releases, who repeats each query and averages the noise away."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import AttackerKnowledge, Query, Reconstructor, TrainDecoder

ROWS = 512
"""Queries that are repeated at once, so that R answers of K numbers fit in memory."""


class Averaging(InversionAttack):
    """Train a decoder on the mean of R answers to each query, for several R.

    Test queries are asked R times, too. The mean is that of log confidences, in which noise on
    logits cancels.
    """

    name: ClassVar = "averaging"
    knows: ClassVar = "that answers are random: it asks each query many times"
    requires: ClassVar = frozenset({"query", "random"})
    attacks_clean_scores: ClassVar = False  # clean answers are the same each time
    left_out: ClassVar = None

    def model_selections(self, workload: Workload) -> int:
        """Return the number of R, each with a model selection."""
        return len(workload.repeats)

    def extra_queries(self, workload: Workload) -> float:
        """Return the number of answers: R to each row, for each R."""
        return (workload.auxiliary + workload.test) * sum(workload.repeats)

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Repeat all queries and train on means; see :meth:`InversionAttack.run`."""
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
