"""The target classifiers of Yang et al. (CCS 2019), and how a target is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from oneway.checks import check_count, check_images, check_labels, check_same_shape
from oneway.errors import InvalidOptionError
from oneway.options import Options, option
from oneway.targets.augmentation import augment


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


class TargetTrainingSettings(Options):
    """Options of training: Adam on cross entropy."""

    epochs: int = option("Passes over the private images.", default=8)
    learning_rate: float = option("Step size of Adam; of a cycle, the peak.", default=3e-3, above=0)
    batch_size: int = option("Rows per step.", default=64, least=2)
    label_smoothing: float = option(
        "Share of a label that is spread over all classes. Scores become less saturated.",
        default=0.0,
        least=0,
        below=1,
    )
    augmentation: Literal["none", "moves", "moves-and-mirrors"] = option(
        '``"moves"``: each image is rotated, scaled, shifted and changed in contrast, anew in each '
        'epoch; ``"moves-and-mirrors"``: half of them are mirrored, too.',
        default="none",
    )
    schedule: Literal["one-cycle", "constant"] = option(
        '``"one-cycle"``: the step rises to ``learning_rate`` and falls to nothing. '
        '``"constant"``: the step stays, with betas (.5, .999) and AMSGrad, as Yang et al. train '
        "(CCS 2019).",
        default="one-cycle",
    )


def train_target(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    settings: TargetTrainingSettings,
    generator: torch.Generator,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train ``network`` in place and leave it in eval mode.

    Args:
        network: ``(N, C, H, W)`` images to ``(N, K)`` logits; on the tensors' device.
        images: ``(N, C, H, W)`` private images in ``[0, 1]``.
        labels: ``(N)`` int64, in ``[0, K)``; or ``(N, K)`` probabilities of the classes.
        settings: Training settings.
        generator: On the CPU; gives the order of the rows and the augmentation.
        penalty: Added to the loss of each batch: called with the network right after the batch's
            forward pass.
        on_epoch: Called after each epoch with its number from 1 and the mean training loss.

    Raises:
        InvalidTensorError: The tensors are not as above.
    """
    check_images(images)
    with torch.no_grad():
        network.eval()
        scores = network(images[:1]).expand(len(images), -1)
        if labels.is_floating_point() and labels.ndim == 2:
            check_same_shape(labels, "probabilities", scores)
        else:
            check_labels(labels, scores)
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    optimizer, schedule = _make_optimizer(network, settings, len(images))
    for epoch in range(1, settings.epochs + 1):
        network.train()
        order = torch.randperm(len(images), generator=generator).to(images.device)
        total = torch.zeros((), device=images.device)
        for rows in order.split(settings.batch_size):
            shown = images[rows]
            if settings.augmentation != "none":
                flip = settings.augmentation == "moves-and-mirrors"
                shown = augment(shown, generator, flip=flip)
            # Half the memory traffic on a GPU; on a CPU nothing changes.
            with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
                scores = network(shown)
            loss = nn.functional.cross_entropy(
                scores.to(images.dtype), labels[rows], label_smoothing=settings.label_smoothing
            )
            if penalty is not None:
                loss = loss + penalty(network)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.detach() * len(rows)
        if on_epoch is not None:
            on_epoch(epoch, float(total) / len(images))
    network.eval()


def _make_optimizer(
    network: nn.Module, settings: TargetTrainingSettings, rows: int
) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """Return an optimizer, and the schedule of its step size; None for a constant step."""
    rate = settings.learning_rate
    if settings.schedule == "constant":
        return torch.optim.Adam(network.parameters(), rate, (0.5, 0.999), amsgrad=True), None
    optimizer = torch.optim.Adam(network.parameters(), rate)
    steps = -(-rows // settings.batch_size) * settings.epochs
    return optimizer, OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
