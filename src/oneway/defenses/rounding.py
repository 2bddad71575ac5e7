"""Round what is released: the cheapest map of many scores to one."""

import torch
from torch import Tensor

from oneway.checks import check_count, check_logits
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import logits_of
from oneway.releases import release


class Rounding:
    """Release probabilities in multiples of ``10**-decimals`` that sum to 1.

    By largest remainders, label strictly on top, as :func:`oneway.release` rounds; what is
    rounded to 0 is released as exactly 0. Here it is a defense of its own, whose distortion an
    audit measures.
    """

    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, *, decimals: int = 2) -> None:
        """Prepare the defense.

        Args:
            decimals: From 0 (the label alone) to 12.

        Raises:
            InvalidOptionError: ``decimals`` is none of these.
        """
        check_count("decimals", decimals, least=0)
        release(torch.zeros(1, 2), decimals=decimals)  # refuses what it cannot do
        self.decimals = decimals

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` logits of the rounded probabilities; ``images`` are ignored.

        In half precision logits are too coarse to say all multiples exactly.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        rounded = release(logits, dtype=torch.float64, decimals=self.decimals)
        return lift_label(logits_of(rounded, logits.dtype), logits.argmax(-1), 0)
