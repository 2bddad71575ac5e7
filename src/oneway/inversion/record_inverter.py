"""An inverter for tabular records, and a function that builds the inverter for an input shape."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from oneway.checks import check_count
from oneway.errors import InvalidOptionError
from oneway.inversion.closed_form import LayeredInverter
from oneway.inversion.input_transforms import build_input_transform
from oneway.inversion.inverter import INVERTER_WIDTHS, Inverter, full_depth

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
