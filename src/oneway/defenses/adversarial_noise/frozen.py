"""Copies of a network for inference only: frozen, in eval mode, BatchNorm folded."""

import copy
import math

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

SIDES: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2}
"""Number of axes after the channels in what a BatchNorm reads from an unflattened row."""


def frozen_copy(network: nn.Module) -> nn.Module:
    """Copy a network for inference: no parameter gradients, eval mode, BatchNorm folded.

    A BatchNorm is folded only where that is known to be right: in an ``nn.Sequential``, directly
    after a convolution, or after a linear layer whose output an ``nn.Unflatten`` reads as maps.
    Elsewhere it stays. The function computed is the same but for rounding.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.Sequential):
            _fold_batch_norms(module)
    return copied


def _fold_batch_norms(sequence: nn.Sequential) -> None:
    names = list(sequence._modules)
    for position, name in enumerate(names):
        norm = sequence._modules[name]
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.affine:
            continue
        before = [sequence._modules[earlier] for earlier in names[:position]]
        match before:
            case [*_, nn.modules.conv._ConvNd() as layer]:
                source = names[position - 1]
                transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
                if transposed and layer.groups > 1:
                    continue
                fused: nn.Module = fuse_conv_bn_eval(layer, norm, transpose=transposed)
            case [*_, nn.Linear() as layer, nn.Unflatten(unflattened_size=(int(), *sides))] if (
                SIDES.get(type(norm)) == len(sides) and min(sides) > 0
            ):
                # The numbers of one channel stand together in the linear layer's output.
                source = names[position - 2]
                fused = fuse_linear_bn_eval(layer, _repeated(norm, math.prod(sides)))
            case _:
                continue
        sequence._modules[source] = fused.requires_grad_(False)
        sequence._modules[name] = nn.Identity()


def _repeated(norm: nn.modules.batchnorm._BatchNorm, spread: int) -> nn.BatchNorm1d:
    """Return a BatchNorm over single numbers that does what ``norm`` does to maps of them."""
    wide = nn.BatchNorm1d(norm.num_features * spread, eps=norm.eps).eval()
    state = {
        key: value.repeat_interleave(spread) if value.ndim else value
        for key, value in norm.state_dict().items()
    }
    wide.load_state_dict(state)
    return wide.to(norm.weight)
