"""ModelGuard-S: a quantizer of answers for each label, grown from the stream or fitted before."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from oneway.checks import check_count
from oneway.contracts import TrainingData
from oneway.defenses.base import DefenseWithState, ScoreDefense
from oneway.defenses.class_means import ClassMeans
from oneway.defenses.scores import log_probabilities, logits_of
from oneway.options import Options, option

ROUNDS, MOVED = 100, 1e-3
"""Most rounds of k-means, and the largest move of a centroid (L2) that ends them. Theirs."""


class Centroids(nn.Module):
    """Probability vectors that are released, in the order of their age, each with its label.

    Attributes:
        vectors: ``(C, K)`` float64.
        labels: ``(C)`` int64.
        epsilon: L1 distance within which a vector stands for an answer.
        grows: Whether an answer that no vector stands for becomes a vector.
    """

    vectors: Tensor
    labels: Tensor

    def __init__(self, num_classes: int, count: int, epsilon: float, *, grows: bool) -> None:
        """Build vectors that are not fitted yet.

        Args:
            num_classes: K, at least 2.
            count: C.
            epsilon: See above.
            grows: See above.

        Raises:
            InvalidOptionError: There are fewer than two classes.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        self.epsilon, self.grows = epsilon, grows
        self.register_buffer("vectors", torch.zeros(count, num_classes, dtype=torch.float64))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.int64))

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments that build a module of the same size."""
        return {
            "num_classes": self.vectors.shape[1],
            "count": len(self.vectors),
            "epsilon": self.epsilon,
            "grows": self.grows,
        }

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Append ``(n, K)`` vectors with ``(n)`` labels."""
        self.vectors = torch.cat([self.vectors, vectors])
        self.labels = torch.cat([self.labels, labels])

    def distances(self, confidences: Tensor, labels: Tensor) -> Tensor:
        """Return ``(N, C)`` L1 distances to the vectors; infinite to those of other labels."""
        apart = torch.cdist(confidences, self.vectors, p=1)
        return apart.masked_fill(labels.unsqueeze(-1) != self.labels, torch.inf)


class QuantizerOptions(Options):
    """Options of a quantizer."""

    epsilon: float = option(
        "L1 distance within which a released vector stands for an answer. Theirs: 1.",
        default=1.0,
        above=0,
    )
    grows: bool = option(
        "As published: there are no vectors at first, and an answer that none stands for is "
        "released as it is, and becomes one. False: vectors are fitted to calibration queries.",
        default=True,
    )


class ModelGuardS(DefenseWithState, ScoreDefense):
    """Answer with a vector of the answer's label, within ``epsilon`` of it in L1 if there is one.

    As published the oldest such vector answers; where there is none, the clean answer itself is
    released, and answers later queries. Answers then depend on all queries before, in order, and
    some clean scores leave: that is for measuring, and no server takes it. With ``grows=False``
    the nearest vector answers. Vectors are fitted by k-means, from the mean of each label on, with
    the farthest answer as another start until all calibration answers are within ``epsilon``.

    Source:
        Tang et al., "ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks",
        USENIX Security 2024: the ordered incremental quantizer, and their quantizer that is fitted
        before. Theirs releases the clean answer for a label without vectors; here such a label has
        one vector from the start.
    """

    state_type = Centroids
    training = QuantizerOptions
    fitted_to = "calibration queries, or nothing as published"

    def __post_init__(self) -> None:
        """Say whether answers depend on earlier queries; refuse options outside their range.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__post_init__()
        self.remembers = bool(getattr(self.state, "grows", False))

    @classmethod
    def fit_state(
        cls,
        training_data: TrainingData,
        settings: QuantizerOptions,
        *,
        generator: Generator,  # noqa: ARG003  nothing is drawn
        report: Callable[[float], None],
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Fit vectors to the answers to calibration queries, or none, to grow later.

        Args:
            training_data: Its calibration logits.
            settings: Options of the quantizer.
            generator: Not used.
            report: Called once.

        Returns:
            The vectors, and their number.

        Raises:
            InvalidTensorError: There are no finite calibration logits.
        """
        _, logits = training_data.calibration
        classes = logits.shape[-1]
        state = Centroids(classes, 0, settings.epsilon, grows=settings.grows).to(logits.device)
        if not settings.grows:
            means = ClassMeans(classes).to(logits.device)
            means.fit(logits)
            confidences, labels = log_probabilities(logits).exp(), logits.argmax(-1)
            for label in range(classes):
                vectors = _covering(
                    confidences[labels == label], means.means[label : label + 1], settings.epsilon
                )
                state.add(vectors, labels.new_full((len(vectors),), label))
        report(1.0)
        return state, {"vectors": len(state.vectors)}

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits of the vectors."""
        state = cast("Centroids", self.state)
        rows = logits.reshape(-1, logits.shape[-1])
        confidences, labels = log_probabilities(rows).exp(), rows.argmax(-1)
        apart = state.distances(confidences, labels)
        answers = _grown(state, confidences, labels, apart) if state.grows else apart.argmin(-1)
        return logits_of(state.vectors[answers].view(logits.shape), logits.dtype)


def _grown(state: Centroids, confidences: Tensor, labels: Tensor, apart: Tensor) -> Tensor:
    """Return the place of each answer's oldest vector, as if answers came one after the other."""
    near = apart <= state.epsilon
    covered = near.any(-1)
    answers = near.int().argmax(-1) if near.shape[1] else torch.zeros_like(labels)
    while not covered.all():
        first = int((~covered).int().argmax())
        own, label = confidences[first : first + 1], labels[first : first + 1]
        taken = ~covered & (labels == label)
        taken &= (confidences - own).abs().sum(-1) <= state.epsilon
        answers[taken] = len(state.vectors)
        state.add(own, label)
        covered |= taken
    return answers


def _covering(rows: Tensor, centers: Tensor, epsilon: float) -> Tensor:
    """Return centers of ``(N, K)`` rows, all within ``epsilon`` of the nearest in L1 if possible.

    Args:
        rows: Probability vectors; there may be none.
        centers: ``(1, K)`` first center.
        epsilon: Goal for the largest distance.
    """
    for _ in range(len(rows)):
        centers = _k_means(rows, centers)
        distances = torch.cdist(rows, centers, p=1).amin(-1)
        if distances.max() <= epsilon:
            break
        centers = torch.cat([centers, rows[distances.argmax()].unsqueeze(0)])
    return centers


def _k_means(rows: Tensor, centers: Tensor) -> Tensor:
    """Move each center to the mean of the rows that are nearest to it in L1, until none moves."""
    for _ in range(ROUNDS):
        nearest = torch.cdist(rows, centers, p=1).argmin(-1)
        counts = nearest.bincount(minlength=len(centers)).unsqueeze(-1)
        sums = torch.zeros_like(centers).index_add(0, nearest, rows)
        moved = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
        done = (moved - centers).norm(dim=-1).max() < MOVED
        centers = moved
        if done:
            break
    return centers
