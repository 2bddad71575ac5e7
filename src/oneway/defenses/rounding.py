"""Round the released probabilities: the cheapest map of many scores to one."""

import torch
from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.defenses.scores import logits_of
from oneway.options import option
from oneway.releases import MOST_DECIMALS, release


class Rounding(ScoreDefense):
    """Release probabilities in multiples of ``10**-decimals`` that sum to 1.

    By largest remainders, label strictly on top, as :func:`oneway.release` rounds; a probability
    that is rounded to 0 is released as exactly 0. An audit measures
    its distortion. In half precision logits are too coarse to express all multiples exactly.
    """

    decimals: int = option(
        "Decimals of the probabilities; 0 releases the label alone.",
        default=2,
        least=0,
        most=MOST_DECIMALS,
    )

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits of the rounded probabilities."""
        rounded = release(logits, dtype=torch.float64, decimals=self.decimals)
        return logits_of(rounded, logits.dtype)
