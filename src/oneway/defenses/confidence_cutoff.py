"""Cut high confidences off, so that how sure the classifier is of a label is told up to a bound."""

import torch
from torch import Tensor

from oneway.checks import check_above, check_logits
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import log_probabilities, narrowed
from oneway.errors import InvalidOptionError


class HighConfidenceCutoff:
    """Lower a label's probability to a threshold where it exceeds it.

    The others share what it loses in proportion to what they had, as if the label's logit alone
    were lowered: how they compare with each other is told as before. Rows below the threshold
    stay as they are.
    """

    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, *, threshold: float = 0.9) -> None:
        """Prepare the defense.

        Args:
            threshold: The most that a label may have, at least 0.5 and below 1. With less, what
                the label loses could lift another class above it.

        Raises:
            InvalidOptionError: ``threshold`` is outside its range.
        """
        check_above("threshold", threshold, 0)
        if not 0.5 <= threshold < 1:
            raise InvalidOptionError(
                f"threshold must be at least 0.5 and below 1, but got {threshold}."
            )
        self.threshold = threshold

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` log probabilities, cut off; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        logs, labels = log_probabilities(logits), logits.argmax(-1)
        index = labels.unsqueeze(-1)
        rest = logs.scatter(-1, index, -torch.inf)
        shared = torch.tensor(1 - self.threshold, dtype=logs.dtype, device=logs.device).log()
        # Taken anew, since next to a huge log the sum of its equals is lost.
        lowered = rest.log_softmax(-1) + shared
        cut = shared.expm1().neg().log()
        lowered = lowered.scatter(-1, index, cut.expand(index.shape))
        logs = torch.where(logs.gather(-1, index) > cut, lowered, logs)
        return lift_label(narrowed(logs, logits.dtype), labels, 0)
