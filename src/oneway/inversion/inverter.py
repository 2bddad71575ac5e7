"""The inverter family of Yang et al. (CCS 2019): from confidences back to images."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        self.architecture: dict[str, Any] = {
            "num_classes": num_classes,
            "image_shape": [channels, height, across],
            "width": width,
            "hidden_layers": hidden_layers,
            "front_end": front_end,
            "truncation": truncation,
        }
        self.front_end = build_front_end(front_end, num_classes, truncation)
        # Yang et al.'s first layer, a transposed convolution of a 1x1 map, is this linear one.
        first_map = (width * scale // 2, height // scale, across // scale)
        layers: list[nn.Module] = [
            nn.Linear(num_classes, math.prod(first_map)),
            nn.Unflatten(-1, first_map),
            nn.BatchNorm2d(first_map[0]),
            nn.Tanh(),
        ]
        for exponent in range(hidden_layers - 1, 0, -1):
            wide = width * 2**exponent
            layers += [
                Doubling(wide, wide // 2),
                nn.BatchNorm2d(wide // 2),
                nn.Tanh(),
            ]
        layers += [Doubling(width, channels), nn.Sigmoid()]
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
        self._check_confidences(confidences)
        images: Tensor = self.layers(self.front_end(confidences))
        return images

    def _check_confidences(self, confidences: Tensor) -> None:
        classes = self.architecture["num_classes"]
        if confidences.ndim != 2 or confidences.shape[-1] != classes:
            raise InvalidTensorError(
                f"this inverter takes scores of shape (N, {classes}), "
                f"but got {tuple(confidences.shape)}."
            )

    @torch.no_grad()
    def error_gradients(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return each row's gradient of its own reconstruction error in its logits.

        What automatic differentiation of ``mean((self(softmax(logits)) - images) ** 2)`` per row
        gives, several times faster: no graph, no parameter gradients. It starts from log
        confidences in the logits' own type; so it also tells where confidences are too small
        for their type and :meth:`forward` sees zeros.

        Args:
            logits: ``(N, K)`` scores in nats, of any floating type.
            images: ``(N, C, H, W)`` true inputs, of the network's type.

        Returns:
            ``(N, K)`` gradients, of the network's type.

        Raises:
            InvalidTensorError: The shapes are not those of this inverter.
            InvalidOptionError: The network is in training mode, where rows depend on each other.
        """
        self._check_confidences(logits)
        if images.shape != (len(logits), *self.architecture["image_shape"]):
            raise InvalidTensorError(
                f"this inverter reconstructs images of shape {self.architecture['image_shape']}, "
                f"one per row of {tuple(logits.shape)} logits, but got {tuple(images.shape)}. "
                "Train it on images of the target's shape."
            )
        if self.training:
            raise InvalidOptionError(
                "the inverter is in training mode, so that a row's gradient depends on the batch. "
                "Call `inverter.eval()`."
            )
        logs = logits.log_softmax(-1).to(images.dtype)
        maps = [self.front_end.from_logs(logs)]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        gradients = (maps[-1] - images).mul_(2 / math.prod(images.shape[1:]))
        for layer in reversed(self.layers):
            gradients = _pull_back(layer, maps.pop(), gradients)
        in_logs = self.front_end.pull_back(logs, gradients)
        return in_logs - logs.exp() * in_logs.sum(-1, keepdim=True)


def _pull_back(layer: nn.Module, outputs: Tensor, gradients: Tensor) -> Tensor:
    """Return gradients in a layer's inputs from ``gradients`` in its ``outputs``."""
    match layer:
        case Doubling():
            return layer.pull_back(gradients)
        case nn.Linear():
            return gradients @ layer.weight
        case nn.Unflatten():
            return gradients.flatten(1)
        case nn.Tanh():
            # One pass over the maps; written out it would be three.
            return cast("Tensor", torch.ops.aten.tanh_backward(gradients, outputs))
        case nn.Sigmoid():
            return cast("Tensor", torch.ops.aten.sigmoid_backward(gradients, outputs))
        case nn.BatchNorm2d(running_var=Tensor() as variance):
            return gradients * (layer.weight * (variance + layer.eps).rsqrt())[:, None, None]
        case nn.Identity():
            return gradients
    raise TypeError(f"no gradient is known for a layer of type {type(layer).__name__}")


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution, kernel 4 and stride 2, that doubles both sides of a map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the layer."""
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, 2 H, 2 W)``."""
        if not self._is_narrow(maps):
            return super().forward(maps, output_size)
        rows, columns = maps.shape[-2:]
        patches = self.weight.flatten(1).T @ maps.flatten(2)
        folded = functional.fold(patches, (2 * rows, 2 * columns), 4, padding=1, stride=2)
        return folded if self.bias is None else folded + self.bias[:, None, None]

    def pull_back(self, gradients: Tensor) -> Tensor:
        """Return gradients in the inputs from ``gradients`` in the outputs."""
        if not self._is_narrow(gradients):
            return functional.conv2d(gradients, self.weight, stride=2, padding=1)
        patches = functional.unfold(gradients, 4, padding=1, stride=2)
        rows, columns = gradients.shape[-2:]
        pulled = self.weight.flatten(1) @ patches
        return pulled.reshape(len(gradients), self.in_channels, rows // 2, columns // 2)

    def _is_narrow(self, maps: Tensor) -> bool:
        """Say whether a matrix product and a fold are faster than a convolution kernel.

        They compute the same sums; with few output channels, on a CPU, in a third of the time.
        """
        return self.out_channels <= 4 and maps.device.type == "cpu"


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
