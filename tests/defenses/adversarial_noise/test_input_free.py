"""Noise without the query: what it is driven away from, and that nothing else decides it."""

import pytest
import torch
from torch import Tensor, nn

from laws import looped
from oneway.defenses.adversarial_noise import AdversarialNoise, InputFreeNoise
from oneway.errors import DefenseFailedError, InvalidOptionError
from rows import leads, random_rows, same_bits
from surrogates import random_images, small_inverter

CLASSES = 5
COMMON = {"step_size": 0.4, "steps": 5, "budget": 3.0, "norm": 2, "margin": 0.01}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(dtype: torch.dtype = torch.float64) -> Tensor:
    return random_rows(1, 30, CLASSES, dtype, 2)


def canonical(logits: Tensor) -> Tensor:
    """Write out the scores that stand for a label: 0.99 for it, the rest evenly."""
    table = torch.full((len(logits), CLASSES), 0.01 / (CLASSES - 1), dtype=torch.float64)
    for row, scores in enumerate(logits.tolist()):
        table[row, scores.index(max(scores))] = 0.99
    return table


@looped("options", [{}, {"search": "momentum"}, {"search": "keyed-start"}])
def test_driven_from_the_label_it_is_the_paper_s_noise_about_the_label_s_image(options):
    inverter, logits = small_inverter(4, dtype=torch.float64), rows()
    with torch.no_grad():
        images = inverter(canonical(logits))
    told = InputFreeNoise(inverter, reference="label", generator=seeded(), **options, **COMMON)
    wanted = AdversarialNoise(inverter, generator=seeded(), **options, **COMMON)
    torch.testing.assert_close(told(logits), wanted(logits, images), rtol=0, atol=1e-12)
    # And no other image gives it.
    assert not torch.allclose(wanted(logits, random_images(2, 30).double()), told(logits))


def test_driven_from_the_reconstruction_it_is_the_paper_s_noise_about_that_image():
    inverter, logits = small_inverter(4, dtype=torch.float64), rows()
    with torch.no_grad():
        images = inverter(logits.softmax(-1))
    told = InputFreeNoise(inverter, generator=seeded(), **COMMON)
    wanted = AdversarialNoise(inverter, generator=seeded(), search="keyed-start", **COMMON)
    torch.testing.assert_close(told(logits), wanted(logits, images), rtol=0, atol=1e-12)


def test_reconstructions_outside_what_images_can_be_are_clamped():
    inverter = nn.Sequential(nn.Linear(CLASSES, 6), nn.Hardtanh(-3, 4)).double()
    with torch.no_grad():
        inverter[0].weight.mul_(8)
    logits = rows()
    with torch.no_grad():
        images = inverter(canonical(logits))
    assert images.min() < 0
    assert images.max() > 1
    told = InputFreeNoise(inverter, reference="label", **COMMON)
    wanted = AdversarialNoise(inverter, **COMMON)
    assert same_bits(told(logits), wanted(logits, images.clamp(0, 1)))


@looped("reference", ["reconstruction", "label"])
@looped("dtype", [torch.float32, torch.float64])
def test_queries_are_nowhere_and_the_same_scores_are_answered_the_same(reference, dtype):
    defense = InputFreeNoise(
        small_inverter(4), reference=reference, generator=seeded(), step_size=0.4
    )
    logits = rows(dtype)
    told = defense(logits)
    assert not defense.requires_input
    assert defense.deterministic
    assert told.dtype == dtype
    assert leads(told, logits.argmax(-1))
    assert not (told == logits).all(-1).any()
    for images in (random_images(5, 30), random_images(6, 30), torch.zeros(2)):
        assert same_bits(defense(logits, images), told)
    assert defense(logits[:0]).shape == (0, CLASSES)


def test_the_reconstruction_s_noise_depends_on_the_key_and_the_label_s_does_not():
    def told(seed: int, reference: str) -> Tensor:
        inverter = small_inverter(4)
        return InputFreeNoise(inverter, reference=reference, generator=seeded(seed), step_size=0.4)(
            rows()
        )

    assert same_bits(told(1, "reconstruction"), told(1, "reconstruction"))
    assert not (told(1, "reconstruction") == told(2, "reconstruction")).all(-1).any()
    assert same_bits(told(1, "label"), told(2, "label"))


def test_a_random_start_is_said_to_be_random():
    defense = InputFreeNoise(
        small_inverter(4), search="random-start", generator=seeded(), step_size=0.4
    )
    assert not defense.deterministic
    assert not (defense(rows()) == defense(rows())).all(-1).any()


def test_it_drives_the_surrogate_from_what_it_made_of_the_clean_scores():
    inverter, logits = small_inverter(4, dtype=torch.float64), rows()
    defense = InputFreeNoise(inverter, generator=seeded(), step_size=0.2, steps=10, budget=2.0)
    with torch.no_grad():
        before = inverter(logits.softmax(-1))
        after = inverter(defense(logits).softmax(-1))
        start = inverter((logits + defense._search.start(logits)).softmax(-1))
    assert (after - before).square().mean() > 1.5 * (start - before).square().mean()


@looped("search", ["sign", "momentum"])
def test_a_reconstruction_without_a_start_is_refused_with_the_remedy(search):
    with pytest.raises(InvalidOptionError, match=r"no gradient\. Use search='keyed-start', or"):
        InputFreeNoise(small_inverter(), step_size=0.4, search=search)


@looped(
    ("options", "text"),
    [
        ({"generator": None}, r"torch\.Generator on the CPU; search='keyed-start'"),
        ({"reference": "label", "start_radius": 1.0}, "start_radius is an option of"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, text):
    with pytest.raises(InvalidOptionError, match=text):
        InputFreeNoise(small_inverter(), **{"step_size": 0.4, "generator": seeded()} | options)


def test_a_surrogate_that_gives_no_numbers_releases_nothing():
    inverter = nn.Linear(CLASSES, 4)
    nn.init.constant_(inverter.bias, torch.nan)
    with pytest.raises(DefenseFailedError):
        InputFreeNoise(inverter, step_size=0.4, reference="label")(rows(torch.float32))
