"""The mean auxiliary input of each released vector: optimal against releases of few vectors."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.attacks.label_means import group_sums, label_means, means_without_row
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder

SAME = 1e-6
"""Confidences that round to the same multiple of this are the same released value."""

ROWS = 1024
"""Rows whose errors are computed at once."""

PULLS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Weights of the label's mean, in rows, of which leave-one-out errors choose."""


class CellMeans(InversionAttack):
    """Answer with the mean auxiliary input of the released vector, pulled to the label's mean.

    The rows with one released vector are a cell. A cell of few rows has an uncertain mean, so that
    the label's mean counts as some further rows. Their number has the lowest leave-one-out error,
    and no row is held out. A vector that no row got is answered with the label's mean. Against
    a release of few vectors this attacker approaches the optimum, ``E[x | released vector]``, as
    the auxiliary rows increase.
    """

    name: ClassVar = "cell-means"
    knows: ClassVar = "released scores of its own images: the mean of those with the same scores"
    trains_decoders: ClassVar = False
    left_out: ClassVar = None
    numerics: ClassVar = 2

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Take the means of all cells; see :meth:`InversionAttack.run`."""
        released, inputs = knowledge.released, knowledge.images
        labels, places = released.argmax(-1), dict[bytes, int]()
        cells = [places.setdefault(key, len(places)) for key in _keys(released)]
        members = torch.tensor(cells, device=inputs.device)
        means = label_means(inputs, labels, released.shape[-1])
        sums, counts = group_sums(inputs, members)
        left_out = _LeftOut(inputs, labels, members)
        pull = left_out.best_pull()
        owners = labels.new_zeros(len(counts)).index_copy_(0, members, labels)
        weights = counts.view(-1, *[1] * (inputs.ndim - 1))
        pulled = (sums + pull * means[owners]) / (weights + pull)
        return {
            "cell means": Reconstructor(
                partial(_answer, places, pulled, means),
                out_of_fold=left_out.answers(knowledge.judging, pull),
            )
        }


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


class _LeftOut:
    """Answers to rows, each by the means of all other rows."""

    def __init__(self, inputs: Tensor, labels: Tensor, members: Tensor) -> None:
        """Sum the inputs of cells and labels.

        Args:
            inputs: ``(N, ...)`` inputs.
            labels: ``(N)`` int64 released labels.
            members: ``(N)`` int64 cell of each row.
        """
        self.inputs, self.labels, self.members = inputs, labels, members
        self.of_cell, self.in_cell = group_sums(inputs, members)

    def best_pull(self) -> float:
        """Return the pull with the lowest error."""
        errors = torch.zeros(len(PULLS), dtype=torch.float64)
        for rows in torch.arange(len(self.inputs), device=self.inputs.device).split(ROWS):
            fallback = means_without_row(self.inputs, self.labels, rows)
            for place, pull in enumerate(PULLS):
                guess = self._pulled(rows, fallback, pull)
                errors[place] += float((guess - self.inputs[rows]).square().sum())
        return PULLS[int(errors.argmin())]

    def answers(self, rows: Tensor, pull: float) -> Tensor:
        """Return ``(J, ...)`` answers to the rows of these numbers."""
        return self._pulled(rows, means_without_row(self.inputs, self.labels, rows), pull)

    def _pulled(self, rows: Tensor, fallback: Tensor, pull: float) -> Tensor:
        cell = self.members[rows]
        others = self.of_cell[cell] - self.inputs[rows]
        count = (self.in_cell[cell] - 1).view(-1, *[1] * (others.ndim - 1))
        weight = (count + pull).clamp_min(1e-9)
        return torch.where(count + pull > 0, (others + pull * fallback) / weight, fallback)
