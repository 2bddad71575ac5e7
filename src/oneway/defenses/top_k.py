"""Release the largest probabilities only."""

from typing import Literal

import torch
from torch import Tensor

from oneway.checks import check_count, check_logits
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import ZERO_NATS, log_probabilities, narrowed
from oneway.errors import UnknownNameError

RESTS = ("spread", "zero")


class TopK:
    """Keep the largest probabilities of each row, and hide how the others differ.

    Among equals the lowest index counts as larger.
    """

    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, *, count: int = 3, rest: Literal["spread", "zero"] = "spread") -> None:
        """Prepare the defense.

        Args:
            count: How many to keep, at least 1; if there are no more classes, all are kept.
            rest: ``"spread"``: the remaining mass is shared evenly among the others, so that the
                kept ones stay as they are. ``"zero"``: the others are exactly 0, and the kept
                ones are scaled up to sum to 1.

        Raises:
            InvalidOptionError: ``count`` is below 1.
            UnknownNameError: There is no such ``rest``.
        """
        check_count("count", count)
        if rest not in RESTS:
            raise UnknownNameError("rest", str(rest), RESTS)
        self.count, self.rest = count, rest

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` log probabilities; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        logs, others = log_probabilities(logits), logits.shape[-1] - self.count
        if others > 0:
            order = logits.argsort(dim=-1, descending=True, stable=True)[..., self.count :]
            if self.rest == "zero":
                told = logs.amax(-1, keepdim=True) - ZERO_NATS
            else:
                # In logs, where the mass of a saturated row's others does not vanish.
                few = torch.tensor(others, dtype=logs.dtype, device=logs.device).log()
                told = logs.gather(-1, order).logsumexp(-1, keepdim=True) - few
            logs = logs.scatter(-1, order, told.expand(order.shape))
        return lift_label(narrowed(logs, logits.dtype), logits.argmax(-1), 0)
