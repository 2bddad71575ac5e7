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

    The weights are not negative, and minimise the squared error on rows that the attackers left out
    of their fits. Those that can leave out every row in turn are mixed first, on all these rows.
    Their mixture and the others, decoders for example, are then mixed on the held-out rows, so that
    few rows weigh few candidates. Attackers that err in different ways are stronger together.

    Source:
        Breiman, "Stacked Regressions", Machine Learning 24, 1996.
    """

    name: ClassVar = "stack"
    knows: ClassVar = "as much as all other attackers together, whose answers it mixes"
    requires: ClassVar = frozenset({"candidates"})
    mixes: ClassVar = True
    trains_decoders: ClassVar = False
    left_out: ClassVar = None
    numerics: ClassVar = 2

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Fit the weights; see :meth:`InversionAttack.run`."""
        candidates, judging = knowledge.candidates, knowledge.judging
        truth = knowledge.images[knowledge.held_out]
        weights = torch.zeros(len(candidates), dtype=torch.float64, device=truth.device)
        held_out = torch.stack([each.held_out for each in candidates])
        crossed = [place for place, each in enumerate(candidates) if each.out_of_fold is not None]
        if crossed:
            made = [
                each
                for each in (candidates[place].out_of_fold for place in crossed)
                if each is not None
            ]
            weights[crossed] = non_negative_weights(torch.stack(made), knowledge.images[judging])
        others = [place for place in range(len(candidates)) if place not in crossed]
        if others:
            mixed = [_mix(weights, held_out)] if crossed else []
            found = non_negative_weights(torch.stack([*mixed, *held_out[others]]), truth)
            if crossed:
                weights, found = found[0] * weights, found[1:]
            weights[others] = found
        return {"mixture": Reconstructor(partial(_mix, weights))}


def _mix(weights: Tensor, candidates: Tensor) -> Tensor:
    """Return the ``(M, ...)`` mixture of ``(C, M, ...)`` candidates."""
    used = weights > 0  # a candidate without weight may not be finite
    return torch.einsum("c,cm...->m...", weights[used].to(candidates), candidates[used]).clamp(0, 1)
