"""Input transforms: how an inverter reads confidences before its first layer.

With the stock transform a zero probability becomes a huge negative number. A defense that rounds
then seems to work, since it breaks the attacker's scaling. So every attacker takes part with
several input transforms.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from oneway.errors import InvalidOptionError

SMALLEST_LOG = -1000.0
"""Least logarithm that the stock transform reads; it clamps lower values."""


class FaithfulTransform(nn.Module):
    """The transform of Yang et al. (CCS 2019): clamped logs, shifted by 50, lifted to be positive.

    For full vectors without zeros this is an affine, invertible map of the logits.

    Source:
        Yang, Zhang, Chang & Liang, CCS 2019.
    """

    def __init__(self, num_classes: int, truncation: int | None = None) -> None:
        """Prepare the transform.

        Args:
            num_classes: Number of classes, K.
            truncation: Number of the largest entries that are kept; the others become 0. None:
                all entries are kept.
        """
        super().__init__()
        self.features = num_classes
        self.truncation = truncation

    def fit(self, confidences: Tensor) -> None:
        """Do nothing, since this transform has no statistics."""

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, K)`` features of at least 0."""
        return self.from_logs(safe_log(confidences, SMALLEST_LOG))

    def from_logs(self, logs: Tensor) -> Tensor:
        """Map ``(N, K)`` log confidences to the same features."""
        classes = logs.shape[-1]
        if self.truncation is None or self.truncation >= classes:
            return _lifted(logs)
        kept, at = logs.topk(self.truncation, dim=-1)
        return torch.zeros_like(logs).scatter(-1, at, _lifted(kept))

    def pull_back(self, logs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``logs`` from ``(N, K)`` gradients in ``from_logs(logs)``."""
        if self.truncation is None or self.truncation >= logs.shape[-1]:
            return _pulled_back(logs, gradients)
        kept, at = logs.topk(self.truncation, dim=-1)
        pulled = _pulled_back(kept, gradients.gather(-1, at))
        return torch.zeros_like(logs).scatter(-1, at, pulled)


def _lifted(logs: Tensor) -> Tensor:
    features = logs.clamp_min(SMALLEST_LOG) + 50
    return features + torch.relu(-features.amin(-1, keepdim=True))


def _pulled_back(logs: Tensor, gradients: Tensor) -> Tensor:
    """Return gradients of :func:`_lifted`: a lifted row's least entry moves all its outputs."""
    least, at = logs.min(-1, keepdim=True)
    lifted = gradients.sum(-1, keepdim=True) * (least < -50)
    return gradients.scatter_add(-1, at, -lifted) * (logs >= SMALLEST_LOG)


class StandardizedLog(nn.Module):
    """Floored, centered and standardized logs: a transform that no scaling or rounding breaks.

    Zeros count as 0.3 of the smallest positive confidence in training, about the middle of the
    range that a rounding step turns into zero. Each row is centered, since a softmax ignores a
    constant. Each class is then standardized over the training rows.
    """

    floor: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, num_classes: int) -> None:
        """Prepare the transform; :meth:`fit` sets its statistics."""
        super().__init__()
        self.features = num_classes
        self.register_buffer("floor", torch.tensor(1e-12))
        self.register_buffer("mean", torch.zeros(num_classes))
        self.register_buffer("deviation", torch.ones(num_classes))

    @torch.no_grad()
    def fit(self, confidences: Tensor) -> None:
        """Take floor, mean and deviation from ``(N, K)`` training confidences."""
        self.floor.copy_(_floor_of(confidences))
        features = _centered(confidences.clamp_min(self.floor).log())
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0, correction=0).clamp_min(1e-3))

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, K)`` features of mean 0 and deviation 1."""
        return self.from_logs(confidences.clamp_min(self.floor).log())

    def from_logs(self, logs: Tensor) -> Tensor:
        """Map ``(N, K)`` log confidences to the same features."""
        return (_centered(logs.clamp_min(self.floor.log())) - self.mean) / self.deviation

    def pull_back(self, logs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``logs`` from ``(N, K)`` gradients in ``from_logs(logs)``."""
        return _centered(gradients / self.deviation) * (logs >= self.floor.log())


class UnscaledLog(nn.Module):
    """Floored, centered logs on one scale, and the label: differences keep their relative size.

    All other transforms of logs give each class the same deviation. Where a class varies little,
    that enlarges what a defense or rounding did to it.
    """

    floor: Tensor
    deviation: Tensor

    def __init__(self, num_classes: int) -> None:
        """Prepare the transform; :meth:`fit` sets its statistics."""
        super().__init__()
        self.features = 2 * num_classes
        self.register_buffer("floor", torch.tensor(1e-12))
        self.register_buffer("deviation", torch.ones(()))

    @torch.no_grad()
    def fit(self, confidences: Tensor) -> None:
        """Take floor and deviation from ``(N, K)`` training confidences."""
        self.floor.copy_(_floor_of(confidences))
        features = _centered(confidences.clamp_min(self.floor).log())
        self.deviation.copy_(features.std(correction=0).clamp_min(1e-3))

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, 2 K)`` features of deviation about 1."""
        logs = confidences.clamp_min(self.floor).log()
        return self._features(logs, confidences.argmax(-1))

    def from_logs(self, logs: Tensor) -> Tensor:
        """Map ``(N, K)`` log confidences to the same features."""
        return self._features(logs.clamp_min(self.floor.log()), logs.argmax(-1))

    def pull_back(self, logs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``logs`` from ``(N, 2 K)`` gradients in ``from_logs(logs)``."""
        of_logs: Tensor = gradients[..., : logs.shape[-1]]
        return _centered(of_logs) / self.deviation * (logs >= self.floor.log())

    def _features(self, logs: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([_centered(logs) / self.deviation, _marks(labels, logs)], -1)


FEWEST = 8
"""Least rows of a label for its own statistics; with fewer, the statistics of all rows serve."""

FARTHEST = 10.0
"""Standard deviations at which a feature is clamped, as unlike all training rows."""


class WithinLabel(nn.Module):
    """The scores, their difference from other scores with the same label, and the label.

    Floored, centered logs come twice: standardized over all training rows, and over the rows of
    the same label. A further feature per class marks the label. A signal that is small compared
    with the label's lead, such as a message in the low digits, then fills a decoder's whole range.
    """

    floor: Tensor
    means: Tensor
    deviations: Tensor

    def __init__(self, num_classes: int) -> None:
        """Prepare the transform; :meth:`fit` sets its statistics."""
        super().__init__()
        self.features = 3 * num_classes
        # In float32 the difference of two logs of rounded scores may be rounding error alone.
        self.register_buffer("floor", torch.tensor(1e-12, dtype=torch.float64))
        # A row of statistics per label; the last row has the statistics of all training rows.
        rows = torch.zeros(num_classes + 1, num_classes, dtype=torch.float64)
        self.register_buffer("means", rows)
        self.register_buffer("deviations", torch.ones_like(rows))

    @torch.no_grad()
    def fit(self, confidences: Tensor) -> None:
        """Take floor, means and deviations from ``(N, K)`` training confidences."""
        self.floor.copy_(_floor_of(confidences))
        logs = _centered(confidences.double().clamp_min(self.floor).log())
        labels = confidences.argmax(-1)
        self.means.copy_(logs.mean(0))
        self.deviations.copy_(logs.std(0, correction=0).clamp_min(1e-9))
        for label in (labels.bincount() >= FEWEST).nonzero().flatten().tolist():
            members = logs[labels == label]
            self.means[label] = members.mean(0)
            self.deviations[label] = members.std(0, correction=0).clamp_min(1e-9)

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, 3 K)`` features of mean 0 and deviation about 1."""
        logs = confidences.double().clamp_min(self.floor).log()
        return self._features(logs, confidences.argmax(-1)).to(confidences.dtype)

    def from_logs(self, logs: Tensor) -> Tensor:
        """Map ``(N, K)`` log confidences to the same features."""
        floored = logs.double().clamp_min(self.floor.log())
        return self._features(floored, logs.argmax(-1)).to(logs.dtype)

    def pull_back(self, logs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``logs`` from ``(N, 3 K)`` gradients in ``from_logs(logs)``."""
        classes, labels = logs.shape[-1], logs.argmax(-1)
        floored = logs.double().clamp_min(self.floor.log())
        of_all, of_label, _ = gradients.double().split(classes, -1)
        of_label = of_label * (self._standardized(floored, labels).abs() <= FARTHEST)
        pulled = of_all / self.deviations[-1] + of_label / self.deviations[labels]
        return (_centered(pulled) * (logs >= self.floor.log())).to(gradients.dtype)

    def _features(self, logs: Tensor, labels: Tensor) -> Tensor:
        of_all = (_centered(logs) - self.means[-1]) / self.deviations[-1]
        of_label = self._standardized(logs, labels).clamp(-FARTHEST, FARTHEST)
        return torch.cat([of_all, of_label, _marks(labels, of_all)], -1)

    def _standardized(self, logs: Tensor, labels: Tensor) -> Tensor:
        return (_centered(logs) - self.means[labels]) / self.deviations[labels]


LEADING = 4
"""Number of a row's largest entries that :class:`LeadingScores` reads."""


class LeadingScores(nn.Module):
    """The logs of the largest entries, and marks of these entries.

    Every other transform reads all entries, so that noise on small entries can hide the signal
    from a decoder.
    """

    floor: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, num_classes: int) -> None:
        """Prepare the transform; :meth:`fit` sets its statistics."""
        super().__init__()
        self.features = 2 * num_classes
        self.shown = min(LEADING, num_classes)
        self.register_buffer("floor", torch.tensor(1e-12))
        self.register_buffer("mean", torch.zeros(num_classes))
        self.register_buffer("deviation", torch.ones(num_classes))

    @torch.no_grad()
    def fit(self, confidences: Tensor) -> None:
        """Take floor, mean and deviation from ``(N, K)`` training confidences.

        A class that is rarely among the largest gets the statistics of all largest entries.
        """
        self.floor.copy_(_floor_of(confidences))
        logs = confidences.clamp_min(self.floor).log()
        among = self._among(confidences)
        counts = among.sum(0)
        often = counts >= FEWEST
        shown = logs[among]
        mean = torch.where(often, (logs * among).sum(0) / counts.clamp_min(1), shown.mean())
        squares = ((logs - mean).square() * among).sum(0) / counts.clamp_min(1)
        deviation = torch.where(often, squares.sqrt(), shown.std(correction=0))
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp_min(1e-3))

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, 2 K)`` features of deviation about 1."""
        return self._features(confidences.clamp_min(self.floor).log(), self._among(confidences))

    def from_logs(self, logs: Tensor) -> Tensor:
        """Map ``(N, K)`` log confidences to the same features."""
        return self._features(logs.clamp_min(self.floor.log()), self._among(logs))

    def pull_back(self, logs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``logs`` from ``(N, 2 K)`` gradients in ``from_logs(logs)``."""
        floored = logs.clamp_min(self.floor.log())
        inside = ((floored - self.mean) / self.deviation).abs() <= FARTHEST
        read = self._among(logs) & inside & (logs >= self.floor.log())
        of_logs: Tensor = gradients[..., : logs.shape[-1]]
        return of_logs / self.deviation * read

    def _among(self, scores: Tensor) -> Tensor:
        """Return ``(N, K)`` bool: the largest entries of each row."""
        at = scores.topk(self.shown, dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, at, True)

    def _features(self, logs: Tensor, among: Tensor) -> Tensor:
        features = ((logs - self.mean) / self.deviation).clamp(-FARTHEST, FARTHEST)
        # Columns that mark these entries, of about the size of the other columns.
        return torch.cat([features * among, 2.0 * among.to(features) - 1], -1)


def _centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def _marks(labels: Tensor, like: Tensor) -> Tensor:
    """Return ``(N, K)`` one-hot columns of deviation about 1, of the type of the features."""
    classes = like.shape[-1]
    marks: Tensor = (nn.functional.one_hot(labels, classes) - 1 / classes) * classes**0.5
    return marks.to(like)


def _floor_of(confidences: Tensor) -> Tensor:
    """Return the value that replaces zeros: 0.3 of the smallest positive confidence."""
    positive = confidences[confidences > 0]
    smallest = positive.min() if len(positive) else confidences.new_tensor(1e-12)
    # Without zeros the floor matters for unseen queries alone; float32 can still divide by it.
    return (0.3 * smallest).clamp_min(1e-30)


def safe_log(confidences: Tensor, smallest: float) -> Tensor:
    """Return logs of at least ``smallest``, with a gradient that is finite everywhere.

    The gradient is 0 where the confidence is below the smallest normal number, since its
    reciprocal overflows there.

    Args:
        confidences: Probabilities in ``[0, 1]``, of any shape.
        smallest: Least logarithm, in nats.
    """
    normal = confidences >= torch.finfo(confidences.dtype).tiny
    logs = torch.where(normal, confidences, 1).log()
    return torch.where(normal, logs, confidences.detach().log().clamp_min(smallest))


InputTransform = FaithfulTransform | StandardizedLog | UnscaledLog | WithinLabel | LeadingScores

INPUT_TRANSFORMS: dict[str, Callable[[int], InputTransform]] = {
    "faithful": FaithfulTransform,
    "standardized": StandardizedLog,
    "unscaled": UnscaledLog,
    "within-label": WithinLabel,
    "leading": LeadingScores,
}
"""The registry of input transforms: by name, what builds a transform for K classes."""


def build_input_transform(name: str, num_classes: int, truncation: int | None) -> InputTransform:
    """Build an input transform by name.

    Args:
        name: Key of ``INPUT_TRANSFORMS``.
        num_classes: Number of classes, K.
        truncation: For ``"faithful"``: number of the largest entries that are kept; None: all.

    Raises:
        InvalidOptionError: The name is unknown, or ``truncation`` is set for a transform that does
            not truncate.
    """
    if name not in INPUT_TRANSFORMS:
        raise InvalidOptionError(
            f"input_transform must be one of {', '.join(INPUT_TRANSFORMS)}, but got {name!r}."
        )
    if truncation is None:
        return INPUT_TRANSFORMS[name](num_classes)
    if name != "faithful":
        raise InvalidOptionError(
            "truncation needs input_transform='faithful'. Leave it out, or take that transform."
        )
    return FaithfulTransform(num_classes, truncation)
