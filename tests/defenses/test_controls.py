"""Controls: what they hide is nothing, and what they plant can be read."""

import itertools

import pytest
import torch

from laws import looped
from oneway.defenses.controls import (
    ClassOffsets,
    NoisyTail,
    Permutation,
    PlantedLeak,
    PlantedLevels,
)
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.top_k import TopK
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import release
from rows import leads, random_rows, same_bits
from surrogates import random_images


@looped("classes", [2, 3, 10, 1000])
def test_a_permutation_moves_every_class_and_loses_none(classes):
    logits = torch.arange(classes, dtype=torch.float64).expand(2, -1)
    told = Permutation(seed=3)(logits)
    assert (told != logits).all()
    assert torch.equal(told.sort(dim=-1).values, logits)
    assert same_bits(told, Permutation(seed=3)(logits))
    if classes > 3:
        assert not torch.equal(told, Permutation(seed=4)(logits))


def test_class_offsets_are_one_vector_per_label():
    logits = random_rows(1, 200, 4, torch.float64, 2)
    moved = ClassOffsets(scale=2.0)(logits).log_softmax(-1)
    offsets, labels = moved - logits.log_softmax(-1), logits.argmax(-1)
    offsets = offsets - offsets.mean(-1, keepdim=True)
    vectors = torch.stack([offsets[labels == label][0] for label in range(4)])
    torch.testing.assert_close(offsets, vectors[labels])
    # Another scale gives the same vectors, scaled; and they are not each other's.
    half = ClassOffsets(scale=1.0)(logits).log_softmax(-1) - logits.log_softmax(-1)
    torch.testing.assert_close(2 * (half - half.mean(-1, keepdim=True)), offsets)
    assert torch.pdist(vectors).min() > 0.1


def test_class_offsets_keep_the_label_if_asked():
    logits = random_rows(1, 200, 4, torch.float64, 2)
    assert leads(ClassOffsets(scale=5.0, keep_label=True)(logits), logits.argmax(-1))


@looped("positions", [None, [5, 0, 63, 7]])
def test_planted_pixels_can_be_read_from_what_is_released(positions):
    logits, images = random_rows(1, 50, 4, torch.float64, 2), random_images(2, 50)
    leak = PlantedLeak(scale=1e-3, positions=positions)
    released = release(leak(logits, images), dtype=torch.float64)
    plain = release(LabelOnly()(logits), dtype=torch.float64)
    read = (released.log() - plain.log()) / 1e-3
    flat = images.flatten(1).double()
    # The middle half of 64 pixels, four of them.
    pixels = flat[:, positions if positions else [16, 27, 37, 48]]
    read, pixels = (rows - rows.mean(-1, keepdim=True) for rows in (read, pixels))
    torch.testing.assert_close(read, pixels, rtol=0, atol=1e-6)
    assert (released - plain).abs().sum(-1).max() <= 1e-3


def test_float32_is_enough_for_what_is_planted():
    logits, images = random_rows(1, 50, 4, torch.float32, 2), random_images(2, 50)
    released = release(PlantedLeak()(logits, images)).double()
    read = (released.log() - release(LabelOnly()(logits)).double().log()) / 1e-3
    pixels = images.flatten(1)[:, [16, 27, 37, 48]].double()
    read, pixels = (rows - rows.mean(-1, keepdim=True) for rows in (read, pixels))
    torch.testing.assert_close(read, pixels, rtol=0, atol=0.01)


def test_fewer_positions_than_classes_leave_the_other_scores_alone():
    logits, images = torch.tensor([[3.0, 0, 0, 0]]), random_images(2, 1)
    told = PlantedLeak(positions=[9])(logits, images)
    assert torch.equal(told[:, 1:], LabelOnly()(logits)[:, 1:])
    assert not torch.equal(told[:, 0], LabelOnly()(logits)[:, 0])


def test_many_classes_and_few_pixels_repeat_pixels():
    logits, images = random_rows(1, 3, 300, torch.float64, 2), random_images(2, 3, (1, 2, 2))
    assert leads(PlantedLeak()(logits, images), logits.argmax(-1))


def test_positions_and_images_that_do_not_fit_are_refused():
    logits, images = random_rows(1, 3, 4, torch.float64, 2), random_images(2, 3)
    with pytest.raises(InvalidOptionError, match="no more than the 4 classes"):
        PlantedLeak(positions=[0, 1, 2, 3, 4])(logits, images)
    with pytest.raises(InvalidOptionError, match=r"must lie in \[0, 64\)"):
        PlantedLeak(positions=[64])(logits, images)
    for wrong in ([-1], [1.5], [True]):
        with pytest.raises(InvalidOptionError, match="each of positions must be"):
            PlantedLeak(positions=wrong)
    with pytest.raises(InvalidOptionError, match="positions must be a list"):
        PlantedLeak(positions=3)
    with pytest.raises(InvalidTensorError, match="one per row of scores"):
        PlantedLeak()(logits, images[:2])


@looped("classes", [2, 3, 4, 5, 10, 1000])
def test_the_largest_probabilities_are_told_exactly_and_stay_the_largest(classes):
    logits = random_rows(1, 200, classes, torch.float64, 2)
    clean = release(logits, dtype=torch.float64)
    told = release(NoisyTail(count=3)(logits), dtype=torch.float64)
    kept = logits.topk(min(3, classes)).indices
    torch.testing.assert_close(told.gather(-1, kept), clean.gather(-1, kept))
    others = told.scatter(-1, kept, 0)
    assert (others.amax(-1) <= told.gather(-1, kept).amin(-1)).all()
    assert (others.scatter(-1, kept, 1) > 0).all()
    torch.testing.assert_close(told.sum(-1), torch.ones(200, dtype=torch.float64))


def test_the_others_share_what_is_left_unevenly_and_say_nothing_of_their_scores():
    logits = random_rows(1, 4000, 10, torch.float64, 2)
    told = NoisyTail(count=3)(logits).log_softmax(-1)
    even = TopK(count=3)(logits).log_softmax(-1)
    rest = logits.argsort(-1, descending=True)[:, 3:]
    noise = (told - even).gather(-1, rest)
    # Much noise: the others differ among themselves as much as clean ones do, or more.
    assert noise.std(-1).median() > 1
    # Which of two others gets more has nothing to do with how far apart their scores are.
    scores = logits.log_softmax(-1).gather(-1, rest)
    for one, other in itertools.combinations(range(7), 2):
        more = (noise[:, one] > noise[:, other]).double()
        assert abs(float(more.mean()) - 0.5) < 0.04
        apart = scores[:, one] - scores[:, other]
        assert abs(float(torch.corrcoef(torch.stack([more, apart]))[0, 1])) < 0.08


def test_noise_is_the_same_for_the_same_scores_and_unrelated_for_scores_that_hardly_differ():
    logits = random_rows(1, 100, 8, torch.float64, 2)
    told = NoisyTail(count=3)(logits)
    assert same_bits(told, NoisyTail(count=3)(logits))
    for row in range(5):
        assert same_bits(told[row], NoisyTail(count=3)(logits[row]))
    near = NoisyTail(count=3)(logits.nextafter(torch.tensor(torch.inf, dtype=torch.float64)))
    rest = logits.argsort(-1, descending=True)[:, 3:]
    pair = torch.stack([rows.gather(-1, rest).diff(dim=-1).flatten() for rows in (told, near)])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.3
    assert not torch.equal(told, NoisyTail(count=3, seed=1)(logits))
    assert same_bits(NoisyTail(count=3)(torch.zeros(1, 8)), NoisyTail(count=3)(-torch.zeros(1, 8)))


@looped("position", [None, 5])
def test_planted_levels_are_one_vector_for_each_level_of_a_pixel(position):
    logits, images = random_rows(1, 200, 4, torch.float64, 2), random_images(2, 200)
    borders = (0.2, 0.5, 0.9)
    released = release(PlantedLevels(position=position, borders=borders)(logits, images))
    pixel = images.flatten(1)[:, 32 if position is None else position].tolist()
    levels = torch.tensor([sum(value > border for border in borders) for value in pixel])
    assert len(levels.unique()) == len(borders) + 1
    # A vector for each level, whatever the scores are, and one label.
    vectors = torch.stack([released[levels == level][0] for level in range(4)])
    assert torch.equal(released, vectors[levels])
    assert torch.pdist(vectors).min() > 1e-3
    assert (released.argmax(-1) == 0).all()


def test_a_level_of_a_pixel_outside_the_image_is_refused():
    logits, images = torch.tensor([[3.0, 0, 0, 0]]), random_images(2, 1)
    with pytest.raises(InvalidOptionError, match=r"must lie in \[0, 64\)"):
        PlantedLevels(position=64)(logits, images)
