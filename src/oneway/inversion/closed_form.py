"""The gradient of an inverter's error in its logits, layer by layer: no graph, no parameters'."""

import math
from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.inversion.front_ends import FrontEnd


@runtime_checkable
class PulledBack(Protocol):
    """A layer that says its own gradient."""

    def pull_back(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        """Return gradients in ``inputs`` from ``gradients`` in the outputs."""
        ...


def check_scores(scores: Tensor, num_classes: int) -> None:
    """Refuse scores unless they are ``(N, num_classes)``.

    Raises:
        InvalidTensorError: They have another shape.
    """
    if scores.ndim != 2 or scores.shape[-1] != num_classes:
        raise InvalidTensorError(
            f"this inverter takes scores of shape (N, {num_classes}), "
            f"but got {tuple(scores.shape)}."
        )


@torch.no_grad()
def gradients_of_error(
    inverter: nn.Module,
    front_end: FrontEnd,
    layers: nn.Sequential,
    shape: Sequence[int],
    logits: Tensor,
    truths: Tensor,
) -> Tensor:
    """Return each row's gradient of ``mean((inverter(softmax(logits)) - truths) ** 2)``.

    Args:
        inverter: What is asked about; in eval mode.
        front_end: Its input transform.
        layers: What follows, each of a kind that :func:`_pull_back` knows.
        shape: Of one reconstruction.
        logits: ``(N, K)`` scores in nats, of any floating type.
        truths: ``(N, *shape)`` true inputs, of the network's type.

    Returns:
        ``(N, K)`` gradients, of the network's type.

    Raises:
        InvalidTensorError: ``truths`` have another shape.
        InvalidOptionError: The network is in training mode, where rows depend on each other.
    """
    if truths.shape != (len(logits), *shape):
        what = "images" if len(shape) == 3 else "records"
        raise InvalidTensorError(
            f"this inverter reconstructs {what} of shape {list(shape)}, one per row of "
            f"{tuple(logits.shape)} logits, but got {tuple(truths.shape)}. "
            f"Train it on {what} of the target's shape."
        )
    if inverter.training:
        raise InvalidOptionError(
            "the inverter is in training mode, so that a row's gradient depends on the batch. "
            "Call `inverter.eval()`."
        )
    logs = logits.log_softmax(-1).to(truths.dtype)
    maps = [front_end.from_logs(logs)]
    for layer in layers:
        maps.append(layer(maps[-1]))
    gradients = (maps[-1] - truths).mul_(2 / math.prod(shape))
    for layer in reversed(layers):
        outputs = maps.pop()
        gradients = _pull_back(layer, maps[-1], outputs, gradients)
    in_logs = front_end.pull_back(logs, gradients)
    return in_logs - logs.exp() * in_logs.sum(-1, keepdim=True)


def _pull_back(layer: nn.Module, inputs: Tensor, outputs: Tensor, gradients: Tensor) -> Tensor:
    """Return gradients in a layer's ``inputs`` from ``gradients`` in its ``outputs``."""
    match layer:
        case PulledBack():
            return layer.pull_back(inputs, gradients)
        case nn.Linear():
            return gradients @ layer.weight
        case nn.Unflatten():
            return gradients.flatten(1)
        case nn.Tanh():
            # One pass over the maps; written out it would be three.
            return cast("Tensor", torch.ops.aten.tanh_backward(gradients, outputs))
        case nn.Sigmoid():
            return cast("Tensor", torch.ops.aten.sigmoid_backward(gradients, outputs))
        case nn.ReLU():
            return gradients * (outputs > 0)
        case nn.BatchNorm1d(running_var=Tensor() as variance):
            return gradients * (layer.weight * (variance + layer.eps).rsqrt())
        case nn.BatchNorm2d(running_var=Tensor() as variance):
            return gradients * (layer.weight * (variance + layer.eps).rsqrt())[:, None, None]
        case nn.Identity():
            return gradients
    raise TypeError(f"no gradient is known for a layer of type {type(layer).__name__}")
