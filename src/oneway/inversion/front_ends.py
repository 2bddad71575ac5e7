"""What an inverter does to confidences before its first layer.

An attack is only as fair as its input scale: with the stock transform a zero probability becomes
a huge negative number, and a defense that rounds seems to win by breaking the attacker's scaling.
So every attacker is tried with both of these.
"""

import torch
from torch import Tensor, nn

from oneway.errors import InvalidOptionError

SMALLEST_LOG = -1000.0
"""Where the stock transform clamps logarithms."""


class FaithfulTransform(nn.Module):
    """The transform of Yang et al. (CCS 2019): clamped logs, shifted by 50, lifted to be positive.

    With full vectors and no zeros this is an affine, invertible map of the logits.
    """

    def __init__(self, truncation: int | None = None) -> None:
        """Prepare the transform.

        Args:
            truncation: Keep this many of the largest entries and zero the rest. None: all.
        """
        super().__init__()
        self.truncation = truncation

    def fit(self, confidences: Tensor) -> None:
        """Do nothing: this transform has no statistics."""

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, K)`` features of at least 0."""
        return self.from_logs(safe_log(confidences, SMALLEST_LOG))

    def from_logs(self, logs: Tensor) -> Tensor:
        """Do the same from ``(N, K)`` log confidences."""
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
    """Undo :func:`_lifted`: where a row was lifted, its least entry took part in all others."""
    least, at = logs.min(-1, keepdim=True)
    lifted = gradients.sum(-1, keepdim=True) * (least < -50)
    return gradients.scatter_add(-1, at, -lifted) * (logs >= SMALLEST_LOG)


class StandardizedLog(nn.Module):
    """A transform that no scaling or rounding breaks: floored, centered, standardized logs.

    Zeros are read as 0.3 of the smallest positive confidence seen in training: about the middle
    of what a rounding step turns into zero. Each row is centered, which removes what a softmax
    ignores; each class is then standardized over the training rows.
    """

    floor: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, num_classes: int) -> None:
        """Prepare the transform; :meth:`fit` sets its statistics."""
        super().__init__()
        self.register_buffer("floor", torch.tensor(1e-12))
        self.register_buffer("mean", torch.zeros(num_classes))
        self.register_buffer("deviation", torch.ones(num_classes))

    @torch.no_grad()
    def fit(self, confidences: Tensor) -> None:
        """Take floor, mean and deviation from ``(N, K)`` training confidences."""
        positive = confidences[confidences > 0]
        smallest = positive.min() if len(positive) else confidences.new_tensor(1e-12)
        # Without zeros the floor is only for unseen queries: no lower than float32 can divide by.
        self.floor.copy_((0.3 * smallest).clamp_min(1e-30))
        features = self._centered(confidences.clamp_min(self.floor).log())
        self.mean.copy_(features.mean(0))
        self.deviation.copy_(features.std(0, correction=0).clamp_min(1e-3))

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, K)`` features of mean 0 and deviation 1."""
        return self.from_logs(confidences.clamp_min(self.floor).log())

    def from_logs(self, logs: Tensor) -> Tensor:
        """Do the same from ``(N, K)`` log confidences."""
        return (self._centered(logs.clamp_min(self.floor.log())) - self.mean) / self.deviation

    def pull_back(self, logs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``logs`` from ``(N, K)`` gradients in ``from_logs(logs)``."""
        return self._centered(gradients / self.deviation) * (logs >= self.floor.log())

    @staticmethod
    def _centered(rows: Tensor) -> Tensor:
        return rows - rows.mean(-1, keepdim=True)


def safe_log(confidences: Tensor, smallest: float) -> Tensor:
    """Return logs of at least ``smallest``, with a gradient that is finite everywhere.

    The gradient is 0 where the confidence is below the smallest normal number, since its
    reciprocal overflows there.
    """
    normal = confidences >= torch.finfo(confidences.dtype).tiny
    logs = torch.where(normal, confidences, 1).log()
    return torch.where(normal, logs, confidences.detach().log().clamp_min(smallest))


FRONT_ENDS = ("faithful", "standardized")


def build_front_end(
    name: str, num_classes: int, truncation: int | None
) -> FaithfulTransform | StandardizedLog:
    """Build a front end by name.

    Raises:
        InvalidOptionError: The name is unknown, or ``truncation`` goes with another front end.
    """
    if name == "faithful":
        return FaithfulTransform(truncation)
    if name != "standardized":
        raise InvalidOptionError(
            f"front_end must be one of {', '.join(FRONT_ENDS)}, but got {name!r}."
        )
    if truncation is not None:
        raise InvalidOptionError("truncation goes with front_end='faithful' only.")
    return StandardizedLog(num_classes)
