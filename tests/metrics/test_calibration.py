"""Calibration against slow oracles, row by row and bin by bin."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidTensorError
from oneway.metrics import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)

MEASURES = [brier_score, expected_calibration_error, negative_log_likelihood]


@st.composite
def released_and_labels(draw):
    """Probabilities from nearly flat to nearly one-hot."""
    rows, classes = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    powers = np.exp(generator.normal(0, draw(st.floats(0.01, 8)), (rows, classes)))
    return powers / powers.sum(-1, keepdims=True), generator.integers(0, classes, rows)


def calibration_error(released, labels):
    """Guo et al., Equations 2 and 3, bin by bin."""
    total = 0.0
    for first in range(15):
        inside = [
            row
            for row, each in enumerate(released)
            if (first / 15 < each.max() <= (first + 1) / 15)
        ]
        if inside:
            accuracy = np.mean([released[row].argmax() == labels[row] for row in inside])
            confidence = np.mean([released[row].max() for row in inside])
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@given(released_and_labels())
def test_calibration_error_equals_the_definition(case):
    got = expected_calibration_error(*map(torch.from_numpy, case))
    assert got == pytest.approx(calibration_error(*case), abs=1e-12)


@given(released_and_labels())
def test_the_bins_are_what_the_calibration_error_is_made_of(case):
    released, labels = case
    bins = reliability_bins(*map(torch.from_numpy, case))
    assert sum(one.count for one in bins) == len(labels)
    assert all(one.count for one in bins)
    told = [one.confidence for one in bins]
    assert told == sorted(told)
    right = math.fsum(one.count * one.accuracy for one in bins)
    assert right == pytest.approx((released.argmax(-1) == labels).sum())
    away = math.fsum(one.count * abs(one.accuracy - one.confidence) for one in bins)
    assert away / len(labels) == pytest.approx(calibration_error(*case), abs=1e-12)


@given(released_and_labels())
def test_negative_log_likelihood_is_the_mean_of_minus_the_log(case):
    released, labels = case
    logs = [math.log(row[label]) for row, label in zip(released, labels, strict=True)]
    expected = -math.fsum(logs) / len(logs)
    assert negative_log_likelihood(*map(torch.from_numpy, case)) == pytest.approx(expected)


@given(released_and_labels())
def test_brier_score_is_the_squared_distance_to_the_one_hot_row(case):
    released, labels = case
    expected = np.mean(
        [
            sum((value - (index == label)) ** 2 for index, value in enumerate(row))
            for row, label in zip(released, labels, strict=True)
        ]
    )
    assert brier_score(*map(torch.from_numpy, case)) == pytest.approx(expected, abs=1e-12)


def test_what_is_sure_and_right_is_perfect_and_sure_and_wrong_the_worst():
    released, right, wrong = torch.eye(3), torch.arange(3), torch.tensor([1, 2, 0])
    assert [measure(released, right) for measure in MEASURES] == [0, 0, 0]
    assert [measure(released, wrong) for measure in MEASURES[:2]] == [2, 1]
    # A released zero is not infinitely wrong, but as wrong as the smallest normal float32.
    assert negative_log_likelihood(released, wrong) == pytest.approx(126 * math.log(2))


def test_numbers_below_the_smallest_normal_float32_count_as_it():
    released = torch.tensor([[1.0, 1e-300]], dtype=torch.float64)
    assert negative_log_likelihood(released, torch.tensor([1])) == pytest.approx(126 * math.log(2))


def test_errors_of_opposite_sign_cancel_within_a_bin_but_not_between_bins():
    one_bin = torch.tensor([[0.75, 0.25]] * 4)
    assert expected_calibration_error(one_bin, torch.tensor([0, 0, 0, 1])) == 0
    two_bins = torch.tensor([[0.75, 0.25], [0.55, 0.45]], dtype=torch.float64)
    assert expected_calibration_error(two_bins, torch.tensor([0, 1])) == pytest.approx(0.4)


def test_an_upper_edge_belongs_to_its_bin():
    # 0.6 is the edge 9 / 15, and 0.55 lies in the bin below it: there both errors meet.
    released = torch.tensor([[0.6, 0.4], [0.55, 0.45]], dtype=torch.float64)
    assert expected_calibration_error(released, torch.tensor([1, 0])) == pytest.approx(0.075)


@looped("measure", MEASURES)
@looped("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_summed_in_float64(measure, dtype):
    released = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], dtype=dtype).repeat(999, 1)
    labels = torch.tensor([0, 2]).repeat(999)
    assert measure(released, labels) == measure(released.double(), labels)


@looped("measure", MEASURES)
@looped(
    ("released", "labels", "message"),
    [
        (torch.eye(3) * 5, torch.arange(3), "released must be probabilities"),
        (torch.eye(3), torch.arange(2), r"labels must be int64 of shape \(3,\)"),
        (torch.eye(3), torch.arange(3) + 1, r"\[0, 3\).*1 of 3"),
        (torch.eye(3).unsqueeze(0), torch.arange(3).unsqueeze(0), r"shape \(N, K\)"),
        (torch.eye(3)[:0], torch.arange(0), "N >= 1"),
    ],
)
def test_what_is_no_probability_or_label_is_refused(measure, released, labels, message):
    with pytest.raises(InvalidTensorError, match=message):
        measure(released, labels)
