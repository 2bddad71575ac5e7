"""A mixture of all other attackers, which is as strong as the best of them or stronger."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.inversion import non_negative_weights


class Stack(InversionAttack):
    """Weigh the reconstructions of all other attackers, the labels' mean inputs among them.

    The weights are not negative, and minimise the squared error on held-out rows. Attackers that
    err in different ways are stronger together.

    Source:
        Breiman, "Stacked Regressions", Machine Learning 24, 1996.
    """

    name: ClassVar = "stack"
    knows: ClassVar = "as much as all other attackers together, whose answers it mixes"
    requires: ClassVar = frozenset({"candidates"})
    mixes: ClassVar = True
    trains_decoders: ClassVar = False
    left_out: ClassVar = None

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Fit the weights; see :meth:`InversionAttack.run`."""
        truth = knowledge.images[knowledge.held_out]
        weights = non_negative_weights(torch.stack(list(knowledge.candidates)), truth)
        return {"mixture": Reconstructor(partial(_mix, weights))}


def _mix(weights: Tensor, candidates: Tensor) -> Tensor:
    """Return the ``(M, ...)`` mixture of ``(C, M, ...)`` candidates."""
    used = weights > 0  # a candidate without weight may not be finite
    return torch.einsum("c,cm...->m...", weights[used].to(candidates), candidates[used]).clamp(0, 1)
