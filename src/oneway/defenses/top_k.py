"""Release the largest probabilities only."""

from typing import Literal

import torch
from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.defenses.scores import ZERO_NATS, log_probabilities
from oneway.options import option


class TopK(ScoreDefense):
    """Keep the largest probabilities of each row, and hide how the others differ.

    Among equals the lowest index counts as larger.
    """

    count: int = option(
        "Number of probabilities to keep; all, if there are no more classes.", default=3
    )
    rest: Literal["spread", "zero"] = option(
        '``"spread"``: the other classes share the remaining mass evenly, and the kept '
        'probabilities stay as they are. ``"zero"``: the others are exactly 0, and the kept '
        "probabilities are scaled up to sum to 1.",
        default="spread",
    )

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` log probabilities."""
        logs, others = log_probabilities(logits), logits.shape[-1] - self.count
        if others <= 0:
            return logs
        order = logits.argsort(dim=-1, descending=True, stable=True)[..., self.count :]
        if self.rest == "zero":
            shared = logs.amax(-1, keepdim=True) - ZERO_NATS
        else:
            # In logs, where the mass of a saturated row's others does not vanish.
            number = torch.tensor(others, dtype=logs.dtype, device=logs.device)
            shared = logs.gather(-1, order).logsumexp(-1, keepdim=True) - number.log()
        return logs.scatter(-1, order, shared.expand(order.shape))
