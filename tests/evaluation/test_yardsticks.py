"""Errors to compare a certificate with: what they estimate, and what the bound on G proves."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.defenses.codebook import Certificate, CodebookRelease, FitSettings, certify
from oneway.defenses.codebook.yardsticks import (
    BETS,
    Yardstick,
    halves_to_pool,
    least_gap,
    log_wealth,
    yardsticks_of_labels,
)
from oneway.errors import InvalidOptionError
from oneway.evaluation import compare_with_clean_scores, yardsticks
from reference import codebook as slow

DRAWS = 1000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def met_by_hand(cells, queries, pool_cells, pool):
    """Return each query's half squared distance to an unused pool row, one after the other."""
    left = {cell: [] for cell in cells}
    for cell, row in zip(pool_cells, pool, strict=True):
        left.setdefault(cell, []).append(row)
    return [
        float(np.mean((query - left[cell].pop(0)) ** 2)) / 2 if left[cell] else 0.0
        for cell, query in zip(cells, queries, strict=True)
    ]


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(0, 30), st.integers(1, 9))
def test_each_query_meets_a_pool_row_of_its_cell_that_no_other_met(seed, count, rows, kinds):
    generator = np.random.default_rng(seed)
    cells, pool_cells = (3 * generator.integers(0, kinds, n) + 5 for n in (count, rows))
    queries, pool = (generator.random((n, 3)) for n in (count, rows))
    tensors = map(torch.from_numpy, (cells, queries, pool_cells, pool))
    wanted = met_by_hand(cells.tolist(), queries, pool_cells.tolist(), pool)
    assert halves_to_pool(*tensors).tolist() == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0, 1))
def test_the_wealth_is_that_of_bets_one_after_the_other(seed, count, gap):
    generator = np.random.default_rng(seed)
    halves, clean, label = generator.random((3, count)) * [[0.5], [0.9], [0.9]]
    stake = sum(BETS)
    wealth = 0.0
    for bet in BETS:
        purse = bet / stake
        for x, c, y in zip(halves, clean, label, strict=True):
            purse *= 1 + bet * (x - (1 - gap) * c - gap * y)
        wealth += purse
    found = log_wealth(*map(torch.from_numpy, (halves, clean, label)), gap)
    assert found == pytest.approx(math.log(wealth), rel=1e-9, abs=1e-9)


# Traffic whose errors are known: cells of pixels that are ends or middles, with rare wild queries.


def traffic(generator, draws, count, share):
    """Draw cells, queries of one pixel, and the best guesses of clean scores and labels.

    All queries of a cell are 0 or 1 with its chance; clean scores know a share of them; the label
    knows nothing of the cell. Cell 0 is giant, and others are tiny.
    """
    chances = torch.tensor([0.5, *([0.02] * 400)], dtype=torch.float64)
    cells = torch.where(
        torch.rand(draws, count, generator=generator) < 0.8,
        0,
        torch.randint(1, len(chances), (draws, count), generator=generator),
    )
    ones = torch.rand(draws, count, generator=generator, dtype=torch.float64) < chances[cells]
    known = torch.rand(draws, count, generator=generator) < share
    queries, chance = ones.double(), chances[cells]
    clean = torch.where(known, 0.0, (queries - chance).square())
    mean = 0.8 * 0.5 + 0.2 * 0.02
    errors = 0.8 * 0.25 + 0.2 * 0.02 * 0.98, mean * (1 - mean)  # within cells, within the label
    truth = (errors[0] - (1 - share) * errors[0]) / (errors[1] - (1 - share) * errors[0])
    return cells, queries, clean, (queries - mean).square(), truth


def refused(share, count, draws):
    """Return how often the true G is refused, and the middle of the wealth against G = 0."""
    generator = seeded(7)
    cells, queries, clean, label, truth = traffic(generator, draws, 2 * count, share)
    # Draws are cells of their own, so that all pair off at once.
    own = (cells + 1000 * torch.arange(draws).unsqueeze(-1)).unbind(0)
    own = torch.stack(own)
    rows = queries.unsqueeze(-1)
    asked, pool = (slice(None), slice(0, count)), (slice(None), slice(count, None))
    halves = halves_to_pool(
        own[asked].flatten(),
        rows[asked].flatten(0, 1),
        own[pool].flatten(),
        rows[pool].flatten(0, 1),
    ).view(draws, count)
    parts = list(zip(halves, clean[asked], label[asked], strict=True))
    missed = sum(log_wealth(*part, truth) >= -math.log(0.05) for part in parts)
    return missed / draws, [least_gap(*part, 0.95) for part in parts[:20]], truth


def test_the_bound_holds_at_its_level_and_says_something():
    for share, count in ((0.5, 200), (0.05, 60)):
        missed, found, truth = refused(share, count, DRAWS)
        # 2.3 standard errors above one in twenty.
        assert missed <= 0.066, share
        if share == 0.5:
            assert np.median([-1 if gap is None else gap for gap in found]) > 0.4 * truth > 0


def test_the_bound_holds_where_clean_scores_err_rarely_and_then_in_everything():
    # A hundredth of queries is misread in every pixel: F = C = .01, so that G is 0. Until the first
    # of them comes, clean scores look perfect; the bound must wait that long.
    errors = (torch.rand(DRAWS, 400, generator=seeded(3)) < 0.01).double()
    halves, label = torch.full((400,), 0.01), torch.full((400,), 0.02)
    missed = sum(log_wealth(halves, each, label, 0.0) >= -math.log(0.05) for each in errors)
    # Not far from its level, either: larger bets would break it.
    assert 0.005 < missed / DRAWS <= 0.066


def test_without_a_gap_nothing_is_proven():
    # Clean scores tell as much as the release: G = 0, and in this draw clean scores tell less.
    halves, errors = torch.full((5000,), 0.04), torch.full((5000,), 0.04)
    assert least_gap(halves, errors, errors, 0.95) is None
    assert least_gap(halves, errors - 0.02, errors, 0.95) > 0.9
    assert least_gap(halves, errors - 0.02, errors, 1 - 1e-15) < 0.7
    assert least_gap(halves[:50], errors[:50] - 0.02, errors[:50], 0.95) is None


def test_mean_and_label_are_estimated_as_the_certified_error_is():
    logits, images = scored(3, 300)
    labels, flat = logits.argmax(-1), images.flatten(1)
    found = yardsticks_of_labels(labels, flat, 0.95)
    for each, cells in ((found.label, labels), (found.prior, torch.zeros_like(labels))):
        assert each.error == pytest.approx(slow.within_cells(cells.numpy(), flat.numpy()))
        assert each.low < each.error < each.high
    for label in labels.unique().tolist():
        rows = flat[labels == label]
        wanted = slow.within_cells(np.zeros(len(rows)), rows.numpy())
        assert found.by_label[str(label)] == pytest.approx(wanted)


def told(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(N, 2)`` logits, and ``(N, 1, 1, 2)`` images that all but follow from them.

    Each label has a dark and a bright half, which scores separate and labels do not.
    """
    generator = seeded(seed)
    sure = 4 * torch.rand(count, generator=generator) - 2
    bright = ((sure.abs() < 1).float() * 0.9).view(-1, 1, 1, 1)
    noise = 0.1 * torch.rand(count, 1, 1, 2, generator=generator)
    return torch.stack([sure, -sure], -1), bright + noise


@pytest.fixture(scope="module")
def compared():
    """A codebook of one cell per label with the certificate that its fit completed."""
    return CodebookRelease.fit(
        *told(1, 240),
        generator=seeded(0),
        settings=FitSettings(rate_weight=math.inf),
        held_out=0.5,
        complete=compare_with_clean_scores,
    )


def test_a_fit_compares_its_certificate_with_an_attack_on_clean_scores(compared, tmp_path):
    found = compared.certificate
    errors = found.yardsticks
    assert errors.clean.error < 0.3 * errors.label.error
    assert errors.clean.low < errors.clean.error < errors.clean.high
    # One cell per label: the release is the label.
    assert found.error.estimate == pytest.approx(errors.label.error)
    assert errors.gap(found.error.estimate) == pytest.approx(1)
    assert 0 < errors.least_gap < 1
    compared.save(tmp_path / "guard.safetensors")
    assert CodebookRelease.load(tmp_path / "guard.safetensors").certificate == found


def test_one_row_of_a_group_counts_and_few_rows_are_not_attacked(compared, monkeypatch):
    rows, table, used = told(5, 90), compared.state, []

    def certified(rows, **options):
        plain = certify(table, *rows, **options)
        return compare_with_clean_scores(plain, table, rows, **options)

    def watched(fitting, asked):
        used.append(torch.cat([fitting[1], asked[1]]).flatten(1))
        return torch.zeros(len(asked[0]))

    monkeypatch.setattr(yardsticks, "_clean_errors", watched)
    copies = tuple(part.repeat_interleave(10, 0) for part in rows)
    found = certified(copies, groups=torch.arange(90).repeat_interleave(10))
    assert found.yardsticks.clean == Yardstick(0, 0, 0)
    assert len(used[0]) == len(used[0].unique(dim=0)) == 90
    with pytest.raises(InvalidOptionError, match=r"about 120 queries, but got 90"):
        compare_with_clean_scores(compared.certificate, table, rows)
    monkeypatch.setattr(yardsticks, "MIN_ROWS", 91)
    assert certified(rows).yardsticks.clean is None
    assert len(used) == 1


def test_impossible_errors_are_found(compared):
    found, errors = compared.certificate, compared.certificate.yardsticks
    again = Certificate.from_json(found.as_json())
    assert again == found
    for changes, words in (
        ({"label": Yardstick(1.5, 1.0, 2.0)}, "error of the label is not from 0 to 1"),
        ({"clean": Yardstick(0.1, 0.2, 0.3)}, "interval of the clean does not hold its error"),
        ({"prior": None}, "error of the prior is not from 0 to 1"),
        ({"by_label": {"0": -1.0}}, "error of a label alone"),
        ({"least_gap": 1.0}, "least_gap"),
        ({"least_gap": "high"}, "least_gap"),
    ):
        broken = dataclasses.replace(found, yardsticks=dataclasses.replace(errors, **changes))
        assert words in broken.fault(compared.state)
    bare = dataclasses.replace(found, yardsticks=None)
    assert "without its yardsticks" in bare.fault(compared.state)
