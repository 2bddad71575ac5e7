"""How often the answers to changed copies of one query fall in different boxes of a table.

Whoever sees the answers to a query and to changed copies of it (frames of a video, a photograph
taken twice) learns a sequence of cells, which tells more queries apart than one cell does. Where
two answers to a query fall in one cell, the second tells nothing more. So a fit may weigh the
chance that two answers to a query differ: boxes between which many copies move are joined first.
"""

import torch
from torch import Tensor

from oneway.checks import check_logits_to_fit
from oneway.defenses.codebook.table import first_box, project
from oneway.errors import InvalidTensorError

ROWS_AT_ONCE = 4096
"""Answers that are compared with their label's boxes at once."""


def check_variants(variants: Tensor, logits: Tensor) -> None:
    """Refuse scores of changed copies that are not as many, or of other classes, as the queries'.

    Raises:
        InvalidTensorError: ``variants`` are not finite ``(N, m, K)`` scores for ``(N, K)`` scores.
    """
    rows, classes = len(logits), logits.shape[-1]
    if (
        variants.ndim != 3
        or (len(variants), variants.shape[-1]) != (rows, classes)
        or not variants.shape[1]
    ):
        raise InvalidTensorError(
            f"variants must have shape ({rows}, m, {classes}), the scores of m changed copies of "
            f"each query with m >= 1, but got {tuple(variants.shape)}. Ask the model about as many "
            "copies of each query."
        )
    check_logits_to_fit(variants, "variants")


def answers_of(logits: Tensor, variants: Tensor) -> Tensor:
    """Return the ``(N, m + 1, K)`` scores of queries, and then of their changed copies."""
    return torch.cat([logits.unsqueeze(1), variants.to(logits)], 1)


def crossings_between(
    answers: Tensor, label: int, classes: Tensor, edges: Tensor, *, dense: bool
) -> Tensor:
    """Return how many queries are parted by each pair of a label's boxes.

    Args:
        answers: ``(N, M, K)`` scores of M answers to each query, M at least 2.
        label: The label.
        classes: ``(T)`` int64, its explicit classes.
        edges: ``(m, W)`` float64, upper edges of its boxes.
        dense: Whether all classes are explicit.

    Returns:
        ``(m, m)`` float64, symmetric, with zeros on the diagonal: summed over queries, the share of
        the pairs of answers of which one falls in each box. Answers with other labels count in
        none.
    """
    owners, places = (answers.argmax(-1) == label).nonzero(as_tuple=True)
    counts = torch.zeros(len(answers), len(edges), dtype=torch.float64)
    for query, place in zip(owners.split(ROWS_AT_ONCE), places.split(ROWS_AT_ONCE), strict=True):
        rows = answers[query, place].detach().double().cpu().softmax(-1)
        rows = project(rows, classes.expand(len(rows), -1), dense=dense)
        boxes = first_box(rows, edges.expand(len(rows), -1, -1))
        ones = torch.ones(len(rows), dtype=torch.float64)
        counts.index_put_((query.cpu(), boxes), ones, accumulate=True)
    pairs = counts.mT @ counts / (answers.shape[1] * (answers.shape[1] - 1) / 2)
    return pairs.fill_diagonal_(0)
