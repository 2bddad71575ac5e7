"""Laws of the approximate search, and of gradients computed ahead."""

import pytest
import torch

from oneway import AdversarialNoise
from oneway.errors import InvalidOptionError
from surrogates import small_inverter

SIZE, STEPS = 0.3, 6


def questions(rows: int = 40):
    torch.manual_seed(3)
    inverter = small_inverter().double()
    classes = inverter.architecture["num_classes"]
    logits = 2 * torch.randn(rows, classes, dtype=torch.float64)
    images = torch.rand(rows, *inverter.shape, dtype=torch.float64)
    return inverter, logits, images


def defense(inverter, **options) -> AdversarialNoise:
    return AdversarialNoise(inverter, step_size=SIZE, steps=STEPS, **options)


def turning_rows(exact, logits, images, coarse: int):
    """Return which rows' signs differ somewhere on the coarse way, by the definition."""
    noise, signs = torch.zeros_like(logits), []
    for _ in range(coarse):
        signs.append(exact.gradients(logits + noise, images).sign())
        noise = defense(exact.inverter, coarse_steps=None)._bounded(
            logits, logits + noise, SIZE * STEPS / coarse * signs[-1], logits.argmax(-1)
        )
    signs.append(exact.gradients(logits + noise, images).sign())
    return (torch.stack(signs) != signs[0]).any(-1).any(0)


def test_as_many_coarse_steps_as_steps_give_the_exact_release():
    inverter, logits, images = questions()
    exact = defense(inverter)(logits, images)
    coarse = defense(inverter, coarse_steps=STEPS)(logits, images)
    torch.testing.assert_close(coarse, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("coarse", [1, 2])
def test_rows_whose_signs_turn_get_all_steps(coarse):
    inverter, logits, images = questions()
    exact = defense(inverter)
    turning = turning_rows(exact, logits, images, coarse)
    assert turning.any()
    assert not turning.all()
    released = defense(inverter, coarse_steps=coarse)(logits, images)
    expected = exact(logits, images)
    torch.testing.assert_close(released[turning], expected[turning], rtol=0, atol=1e-9)


def test_coarse_steps_keep_label_and_budget():
    inverter, logits, images = questions()
    for norm in (1, 2, torch.inf):
        options = {"budget": 0.7, "norm": norm, "coarse_steps": 1}
        released = defense(inverter, **options)(logits, images)
        assert torch.equal(released.argmax(-1), logits.argmax(-1))
        sizes = torch.linalg.vector_norm(released - logits, ord=norm, dim=-1)
        assert sizes.max() <= 0.7 * (1 + 1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_gradients_ahead_change_no_release(monkeypatch, rows):
    inverter, logits, images = questions(20)
    for options in ({}, {"search": "momentum"}, {"update": "rescale", "budget": 0.5}):
        guard = defense(inverter, **options)
        ahead = [guard(*part) for part in zip(logits.split(rows), images.split(rows), strict=True)]
        with monkeypatch.context() as patch:
            patch.setattr("oneway.defenses.adversarial_noise.iterative.AHEAD_ROWS", 0)
            one_by_one = guard(logits, images)
        torch.testing.assert_close(torch.cat(ahead), one_by_one, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"coarse_steps": 0},
        {"coarse_steps": STEPS + 1},
        {"coarse_steps": 1, "search": "momentum"},
        {"coarse_steps": 1, "update": "rescale", "budget": 1.0},
    ],
    ids=str,
)
def test_coarse_steps_without_meaning_are_refused(options):
    with pytest.raises(InvalidOptionError, match="coarse_steps"):
        defense(small_inverter(), **options)
