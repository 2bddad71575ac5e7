"""What every registered defense must obey, whatever it does."""

import pytest
import torch
from torch import Tensor

from oneway.benchmark.registry import DEFENSES, build_defense, needs_surrogate
from oneway.confidences import release
from oneway.contracts import Defense
from oneway.errors import InvalidTensorError
from rows import leads, random_rows, same_bits
from surrogates import random_images, small_inverter

OPTIONS = {"adversarial-noise": {"step_size": 0.4}}
"""Options that a defense cannot be built without."""

CLASSES, COUNT = 5, 40
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(params=DEFENSES)
def defense(request: pytest.FixtureRequest) -> Defense:
    surrogate = small_inverter(1, CLASSES, dtype=torch.float64)
    given = surrogate if needs_surrogate(request.param) else None
    return build_defense(request.param, OPTIONS.get(request.param, {}), given)


@pytest.fixture(params=DTYPES, ids=str)
def logits(request: pytest.FixtureRequest) -> Tensor:
    rows = random_rows(2, COUNT, CLASSES, request.param, 3)
    rows[0] = 0
    rows[1] = rows[1].flip(0) * 100
    return rows


@pytest.fixture
def images() -> Tensor:
    return random_images(3, COUNT)


def test_it_is_a_defense_and_says_what_it_promises(defense):
    assert isinstance(defense, Defense)
    flags = (defense.requires_input, defense.keeps_label, defense.deterministic)
    assert {type(flag) for flag in flags} == {bool}


def test_it_returns_finite_logits_of_the_same_shape_and_type(defense, logits, images):
    defended = defense(logits, images)
    assert defended.shape == logits.shape
    assert defended.dtype == logits.dtype
    assert torch.isfinite(defended).all()


def test_what_is_released_is_a_probability_vector_with_one_maximum(defense, logits, images):
    released = release(defense(logits, images))
    assert (released >= 0).all()
    sums = released.double().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=2e-7)
    assert leads(released, released.argmax(-1))


def test_logits_and_images_are_left_as_they_were(defense, logits, images):
    before = logits.clone(), images.clone()
    defense(logits, images)
    assert same_bits(logits, before[0])
    assert same_bits(images, before[1])


def test_no_row_depends_on_another(defense, logits, images):
    together = defense(logits, images)
    order = torch.arange(COUNT).flip(0)
    torch.testing.assert_close(defense(logits[order], images[order])[order], together)
    for row in range(COUNT):
        alone = defense(logits[row : row + 1], images[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


def test_no_rows_give_no_rows(defense, logits, images):
    assert defense(logits[:0], images[:0]).shape == (0, CLASSES)


def test_images_are_needed_if_and_only_if_it_says_so(defense, logits, images):
    if defense.requires_input:
        with pytest.raises(InvalidTensorError, match="images"):
            defense(logits)
        assert not torch.equal(defense(logits, images), defense(logits, 1 - images))
    else:
        assert same_bits(defense(logits), defense(logits, images))


def test_a_label_it_promises_to_keep_is_the_only_maximum(defense, logits, images):
    if defense.keeps_label and type(defense).__name__ != "Identity":
        assert leads(defense(logits, images), logits.argmax(-1))
    if defense.keeps_label:
        assert leads(release(defense(logits, images)), logits.argmax(-1))


def test_it_answers_the_same_query_the_same_if_it_says_so(defense, logits, images):
    if defense.deterministic:
        state = torch.get_rng_state()
        assert same_bits(defense(logits, images), defense(logits, images))
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.full((COUNT, CLASSES), torch.nan),
        torch.zeros(COUNT, CLASSES).long(),
        torch.zeros(COUNT, 1),
    ],
    ids=["not finite", "integers", "one class"],
)
def test_what_is_no_logits_is_refused(defense, images, wrong):
    with pytest.raises(InvalidTensorError):
        defense(wrong, images)
