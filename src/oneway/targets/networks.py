"""The target classifiers of Yang et al. (CCS 2019), which the paper attacks and defends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from oneway.checks import check_count
from oneway.errors import InvalidOptionError


@dataclass(frozen=True)
class TargetPreset:
    """The size of a :class:`TargetNetwork`.

    Attributes:
        width: Channels of the first block.
        blocks: Number of blocks.
    """

    width: int
    blocks: int


TARGET_PRESETS = {
    "small": TargetPreset(width=32, blocks=3),
    "paper-mnist": TargetPreset(width=128, blocks=3),
    "paper-faces": TargetPreset(width=128, blocks=4),
}


class TargetNetwork(nn.Module):
    """A convolutional classifier: images to logits.

    Each block is Conv 3x3, BatchNorm, MaxPool 2x2, ReLU (pool before ReLU) and doubles the
    channels; then Linear to ``5 * K``, Dropout, Linear to K, with nothing between the two.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Sequence[int],
        *,
        width: int = TARGET_PRESETS["small"].width,
        blocks: int = TARGET_PRESETS["small"].blocks,
        dropout: float = 0.5,
    ) -> None:
        """Build an untrained target.

        Args:
            num_classes: K, at least 2.
            image_shape: ``(C, H, W)``; H and W at least ``2 ** blocks``.
            width: Channels of the first block.
            blocks: Number of blocks.
            dropout: Share of hidden units dropped in training, in [0, 1).

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("width", width)
        check_count("blocks", blocks)
        channels, height, across = image_shape
        if min(height, across) < 2**blocks:
            raise InvalidOptionError(
                f"images must be at least {2**blocks} pixels high and wide for {blocks} blocks, "
                f"but are {height}x{across}. Use fewer blocks."
            )
        self.architecture: dict[str, Any] = {
            "num_classes": num_classes,
            "image_shape": [channels, height, across],
            "width": width,
            "blocks": blocks,
            "dropout": dropout,
        }
        layers: list[nn.Module] = []
        for block in range(blocks):
            wide = width * 2**block
            layers += [
                nn.Conv2d(channels, wide, 3, padding=1),
                nn.BatchNorm2d(wide),
                nn.MaxPool2d(2),
                nn.ReLU(),
            ]
            channels, height, across = wide, height // 2, across // 2
        layers += [
            nn.Flatten(),
            nn.Linear(channels * height * across, 5 * num_classes),
            nn.Dropout(dropout),
            nn.Linear(5 * num_classes, num_classes),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` logits of ``(N, C, H, W)`` images in ``[0, 1]``."""
        logits: Tensor = self.layers(images)
        return logits
