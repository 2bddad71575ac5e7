"""Rows are split with their copies, copies make no members, and groups stay whole."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.defenses.codebook import (
    Budget,
    Codebook,
    CodebookRelease,
    FitSettings,
    certify,
    measure_codebook,
)
from oneway.defenses.codebook.boxes import groups_up_to
from oneway.defenses.codebook.traffic import (
    LEAST_SHARED,
    first_copies,
    measure_traffic,
    query_keys,
    split_rows,
)
from oneway.errors import InvalidOptionError, InvalidTensorError
from rows import FLOATING

LIMIT = 0.1  # of a budget, in L1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(
    st.integers(0, 60),
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.4]), max_size=2),
    st.booleans(),
    st.integers(0, 5),
)
def test_a_split_has_every_row_once_and_every_group_whole(count, shares, grouped, seed):
    groups = torch.randint(-3, 4, (count,), generator=seeded(seed)) if grouped else None
    parts = split_rows(count, shares, seeded(seed), groups)
    assert torch.cat(parts).sort().values.tolist() == list(range(count))
    units = list(range(count)) if groups is None else groups.tolist()
    total, taken = len(set(units)), 0.0
    behind = [{units[row] for row in part.tolist()} for part in parts]
    for share, part in zip(shares, behind, strict=False):
        before, taken = taken, taken + share
        assert len(part) == round(taken * total) - round(before * total)
    assert sum(map(len, behind)) == total
    # However the rest is split, the first part stays.
    if shares:
        assert torch.equal(parts[0], split_rows(count, shares[:1], seeded(seed), groups)[0])


def test_a_frequent_query_is_on_both_sides_in_its_share():
    rows = torch.cat([torch.zeros(900), torch.arange(1, 101).float()]).unsqueeze(-1)
    for seed in range(20):
        certifying, fitting = split_rows(1000, [0.2], seeded(seed))
        for part in (certifying, fitting):
            # Four standard errors of a fifth.
            assert float((rows[part] == 0).double().mean()) == pytest.approx(0.9, abs=0.085)


@st.composite
def traffic(draw):
    """Scores, queries with copies planted, and groups; copies may be of other groups."""
    logits, images = scored(draw(st.integers(0, 20)), 100, classes=2)
    copies = torch.randint(0, 100, (draw(st.integers(0, 80)),), generator=seeded(1))
    copies[: len(copies) // 2] = 3  # an atom
    rows = torch.cat([torch.arange(100), copies])
    rows = rows[torch.randperm(len(rows), generator=seeded(2))]
    count = draw(st.integers(2, 40))
    groups = torch.randint(0, count, rows.shape, generator=seeded(count))
    return logits[rows], images[rows], groups


@settings(max_examples=8)
@given(traffic(), st.integers(2, 9), st.sampled_from([0.0, 0.02]), st.sampled_from([1.0, 0.4]))
def test_members_are_distinct_queries_and_distinct_groups(case, least, weight, most):
    logits, images, groups = case
    keys = query_keys(images)
    first, rows = first_copies(keys), split_rows(len(logits), [0.0], seeded(), groups)[1]
    options = {
        "generator": seeded(),
        "settings": FitSettings(min_members=least, rate_weight=weight, max_group_share=most),
        "held_out": 0,
        "groups": groups,
    }
    people = len(groups[rows[first_copies(keys[rows])]].unique())
    if people < least:
        with pytest.raises(InvalidTensorError, match=f"of {least} groups or more"):
            CodebookRelease.fit(logits, images, **options)
        return
    release = CodebookRelease.fit(logits, images, **options)
    book = release.state
    assert sorted(release.fitting_rows.tolist()) == list(range(len(logits)))
    cells, seen = book(logits).tolist(), set()
    for cell in range(book.sizes.cells):
        rows = [row for row, at in enumerate(cells) if at == cell]
        distinct = {images[row].numpy().tobytes() for row in rows}
        if book.shared[cell]:  # the only vector of a label with too few queries
            assert (book.labels == book.labels[cell]).sum() == 1
            assert least <= book.shared[cell] <= people
            continue
        seen.add(cell)
        assert len(distinct) == book.members[cell] >= least
        # Each query counts for one of those who sent it.
        assert least <= book.groups[cell] <= len({int(groups[row]) for row in rows})
        assert book.groups[cell] <= len(distinct)
    told = release.certificate
    if seen and told.shared_least is None:
        assert told.members_least >= least
        assert told.groups_least == min(int(book.groups[cell]) for cell in seen)
    assert told.traffic.distinct == len(first)
    assert told.fault(book) is None


def test_fewer_people_than_members_are_refused_though_their_queries_are_many():
    # Each label would have one vector, which reveals the label alone, but is made of six people.
    logits, images = scored(1, 60)
    people = torch.arange(60) % 6
    with pytest.raises(InvalidTensorError, match=r"of 20 groups or more, .* are of 6\."):
        CodebookRelease.fit(logits, images, generator=seeded(), held_out=0, groups=people)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 4), st.integers(1, 8))
def test_groups_are_counted_up_to_each_row(seed, rows, width, most):
    groups = torch.randint(0, most, (rows, width), generator=seeded(seed))
    found = groups_up_to(groups)
    for row, column in itertools.product(range(rows), range(width)):
        assert found[row, column] == len(set(groups[: row + 1, column].tolist()))


def test_no_cell_is_mostly_one_person_s_and_a_label_that_is_reveals_itself_alone():
    logits, images = scored(1, 400)
    labels = logits.argmax(-1)
    groups = torch.arange(400) % 40
    # One person sends half of the queries on one side of label 0, and nearly all of label 1.
    one_side = (labels == 0) & (logits[:, 0] > logits[labels == 0, 0].median())
    groups[one_side] = torch.where(torch.arange(400) % 4 > 0, -1, groups)[one_side]
    groups[labels == 1] = torch.where(torch.arange(400) % 10 > 0, -2, groups)[labels == 1]
    worst = {}
    for most in (1.0, 0.5):
        fitting = FitSettings(min_members=4, rate_weight=0.0, max_group_share=most)
        release = CodebookRelease.fit(
            logits, images, generator=seeded(), settings=fitting, held_out=0, groups=groups
        )
        cells = release.state(logits)
        shares = {}
        for cell in cells.unique().tolist():
            sent = groups[cells == cell]
            shares[cell] = float(sent.unique(return_counts=True)[1].max() / len(sent))
        alone = set((release.state.shared > 0).nonzero()[:, 0].tolist())
        worst[most] = max(share for cell, share in shares.items() if cell not in alone)
        assert release.certificate.labels_alone == (most < 1)
        enough = [cell for cell in shares if int((cells == cell).sum()) >= LEAST_SHARED]
        assert release.certificate.traffic.group_share == pytest.approx(
            max(shares[cell] for cell in enough)
        )
    assert worst[1.0] > 0.5 >= worst[0.5]
    with pytest.raises(InvalidOptionError, match=r"max_group_share 0\.5 needs groups"):
        CodebookRelease.fit(logits, images, generator=seeded(), settings=fitting)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 6), st.integers(1, 5))
def test_who_is_behind_each_cell_is_counted(seed, count, cells, people):
    generator = seeded(seed)
    at, groups, queries = (
        torch.randint(0, most, (count,), generator=generator) for most in (cells, people, 9)
    )
    found = measure_traffic(at, "kept", keys=query_keys(queries.view(-1, 1).float()), groups=groups)
    counts = [queries.tolist().count(value) for value in set(queries.tolist())]
    assert (found.distinct, found.commonest) == (len(counts), max(counts) / count)
    rows = list(zip(at.tolist(), groups.tolist(), strict=True))
    behind = {cell: [who for where, who in rows if where == cell] for cell, _ in rows}
    one = sum(len(who) for who in behind.values() if len(set(who)) == 1)
    assert (found.groups, found.one_group) == (len(set(groups.tolist())), one / count)
    shares = [
        max(map(who.count, who)) / len(who) for who in behind.values() if len(who) >= LEAST_SHARED
    ]
    assert found.group_share == (max(shares) if shares else None)
    bare = measure_traffic(at, "kept")
    assert set(dataclasses.astuple(bare)[2:]) == {None}


def test_a_certificate_of_repeated_traffic_is_near_the_truth_and_without_copies_far_above():
    """Nine of ten queries are one image: who guesses cell means errs next to nothing."""
    logits, images = scored(1, 2000)
    repeated = torch.rand(2000, generator=seeded(3)) < 0.9
    rows = torch.where(repeated, torch.tensor(0), torch.arange(2000))
    asked = torch.where(torch.rand(10_000, generator=seeded(4)) < 0.9, 0, torch.arange(10_000))
    options = {"generator": seeded(), "settings": FitSettings(rate_weight=0.02)}
    release = CodebookRelease.fit(logits[rows], images[rows], **options, held_out=0.5)
    told = release.certificate
    fresh, shown = scored(5, 10_000)
    fresh[0], shown[0] = logits[0], images[0]
    cells, flat = release.state(fresh[asked]), shown[asked].flatten(1)
    counts = cells.bincount(minlength=release.state.sizes.cells).clamp_min(1)
    means = torch.zeros(len(counts), 16, dtype=torch.float64).index_add_(0, cells, flat)
    truth = float((means / counts.unsqueeze(-1))[cells].sub(flat).square().mean())
    assert told.error.lower_bound <= truth
    assert told.error.low < truth < told.error.high
    assert told.traffic.commonest == pytest.approx(0.9, abs=0.03)
    assert told.traffic.copies == "kept"
    # The old way: copies are dropped before certifying, and the bound is false for this traffic.
    dropped = CodebookRelease.fit(
        logits[rows], images[rows], **options, held_out=0.5, drop_copies=True
    ).certificate
    assert dropped.error.low > 2 * truth
    assert (dropped.traffic.copies, dropped.traffic.distinct) == ("dropped", dropped.queries)
    once = certify(release.state, logits[rows], images[rows], drop_copies=True)
    assert once.queries == once.traffic.distinct == len(rows.unique())


def test_a_budget_is_about_the_traffic_that_fits():
    logits, images = scored(1, 300)
    rows = torch.cat([torch.arange(300), torch.full((700,), 5)])
    release = CodebookRelease.fit(
        logits[rows],
        images[rows],
        generator=seeded(),
        settings=FitSettings(min_members=10),
        budget=Budget(l1_mean=LIMIT),
    )
    fitted = rows[release.fitting_rows]
    assert len(fitted) == 800
    assert measure_codebook(release.state, logits[fitted]).l1_mean <= LIMIT
    # No weight keeps it on the distinct queries alone: seven of ten users send the same one.
    assert measure_codebook(release.state, logits[fitted.unique()]).l1_mean > LIMIT


def test_with_copies_dropped_all_copies_of_a_fitted_query_are_known_as_fitted():
    logits, images = scored(1, 400)
    rows = torch.cat([torch.arange(400), torch.arange(30)])
    release = CodebookRelease.fit(
        logits[rows],
        images[rows],
        generator=seeded(),
        settings=FitSettings(min_members=5),
        drop_copies=True,
    )
    fitted = set(rows[release.fitting_rows].tolist())
    assert len(fitted) == 320
    assert release.fitting_rows.tolist() == [row for row in range(430) if int(rows[row]) in fitted]


def test_copies_are_found_in_every_type():
    for dtype in FLOATING:
        images = torch.rand(6, 1, 3, 3, generator=seeded(3)).to(dtype)
        queries = torch.cat([images, images[2:4], images[:1]])
        keys = query_keys(queries)
        assert torch.equal(keys[6:], keys[[2, 3, 0]]), dtype
        assert first_copies(keys).tolist() == [0, 1, 2, 3, 4, 5], dtype
        assert len(query_keys(images[:, :, 0, 0]).unique()) == 6, dtype


def test_a_certificate_does_not_hold_the_numbers_of_people():
    people = 10**6 + torch.arange(100) % 4
    images = scored(1, 100)[1] * (0.2 + 0.2 * (3 - people.view(-1, 1, 1, 1) % 4))
    logits = torch.tensor([[2.0, 0.0]]).repeat(100, 1)
    told = certify(Codebook(2, 2, 1, 2), logits, images, groups=people)
    assert told.traffic.groups == 4
    # Numbered from the worst on, whoever they are: here the last of them is the worst.
    assert list(told.parts["group"].errors) == ["1", "2", "3", "4"]
    bounds = [error.lower_bound for error in told.parts["group"].errors.values()]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]


def test_groups_and_copies_that_cannot_be_are_refused():
    logits, images = scored(1, 100)
    for groups in (torch.zeros(99, dtype=torch.int64), torch.zeros(100)):
        for function in (
            lambda groups=groups: CodebookRelease.fit(
                logits, images, generator=seeded(), groups=groups
            ),
            lambda groups=groups: certify(
                CodebookRelease.fit(logits, generator=seeded()).state,
                logits,
                images,
                groups=groups,
            ),
        ):
            with pytest.raises(InvalidTensorError, match=r"groups must be int64 of shape \(100,\)"):
                function()
    with pytest.raises(InvalidOptionError, match="copies can only be dropped"):
        CodebookRelease.fit(logits, generator=seeded(), drop_copies=True)
    few = FitSettings(min_members=30)
    rows = torch.arange(100) % 25
    with pytest.raises(InvalidTensorError, match=r"leaves 2\d of 25 distinct queries to fit to"):
        CodebookRelease.fit(logits[rows], images[rows], generator=seeded(), settings=few)
