"""On a GPU defense and attacks compute what they do on the CPU. Skipped where there is none."""

import pytest
import torch

from oneway import AdversarialNoise
from oneway.attacks import KernelRidge
from oneway.contracts import AttackerKnowledge
from surrogates import random_images, small_inverter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]


@pytest.mark.parametrize("coarse_steps", [None, 1])
def test_noise_is_that_of_the_cpu(coarse_steps):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 5, generator=generator)
    images = random_images(1, 200)
    guard = {
        device: AdversarialNoise(
            small_inverter().to(device), step_size=0.1, coarse_steps=coarse_steps
        )
        for device in ("cpu", "cuda")
    }
    expected = guard["cpu"](logits, images)
    released = guard["cuda"](logits.cuda(), images.cuda()).cpu()
    assert torch.equal(released.argmax(-1), logits.argmax(-1))
    # A gradient close to 0 may have another sign.
    assert ((released - expected).abs().amax(-1) < 1e-3).float().mean() > 0.95


def test_closed_form_gradients_are_those_of_the_cpu():
    inverter, logits, images = small_inverter(), torch.randn(50, 5), random_images(2, 50)
    expected = inverter.error_gradients(logits, images)
    found = inverter.cuda().error_gradients(logits.cuda(), images.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_kernel_ridge_reconstructs_what_it_does_on_the_cpu():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(300, 4, generator=generator).mul(2).softmax(-1)
    images = (scores @ torch.rand(4, 12, generator=generator)).view(-1, 1, 3, 4)
    held_out = torch.arange(300) % 4 == 0

    def answers(device: str) -> dict[str, torch.Tensor]:
        moved = (images.to(device), None, scores.to(device), held_out.to(device))
        made = KernelRidge()(AttackerKnowledge(*moved), None)
        asked = scores.to(device).unsqueeze(0)
        return {name: found.reconstruct(asked).cpu() for name, found in made.items()}

    expected, found = answers("cpu"), answers("cuda")
    for name, reconstructed in expected.items():
        torch.testing.assert_close(found[name], reconstructed, rtol=0, atol=1e-3)
