"""No defense: what every other one is compared with."""

from torch import Tensor

from oneway.checks import check_logits


class Identity:
    """Release the clean logits. An audit must find the gap open: a closed gap of 0."""

    requires_input = False
    keeps_label = True
    deterministic = True

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``logits`` as they came; ``images`` are ignored."""
        check_logits(logits)
        return logits
