"""Cuts and unions from sums: what a slow way makes of the rows themselves, to the bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneway.defenses.codebook import (
    FitSettings,
    cut_calibration,
    fit_codebook,
    label_rows,
    merge_calibration,
    sorted_rows,
)
from oneway.defenses.codebook import boxes as cutting
from oneway.defenses.codebook.boxes import DIGITS
from reference import codebook as slow
from rows import random_rows


def spread(rows, center):
    """L1 distances of rows from their mean, or from their median, rescaled."""
    middle = rows.mean(0) if center == "mean" else np.median(rows, 0)
    return np.abs(rows - middle / (1 if center == "mean" else middle.sum())).sum()


@settings(max_examples=10)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 6),
    st.integers(6, 50),
    st.sampled_from(["mean", "median"]),
    st.booleans(),
)
def test_unions_are_weighed_as_their_rows_are(seed, cells, count, center, coarse):
    rows = random_rows(seed, count, 3, torch.float64, 2)
    rows = (rows.round() if coarse else rows).softmax(-1)
    owners = torch.arange(count) % cells
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_rows, "NUMBERS_AT_ONCE", 1 + seed % 100)
        turned = rows.numpy().T
        found = sorted_rows.SortedRows(
            {slot: turned[:, owners == slot] for slot in range(cells)}, 2 * cells, center
        )
        empty = 2 * cells - 1
        members = {slot: {slot} for slot in range(cells)} | {empty: set()}
        live = list(range(cells))
        while len(live) > 1:
            pairs = [(one, other) for one in live for other in [*live, empty] if one != other]
            first, second = np.array(pairs).T
            wanted = [
                spread(rows.numpy()[np.isin(owners.numpy(), [*members[a] | members[b]])], center)
                for a, b in pairs
            ]
            np.testing.assert_allclose(found.distortions(first, second), wanted, atol=1e-12)
            slot = cells + cells - len(live)
            found.join(live[0], live[-1], slot)
            members[slot] = members[live[0]] | members[live[-1]]
            live = [*live[1:-1], slot]


def test_a_cell_behind_all_others_is_weighed_where_no_space_is_left():
    sizes = [4, 3, 9, 2, 2]
    owners = np.repeat(np.arange(5), sizes)
    rows = np.random.default_rng(0).dirichlet([1, 1, 1], len(owners))
    # The last two cells come before all others along the first axis.
    rows = rows[rows[:, 0].argsort()[::-1]]
    cells = {slot: rows[owners == slot].T for slot in range(5)}
    found = sorted_rows.SortedRows(cells, 10, "median")
    for join in ((0, 1, 5), (5, 2, 6), (3, 4, 7)):
        found.join(*join)
    apart = found.distortions(np.array([7, 6]), np.array([6, 7]))
    np.testing.assert_allclose(apart, spread(rows, "median"), atol=1e-12)


@settings(max_examples=3)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.003, 0.05]), st.sampled_from([4, 2]))
def test_a_table_is_that_of_the_slow_way_to_the_bit(seed, rate_weight, explicit):
    logits = random_rows(seed, 90, 4, torch.float64, 2)
    fit = FitSettings(
        min_members=4, rate_weight=rate_weight, explicit_classes=explicit, max_boxes=5
    )
    book = fit_codebook(logits, fit)
    cells = book(logits)
    for label in range(4):
        numbers = np.flatnonzero(logits.argmax(-1).numpy() == label)
        if len(numbers) < 4:
            continue
        order = book.classes[label].tolist()
        rows = np.array([slow.seen(row, order) for row in slow.softmaxes(logits[numbers].numpy())])
        leaves = [leaf.rows for leaf in slow.leaves_of(slow.grow(rows, 4, 5))]
        for cell in slow.merge(leaves, rows, rate_weight):
            (number,) = set(cells[numbers[cell]].tolist())
            assert int(book.members[number]) == len(cell)
            mantissas, exponents = np.frexp(rows[cell].mean(0)[1:])
            wanted = np.ldexp(np.floor(mantissas * 2**DIGITS), exponents - DIGITS)
            wanted[explicit - 1 :] /= max(1, 4 - explicit)
            assert book.values[number, 1:].tolist() == wanted.tolist()


def test_axes_that_are_not_sorted_are_none_of_the_best(monkeypatch):
    draw = np.random.default_rng(0)
    for number in range(30):
        # Along some axes a few rows make most of the spread, and no cut removes much of it.
        turned = draw.normal(size=(24, 40)) ** draw.choice([1, 3, 5], (24, 1))
        found = []
        for at_once in (24, 1):
            monkeypatch.setattr(cutting, "AXES_AT_ONCE", at_once)
            monkeypatch.setattr(cutting, "NUMBERS_AT_ONCE", 0)
            found.append(cutting._best_axes(turned, 4, None))
        assert found[0][0] == found[1][0], number
        assert found[0][1].tolist() == found[1][1].tolist(), number


@pytest.mark.parametrize("center", ["mean", "median"])
def test_parts_and_the_order_of_a_sweep_leave_no_trace_in_a_table(center):
    logits = random_rows(5, 180, 7, torch.float32, 3)
    fit = FitSettings(min_members=4, center=center, max_boxes=10)
    weights = [0.0, 0.002, 0.02, math.inf]

    def tables(order):
        calibration = cut_calibration(logits, fit)
        found = {weight: merge_calibration(calibration, weight) for weight in order}
        return [found[weight].state_dict() for weight in weights]

    wanted = tables(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "AXES_AT_ONCE", 1)
        patch.setattr(cutting, "NUMBERS_AT_ONCE", 0)
        patch.setattr(sorted_rows, "NUMBERS_AT_ONCE", 30)
        patch.setattr(label_rows, "NUMBERS_SIDE_BY_SIDE", 600)
        for order in (weights, weights[::-1]):
            for first, second in zip(wanted, tables(order), strict=True):
                assert all(torch.equal(first[name], second[name]) for name in first)
