"""The mean auxiliary input of each released vector: optimal against releases of few vectors."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.attacks.label_means import group_sums, label_means
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder

SAME = 1e-6
"""Confidences that round to the same multiple of this are the same released value."""

ROWS = 1024
"""Rows whose errors are computed at once."""

PULLS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Weights of the label's mean, in rows, of which the training rows choose."""


class CellMeans(InversionAttack):
    """Answer with the mean auxiliary input of the released vector, pulled to the label's mean.

    The rows with one released vector are a cell. A cell of few rows has an uncertain mean, so that
    the label's mean counts as some further rows. Their number has the lowest leave-one-out error on
    the training rows. A vector that no training row got is answered with the label's mean. Against
    a release of few vectors this attacker approaches the optimum, ``E[x | released vector]``, as
    the auxiliary rows increase.
    """

    name: ClassVar = "cell-means"
    knows: ClassVar = "released scores of its own images: the mean of those with the same scores"
    trains_decoders: ClassVar = False
    left_out: ClassVar = None

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Take the means of all cells; see :meth:`InversionAttack.run`."""
        kept = ~knowledge.held_out
        released, inputs = knowledge.released[kept], knowledge.images[kept]
        labels, places = released.argmax(-1), dict[bytes, int]()
        cells = [places.setdefault(key, len(places)) for key in _keys(released)]
        members = torch.tensor(cells, device=inputs.device)
        means = label_means(inputs, labels, released.shape[-1])
        sums, counts = group_sums(inputs, members)
        pull = _best_pull(inputs, labels, members)
        owners = labels.new_zeros(len(counts)).index_copy_(0, members, labels)
        weights = counts.view(-1, *[1] * (inputs.ndim - 1))
        pulled = (sums + pull * means[owners]) / (weights + pull)
        return {"cell means": Reconstructor(partial(_answer, places, pulled, means))}


def _answer(places: Mapping[bytes, int], pulled: Tensor, means: Tensor, released: Tensor) -> Tensor:
    """Return ``(M, ...)`` reconstructions from ``(1, M, K)`` released confidences."""
    rows = released[0]
    made = means[rows.argmax(-1)]
    known = [(row, places[key]) for row, key in enumerate(_keys(rows)) if key in places]
    if known:
        asked, cells = torch.tensor(known, device=rows.device).unbind(-1)
        made[asked] = pulled[cells]
    return made


def _keys(released: Tensor) -> Sequence[bytes]:
    """Return a key for each row of ``(N, K)`` confidences; equal rows have equal keys."""
    rounded = (released.double() / SAME).round().to(torch.int32)
    return [row.tobytes() for row in rounded.cpu().numpy()]


def _best_pull(inputs: Tensor, labels: Tensor, members: Tensor) -> float:
    """Return the pull with the lowest leave-one-out error on the training rows.

    Args:
        inputs: ``(N, ...)`` training inputs.
        labels: ``(N)`` int64 released labels.
        members: ``(N)`` int64 cell of each row.
    """
    of_cell, in_cell = group_sums(inputs, members)
    of_label, in_label = group_sums(inputs, labels)
    errors = torch.zeros(len(PULLS), dtype=torch.float64)
    for rows in torch.arange(len(inputs), device=inputs.device).split(ROWS):
        truth = inputs[rows].flatten(1)
        cell, label = members[rows], labels[rows]
        others = of_cell[cell].flatten(1) - truth
        alike = of_label[label].flatten(1) - truth
        count = (in_cell[cell] - 1).unsqueeze(-1)
        # The only row of its label has no mean to fall back on, and counts the same for all pulls.
        fallback = alike / (in_label[label] - 1).clamp_min(1).unsqueeze(-1)
        for place, pull in enumerate(PULLS):
            guess = torch.where(
                count + pull > 0, (others + pull * fallback) / (count + pull), fallback
            )
            errors[place] += float((guess - truth).square().sum())
    return PULLS[int(errors.argmin())]
