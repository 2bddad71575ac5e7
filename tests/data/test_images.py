"""Laws of scaling by area."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneway.data import images as module
from oneway.data import scale_images
from oneway.errors import InvalidOptionError

SIDES = st.integers(1, 9)
SEEDS = st.integers(0, 2**32 - 1)


def images_of(seed, count, height, width):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


@given(SEEDS, SIDES, st.integers(1, 5), st.integers(1, 5))
def test_where_it_divides_each_pixel_is_the_mean_of_its_block(seed, side, down, across):
    images = images_of(seed, 3, side * down, side * across)
    blocks = images.reshape(3, side, down, side, across).astype(int).sum((2, 4))
    # Half up, in whole numbers: NumPy's own rounding goes to the even neighbor.
    means, rest = np.divmod(blocks, down * across)
    expected = means + (2 * rest >= down * across)
    scaled = scale_images(images, side)
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, expected)


@given(SEEDS, SIDES, SIDES, SIDES)
def test_any_size_is_every_pixel_repeated_and_then_averaged_in_blocks(seed, height, width, side):
    images = images_of(seed, 2, height, width)
    fine = images.repeat(side, 1).repeat(side, 2)
    np.testing.assert_array_equal(scale_images(images, side), scale_images(fine, side))


@given(st.integers(0, 255), SIDES, SIDES, SIDES)
def test_an_even_image_stays_even(value, height, width, side):
    images = np.full((1, height, width), value, np.uint8)
    assert (scale_images(images, side) == value).all()


@given(SEEDS, SIDES)
def test_images_that_have_the_size_come_back_as_they_are(seed, side):
    images = images_of(seed, 2, side, side)
    assert scale_images(images, side) is images


def test_each_image_is_scaled_alone_however_many_there_are(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    images = images_of(0, 8, 6, 4)
    alone = np.concatenate([scale_images(image[None], 3) for image in images])
    np.testing.assert_array_equal(scale_images(images, 3), alone)


def test_a_rectangle_is_scaled_in_each_direction_by_itself():
    images = images_of(1, 2, 6, 4)
    square = scale_images(images, (6, 6))
    np.testing.assert_array_equal(scale_images(images, (3, 4)), images_halved(images))
    assert square.shape == (2, 6, 6)


def images_halved(images):
    """Average pairs of rows, rounded half up."""
    sums = images[:, 0::2].astype(int) + images[:, 1::2]
    return (sums + 1) // 2


def test_a_side_below_one_is_refused():
    for size in (0, -4, (0, 4), (4, 0), (-1, 4)):
        with pytest.raises(
            InvalidOptionError, match=f"at least 1 pixel, but got {re.escape(str(size))}"
        ):
            scale_images(images_of(0, 1, 4, 4), size)
