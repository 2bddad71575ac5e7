"""Shapes that labels share: by hand, and what no query, cell or user may get out of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.defenses.codebook import (
    CodebookRelease,
    FitSettings,
    certify,
    fit_codebook,
    measure_codebook,
)
from oneway.defenses.codebook.boxes import DIGITS
from oneway.defenses.codebook.shared import profiles_of
from oneway.report.page.certificate import certificate_lines
from reference import codebook as slow
from rows import random_rows


def many(seed, count, classes=40):
    """Return logits and images of many classes: a handful of queries for each."""
    return scored(seed, count, classes, scale=6.0, pull=0.0)


def profile(rows, label, least, power, groups):
    """A label's profile, query by query."""
    weights = {}
    for row, group in zip(rows, groups, strict=True):
        weights[group] = weights.get(group, 0.0) + row[label]
    most = sorted(weights.values(), reverse=True)[: min(least, len(weights))][-1]
    total = np.zeros(rows.shape[1])
    for row, group in zip(rows, groups, strict=True):
        total += row[label] * min(1.0, most / weights[group]) * row**power
    total **= 1 / power
    total[label] = 0
    return total / total.sum()


def vector(shape, label, top):
    """What a label releases at a level."""
    rest = np.minimum((1 - top) * shape, top)
    rest[label] = 1 - rest.sum()
    return rest


def test_profiles_and_the_only_vector_of_labels_are_those_of_a_loop_over_queries():
    logits = random_rows(3, 60, 6, torch.float64, 2)
    rows = slow.softmaxes(logits.numpy())
    groups = torch.arange(60) // 7
    for center, power in (("mean", 1.0), ("median", 0.5)):
        for own in (None, groups):
            wanted = [
                profile(rows, label, 4, power, range(60) if own is None else own.tolist())
                for label in range(6)
            ]
            probabilities = torch.from_numpy(rows)
            found = profiles_of(probabilities.log(), torch.arange(6), 4, center, 6, own)
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)
        # All labels together have fewer than the least number: one vector each.
        book = fit_codebook(logits, FitSettings(min_members=60, center=center, shared_levels=1))
        shapes = [profile(rows, label, 60, power, range(60)) for label in range(6)]
        released = book.expand(book.values, torch.arange(6)).numpy()
        tops = rows.max(1)
        if center == "mean":
            for label in range(6):
                wanted = vector(shapes[label], label, tops.mean())
                np.testing.assert_allclose(
                    released[label], wanted, rtol=0, atol=2.0 ** (1 - DIGITS)
                )
        else:
            costs = [
                sum(
                    np.abs(row - vector(shapes[row.argmax()], row.argmax(), top)).sum()
                    for row in rows
                )
                for top in np.quantile(tops, np.linspace(0, 1, 33))
            ]
            ours = sum(np.abs(row - released[row.argmax()]).sum() for row in rows)
            assert ours == pytest.approx(min(costs), rel=1e-3)


@pytest.mark.parametrize("center", ["mean", "median"])
def test_levels_are_as_short_as_values_of_other_labels_and_offsets_may_be_huge(center):
    logits = many(3, 300)[0] + 3e6
    for levels, explicit in ((1, 40), (3, 6)):
        fit = FitSettings(
            min_members=10, center=center, shared_levels=levels, explicit_classes=explicit
        )
        book = fit_codebook(logits, fit)
        assert book.fault() is None
        assert (book.shared > 0).any()
        mantissas = book.values[book.shared > 0, 1:].frexp().mantissa * 2**DIGITS
        assert (mantissas == mantissas.round()).all()


@settings(max_examples=8)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 12),
    st.integers(1, 5),
    st.sampled_from([3, 40]),
    st.sampled_from(["mean", "median"]),
    st.booleans(),
)
def test_levels_are_of_the_top_score_and_each_has_its_queries(
    seed, least, levels, explicit, center, coarse
):
    logits = many(seed, 100)[0]
    if coarse:
        logits = logits.round()
    fit = FitSettings(
        min_members=least,
        shared_levels=levels,
        explicit_classes=explicit,
        center=center,
        rate_weight=0.0,
    )
    book = fit_codebook(logits, fit)
    assert book.fault() is None
    cells, tops = book(logits), logits.softmax(-1).amax(-1)
    labels = logits.argmax(-1)
    few = labels.bincount(minlength=40) < (1 if levels == 1 else 2) * least
    is_shared = book.shared > 0
    assert torch.equal(few[book.labels], is_shared)
    assert (book.shared[is_shared] >= least).all()
    counts = cells.bincount(minlength=book.sizes.cells)
    if (is_shared & (book.labels.bincount()[book.labels] > 1)).any() or not is_shared.any():
        assert torch.equal(counts, book.members)
    per_label = book.labels[is_shared].bincount(minlength=40)[few]
    assert 1 <= per_label.unique().item() <= levels
    # Queries that are as sure are at the same level, whatever their label.
    place = torch.zeros_like(book.labels)
    for label in few.nonzero()[:, 0].tolist():
        own = (book.labels == label).nonzero()[:, 0]
        place[own] = torch.arange(len(own))
    rows = few[labels]
    sure, level = tops[rows], place[cells[rows]]
    order = sure.argsort()
    runs = level[order].unique_consecutive()
    for number in level.unique().tolist():
        assert int((level == number).sum()) == int(book.shared[is_shared][number])
    if center == "mean":
        assert len(runs) == len(level.unique())


def test_no_query_and_no_group_shapes_more_than_its_share_of_a_profile():
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((60, 12), 0.01, dtype=torch.float64)
    rows[torch.arange(60), torch.randint(1, 12, (60,), generator=generator)] = 0.9
    # One query alone is of label 0, and all its rest is class 5.
    rows[0], rows[0, 0], rows[0, 5] = 0.001, 0.6, 0.39
    groups = torch.arange(60)
    for own in (None, groups):
        shape = profiles_of(rows.log(), torch.tensor([0]), 20, "mean", 12, own)[0]
        others = rows[1:, 5].mean() / (1 - rows[1:, 0].mean())
        # Without the cut-off its weight is .5, and the entry .2 or more.
        assert shape[5] < others + 1 / 20
    # Six rows of one group weigh no more than one.
    alike = torch.cat([rows[:1]] * 6 + [rows[1:]])
    together = torch.cat([torch.zeros(6, dtype=torch.int64), torch.arange(1, 60)])
    grouped = profiles_of(alike.log(), torch.tensor([0]), 20, "mean", 12, together)[0]
    torch.testing.assert_close(grouped, shape, rtol=1e-9, atol=0)


def test_levels_move_queries_less_than_the_label_alone_and_stay_within_the_cells():
    fitting, asked = many(1, 160)[0], many(2, 300)[0]
    found = []
    for levels in (1, 2, 4, 8):
        book = fit_codebook(
            fitting, FitSettings(min_members=5, shared_levels=levels, center="median")
        )
        found.append(measure_codebook(book, asked).l1_mean)
    assert found[0] > 1.05 * found[1] > 1.05 * found[2]
    assert found[3] < 1.02 * found[2]
    few = fit_codebook(fitting, FitSettings(min_members=10, shared_levels=4, max_cells=85))
    assert 40 <= few.sizes.cells <= 85
    alone = fit_codebook(
        fitting, FitSettings(min_members=10, shared_levels=4, rate_weight=float("inf"))
    )
    assert alone.sizes.cells == 40


def test_a_certificate_says_how_few_of_a_label_share_a_vector_and_certifies_no_error(tmp_path):
    logits, images = many(3, 200)
    fit = FitSettings(min_members=10, shared_levels=4, center="median")
    release = CodebookRelease.fit(
        logits, images, generator=torch.Generator().manual_seed(0), settings=fit
    )
    told = release.certificate
    assert told.error is None
    assert told.yardsticks is None
    assert told.members_least < 10 <= told.shared_least
    assert told.identification.cells == release.state.sizes.cells
    words = " ".join(certificate_lines(told))
    assert f"At least {told.shared_least} calibration queries" in words
    assert "no k-anonymity within a label" in words
    release.save(tmp_path / "guard.safetensors")
    assert CodebookRelease.load(tmp_path / "guard.safetensors").certificate == told
    # With queries enough the error is certified over cells of labels and levels.
    others = many(4, 1500)
    assert certify(release.state, *others).error.estimate > 0
