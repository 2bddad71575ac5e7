"""Train a copy of a model on answers."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from oneway.attacks.stealing.base import Copy
from oneway.targets.networks import TargetNetwork, TargetTrainingSettings, train_target

WIDTH = 16
"""Channels of the first block of a copy for images."""

HIDDEN = 128
"""Units of the two hidden layers of a copy for records."""

BATCH = 64


def copy_network(inputs: Tensor, classes: int) -> nn.Module:
    """Return the thief's own architecture, untrained.

    Args:
        inputs: ``(N, C, H, W)`` images or ``(N, D)`` records.
        classes: K.
    """
    shape = inputs.shape[1:]
    if len(shape) == 3:
        blocks = min(3, int(math.log2(min(shape[1:]))) - 1)
        return TargetNetwork(classes, shape, width=WIDTH, blocks=max(1, blocks), dropout=0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(shape.numel(), HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )


def copy_trainer(
    steps: int, generator: Generator, on_epoch: Callable[[int, float], None] | None = None
) -> Callable[[Tensor, Tensor], Copy]:
    """Return what trains copies, for :class:`oneway.attacks.stealing.ThiefKnowledge`.

    Args:
        steps: Least number of training steps.
        generator: On the CPU; gives initial weights and the order of rows.
        on_epoch: Called after each epoch with its number and its mean loss.
    """

    def train(inputs: Tensor, probabilities: Tensor) -> Copy:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**48, (), generator=generator)))
            network = copy_network(inputs, probabilities.shape[-1]).to(inputs.device)
        epochs = math.ceil(steps / math.ceil(len(inputs) / BATCH))
        train_target(
            network,
            inputs,
            probabilities.to(inputs.dtype),
            settings=TargetTrainingSettings(epochs=epochs, batch_size=BATCH),
            generator=generator,
            on_epoch=on_epoch,
        )
        return network

    return train
