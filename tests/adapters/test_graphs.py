"""What PyTorch records of a guard holds no check: it is refused; compiled, a guard stays whole."""

import warnings

import pytest
import torch
from torch import nn

from laws import looped
from oneway.adapters import Guard, GuardedModule, KeyedRandomness, SecretKey
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets import DefendedTarget, TorchTarget
from rows import same_bits

IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def keyed():
    return KeyedRandomness(
        lambda generator: GaussianNoise(keep_label=True, generator=generator),
        SecretKey(b"0123456789abcdef"),
    )


def guarded(defense):
    return GuardedModule(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), defense, outputs="logits")


class Own(nn.Module):
    """Somebody's own module around a plain guard."""

    def __init__(self, defense):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
        self.guard = Guard(defense, "logits")

    def forward(self, images):
        return self.guard(self.model(images))


def traced(module):
    torch.jit.trace(module, IMAGES)


def exported(module):
    torch.export.export(module.eval(), (IMAGES,), strict=False)


def onnx_by_tracing(module):
    torch.onnx.export(module, (IMAGES,), "unwritten.onnx", dynamo=False)


def vectorised(module):
    torch.vmap(module)(IMAGES[:, None])


def differentiated(module):
    torch.func.jacrev(module)(IMAGES)


@looped("record", [traced, exported, onnx_by_tracing, vectorised, differentiated])
@looped("around", [guarded, Own])
@looped("defense", [lambda: Rounding(decimals=2), keyed])
def test_no_graph_is_made_of_a_guard(record, around, defense):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        with pytest.raises(InvalidOptionError, match=r"`oneway export`"):
            record(around(defense()))


def test_no_script_is_made_of_a_guard():
    for module in (guarded(keyed()), nn.Sequential(guarded(keyed()))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scripting is deprecated
            with pytest.raises(InvalidOptionError, match=r"`oneway export`"):
                torch.jit.script(module)


@looped(("around", "defense"), [(guarded, keyed), (Own, lambda: Rounding(decimals=2))])
def test_compiled_it_answers_and_refuses_as_it_does_uncompiled(around, defense):
    module = around(defense()).eval()
    torch.compiler.reset()
    compiled = torch.compile(module, backend="eager")
    with torch.no_grad():
        for images in (IMAGES, IMAGES.flip(0), IMAGES[:2]):
            assert same_bits(compiled(images), module(images))
        with pytest.raises(InvalidTensorError, match="finite"):
            compiled(IMAGES * torch.nan)


def test_a_graph_without_breaks_is_refused():
    refused = torch._dynamo.exc.Unsupported
    module = guarded(keyed())
    torch.compiler.reset()
    with pytest.raises(refused, match=r"`oneway export`"):
        torch.compile(module, backend="eager", fullgraph=True)(IMAGES)
    with pytest.raises(refused, match=r"`oneway export`"):
        torch.export.export(module, (IMAGES,), strict=True)


def test_a_defended_target_is_not_traced():
    layer = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).requires_grad_(False)
    target = DefendedTarget(TorchTarget(layer), Rounding(decimals=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidOptionError, match="cannot take part in tracing"):
            torch.jit.trace(lambda images: target(images), IMAGES)
