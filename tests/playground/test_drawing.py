"""A drawing ends up where MNIST's digits are, wherever and how large it was drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneway.errors import InvalidTensorError
from oneway.playground.drawing import center_drawing

SIDE = 112


def seven(scale=1.0, top=0, left=0):
    """A seven of two bars, `scale` times 40 pixels high."""
    length, thick = round(40 * scale), max(2, round(6 * scale))
    drawing = torch.zeros(SIDE, SIDE)
    drawing[top : top + thick, left : left + length] = 1
    drawing[top : top + length, left + length - thick : left + length] = 1
    return drawing


@given(st.integers(0, SIDE - 40), st.integers(0, SIDE - 40))
def test_where_it_was_drawn_does_not_matter(top, left):
    assert torch.equal(center_drawing(seven(1, top, left)), center_drawing(seven()))


@given(st.floats(0.5, 2.7))
def test_how_large_it_was_drawn_hardly_matters(scale):
    scaled, other = center_drawing(seven(scale)), center_drawing(seven())
    # Strokes of whole pixels are a little thicker or thinner, which may tip it by one pixel.
    moved = [scaled.roll((y, x), (2, 3)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert min((each - other).square().mean() for each in moved) < 0.01


blotches = st.lists(
    st.tuples(*[st.integers(0, SIDE - 8)] * 2, st.integers(1, 8), st.integers(1, 8)),
    min_size=1,
    max_size=6,
)


@given(blotches)
def test_ink_fills_a_box_of_20_and_its_center_of_mass_is_in_the_middle(marks):
    drawing = torch.zeros(SIDE, SIDE)
    for top, left, height, width in marks:
        drawing[top : top + height, left : left + width] = 1
    image = center_drawing(drawing)
    assert image.shape == (1, 1, 32, 32)
    assert image.dtype == torch.float32
    assert image.max() == 1
    assert image.min() == 0
    rows, columns = (image[0, 0] > 0).nonzero(as_tuple=True)
    extent = [int(axis.max() - axis.min()) + 1 for axis in (rows, columns)]
    assert max(extent) <= 20
    at = torch.arange(32) + 0.5
    mass = image[0, 0]
    for axis in (0, 1):
        center = (mass.sum(1 - axis) * at).sum() / mass.sum()
        # As MNIST's digits have it, unless ink would then stand over the edge of their 28 pixels.
        ends = (rows, columns)[axis]
        edge = int(ends.min()) == 2 or int(ends.max()) == 29
        assert 16 - 1e-4 <= center <= 17 + 1e-4 or edge


def test_digits_of_mnist_itself_come_back_as_they_were(digits):
    images = torch.from_numpy(digits.images[::250]).float() / 255
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    errors = torch.stack(
        [
            (center_drawing(image)[0, 0] - wanted).square().mean()
            for image, wanted in zip(images, padded, strict=True)
        ]
    )
    # Some are not white anywhere, and become a little brighter; the mean image is off by .05.
    assert (errors < 1e-3).all()
    assert (errors == 0).float().mean() > 0.5


def test_no_ink_is_refused_with_the_remedy():
    with pytest.raises(InvalidTensorError, match=r"no ink\. Draw a digit"):
        center_drawing(torch.full((SIDE, SIDE), 0.05))
