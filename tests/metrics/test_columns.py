"""Columns of records, one at a time, against plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import categorical_accuracy, numeric_error


@st.composite
def tables(draw):
    """Records with a numeric column, a categorical one, and a numeric one; and guesses."""
    rows, categories = draw(st.integers(1, 20)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    codes = generator.integers(0, categories, rows)
    records = np.column_stack([generator.random(rows), np.eye(categories)[codes], codes / 10])
    steps = draw(st.integers(2, 6))  # few of them make ties
    return records, generator.integers(0, steps, records.shape) / steps, codes


@given(tables())
def test_the_largest_entry_names_the_category_and_those_that_tie_share_it(case):
    records, guesses, codes = case
    stop = records.shape[1] - 1
    got = categorical_accuracy(torch.from_numpy(records), torch.from_numpy(guesses), (1, stop))
    for value, guess, code in zip(got.tolist(), guesses[:, 1:stop], codes, strict=True):
        named = [entry for entry, score in enumerate(guess) if score == max(guess)]
        assert value == (1 / len(named) if code in named else 0)
    assert got.dtype == torch.float64


@given(tables())
def test_numeric_error_is_the_distance_in_that_column_alone(case):
    records, guesses, _ = case
    last = records.shape[1] - 1
    for start in (0, last):
        got = numeric_error(
            torch.from_numpy(records), torch.from_numpy(guesses), (start, start + 1)
        )
        np.testing.assert_array_equal(got.numpy(), np.abs(records - guesses)[:, start])


@given(tables())
def test_the_truth_is_exact(case):
    records = torch.from_numpy(case[0])
    assert (categorical_accuracy(records, records, (1, records.shape[1] - 1)) == 1).all()
    assert (numeric_error(records, records, (0, 1)) == 0).all()


RECORDS = torch.tensor([[0.5, 1, 0], [0.25, 0, 1]])


@looped("block", [(0, 4), (2, 2), (2, 1), (-1, 2)])
@looped("measure", [categorical_accuracy, numeric_error])
def test_a_block_outside_the_record_is_refused(measure, block):
    with pytest.raises(InvalidOptionError, match="start < stop <= 3"):
        measure(RECORDS, RECORDS, block)


def test_columns_of_the_other_kind_are_refused_with_the_remedy():
    with pytest.raises(InvalidTensorError, match=r"2 of 2 rows.*numeric_error"):
        categorical_accuracy(RECORDS, RECORDS, (0, 2))
    with pytest.raises(InvalidOptionError, match=r"one position.*categorical_accuracy"):
        numeric_error(RECORDS, RECORDS, (0, 3))


def test_a_missing_value_is_wrong_by_the_whole_range_unless_both_are_missing():
    records = torch.tensor([[0.5, 0], [0.5, 0], [0.5, 1], [0.5, 1]])
    guesses = torch.tensor([[0.25, 0.4], [0.25, 0.6], [0.25, 0.4], [0.25, 0.6]])
    assert numeric_error(records, guesses, (0, 2)).tolist() == [0.25, 1, 1, 0]
    with pytest.raises(InvalidTensorError, match=r"0 or 1 at position 1.* but 4 of 4 rows are not"):
        numeric_error(guesses, guesses, (0, 2))


@looped("row", [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.5, 0.5]])
def test_a_block_that_is_not_one_hot_is_refused(row):
    with pytest.raises(InvalidTensorError, match=r"one-hot in block \(1, 3\), but 1 of 1"):
        categorical_accuracy(torch.tensor([row]), torch.tensor([row]), (1, 3))


@looped("value", [-0.5, 1.5])
def test_a_number_outside_its_range_is_refused_without_being_shown(value):
    records = RECORDS.clone()
    records[1, 0] = value
    with pytest.raises(InvalidTensorError, match="1 of 2 rows do not, row 1") as refusal:
        numeric_error(records, RECORDS, (0, 1))
    assert str(value) not in str(refusal.value)


def test_images_are_no_records():
    with pytest.raises(InvalidTensorError, match=r"\(N, features\)"):
        numeric_error(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), (0, 1))
