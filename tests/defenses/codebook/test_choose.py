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


def asked(seed, count=500):
    """Scores over eight classes, so that five likeliest can be lost, that vary in two ways."""
    ways = random_rows(seed, count, 2, torch.float64, 1.5)
    return ways @ random_rows(50, 2, 8, torch.float64, 1.5)


@pytest.fixture(scope="module")
def logits():
    return asked(1)


@pytest.fixture(scope="module")
def calibration(logits):
    return cut_calibration(logits, FitSettings(min_members=8, max_boxes=5))


@pytest.fixture(scope="module")
def every(calibration, logits):
    """All tables among which a choice is made, measured by the reference."""
    books = [merge_calibration(calibration, weight) for weight in RATE_WEIGHTS]
    return [(book, measured(book, logits)) for book in books]


def kept_by_chance(likeliest, row):
    """Return how many classes are among as many of a row, ties broken at random."""
    edge = np.sort(row)[-len(likeliest)]
    left, tied = len(likeliest) - (row > edge).sum(), (row == edge).sum()
    return (row[likeliest] > edge).sum() + (row[likeliest] == edge).sum() * left / tied


def measured(book, logits):
    """Measure a table row by row."""
    cells = book(logits)
    moved, apart, kept = [], [], []
    released = book.expand(book.values, cells).numpy()
    for scores, row in zip(logits.double().numpy(), released, strict=True):
        clean = slow.softmax(scores)
        moved.append(np.abs(row - clean).sum())
        logs = np.log(row)
        apart.append(np.abs((logs - logs.mean()) - (scores - scores.mean())).mean())
        count = min(5, len(scores))
        kept.append(kept_by_chance(np.argsort(-clean)[:count], row) / count)
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


def test_a_table_is_measured_as_the_reference_measures_it():
    for classes in (3, 8):
        logits = random_rows(2, 250, classes, torch.float64, 1.5)
        calibration = cut_calibration(logits, FitSettings(min_members=8))
        for weight in (0.0, 0.02, math.inf):
            book = merge_calibration(calibration, weight)
            figures = vars(measure_codebook(book, logits))
            wanted = pytest.approx(measured(book, logits), rel=1e-9, abs=1e-9)
            assert figures == wanted, f"{classes} classes, weight {weight}"


def test_many_rows_are_measured_in_parts_and_found_the_same_to_the_bit(monkeypatch):
    logits = random_rows(2, 250, 8, torch.float64, 1.5)
    for explicit in (8, 3):
        settings = FitSettings(min_members=8, rate_weight=0.02, explicit_classes=explicit)
        book = fit_codebook(logits, settings)
        whole = measure_codebook(book, logits)
        with monkeypatch.context() as patch:
            patch.setattr(table, "NUMBERS_AT_ONCE", 9 * max(book.edges[0].numel(), 8))
            assert book.rows_at_once == 9
            assert measure_codebook(book, logits) == whole


BUDGETS = [
    {"l1_mean": 0.17},
    {"l1_mean": 0.25},
    {"l1_quantile": 0.5},
    {"logits": 1.35},
    {"top5_kept": 0.93},
    {"bits": 1.5},
    {"bits": 0.0},
    {"l1_mean": 0.25, "top5_kept": 0.93, "logits": 1.6},
    {"l1_quantile": 0.5, "bits": 2.5},
]


def test_all_of_a_budget_is_kept_at_the_fewest_bits_or_with_bits_alone_least_moved(
    calibration, logits, every
):
    for budget in BUDGETS:
        chosen = choose_codebook(calibration, logits, Budget(**budget))
        figures = measured(chosen, logits)
        assert within(figures, budget), budget
        kept = [other for _, other in every if within(other, budget)]
        fewest = "l1_mean" if set(budget) == {"bits"} else "bits"
        assert figures[fewest] == pytest.approx(min(other[fewest] for other in kept)), budget
        # The budget decides: some table breaks it.
        assert len(kept) < len(every), budget


def test_a_looser_budget_takes_no_more_bits(calibration, logits):
    bits = [
        measure_codebook(choose_codebook(calibration, logits, Budget(l1_mean=limit)), logits).bits
        for limit in (0.17, 0.25, 0.38, 2.0)
    ]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] > 1
    assert bits[-1] == 0


def test_a_budget_that_cannot_be_kept_is_told_how_near_the_nearest_comes(
    calibration, logits, every
):
    for name in NAMES:
        values = [figures[name] for _, figures in every]
        nearest = max(values) if name == "top5_kept" else min(values)
        # One cell per label has no bits, so that bits alone can always be kept.
        budget = {name: 1.0 if name == "top5_kept" else 0.9 * nearest}
        budget |= {"l1_mean": 0.01} if name == "bits" else {}
        with pytest.raises(InvalidOptionError) as caught:
            choose_codebook(calibration, logits, Budget(**budget))
        text = str(caught.value)
        assert "8 members" in text
        assert re.search(rf"{name} {nearest:.4g}\b".replace("+", r"\+"), text), text
        # And no figure that the budget does not limit.
        said = [other for other in NAMES if f"{other} " in text]
        assert said == [other for other in NAMES if other in budget]


def test_images_count_in_a_choice_as_they_did_in_the_cut():
    logits, images = scored(3, 300)
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


def test_limits_outside_their_range_are_refused_by_name():
    for name in NAMES:
        for value in (-0.1, math.nan, math.inf, True, "1"):
            with pytest.raises(InvalidOptionError, match=f"^{name} must be"):
                Budget(**{name: value})
    for name, most in (("l1_mean", 2), ("l1_quantile", 2), ("top5_kept", 1)):
        Budget(**{name: float(most)})
        with pytest.raises(
            InvalidOptionError, match=f"^{name} must be at least 0 and at most {most}, but got"
        ):
            Budget(**{name: most + 0.001})


def test_classes_that_tie_are_kept_by_chance_whatever_their_numbers(logits):
    # All classes but the label share the rest evenly, so that four of seven are drawn by lot; the
    # order of the classes decides nothing.
    kept = []
    for scores in (logits, logits.flip(-1)):
        book = fit_codebook(scores, FitSettings(min_members=8, explicit_classes=1))
        kept.append(measure_codebook(book, scores).top5_kept)
    others = logits.shape[-1] - 1
    assert kept == pytest.approx(2 * [(1 + 4 * 4 / others) / 5], abs=1e-12)
