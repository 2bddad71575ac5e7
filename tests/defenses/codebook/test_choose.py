"""Choosing: budgets are kept, bits are few, and what cannot be reached is told how nearly."""

import math
import re

import numpy as np
import pytest
import torch

from defenses.codebook.scored import scored
from oneway.defenses.codebook import (
    Budget,
    FitSettings,
    choose_codebook,
    cut_calibration,
    fit_codebook,
    measure_codebook,
    merge_calibration,
    table,
)
from oneway.defenses.codebook.fit import RATE_WEIGHTS
from oneway.errors import InvalidOptionError
from reference import codebook as slow
from rows import random_rows

NAMES = ("l1_mean", "l1_quantile", "logits", "top5_kept", "bits")


def asked(seed, count=900):
    """Scores over eight classes, so that five likeliest can be lost, that vary in two ways."""
    ways = random_rows(seed, count, 2, torch.float64, 1.5)
    return ways @ random_rows(50, 2, 8, torch.float64, 1.5)


@pytest.fixture(scope="module")
def logits():
    return asked(1)


@pytest.fixture(scope="module")
def calibration(logits):
    return cut_calibration(logits, FitSettings(min_members=8))


@pytest.fixture(scope="module")
def every(calibration, logits):
    """All tables among which a choice is made, measured by the reference."""
    books = [merge_calibration(calibration, weight) for weight in RATE_WEIGHTS]
    return [(book, measured(book, logits)) for book in books]


def measured(book, logits):
    """Measure a table row by row."""
    cells = book(logits)
    moved, apart, kept = [], [], []
    for scores, cell in zip(logits.double().numpy(), cells, strict=True):
        clean = slow.softmax(scores)
        told = book.expand(book.values, cell.view(1))[0].numpy()
        moved.append(np.abs(told - clean).sum())
        logs = np.log(told)
        apart.append(np.abs((logs - logs.mean()) - (scores - scores.mean())).mean())
        count = min(5, len(scores))
        likeliest = set(np.argsort(-clean)[:count].tolist())
        kept.append(len(likeliest & set(np.argsort(-told)[:count].tolist())) / count)
    labels = logits.argmax(-1).tolist()
    return {
        "l1_mean": float(np.mean(moved)),
        "l1_quantile": float(np.quantile(moved, 0.95)),
        "logits": float(np.mean(apart)),
        "top5_kept": float(np.mean(kept)),
        "bits": slow.entropy_beyond_label(cells.tolist(), labels),
    }


def within(found, budget):
    return all(
        found[name] >= limit if name == "top5_kept" else found[name] <= limit
        for name, limit in budget.items()
    )


@pytest.mark.parametrize("weight", [0.0, 0.02, math.inf])
@pytest.mark.parametrize("classes", [3, 8])
def test_a_table_is_measured_as_the_reference_measures_it(weight, classes):
    logits = random_rows(2, 250, classes, torch.float64, 1.5)
    book = fit_codebook(logits, FitSettings(min_members=8, rate_weight=weight))
    found = vars(measure_codebook(book, logits))
    assert found == pytest.approx(measured(book, logits), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("listed", [8, 3])
def test_many_rows_are_measured_in_parts_and_found_the_same_to_the_bit(listed, monkeypatch):
    logits = random_rows(2, 250, 8, torch.float64, 1.5)
    book = fit_codebook(
        logits, FitSettings(min_members=8, rate_weight=0.02, explicit_classes=listed)
    )
    whole = measure_codebook(book, logits)
    monkeypatch.setattr(table, "NUMBERS_AT_ONCE", 9 * max(book.edges[0].numel(), 8))
    assert book.rows_at_once == 9
    assert measure_codebook(book, logits) == whole


BUDGETS = [
    {"l1_mean": 0.1},
    {"l1_mean": 0.25},
    {"l1_quantile": 0.3},
    {"logits": 1.0},
    {"top5_kept": 0.96},
    {"bits": 1.5},
    {"bits": 0.0},
    {"l1_mean": 0.25, "top5_kept": 0.95, "logits": 1.6},
    {"l1_quantile": 0.5, "bits": 2.5},
]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_all_of_a_budget_is_kept_at_the_fewest_bits_or_with_bits_alone_least_moved(
    calibration, logits, every, budget
):
    chosen = choose_codebook(calibration, logits, Budget(**budget))
    found = measured(chosen, logits)
    assert within(found, budget)
    kept = [one for _, one in every if within(one, budget)]
    assert kept
    if set(budget) == {"bits"}:
        assert found["l1_mean"] == pytest.approx(min(one["l1_mean"] for one in kept))
    else:
        assert found["bits"] == pytest.approx(min(one["bits"] for one in kept))
    # The budget decides: some table breaks it.
    assert len(kept) < len(every)


def test_a_looser_budget_takes_no_more_bits(calibration, logits):
    bits = [
        measure_codebook(choose_codebook(calibration, logits, Budget(l1_mean=limit)), logits).bits
        for limit in (0.085, 0.1, 0.2, 0.38, 2.0)
    ]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 1
    assert bits[-1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_that_cannot_be_kept_is_told_how_near_the_nearest_comes(
    name, calibration, logits, every
):
    values = [one[name] for _, one in every]
    nearest = max(values) if name == "top5_kept" else min(values)
    if name == "bits":
        # One cell per label has none, so that nothing is too little.
        choose_codebook(calibration, logits, Budget(bits=0.0))
        budget = {"bits": 0.0, "l1_mean": 0.1}
    else:
        budget = {name: 1.0 if name == "top5_kept" else 0.9 * nearest}
    with pytest.raises(InvalidOptionError) as caught:
        choose_codebook(calibration, logits, Budget(**budget))
    text = str(caught.value)
    assert "8 members" in text
    assert re.search(rf"{name} {nearest:.4g}\b".replace("+", r"\+"), text)
    # And nothing of what was not asked.
    assert [other for other in NAMES if f"{other} " in text] == [
        other for other in NAMES if other in budget
    ]


def test_images_count_in_a_choice_as_they_did_in_the_cut():
    logits, images = scored(3, 500)
    plain, mixed = (
        choose_codebook(
            cut_calibration(logits, FitSettings(min_members=10, image_weight=weight), images),
            logits,
            Budget(l1_mean=0.3),
        )
        for weight in (0.0, 60.0)
    )
    flat = images.flatten(1).numpy()
    errors = [slow.within_cells(book(logits).numpy(), flat) for book in (plain, mixed)]
    assert errors[1] != errors[0]


def test_no_budget_is_no_budget():
    with pytest.raises(InvalidOptionError, match=r"must set one of l1_mean, .*, bits"):
        Budget()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1"])
def test_limits_that_are_no_numbers_are_refused_by_name(name, value):
    with pytest.raises(InvalidOptionError, match=f"^{name} must be finite and at least 0"):
        Budget(**{name: value})


@pytest.mark.parametrize(("name", "most"), [("l1_mean", 2), ("l1_quantile", 2), ("top5_kept", 1)])
def test_limits_beyond_what_there_is_are_refused_by_name(name, most):
    Budget(**{name: float(most)})
    with pytest.raises(InvalidOptionError, match=f"^{name} must be from 0 to {most}, but got"):
        Budget(**{name: most + 0.001})
