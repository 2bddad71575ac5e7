"""Laws of the inversion error and of the closed gap."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import closed_gap, inversion_errors, lowest_rows, lowest_share

SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 20)),
)
WHOLE = st.integers(0, 1000)


@st.composite
def errors_in_order(draw):
    """Adaptive, clean and label errors with a gap to close; whole, so that sums are exact."""
    clean = draw(WHOLE)
    label = clean + draw(st.integers(1, 1000))
    return draw(WHOLE), clean, label


@given(st.integers(0, 10**6), SHAPES, st.sampled_from([np.float32, np.float64]))
def test_error_of_each_image_is_its_mean_square_in_float64(seed, shape, dtype):
    generator = np.random.default_rng(seed)
    images = generator.random(shape).astype(dtype)
    reconstructions = generator.random(shape).astype(dtype)
    errors = inversion_errors(torch.from_numpy(images), torch.from_numpy(reconstructions))
    expected = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(true.flat, guess.flat, strict=True))
        / true.size
        for true, guess in zip(images, reconstructions, strict=True)
    ]
    assert errors.dtype == torch.float64
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-12)


@looped("other", [(1, 1, 4, 4), (3, 4, 4), (3, 1, 4, 1), (3, 1, 1, 4), (3, 16)])
def test_shapes_that_would_broadcast_are_refused(other):
    with pytest.raises(InvalidTensorError, match=r"shape \(3, 1, 4, 4\), but got \("):
        inversion_errors(torch.zeros(3, 1, 4, 4), torch.zeros(other))


@given(errors_in_order())
def test_gap_is_0_at_the_clean_error_and_1_at_the_label_error(errors):
    _, clean, label = errors
    assert closed_gap(clean, clean, label) == 0
    assert closed_gap(label, clean, label) == 1


@given(errors_in_order(), st.integers(1, 1000), WHOLE)
def test_gap_does_not_depend_on_the_unit_or_the_origin_of_the_error(errors, scale, offset):
    moved = [scale * error + offset for error in errors]
    assert closed_gap(*moved) == closed_gap(*errors)


@given(errors_in_order(), st.integers(1, 1000))
def test_gap_grows_with_the_adaptive_error_and_is_not_clipped(errors, more):
    adaptive, clean, label = errors
    gap = closed_gap(adaptive, clean, label)
    assert closed_gap(adaptive + more, clean, label) > gap
    assert (gap < 0) == (adaptive < clean)
    assert (gap > 1) == (adaptive > label)


@looped("bad", [math.nan, math.inf, -math.inf, -1e-9])
@looped("position", range(3))
def test_an_error_that_none_can_be_is_refused_by_name(bad, position):
    errors = [0.2, 0.1, 0.3]
    errors[position] = bad
    name = ("adaptive_error", "clean_error", "label_error")[position]
    with pytest.raises(InvalidOptionError, match=f"^{name} must be finite and at least 0"):
        closed_gap(*errors)


@looped("label", [0.25, 0.2, 0.0])
def test_there_is_no_gap_where_clean_scores_tell_no_more_than_the_label(label):
    with pytest.raises(InvalidOptionError, match=r"\(0\.25\).*add nothing to the label.*Train"):
        closed_gap(0.3, 0.25, label)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.floats(0.001, 1))
def test_lowest_share_is_the_mean_of_the_first_in_order(errors, share):
    count = max(1, round(share * len(errors)))
    expected = math.fsum(sorted(errors)[:count]) / count
    got = lowest_share(torch.tensor(errors, dtype=torch.float64), share)
    assert got == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100), st.floats(0.001, 1))
def test_the_tail_is_never_better_protected_than_all(errors, share):
    errors = torch.tensor(errors, dtype=torch.float64)
    assert errors.min() <= lowest_share(errors, share) + 1e-15
    assert lowest_share(errors, share) <= lowest_share(errors, 1) + 1e-15


def test_one_query_stands_for_the_tail_of_few():
    assert lowest_share(torch.tensor([0.5, 0.25, 1.0]), 0.01) == 0.25
    assert lowest_share(torch.tensor([torch.inf, 0.5]), 0.05) == 0.5


@looped("share", [0, -0.1, 1.01, math.nan, True, "1 %"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InvalidOptionError, match="share must be above 0 and at most 1"):
        lowest_share(torch.rand(5), share)


@looped(
    "errors", [torch.rand(0), torch.rand(2, 2), torch.arange(3), torch.tensor([0.1, torch.nan])]
)
def test_errors_without_an_order_are_refused(errors):
    with pytest.raises(InvalidTensorError, match=r"^errors must be"):
        lowest_share(errors, 0.05)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 25))
def test_the_lowest_rows_are_those_of_the_lowest_errors_the_first_of_equals_first(errors, count):
    rows = lowest_rows(torch.tensor(errors, dtype=torch.float64), count).tolist()
    assert rows == sorted(range(len(errors)), key=lambda row: (errors[row], row))[:count]
