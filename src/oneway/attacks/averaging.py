"""The attacker of random releases, who repeats each query and averages the noise away."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks import kernel_ridge
from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import AttackerKnowledge, Query, Reconstructor, TrainDecoder

ROWS = 512
"""Queries that are repeated at once, so that R answers of K numbers fit in memory."""


class Averaging(InversionAttack):
    """Read the mean of R answers to each query, for several R, by decoders and kernel ridge.

    A decoder is trained for each R. The regressions of ``kernel-ridge`` read the mean of the most
    answers alone: it tells most. Test queries are asked R times, too. Log confidences are averaged,
    so that noise on logits cancels.
    """

    name: ClassVar = "averaging"
    knows: ClassVar = "that answers are random: it asks each query many times"
    requires: ClassVar = frozenset({"query", "random"})
    attacks_clean_scores: ClassVar = False  # clean answers are the same each time
    falls_back: ClassVar = True
    left_out: ClassVar = None  # without it G says what a single answer hides
    numerics: ClassVar = 3

    def model_selections(self, workload: Workload) -> int:
        """Return the number of R, each with a model selection."""
        return len(workload.repeats)

    def extra_queries(self, workload: Workload) -> float:
        """Return the number of answers: R to each row, for each R."""
        return (workload.auxiliary * 9 / 8 + workload.test) * sum(workload.repeats)

    def multiplications(self, workload: Workload) -> float:
        """Return those of the regressions of one R."""
        return kernel_ridge.multiplications(workload)

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Repeat all queries and learn from means; see :meth:`InversionAttack.run`."""
        assert knowledge.query is not None  # noqa: S101  required
        images, held_out = knowledge.images, knowledge.held_out
        answers, readers = torch.empty(0), dict[str, Reconstructor]()
        for repeats in sorted(knowledge.repeats):
            answers = _mean_answers(knowledge.query, images, repeats)
            decoder = train(answers, images, held_out)
            readers[f"R = {repeats}"] = _reader(decoder, repeats)
        fitted = kernel_ridge.regress(answers, images, knowledge.judging)
        for name, (reconstruct, made) in fitted.items():
            readers[f"R = {repeats}, {name}"] = _reader(reconstruct, repeats, made)
        return readers


def _reader(
    reconstruct: Callable[[Tensor], Tensor], repeats: int, out_of_fold: Tensor | None = None
) -> Reconstructor:
    """Return what reconstructs from the mean of ``(R, M, K)`` answers."""
    return Reconstructor(partial(_reconstruct, reconstruct), repeats, out_of_fold)


def _reconstruct(reconstruct: Callable[[Tensor], Tensor], released: Tensor) -> Tensor:
    return reconstruct(mean_answer(released))


def mean_answer(released: Tensor) -> Tensor:
    """Return ``(M, K)`` confidences, the normalised geometric means of ``(R, M, K)``."""
    smallest = torch.finfo(released.dtype).tiny
    return released.clamp_min(smallest).log().mean(0).softmax(-1)


def _mean_answers(query: Query, images: Tensor, repeats: int) -> Tensor:
    return torch.cat([mean_answer(query(batch, repeats)) for batch in images.split(ROWS)])
