"""Divide the logits by a temperature: an invertible map, so that a retrained attacker reads on."""

from torch import Tensor

from oneway.checks import check_above, check_logits
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import narrowed


class Temperature:
    """Flatten (above 1) or sharpen (below 1) the released probabilities.

    Nothing is destroyed but what a type rounds away: measured against an attacker who retrains,
    it is a control rather than a defense.
    """

    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, *, temperature: float = 2.0) -> None:
        """Prepare the defense.

        Args:
            temperature: What the logits are divided by, above 0.

        Raises:
            InvalidOptionError: ``temperature`` is not a positive number.
        """
        check_above("temperature", temperature, 0)
        self.temperature = temperature

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` scaled logits, the largest of each row 0; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        wide = logits.detach().double()
        # Below the maximum, so that a low temperature lets nothing overflow but what is 0 anyway.
        scaled = (wide - wide.amax(-1, keepdim=True)) / self.temperature
        return lift_label(narrowed(scaled, logits.dtype), logits.argmax(-1), 0)
