"""A PyTorch module as a target: its scores, and nothing that depends on who else asks."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laws import looped
from oneway.contracts import ScoredTarget
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import release
from oneway.targets import TargetNetwork, TorchTarget
from rows import same_bits
from surrogates import random_images


def network(seed: int = 0) -> TargetNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TargetNetwork(5, (1, 8, 8), width=4, blocks=2)


class Answers(nn.Module):
    """Answers whatever it is asked with the same function of the images' count."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(len(images))


def test_logits_are_the_module_s_in_eval_mode_and_confidences_their_release():
    module, images = network().train(), random_images(1, 7)
    target = TorchTarget(module)
    assert isinstance(target, ScoredTarget)
    assert torch.equal(target.logits(images), module.eval()(images))
    assert same_bits(target(images), release(target.logits(images)))


def test_asking_changes_nothing_in_the_module():
    module = network()
    before = copy.deepcopy(module.state_dict())
    TorchTarget(module)(random_images(1, 7))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_batch_size_bounds_what_the_module_sees_and_changes_no_answer():
    seen = []
    module = network()
    module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    images = random_images(1, 7)
    torch.testing.assert_close(
        TorchTarget(module, batch_size=3)(images), TorchTarget(module)(images)
    )
    assert seen == [3, 3, 1, 7]


def test_confidences_become_their_logs_when_said_to_be_confidences():
    module, images = nn.Sequential(network(), nn.Softmax(-1)), random_images(1, 7)
    plain = module[0].eval()(images)
    logits = TorchTarget(module, outputs="confidences").logits(images)
    torch.testing.assert_close(logits, plain.double().log_softmax(-1), rtol=1e-5, atol=1e-5)


@looped(
    ("given", "promised"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_logits_are_float32_or_float64(given, promised):
    target = TorchTarget(Answers(lambda count: torch.ones(count, 3, dtype=given)))
    assert target.logits(random_images(1, 2)).dtype == promised
    assert target(random_images(1, 2)).dtype == torch.float32


def test_no_gradient_leaves():
    images = random_images(1, 7).requires_grad_()
    target = TorchTarget(network())
    assert not target.logits(images).requires_grad
    assert not target(images).requires_grad


def test_for_whoever_has_the_model_logits_have_their_gradient_in_the_images():
    module, images = network(), random_images(1, 7).requires_grad_()
    target = TorchTarget(module)
    logits = target.differentiable_logits(images)
    torch.testing.assert_close(logits, target.logits(images))
    (found,) = torch.autograd.grad(logits[:, 0].sum(), images)
    # A slow oracle: one pixel a little to either side.
    wide, plain = copy.deepcopy(module).double(), images.detach().double()
    for pixel in range(0, 64, 7):
        step = torch.zeros(1, 64, dtype=torch.float64)
        step[0, pixel] = 1e-6
        step = step.reshape(1, 1, 8, 8)
        with torch.no_grad():
            rise = (wide(plain + step) - wide(plain - step))[:, 0] / 2e-6
        torch.testing.assert_close(found.flatten(1)[:, pixel].double(), rise, rtol=1e-3, atol=1e-4)


def test_confidences_are_differentiated_as_their_logs():
    module, images = nn.Sequential(network(), nn.Softmax(-1)), random_images(1, 7).requires_grad_()
    logits = TorchTarget(module, outputs="confidences").differentiable_logits(images)
    (found,) = torch.autograd.grad(logits[:, 0].sum(), images)
    plain = module[0](images).log_softmax(-1)
    (expected,) = torch.autograd.grad(plain[:, 0].sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@looped("asked", ["__call__", "logits", "differentiable_logits"])
def test_a_module_put_back_in_training_mode_is_refused(asked):
    module = network()
    target = TorchTarget(module)
    module.train()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(InvalidOptionError, match=r"training mode.*Call `module\.eval\(\)`"):
        getattr(target, asked)(random_images(1, 7))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@looped(
    ("answer", "message"),
    [
        (lambda count: torch.zeros(count), r"shape \(2, K\).*but gave \(2,\)"),
        (lambda count: torch.zeros(count, 1, 3), r"but gave \(2, 1, 3\)"),
        (lambda count: torch.zeros(count + 1, 3), r"2 queries .*but gave \(3, 3\)"),
        (lambda count: torch.zeros(count, 1), "K >= 2"),
        (
            lambda count: torch.full((count, 3), math.nan),
            "the logits of the module must be finite",
        ),
        (lambda count: torch.zeros(count, 3).long(), "the logits of the module must be floating"),
    ],
    ids=["no classes", "another axis", "another count", "one class", "not finite", "integers"],
)
def test_scores_that_cannot_be_used_are_refused(answer, message):
    target = TorchTarget(Answers(answer))
    for asked in (target, target.differentiable_logits):
        with pytest.raises(InvalidTensorError, match=message):
            asked(random_images(1, 2))


def test_logits_said_to_be_confidences_are_refused():
    target = TorchTarget(Answers(lambda count: torch.full((count, 3), 2.0)), outputs="confidences")
    with pytest.raises(InvalidTensorError, match="2 of 2 rows are not"):
        target(random_images(1, 2))


@looped(
    ("images", "message"),
    [
        (np.zeros((2, 1, 8, 8)), r"torch\.Tensor, but got ndarray"),
        (torch.zeros(2, 1, 8, 8).byte(), "images must be floating"),
        (torch.full((2, 1, 8, 8), math.inf), "images must be finite"),
        (torch.zeros(8), r"unsqueeze\(0\)"),
    ],
    ids=["numpy", "bytes", "not finite", "a vector"],
)
def test_images_that_cannot_be_used_are_refused(images, message):
    target = TorchTarget(network())
    for asked in (target, target.differentiable_logits):
        with pytest.raises(InvalidTensorError, match=message):
            asked(images)


@looped("outputs", ["probabilities", None])
def test_outputs_of_another_name_are_refused(outputs):
    with pytest.raises(InvalidOptionError, match="outputs must be 'logits' or 'confidences'"):
        TorchTarget(network(), outputs=outputs)


def test_an_empty_batch_size_is_refused():
    with pytest.raises(InvalidOptionError, match="batch_size must be a whole number"):
        TorchTarget(network(), batch_size=0)
