"""Divide the logits by a temperature: invertible, so that a retrained attacker undoes it."""

from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.options import option


class Temperature(ScoreDefense):
    """Flatten (above 1) or sharpen (below 1) the released probabilities.

    Only what a type rounds away is destroyed: measured against an attacker who retrains, it is a
    control rather than a defense.
    """

    temperature: float = option("Divisor of the logits.", default=2.0, above=0)

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` scaled logits, the largest of each row 0."""
        wide = logits.double()
        # Below the maximum, so that a low temperature lets nothing overflow but what is 0 anyway.
        return (wide - wide.amax(-1, keepdim=True)) / self.temperature
