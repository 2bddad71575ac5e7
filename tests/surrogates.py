"""Small untrained networks that the tests defend with: random weights, running statistics too."""

import torch
from torch import Tensor, nn

from oneway.inversion import Inverter


def small_inverter(
    seed: int = 0,
    classes: int = 5,
    image_shape: tuple[int, int, int] = (1, 8, 8),
    *,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> Inverter:
    """Build an inverter in eval mode whose BatchNorms have seen something other than 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inverter = Inverter(classes, image_shape, **{"width": 4, **options})
        for module in inverter.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    first = next(module for module in inverter.modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        logs = torch.full((1, classes), 1 / classes).log() + 50
        if inverter.architecture["input_transform"] == "faithful":
            centre = inverter.layers[:2](logs).mean((0, 2, 3))
            first.running_mean.copy_(centre + 0.3 * first.running_mean)
    return inverter.to(dtype).eval()


def random_images(
    seed: int, count: int, shape: tuple[int, ...] = (1, 8, 8), dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator, dtype=torch.float64).to(dtype)


class Undifferentiated(nn.Module):
    """Hides an inverter's closed form, so that it is differentiated automatically."""

    def __init__(self, inverter: nn.Module) -> None:
        super().__init__()
        self.inverter = inverter

    def forward(self, confidences: Tensor) -> Tensor:
        return self.inverter(confidences)
