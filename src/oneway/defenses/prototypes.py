"""Release one vector per label: the mean of the classifier's answers with that label."""

from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.defenses.class_means import FittedToClassMeans
from oneway.defenses.scores import logits_of


class Prototypes(FittedToClassMeans, ScoreDefense):
    """Release the mean clean confidences of the predicted label, whatever the query.

    Only the label is revealed, as by :class:`oneway.defenses.label_only.LabelOnly`, but at
    the least mean squared distortion that this allows. A label without calibration samples gets
    the mean top confidence, and the rest evenly.
    """

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits of each label's vector."""
        return logits_of(self.state(logits.argmax(-1)), logits.dtype)
