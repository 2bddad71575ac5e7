"""A target that answers from a table."""

import math

import pytest
import torch

from laws import looped
from oneway.contracts import ScoredTarget, Target
from oneway.errors import InvalidTensorError
from oneway.targets import RecordedTarget
from rows import random_rows, same_bits
from surrogates import random_images


def test_answers_are_the_recorded_ones_in_the_order_of_the_queries():
    images = random_images(1, 5)
    confidences = random_rows(2, 5, 3, torch.float32, 2).softmax(-1)
    target = RecordedTarget(images, confidences)
    order = [3, 0, 3, 4]
    assert same_bits(target(images[order]), confidences[order])


def test_it_is_a_target_without_logits():
    target = RecordedTarget(torch.zeros(1, 1, 2, 2), torch.tensor([[0.5, 0.5]]))
    assert isinstance(target, Target)
    assert not isinstance(target, ScoredTarget)


@looped(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
    ],
)
def test_images_of_any_type_and_layout_are_found(dtype):
    images = random_images(1, 5, (2, 4, 4), dtype)
    confidences = random_rows(2, 5, 3, torch.float32, 2).softmax(-1)
    target = RecordedTarget(images, confidences)
    assert same_bits(target(images.to(memory_format=torch.channels_last)), confidences)


def test_images_without_a_record_are_counted_and_refused():
    images = random_images(1, 5)
    target = RecordedTarget(images[:2], torch.full((2, 4), 0.25))
    with pytest.raises(InvalidTensorError, match=r"3 of 5 images have no recorded answer"):
        target(images)


def test_no_queries_give_no_answers():
    target = RecordedTarget(random_images(1, 2), torch.full((2, 4), 0.25))
    assert target(random_images(1, 0)).shape == (0, 4)


def test_contradicting_records_of_one_image_are_refused():
    with pytest.raises(InvalidTensorError, match="recorded with two answers"):
        RecordedTarget(torch.zeros(2, 4), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


def test_an_image_of_another_shape_has_no_record():
    target = RecordedTarget(torch.zeros(1, 2, 2), torch.tensor([[0.9, 0.1]]))
    with pytest.raises(InvalidTensorError, match="no recorded answer"):
        target(torch.zeros(1, 4))


@looped(
    ("images", "confidences", "message"),
    [
        (torch.zeros(3, 4), torch.full((2, 2), 0.5), "one per row of scores, 2, but got 3"),
        (torch.zeros(2, 4), torch.full((2, 2), 3.0), "probabilities"),
        (torch.full((2, 4), math.nan), torch.full((2, 2), 0.5), "images must be finite"),
    ],
    ids=["counts differ", "logits", "not finite"],
)
def test_what_cannot_be_recorded_is_refused(images, confidences, message):
    with pytest.raises(InvalidTensorError, match=message):
        RecordedTarget(images, confidences)


def test_later_edits_of_the_recorded_tensor_change_no_answer():
    confidences = torch.full((2, 4), 0.25)
    target = RecordedTarget(random_images(1, 2), confidences)
    confidences.zero_()
    assert torch.equal(target(random_images(1, 2)), torch.full((2, 4), 0.25))
