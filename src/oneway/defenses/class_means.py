"""Mean confidences of each label: the state of defenses that release one vector per label."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_count, check_logits
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState
from oneway.defenses.scores import log_probabilities
from oneway.errors import InvalidTensorError
from oneway.options import Options


class ClassMeans(nn.Module):
    """For each label, the mean confidences of the images that are given that label.

    Attributes:
        means: ``(K, K)`` float64, one probability vector per predicted label, the label's entry the
            largest, no entry 0. Even until it is fitted.
    """

    means: Tensor

    def __init__(self, num_classes: int) -> None:
        """Build means that are not fitted yet.

        Args:
            num_classes: K, at least 2.

        Raises:
            InvalidOptionError: ``num_classes`` is below 2.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        self.architecture: dict[str, Any] = {"num_classes": num_classes}
        even = torch.full((num_classes, num_classes), 1 / num_classes, dtype=torch.float64)
        self.register_buffer("means", even)

    @torch.no_grad()
    def fit(self, logits: Tensor) -> int:
        """Take the means from ``(N, K)`` calibration logits.

        A label that no row has gets the mean top confidence of all rows, and the rest evenly.

        Returns:
            How many labels no row has.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores over these classes, or
                there are none.
        """
        classes = len(self.means)
        check_logits(logits, "calibration logits")
        if logits.ndim != 2 or logits.shape[-1] != classes or not len(logits):
            raise InvalidTensorError(
                f"calibration logits must have shape (N, {classes}) with N >= 1, "
                f"but got {tuple(logits.shape)}."
            )
        confidences, labels = log_probabilities(logits).exp(), logits.argmax(-1)
        counts = labels.bincount(minlength=classes)
        sums = confidences.new_zeros(classes, classes).index_add(0, labels, confidences)
        top = float(confidences.amax(-1).mean())
        canonical = torch.full_like(sums, (1 - top) / (classes - 1)).fill_diagonal_(top)
        seen = (counts > 0).unsqueeze(-1)
        means = torch.where(seen, sums / counts.clamp_min(1).unsqueeze(-1), canonical)
        # A mean of saturated rows may hold zeros, which have no logarithm.
        self.means.copy_(means.clamp_min(torch.finfo(means.dtype).tiny))
        return int((counts == 0).sum())

    def forward(self, labels: Tensor) -> Tensor:
        """Return the ``(..., K)`` means of ``(...)`` labels."""
        return self.means[labels]


class FittedToClassMeans(DefenseWithState):
    """A defense whose state is the mean of calibration scores, label by label."""

    state_type = ClassMeans
    fitted_to = "calibration queries"

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: Options,  # noqa: ARG003  there are none
        *,
        generator: Generator,  # noqa: ARG003  nothing is drawn
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Average the confidences of calibration queries, by predicted label.

        Args:
            training_data: Its calibration logits.
            settings: Not used.
            generator: Not used.
            report: Called once.

        Returns:
            The means, and how many labels had no calibration row.

        Raises:
            InvalidTensorError: There are no finite calibration logits.
        """
        _, logits = training_data.calibration
        means = ClassMeans(logits.shape[-1]).to(logits.device)
        missing = means.fit(logits)
        report(1.0)
        return means, {"labels_without_samples": missing}
