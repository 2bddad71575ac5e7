"""Pictures on a page are the images, to the level; large ones are smaller, and no other shape."""

import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from oneway.errors import MissingExtraError
from oneway.report.page.pictures import MOST_SIDE, SHOWN_SIDE, picture_row, shown_size


def drawn(images):
    row = picture_row("who", "", images, ["words"] * len(images))
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one.source.partition(",")[2]))))
        for one in row.pictures
    ]


def test_levels_are_kept_and_shares_become_levels():
    for shape in ((5, 7), (5, 7, 3), (1, 1)):
        levels = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
        for images in (levels, (levels / 255).astype(np.float32)):
            for image, expected in zip(drawn(images), levels, strict=True):
                np.testing.assert_array_equal(image, expected)


def test_what_lies_outside_the_range_is_black_or_white():
    (image,) = drawn(np.array([[[-3.0, 2.0, 0.5]]]))
    assert image.tolist() == [[0, 255, 128]]


def test_a_large_image_is_reduced_by_a_whole_factor():
    for shape in ((400, 300), (161, 10), (1000, 700, 3)):
        levels = np.zeros((1, *shape), np.uint8)
        levels[:, : shape[0] // 2] = 200
        (image,) = drawn(levels)
        assert max(image.shape[:2]) <= MOST_SIDE
        factor = -(-max(shape[:2]) // MOST_SIDE)
        assert image.shape[:2] == tuple(-(-side // factor) for side in shape[:2])
        assert image[0].min() == 200
        assert image[-1].max() == 0


def test_all_images_are_given_the_same_place_in_their_own_shape():
    for height, width in ((28, 28), (6, 10), (300, 100), (1, 500)):
        shown = shown_size(np.zeros((2, height, width)))
        assert max(shown) == SHOWN_SIDE
        assert shown[0] * height == pytest.approx(shown[1] * width, abs=max(height, width))


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pillow.*oneway\[audit\]"):
        drawn(np.zeros((1, 2, 2)))
