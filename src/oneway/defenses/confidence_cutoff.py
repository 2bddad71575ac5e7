"""Cut off high confidences, so that a label's confidence is revealed up to a bound only."""

import torch
from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.defenses.scores import log_probabilities
from oneway.options import option


class HighConfidenceCutoff(ScoreDefense):
    """Lower a label's probability to a threshold where it exceeds it.

    The other classes share the difference in proportion to their probabilities, as if the label's
    logit alone were lowered: their ratios are released as they are. Rows below the threshold
    stay as they are.
    """

    # Below a half, the mass that the label loses could lift another class above it.
    threshold: float = option("Largest probability of a label.", default=0.9, least=0.5, below=1)

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` log probabilities, cut off."""
        logs, index = log_probabilities(logits), logits.argmax(-1, keepdim=True)
        rest = logs.scatter(-1, index, -torch.inf)
        shared = torch.tensor(1 - self.threshold, dtype=logs.dtype, device=logs.device).log()
        # Taken anew, since next to a huge log the sum of its equals is lost.
        lowered = rest.log_softmax(-1) + shared
        cut = shared.expm1().neg().log()
        lowered = lowered.scatter(-1, index, cut.expand(index.shape))
        return torch.where(logs.gather(-1, index) > cut, lowered, logs)
