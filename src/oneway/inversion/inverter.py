"""Inverter networks, from confidences to images or to encoded records."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from oneway.checks import check_count
from oneway.errors import InvalidOptionError
from oneway.inversion.closed_form import LayeredInverter, RowsLastLayer
from oneway.inversion.input_transforms import build_input_transform

INVERTER_WIDTHS = {"small": 32, "paper": 128}
"""Widths by preset. ``paper``: 512-256-128 on a 32x32 canvas, 1024-512-256-128 on 64x64."""


class Inverter(LayeredInverter):
    """Reconstructs images from confidences by transposed convolutions.

    The first layer turns a vector of K confidences into a small map; each further layer doubles
    its sides and halves its channels. BatchNorm and Tanh follow every layer but the last, which
    ends in a Sigmoid. Where doubling does not give the size of the image, the first map is rounded
    up, and the last map is cropped to its middle.

    With the default ``hidden_layers`` this is Yang et al.'s network: on sides of 32 or 64 the first
    map is 4x4, with ``width * 2 ** (hidden_layers - 1)`` channels. With fewer hidden layers, the
    first map is larger and the first layers are missing. With a larger ``upsampling``, the last
    layer stands for the last layers, too. The defender's surrogate "removes two hidden layers" (Wen
    et al., section V-A3, which does not say which layers). For 530 classes at 64x64, the published
    network has 20 million weights; without its first two layers it has 35 million, most of them in
    the first layer; without its last two, 17 million.

    Yang et al.'s first layer has a bias per channel, which the BatchNorm behind it cancels. The
    linear layer here has a bias per channel and position.

    Source:
        Yang, Zhang, Chang & Liang, CCS 2019; Wen, Yiu & Hui, section V-A3.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: Sequence[int],
        *,
        width: int = INVERTER_WIDTHS["small"],
        hidden_layers: int | None = None,
        upsampling: int = 2,
        input_transform: str = "faithful",
        truncation: int | None = None,
    ) -> None:
        """Build an untrained inverter.

        Args:
            num_classes: K, the length of a confidence vector, at least 2.
            image_shape: ``(C, H, W)``, each at least 1.
            width: Channels of the last hidden layer. Presets: ``INVERTER_WIDTHS``.
            hidden_layers: Number of layers before the last, at least 1. All layers together may
                enlarge one pixel to the longer side, and no further. None: :func:`full_depth` (3
                for 32x32, 4 for 64x64).
            upsampling: Factor by which the last layer enlarges both sides of its map, a power of 2.
            input_transform: Key of ``INPUT_TRANSFORMS``; ``"faithful"`` is Yang et al.'s.
            truncation: For the faithful transform: number of the largest entries that are kept.

        Raises:
            InvalidOptionError: An option is outside its range.
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
        if type(upsampling) is not int or upsampling < 2 or upsampling.bit_count() > 1:
            raise InvalidOptionError(f"upsampling must be 2, 4, 8 or so on, but got {upsampling}.")
        most = max(1, (max(height, across) - 1).bit_length()) + 2 - upsampling.bit_length()
        if hidden_layers > most:
            raise InvalidOptionError(
                f"hidden_layers must be at most {most} for images of {height}x{across} and an "
                f"upsampling of {upsampling}, but got {hidden_layers}. With {most} the first map "
                "is a single pixel already."
            )
        scale = upsampling * 2 ** (hidden_layers - 1)
        self.architecture = {
            "num_classes": num_classes,
            "image_shape": [channels, height, across],
            "width": width,
            "hidden_layers": hidden_layers,
            "upsampling": upsampling,
            "input_transform": input_transform,
            "truncation": truncation,
        }
        self.shape = (channels, height, across)
        self.input_transform = build_input_transform(input_transform, num_classes, truncation)
        # Yang et al.'s first layer, a transposed convolution of a 1x1 map, is this linear layer.
        first_map = (width * 2 ** (hidden_layers - 1), -(-height // scale), -(-across // scale))
        layers: list[nn.Module] = [
            nn.Linear(self.input_transform.features, math.prod(first_map)),
            nn.Unflatten(-1, first_map),
            nn.BatchNorm2d(first_map[0]),
            nn.Tanh(),
        ]
        for exponent in range(hidden_layers - 1, 0, -1):
            wide = width * 2**exponent
            layers += [
                Upsampling(wide, wide // 2),
                nn.BatchNorm2d(wide // 2),
                nn.Tanh(),
            ]
        layers.append(Upsampling(width, channels, upsampling))
        if height % scale or across % scale:
            layers.append(Crop(height, across))
        self.layers = nn.Sequential(*layers, nn.Sigmoid())


class Upsampling(nn.ConvTranspose2d, RowsLastLayer):
    """A transposed convolution that enlarges both sides of a map by an even factor f.

    Its kernel is 2 f, its stride f: neighboring patches overlap by half.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int = 2) -> None:
        """Build the layer."""
        super().__init__(in_channels, out_channels, 2 * factor, stride=factor, padding=factor // 2)
        self.factor = factor

    def forward(self, maps: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, f H, f W)``."""
        if not self._is_narrow(maps):
            return super().forward(maps, output_size)
        factor, (rows, columns) = self.factor, maps.shape[-2:]
        sides = (factor * rows, factor * columns)
        patches = self.weight.flatten(1).T @ maps.flatten(2)
        folded = functional.fold(patches, sides, 2 * factor, padding=factor // 2, stride=factor)
        return folded if self.bias is None else folded + self.bias[:, None, None]

    def apply_rows_last(self, inputs: Tensor) -> Tensor:
        """Map ``(in_channels, H, W, N)`` to ``(out_channels, f H, f W, N)``."""
        _, height, across, rows = inputs.shape
        factor, margin = self.factor, slice(self.factor // 2, -(self.factor // 2))
        patches = self.weight.flatten(1).T @ inputs.flatten(1)
        # A pixel of a patch is f * whole + rest: the rests fold apart, in contiguous runs.
        patches = patches.view(self.out_channels, 2, factor, 2, factor, height, across, rows)
        patches = patches.permute(1, 3, 2, 4, 0, 5, 6, 7)
        folded = patches.new_zeros(factor, factor, self.out_channels, height + 1, across + 1, rows)
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            folded[..., down : down + height, right : right + across, :] += patches[down, right]
        whole = folded.permute(2, 3, 0, 4, 1, 5)
        maps = whole.flatten(3, 4).flatten(1, 2)[:, margin, margin]
        return maps if self.bias is None else maps + self.bias[:, None, None, None]

    def pull_back_rows_last(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``inputs`` from ``gradients`` in the outputs, rows last."""
        factor, around = self.factor, (self.factor // 2,) * 4
        padded = functional.pad(gradients, (0, 0, *around))
        # (out_channels, H, W, N, 2 f, 2 f): each number of the input spreads over a patch.
        patches = padded.unfold(1, 2 * factor, factor).unfold(2, 2 * factor, factor)
        patches = patches.permute(0, 4, 5, 1, 2, 3)
        return (self.weight.flatten(1) @ patches.flatten(3).flatten(0, 2)).view(inputs.shape)

    def _is_narrow(self, maps: Tensor) -> bool:
        """Return whether a matrix product and a fold are faster than a convolution kernel.

        Both compute the same sums. With few output channels on a CPU, product and fold take a third
        of the time.
        """
        return self.out_channels <= 4 and maps.device.type == "cpu"


class Crop(nn.Module, RowsLastLayer):
    """Keeps the middle of a map."""

    def __init__(self, height: int, across: int) -> None:
        """Build the layer; the result is ``height`` x ``across``."""
        super().__init__()
        self.height, self.across = height, across

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, height, across)``; neither side may grow.

        An odd margin is a pixel larger below and to the right.
        """
        top, left = (maps.shape[-2] - self.height) // 2, (maps.shape[-1] - self.across) // 2
        return maps[..., top : top + self.height, left : left + self.across]

    def apply_rows_last(self, inputs: Tensor) -> Tensor:
        """Map ``(C, H, W, N)`` to ``(C, height, across, N)``."""
        return cast("Tensor", self(inputs.movedim(-1, 0))).movedim(0, -1)

    def pull_back_rows_last(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``inputs`` from ``gradients`` in the outputs, rows last."""
        pulled = torch.zeros_like(inputs)
        self.apply_rows_last(pulled).copy_(gradients)
        return pulled


def full_depth(height: int, across: int) -> int:
    """Return the number of times that the shorter side can be halved down to 4, at least 1."""
    return max(1, (min(height, across) // 4).bit_length() - 1)


RECORD_DEPTH = 2
"""Hidden layers of a decoder of records."""

UNITS_PER_WIDTH = 16
"""Hidden units per ``width``: equal widths are about equally strong for images and records."""


class RecordInverter(LayeredInverter):
    """Reconstructs records from confidences by a multilayer perceptron.

    Each hidden layer is Linear, BatchNorm, ReLU; the last layer is Linear, Sigmoid. Trained on the
    mean squared error, the network gives the posterior probabilities of a categorical column's
    categories (one-hot in the record), and the posterior mean of a numeric column.
    """

    def __init__(
        self,
        num_classes: int,
        record_length: int,
        *,
        width: int = INVERTER_WIDTHS["small"],
        hidden_layers: int = RECORD_DEPTH,
        input_transform: str = "faithful",
        truncation: int | None = None,
    ) -> None:
        """Build an untrained inverter.

        Args:
            num_classes: K, the length of a confidence vector, at least 2.
            record_length: Number of values in [0, 1] that encode a record, D, at least 1.
            width: A sixteenth of the units of each hidden layer. Presets: ``INVERTER_WIDTHS``.
            hidden_layers: Number of layers before the last, at least 1.
            input_transform: Key of ``INPUT_TRANSFORMS``.
            truncation: For the faithful transform: number of the largest entries that are kept.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        super().__init__()
        check_count("num_classes", num_classes, least=2)
        check_count("record_length", record_length)
        check_count("width", width)
        check_count("hidden_layers", hidden_layers)
        self.architecture = {
            "num_classes": num_classes,
            "record_length": record_length,
            "width": width,
            "hidden_layers": hidden_layers,
            "input_transform": input_transform,
            "truncation": truncation,
        }
        self.shape = (record_length,)
        self.input_transform = build_input_transform(input_transform, num_classes, truncation)
        inputs, units = self.input_transform.features, UNITS_PER_WIDTH * width
        layers: list[nn.Module] = []
        for _ in range(hidden_layers):
            layers += [nn.Linear(inputs, units), nn.BatchNorm1d(units), nn.ReLU()]
            inputs = units
        self.layers = nn.Sequential(*layers, nn.Linear(units, record_length), nn.Sigmoid())


def build_inverter(
    num_classes: int, shape: Sequence[int], **options: Any
) -> Inverter | RecordInverter:
    """Build an untrained inverter for inputs of a shape.

    Args:
        num_classes: Number of classes, K, at least 2.
        shape: Shape of an input: ``(C, H, W)`` of an image, or ``(D,)`` of an encoded record.
        **options: Keyword arguments of :class:`Inverter` or :class:`RecordInverter`.

    Raises:
        InvalidOptionError: An option is outside its range, or ``shape`` has another length.
    """
    if len(shape) == 3:
        return Inverter(num_classes, shape, **options)
    if len(shape) == 1:
        return RecordInverter(num_classes, shape[0], **options)
    raise InvalidOptionError(
        f"shape must be (C, H, W) for images or (D,) for records, but got {tuple(shape)}. "
        "Pass `images.shape[1:]`."
    )


def default_depth(shape: Sequence[int]) -> int:
    """Return the default number of hidden layers in :func:`build_inverter`.

    Args:
        shape: Shape of an input: ``(C, H, W)`` of an image, or ``(D,)`` of an encoded record.
    """
    return full_depth(*shape[1:]) if len(shape) == 3 else RECORD_DEPTH
