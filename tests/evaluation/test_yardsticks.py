"""Errors to compare a certificate with: what they estimate, and what the bound on G proves."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.defenses.codebook import Certificate, CodebookRelease, FitSettings, betting, certify
from oneway.defenses.codebook import yardsticks as certified_yardsticks
from oneway.defenses.codebook.measures import CellMoments
from oneway.defenses.codebook.release import Rows
from oneway.defenses.codebook.traffic import query_keys
from oneway.defenses.codebook.yardsticks import (
    Yardstick,
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


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 60), st.floats(0, 1))
def test_the_wealth_is_that_of_bets_one_after_the_other(seed, count, expected, gap):
    generator = np.random.default_rng(seed)
    halves, clean, label = generator.random((3, count)) * [[0.5], [0.9], [0.7]]
    gains = halves - (1 - gap) * clean - gap * label
    wealth = 1.0
    for number, gain in enumerate(gains):
        past = gains[:number]
        stake = 0.0
        if number and past.mean() > 0:
            spread = past.var() + past.mean() ** 2 / number
            stake = math.sqrt(2 * math.log(20) / (expected * spread))
        # At most nine tenths of what a largest loss would leave nothing of.
        wealth *= 1 + min(stake, 0.9 / (1 - gap + gap * 0.7)) * gain
    rows = [torch.from_numpy(each).unsqueeze(0) for each in (halves, clean, label)]
    found = log_wealth(*rows, gap, expected=expected, largest=0.7, risk=0.05)
    assert found.tolist() == pytest.approx([math.log(wealth)], rel=1e-9, abs=1e-9)


def pairs_by_hand(asked, met, values):
    """Return each pair's mean value; of one value, where the partner is missing or asked before."""
    seen, means = set(), []
    for row, other in zip(asked, met, strict=True):
        if row < 0:
            continue
        alone = other < 0 or other in seen
        means.append(values[row] if alone else (values[row] + values[other]) / 2)
        seen.add(row)
    return means


def test_a_pair_counts_for_both_and_nobody_who_asked_is_met(monkeypatch):
    generator = np.random.default_rng(5)
    cells = torch.from_numpy(generator.integers(0, 30, 90))
    queries, errors = (torch.from_numpy(generator.random(shape)) for shape in ((90, 2), 90))
    pairs = betting.orders_of_pairs(cells, query_keys(queries), None)
    orders = list(zip(*(each.tolist() for each in pairs), strict=True))
    # Some ask in vain, and others would meet them later.
    assert any(
        other >= 0 and other in asked[:number]
        for asked, met in orders
        for number, other in enumerate(met)
    )
    wanted = [pairs_by_hand(*pair, errors.tolist()) for pair in orders]
    seen = []

    def watched(halves, clean, label, *_, expected, **__):
        # Known from the number of rows, and not from how many asked.
        assert expected == len(cells) / 2
        seen.append((halves, clean, label))
        return torch.zeros(len(halves))

    monkeypatch.setattr(certified_yardsticks, "log_wealth", watched)
    least_gap(cells, queries, errors, errors, largest=1.0, level=0.95)
    halves, clean, label = seen[0]
    assert torch.equal(clean, label)
    for row, means in zip(clean.tolist(), wanted, strict=True):
        assert row == pytest.approx([*means, *[0.0] * (len(row) - len(means))])
    assert 0 <= float(halves.min()) <= float(halves.max()) <= 0.5


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


def pairs(generator, draws, count, share):
    """Return X, c and y of ``count`` pairs of a cell in each of ``draws`` draws, and the true G."""
    cells, queries, clean, label, truth = traffic(generator, draws, count, share)
    chances = torch.where(cells == 0, 0.5, 0.02).double()
    others = (torch.rand(draws, count, generator=generator) < chances).double()
    mean = 0.8 * 0.5 + 0.2 * 0.02
    known = torch.rand(draws, count, generator=generator) < share
    theirs = torch.where(known, 0.0, (others - chances).square())
    halves = (queries - others).square() / 2
    return halves, (clean + theirs) / 2, (label + (others - mean).square()) / 2, truth


def missed(halves, clean, label, gap, largest=1.0):
    options = {"expected": halves.shape[1], "largest": largest, "risk": 0.05}
    wealth = log_wealth(halves, clean, label, gap, **options)
    return float((wealth >= -math.log(0.05)).double().mean())


def test_the_bound_holds_at_its_level_and_says_something():
    for share, count in ((0.5, 200), (0.05, 60)):
        *parts, truth = pairs(seeded(7), DRAWS, count, share)
        # 2.3 standard errors above one in twenty.
        assert missed(*parts, truth) <= 0.066, share
        if share == 0.5:
            assert missed(*parts, 0.4 * truth) > 0.5


def test_the_bound_holds_where_clean_scores_err_rarely_and_then_in_everything():
    # A share of queries is misread in every pixel: F = C, so that G is 0. Until the first of them
    # comes, clean scores look perfect; the bound must wait that long.
    for rare, count in ((0.01, 400), (0.03, 200)):
        errors = (torch.rand(DRAWS, count, generator=seeded(3)) < rare).double()
        halves, label = torch.full_like(errors, rare), torch.full_like(errors, 2 * rare)
        found = missed(halves, errors, label, 0.0)
        # Not far from its level, either: larger stakes would break it.
        assert 0.005 < found <= 0.066


def test_without_a_gap_nothing_is_proven():
    # Clean scores tell as much as the release: G = 0, and in another draw clean scores tell less.
    generator = np.random.default_rng(4)
    queries = torch.from_numpy(0.4 * generator.random((2000, 3)))
    cells, errors = torch.zeros(2000, dtype=torch.int64), torch.full((2000,), 0.0133)
    options = {"largest": 0.7, "level": 0.95}
    assert least_gap(cells, queries, errors, errors, **options) is None
    found = least_gap(cells, queries, errors - 0.0125, errors, **options)
    assert found > 0.5
    options["level"] = 1 - 1e-4
    assert least_gap(cells, queries, errors - 0.0125, errors, **options) < found
    few = (cells[:50], queries[:50], errors[:50] - 0.0125, errors[:50])
    assert least_gap(*few, largest=0.7, level=0.95) is None


def test_mean_and_label_are_estimated_as_the_certified_error_is():
    logits, images = scored(3, 300)
    labels, flat = logits.argmax(-1), images.flatten(1)
    found = yardsticks_of_labels(labels, flat, 0.95, CellMoments.of(labels, flat))
    for each, cells in ((found.label, labels), (found.prior, torch.zeros_like(labels))):
        assert each.error == pytest.approx(slow.within_cells(cells.numpy(), flat.numpy()))
        assert each.low < each.error < each.high
    for label in labels.unique().tolist():
        rows = flat[labels == label]
        wanted = slow.within_cells(np.zeros(len(rows)), rows.numpy())
        assert found.by_label[str(label)] == pytest.approx(wanted)


def test_the_labels_interval_holds_where_many_labels_have_one_query():
    """A twentieth of the queries is alone in its label, and counts as an error of 0."""
    missed = 0
    for seed in range(30):
        generator = seeded(seed)
        labels = torch.randint(100, (300,), generator=generator)
        queries = (torch.rand(300, 3, generator=generator) < 0.5).double()
        found = yardsticks_of_labels(labels, queries, 0.95, CellMoments.of(labels, queries))
        missed += not found.label.low <= 0.25 <= found.label.high
    assert missed <= 3, missed


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
    rows, table, used = Rows(*told(5, 90)), compared.state, []

    def certified(rows, **options):
        plain = certify(table, *rows[:2], **options)
        return compare_with_clean_scores(plain, table, rows, **options)

    def watched(fitting, asked):
        used.append(torch.cat([fitting[1], asked[1]]).flatten(1))
        return torch.zeros(len(asked[0]))

    monkeypatch.setattr(yardsticks, "_clean_errors", watched)
    copies = Rows(*(part.repeat_interleave(10, 0) for part in rows[:2]))
    found = certified(copies, groups=torch.arange(90).repeat_interleave(10))
    assert found.yardsticks.clean == Yardstick(0, 0, 0)
    # Groups are split whole.
    assert used[0].unique(dim=0, return_counts=True)[1].tolist() == [10] * 90
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
        (
            {"label": Yardstick(1.5, 1.0, 2.0)},
            "error of the label and its interval are not in order",
        ),
        (
            {"clean": Yardstick(0.1, 0.2, 0.3)},
            "error of the clean and its interval are not in order",
        ),
        ({"by_label": {"0": -1.0}}, "error of a label alone"),
        ({"least_gap": 1.0}, "least_gap"),
    ):
        broken = dataclasses.replace(found, yardsticks=dataclasses.replace(errors, **changes))
        assert words in broken.fault(compared.state)
    bare = dataclasses.replace(found, yardsticks=None)
    assert "without its yardsticks" in bare.fault(compared.state)
