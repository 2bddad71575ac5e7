"""Against random releases: ask the same query again and again, and average the noise away."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from oneway.contracts import AttackerKnowledge, Query, Reconstructor, TrainDecoder

ROWS = 512
"""Queries that are repeated at once, so that K numbers times R fit in memory."""


def averaging(knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
    """Train on the mean of R answers to each query, for several R; ask R times when it counts.

    Logs are averaged, not probabilities: noise on logits then cancels. There is no reconstructor
    where the API answers the same query the same way, or cannot be asked.
    """
    if not knowledge.random or knowledge.query is None:
        return {}
    reconstructors = {}
    for repeats in knowledge.repeats:
        answers = _asked(knowledge.query, knowledge.images, repeats)
        decoder = train(answers, knowledge.images, knowledge.held_out)
        reconstructors[f"R = {repeats}"] = Reconstructor(partial(_reconstruct, decoder), repeats)
    return reconstructors


def _reconstruct(decoder: nn.Module, released: Tensor) -> Tensor:
    images: Tensor = decoder(mean_answer(released))
    return images


def mean_answer(released: Tensor) -> Tensor:
    """Return ``(M, K)`` confidences, the normalised geometric means of ``(R, M, K)``."""
    smallest = torch.finfo(released.dtype).tiny
    return released.clamp_min(smallest).log().mean(0).softmax(-1)


def _asked(query: Query, images: Tensor, repeats: int) -> Tensor:
    return torch.cat([mean_answer(query(some, repeats)) for some in images.split(ROWS)])
