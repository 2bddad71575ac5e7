"""Mean confidences of each class: the state of defenses that pull or map answers to them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_count, check_labels, check_logits
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState
from oneway.defenses.scores import log_probabilities
from oneway.errors import InvalidTensorError
from oneway.options import Options


class ClassMeans(nn.Module):
    """For each class, the mean confidences of its images.

    Attributes:
        means: ``(K, K)`` float64, one probability vector per class, no entry 0. Even until it is
            fitted. Of predicted labels, the label's entry is the largest.
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
    def fit(self, logits: Tensor, labels: Tensor | None = None) -> int:
        """Take the means from calibration scores.

        A class that no row has gets the mean top confidence of all rows, and the rest evenly.

        Args:
            logits: ``(N, K)`` clean scores, N at least 1.
            labels: ``(N)`` int64 true classes; None: the labels that the scores predict.

        Returns:
            The number of classes that no row has.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores over these classes, there
                are none, or ``labels`` are not a class each.
        """
        classes = len(self.means)
        check_logits(logits, "calibration logits")
        if logits.ndim != 2 or logits.shape[-1] != classes or not len(logits):
            raise InvalidTensorError(
                f"calibration logits must have shape (N, {classes}) with N >= 1, "
                f"but got {tuple(logits.shape)}."
            )
        labels = logits.argmax(-1) if labels is None else labels.to(logits.device)
        check_labels(labels, logits)
        confidences = log_probabilities(logits).exp()
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
    """A defense whose state is the mean of calibration scores, class by class."""

    state_type = ClassMeans
    fitted_to = "calibration queries"

    @classmethod
    def classes_of(
        cls,
        training_data: TrainingData,  # noqa: ARG003  a subclass reads it
        settings: Any,  # noqa: ARG003  a subclass reads it
    ) -> Tensor | None:
        """Return ``(N)`` classes of the calibration rows; None: the predicted labels."""
        return None

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: Options,
        *,
        generator: Generator,  # noqa: ARG003  nothing is drawn
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Average the confidences of calibration queries, class by class.

        Args:
            training_data: Its calibration logits, and their classes where the defense takes them.
            settings: Options of the training.
            generator: Not used.
            report: Called once.

        Returns:
            The means, and how many classes had no calibration row.

        Raises:
            InvalidOptionError: The defense needs true classes, and there are none.
            InvalidTensorError: There are no finite calibration logits, or the classes do not fit.
        """
        _, logits, _ = training_data.calibration
        means = ClassMeans(logits.shape[-1]).to(logits.device)
        missing = means.fit(logits, cls.classes_of(training_data, settings))
        report(1.0)
        return means, {"labels_without_samples": missing}
