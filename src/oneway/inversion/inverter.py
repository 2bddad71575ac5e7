"""The inverter family of Yang et al. (CCS 2019): from confidences back to images."""

from collections.abc import Sequence

from torch import Tensor, nn

from oneway.checks import check_count
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.inversion.front_ends import build_front_end

INVERTER_WIDTHS = {"small": 32, "paper": 128}
"""Widths by preset. ``paper``: 512-256-128 on a 32x32 canvas, 1024-512-256-128 on 64x64."""


class Inverter(nn.Module):
    """Reconstructs images from confidences by transposed convolutions.

    The first layer turns a vector of K confidences into a small map; each further layer doubles
    its sides and halves its channels. BatchNorm and Tanh follow every layer but the last, which
    ends in a Sigmoid.

    With ``hidden_layers`` left out this is Yang et al.'s network: the first map is 4x4, with
    ``width * 2 ** (hidden_layers - 1)`` channels. With fewer, the first map is larger instead and
    the early layers are gone: the defender's surrogate "removes two hidden layers" (Wen et al.,
    section V-A3, which does not say which).
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Sequence[int],
        *,
        width: int = INVERTER_WIDTHS["small"],
        hidden_layers: int | None = None,
        front_end: str = "faithful",
        truncation: int | None = None,
    ) -> None:
        """Build an untrained inverter.

        Args:
            num_classes: K, the length of a confidence vector, at least 2.
            image_shape: ``(C, H, W)``; H and W must be divisible by ``2 ** hidden_layers``.
            width: Channels of the last hidden layer. Presets: ``INVERTER_WIDTHS``.
            hidden_layers: How many layers come before the last one, at least 1. None: as many
                as leave a first map of at least 4x4 (3 for 32x32, 4 for 64x64).
            front_end: ``"faithful"`` (Yang et al.'s transform) or ``"standardized"``.
            truncation: Of the faithful transform: keep this many of the largest entries.

        Raises:
            InvalidOptionError: An option is outside its range, or the sizes do not divide.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("width", width)
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise InvalidOptionError(f"image_shape must be (C, H, W), but got {image_shape}.")
        channels, height, across = image_shape
        if hidden_layers is None:
            hidden_layers = full_depth(height, across)
        check_count("hidden_layers", hidden_layers)
        scale = 2**hidden_layers
        if height % scale or across % scale:
            raise InvalidOptionError(
                f"image sides must be divisible by 2 ** hidden_layers = {scale}, but are "
                f"{height}x{across}. Pad the images, or pass fewer hidden_layers."
            )
        self.architecture = {
            "num_classes": num_classes,
            "image_shape": [channels, height, across],
            "width": width,
            "hidden_layers": hidden_layers,
            "front_end": front_end,
            "truncation": truncation,
        }
        self.front_end = build_front_end(front_end, num_classes, truncation)
        self._first_map = (width * scale // 2, height // scale, across // scale)
        # A transposed convolution of a 1x1 map is a linear layer, but for speed; its BatchNorm
        # is per channel all the same.
        first, rows, columns = self._first_map
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(num_classes, first, (rows, columns)),
            nn.BatchNorm2d(first),
            nn.Tanh(),
        ]
        for exponent in range(hidden_layers - 1, 0, -1):
            wide = width * 2**exponent
            layers += [
                nn.ConvTranspose2d(wide, wide // 2, 4, stride=2, padding=1),
                nn.BatchNorm2d(wide // 2),
                nn.Tanh(),
            ]
        layers += [nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def fit_front_end(self, confidences: Tensor) -> None:
        """Take the input transform's statistics from ``(N, K)`` training confidences."""
        self.front_end.fit(confidences)

    def forward(self, confidences: Tensor) -> Tensor:
        """Reconstruct images.

        Args:
            confidences: ``(N, K)`` probabilities, float32.

        Returns:
            ``(N, C, H, W)`` in ``[0, 1]``.

        Raises:
            InvalidTensorError: The shape is not ``(N, K)``.
        """
        classes = self.architecture["num_classes"]
        if confidences.ndim != 2 or confidences.shape[-1] != classes:
            raise InvalidTensorError(
                f"this inverter takes confidences of shape (N, {classes}), "
                f"but got {tuple(confidences.shape)}."
            )
        features = self.front_end(confidences)
        images: Tensor = self.layers(features[:, :, None, None])
        return images


def full_depth(height: int, across: int) -> int:
    """Return how often both sides can be halved before one falls below 4 or turns odd."""
    depth = 0
    while height % 2 == 0 and across % 2 == 0 and min(height, across) >= 8:
        height, across, depth = height // 2, across // 2, depth + 1
    if depth == 0:
        raise InvalidOptionError(
            f"images of {height}x{across} cannot be halved to maps of at least 4x4. "
            "Pad them to a multiple of 4, such as 28 or 32."
        )
    return depth
