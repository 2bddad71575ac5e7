"""Laws of what leaves the building: probabilities, the label strictly on top, in any rounding."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laws import looped
from oneway.checks import FLOATING
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import MOST_DECIMALS, logits_from_confidences, release
from rows import leads, random_rows, same_bits, score_rows, smallest_subnormal

DTYPE = st.sampled_from(FLOATING)
DECIMALS = st.integers(0, MOST_DECIMALS)
WIDE_CASES = list(itertools.product(FLOATING, (None, 0, 3, MOST_DECIMALS)))
FLOAT64_ERROR = 1e-12
"""Relative error of a float64 softmax: rounding of ``x - max``, which is at most 745, and then."""


def exact_softmax(logits: Tensor) -> np.ndarray:
    wide = logits.double().numpy().astype(np.longdouble)
    exponentials = np.exp(wide - wide.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def largest_error_of_sums(rows: Tensor) -> float:
    return max(abs(math.fsum(row) - 1) for row in rows.double().tolist())


def documented_error_of_sums(dtype: torch.dtype, classes: int) -> float:
    limits = torch.finfo(dtype)
    rounding = limits.eps * (classes if dtype == torch.float64 else 1)
    return rounding + classes * smallest_subnormal(dtype)


@given(score_rows(), DTYPE, st.none() | DECIMALS)
def test_label_is_the_only_maximum_in_every_type_and_rounding(logits, dtype, decimals):
    before = logits.clone()
    released = release(logits, dtype=dtype, decimals=decimals)
    assert leads(released, logits.argmax(-1))
    assert released.dtype == dtype
    assert same_bits(logits, before)


@given(score_rows(), DTYPE, st.none() | DECIMALS)
def test_rows_are_probabilities(logits, dtype, decimals):
    released = release(logits, dtype=dtype, decimals=decimals)
    assert (released >= 0).all()
    allowed = documented_error_of_sums(dtype, logits.shape[-1])
    assert largest_error_of_sums(released) <= allowed


@looped(("dtype", "decimals"), WIDE_CASES)
@looped("scale", [0, 0.01, 10])
def test_ten_thousand_classes(dtype, decimals, scale):
    logits = random_rows(2, 3, 10_000, torch.float32, scale)
    released = release(logits, dtype=dtype, decimals=decimals)
    assert leads(released, logits.argmax(-1))
    assert (released >= 0).all()
    assert largest_error_of_sums(released) <= documented_error_of_sums(dtype, 10_000)


@given(score_rows(), DTYPE)
def test_without_decimals_entries_are_exact_but_for_the_type(logits, dtype):
    released, exact = release(logits, dtype=dtype).double().numpy(), exact_softmax(logits)
    relative = max(2 * torch.finfo(dtype).eps, FLOAT64_ERROR)
    assert (abs(released - exact) <= relative * exact + 2 * smallest_subnormal(dtype)).all()


@given(score_rows(), DECIMALS)
def test_rounded_entries_are_multiples_that_sum_to_1_exactly(logits, decimals):
    units = 10**decimals
    released = release(logits, dtype=torch.float64, decimals=decimals)
    counts = (released * units).round()
    assert torch.equal(counts / units, released)
    assert (counts.sum(-1) == units).all()


@given(score_rows(), DECIMALS)
def test_rounded_entries_are_within_one_multiple_and_the_label_and_one_rival_within_two(
    logits, decimals
):
    released = release(logits, dtype=torch.float64, decimals=decimals).numpy()
    exact = exact_softmax(logits)
    multiples = abs(released - exact) * 10**decimals
    slack = 10**decimals * FLOAT64_ERROR
    assert (multiples <= 2 + slack).all()
    beyond_one = multiples > 1 + slack
    beyond_one[np.arange(len(logits)), logits.argmax(-1).numpy()] = False
    assert (beyond_one.sum(-1) <= 1).all()


@given(score_rows(), DTYPE, DECIMALS)
def test_a_narrower_type_changes_rounded_entries_by_its_cast_alone_but_for_the_label(
    logits, dtype, decimals
):
    label = logits.argmax(-1, keepdim=True)
    narrow = release(logits, dtype=dtype, decimals=decimals)
    cast = release(logits, dtype=torch.float64, decimals=decimals).to(dtype)
    assert torch.equal(narrow.scatter(-1, label, 0), cast.scatter(-1, label, 0))
    lifted = torch.nextafter(cast, torch.full_like(cast, torch.inf))
    assert ((narrow == cast) | (narrow == lifted)).all()


@looped(
    ("probabilities", "decimals", "expected"),
    [
        ([0.75, 0.25], 0, [1, 0]),
        ([0.5, 0.5], 0, [1, 0]),
        ([0.5, 0.5], 1, [0.6, 0.4]),
        ([0.36, 0.34, 0.30], 1, [0.4, 0.3, 0.3]),
        ([0.25, 0.25, 0.25, 0.25], 1, [0.4, 0.2, 0.2, 0.2]),
        ([0.04] * 25, 0, [1] + [0] * 24),
        ([0.04] * 25, 1, [0.2] + [0] + [0.1] * 8 + [0] * 15),
    ],
)
def test_rounding_by_largest_remainders_on_rows_done_by_hand(probabilities, decimals, expected):
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    released = release(logits, dtype=torch.float64, decimals=decimals)
    assert released.tolist() == expected


@given(score_rows(), DTYPE, st.none() | DECIMALS)
def test_each_row_stands_for_itself_to_the_bit(logits, dtype, decimals):
    together = release(logits, dtype=dtype, decimals=decimals)
    assert same_bits(release(logits, dtype=dtype, decimals=decimals), together)
    backwards = release(logits.flip(0), dtype=dtype, decimals=decimals)
    assert same_bits(backwards.flip(0), together)
    for row, expected in zip(logits, together, strict=True):
        assert same_bits(release(row, dtype=dtype, decimals=decimals), expected)


@looped(("dtype", "decimals"), WIDE_CASES)
def test_each_of_ten_thousand_classes_wide_rows_stands_for_itself_to_the_bit(dtype, decimals):
    logits = random_rows(3, 4, 10_000, torch.float32, 3)
    together = release(logits, dtype=dtype, decimals=decimals)
    for row, expected in zip(logits, together, strict=True):
        assert same_bits(release(row, dtype=dtype, decimals=decimals), expected)


def test_memory_layout_does_not_matter():
    logits = random_rows(4, 6, 50, torch.float32, 3)
    assert same_bits(release(logits.T.contiguous().T), release(logits))


def test_leading_axes_are_kept():
    logits = random_rows(5, 24, 5, torch.float32, 3)
    released = release(logits.reshape(2, 3, 4, 5), decimals=2)
    assert same_bits(released.reshape(24, 5), release(logits, decimals=2))
    assert release(logits[:0], decimals=2).shape == (0, 5)


def test_no_gradient_leaves():
    assert not release(torch.zeros(2, 3, requires_grad=True), decimals=2).requires_grad


@looped("dtype", [torch.int64, torch.complex64, torch.float8_e5m2, "float32"])
def test_a_type_that_is_not_one_of_the_four_is_refused(dtype):
    with pytest.raises(InvalidOptionError, match="dtype must be one of float16, bfloat16"):
        release(torch.zeros(1, 2), dtype=dtype)


@looped("decimals", [-1, MOST_DECIMALS + 1, 2.0, True, "2"])
def test_decimals_outside_their_range_are_refused(decimals):
    with pytest.raises(InvalidOptionError, match="decimals must be a whole number from 0 to 12"):
        release(torch.zeros(1, 2), decimals=decimals)


@st.composite
def confidences(draw: st.DrawFn) -> Tensor:
    logits, dtype = draw(score_rows()), draw(DTYPE)
    if draw(st.booleans()):
        return logits.double().softmax(-1).to(dtype)
    return release(logits, dtype=dtype, decimals=draw(st.none() | DECIMALS))


@given(confidences())
def test_first_maximum_of_confidences_becomes_the_only_maximum_of_logits(probabilities):
    before = probabilities.clone()
    logits = logits_from_confidences(probabilities)
    assert leads(logits, probabilities.argmax(-1))
    assert logits.dtype == torch.float64
    assert torch.isfinite(logits).all()
    assert same_bits(probabilities, before)


@given(confidences())
def test_softmax_of_the_logits_gives_the_confidences_back(probabilities):
    restored = logits_from_confidences(probabilities).softmax(-1)
    wide = probabilities.double()
    expected = wide / wide.sum(-1, keepdim=True)
    nothing = probabilities.shape[-1] * smallest_subnormal(probabilities.dtype)
    torch.testing.assert_close(restored, expected, rtol=FLOAT64_ERROR, atol=nothing)


@given(confidences())
def test_release_after_the_way_back_keeps_the_label(probabilities):
    released = release(logits_from_confidences(probabilities), dtype=probabilities.dtype)
    assert leads(released, probabilities.argmax(-1))


def test_zeros_become_the_log_of_the_smallest_number_of_their_type():
    for dtype in FLOATING:
        logits = logits_from_confidences(torch.tensor([1, 0, 0], dtype=dtype))
        assert logits[1:].tolist() == [math.log(smallest_subnormal(dtype))] * 2


def test_a_rounded_answer_is_renormalized():
    logits = logits_from_confidences(torch.tensor([[0.5, 0.48]]))
    assert logits.exp().sum().item() == pytest.approx(1)


@looped(
    "wrong",
    [
        torch.tensor([[2.5, -1.5]]),
        torch.tensor([[70.0, 30.0]]),
        torch.tensor([[0.5, 0.4]]),
        torch.tensor([[0.5, 0.6]]),
        torch.tensor([[1.01, -0.01]]),
    ],
    ids=["logits", "percentages", "too little", "too much", "below zero"],
)
def test_what_is_no_probability_vector_is_refused(wrong):
    fine = torch.tensor([[0.5, 0.5]])
    with pytest.raises(InvalidTensorError, match=r"1 of 2 rows are not, row 1 first"):
        logits_from_confidences(torch.cat([fine, wrong]))
