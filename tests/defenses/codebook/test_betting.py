"""Bounds by betting: they hold where queries repeat, where cells are small, and where groups are.

Traffic is drawn with replacement from a population that is known, so that the truth is, too.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from oneway.defenses.codebook import betting, certified_error
from oneway.defenses.codebook.betting import (
    DRY,
    LATEST,
    MOST,
    ORDERS,
    bound_error,
    bound_errors,
    canonical_order,
    least_means,
    one_of_each,
    pair_up,
    stakes_for,
)
from oneway.defenses.codebook.measures import error_shares, estimate_over_groups
from oneway.defenses.codebook.parts import Kind, certify_parts
from oneway.defenses.codebook.traffic import first_copies, query_keys
from reference import codebook as slow

DRAWS = 100
MISSES = 2
"""Of 100 draws at 95 %. Bets are cautious, and miss none of these: at 80 % they miss 6."""

CELLS = st.lists(st.integers(0, 5), max_size=60)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def population(cells: int, count: int = 2000) -> tuple[Tensor, Tensor]:
    """Return cells, all as large, and queries of two pixels."""
    return torch.arange(count) % cells, torch.rand(count, 2, generator=seeded(1)).double()


def atom(share: float) -> Tensor:
    """Return the shares of a population in which one query is frequent."""
    shares = torch.full((2000,), (1 - share) / 1999, dtype=torch.float64)
    shares[7] = share
    return shares


def zipf(power: float) -> Tensor:
    shares = torch.arange(1, 2001, dtype=torch.float64) ** -power
    return shares / shares.sum()


def true_error(cells: Tensor, queries: Tensor, shares: Tensor) -> float:
    """Return E Var(query | cell) of a population."""
    mass = torch.zeros(int(cells.max()) + 1).double().index_add(0, cells, shares)
    sums = torch.zeros(len(mass), queries.shape[1]).double()
    sums.index_add_(0, cells, queries * shares.unsqueeze(-1))
    means = sums / mass.clamp_min(1e-300).unsqueeze(-1)
    return float(((queries - means[cells]).square().mean(-1) * shares).sum())


TRAFFIC = {
    "half is one query": (5, atom(0.5)),
    "90 % is one query": (5, atom(0.9)),
    "97 % is one query": (2, atom(0.97)),
    "Zipf 1.1": (10, zipf(1.1)),
    "Zipf 1.3": (10, zipf(1.3)),
    "one cell": (1, zipf(0.0)),
    "cells of two": (100, zipf(0.0)),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search for bounds with few steps and orders: they hold for any number of both."""
    monkeypatch.setattr(betting, "LEFT", 0.1)
    monkeypatch.setattr(betting, "ORDERS", 1)


@pytest.mark.usefixtures("quick")
def test_interval_and_lower_bound_hold_at_their_level_on_any_traffic():
    for name, (kinds, shares) in TRAFFIC.items():
        cells, queries = population(kinds)
        truth, generator, misses = true_error(cells, queries, shares), seeded(2), [0, 0]
        for _ in range(DRAWS):
            rows = torch.multinomial(shares, 200, replacement=True, generator=generator)
            found = bound_error(cells[rows], queries[rows], 0.95)
            misses[0] += found.lower > truth
            misses[1] += not found.low <= truth <= found.high
        assert max(misses) <= MISSES, name


@pytest.mark.usefixtures("quick")
def test_without_their_copies_frequent_queries_are_certified_falsely():
    """What the bound was: it speaks of traffic that nobody sees."""
    cells, queries = population(20)
    shares = atom(0.9)
    truth, generator, misses = true_error(cells, queries, shares), seeded(2), 0
    for _ in range(10):
        rows = torch.multinomial(shares, 2000, replacement=True, generator=generator)
        rows = rows[first_copies(query_keys(queries[rows]))]
        misses += bound_error(cells[rows], queries[rows], 0.95).lower > truth
    assert misses == 10


def test_the_bounds_are_tight_once_there_are_pairs():
    for kinds, count, least, most in ((1, 300, 0.84, 1.25), (20, 1500, 0.9, 1.1)):
        cells, queries = population(kinds)
        rows = torch.randint(2000, (count,), generator=seeded(3))
        truth = true_error(cells, queries, zipf(0.0))
        found = bound_error(cells[rows], queries[rows], 0.95)
        case = f"{kinds} cells, {count} queries"
        assert least * truth < found.low < found.lower < truth < found.high < most * truth, case
    levels = [bound_error(cells[rows], queries[rows], level) for level in (0.5, 0.9, 0.999)]
    assert levels[0].lower > levels[1].lower > levels[2].lower > 0
    assert levels[0].high < levels[1].high < levels[2].high
    # Bounds of many parts share the risk.
    shared = bound_errors([torch.arange(1500)], cells[rows], queries[rows], 0.9, together=[100])
    assert shared[0] == bound_error(cells[rows], queries[rows], 1 - 0.1 / 100)


def test_no_attacker_errs_on_one_constant_query_and_nothing_is_certified_of_it():
    found = bound_error(torch.zeros(400).long(), torch.full((400, 3), 0.3), 0.95)
    assert found.low == found.lower == 0
    assert found.high < 0.02
    for count in (1, 2, 3):
        few = bound_error(torch.zeros(count).long(), torch.rand(count, 3), 0.95)
        assert (few.low, few.lower, few.high) == (0, 0, 0.25)


@given(st.one_of(CELLS, st.integers(0, 60).map(lambda count: [0] * count)))
def test_pairs_are_what_the_past_says(cells):
    asking, partners = pair_up(torch.tensor(cells, dtype=torch.int64))
    wanted = slow.pairs_in_turn(cells, DRY, LATEST)
    assert list(zip(asking.tolist(), partners.tolist(), strict=True)) == wanted


@given(CELLS, CELLS)
def test_a_row_asks_by_the_cells_before_it_alone_and_meets_each_row_once(cells, others):
    others = others[: len(cells)]
    changed = cells[: len(cells) - len(others)] + others
    known = len(cells) - len(others)
    # One more cell at the end: that there are several is nothing of the past.
    pairs = [pair_up(torch.tensor([*rows, 6])) for rows in (cells, changed)]
    early = [{row for row in asking.tolist() if row <= known} for asking, _ in pairs]
    assert early[0] == early[1]
    asking, partners = pairs[0]
    met = partners >= 0
    rows, with_whom = asking[met].tolist(), partners[met].tolist()
    assert len({*rows, *with_whom}) == 2 * len(rows)
    for row, partner in zip(rows, with_whom, strict=True):
        assert partner < row
        assert cells[row] == cells[partner]


def test_in_one_cell_every_other_row_asks_and_few_rows_find_nobody_in_many():
    asking, partners = pair_up(torch.zeros(1001, dtype=torch.int64))
    assert len(asking) == 500
    assert (partners >= 0).all()
    for kinds, least in ((20, 0.4), (100, 0.25)):
        cells = torch.randint(kinds, (5000,), generator=seeded(kinds))
        asking, partners = pair_up(cells)
        assert len(asking) > least * 5000
        assert (partners < 0).double().mean() < DRY


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 2), st.integers(2, 40), st.floats(0.5, 0.999))
def test_the_bound_is_the_reference_s(seed, kinds, count, level):
    cells = torch.randint(kinds, (count,), generator=seeded(seed))
    queries = torch.rand(count, 2, generator=seeded(seed)).double() ** 2
    order, number = canonical_order(cells, query_keys(queries))
    generator, orders = seeded(number), []
    for _ in range(ORDERS):
        rows = order[torch.randperm(count, generator=generator)].tolist()
        pairs = slow.pairs_in_turn(cells[rows].tolist(), DRY, LATEST)
        told = queries[rows].numpy()
        orders.append([((told[i] - told[j]) ** 2).mean() / 2 if j >= 0 else 0.0 for i, j in pairs])
    wanted = slow.least_mean(orders, count / 2, 1 - level, MOST)
    found = bound_error(cells, queries, level).lower
    assert found == pytest.approx(min(0.25, wanted), rel=1e-6, abs=2e-9)


def test_products_are_e_values_and_fall_as_the_mean_grows():
    values = torch.rand(4000, 30, generator=seeded(5)).double() ** 4 / 2
    truth = 0.1
    stakes = stakes_for(values, 30, 0.05, 0.0)
    assert (stakes[:, 0] == 0).all()
    products = (1 + stakes.clamp_max(MOST / truth) * (values - truth)).prod(-1)
    error = float(products.std()) / 4000**0.5
    assert abs(float(products.mean()) - 1) < 4 * error
    assert float((products >= 20).double().mean()) < 0.05
    # No stake looks at its own value, or at a later one.
    changed = values.clone()
    changed[:, 9:] = 0.5
    assert torch.equal(stakes_for(changed, 30, 0.05, 0.0)[:, :10], stakes[:, :10])
    risks = torch.tensor([0.5, 0.1, 0.01]).double()
    bounds = least_means(*(each[:4].expand(3, 4, 30) for each in (values, stakes)), risks)
    assert bounds[0] > bounds[1] > bounds[2] > 0


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from([1e-6, 1e-3, 0.1, 0.5]))
def test_the_search_leaves_a_millionth_of_any_bound_open_on_the_safe_side(seed, count, largest):
    values = largest * torch.rand(6, 3, count, generator=seeded(seed)).double() ** 2
    risks = torch.logspace(-6, -0.5, 6, dtype=torch.float64)
    stakes = stakes_for(values, count, risks.view(-1, 1, 1), 0.0)
    bounds = least_means(values, stakes, risks)

    def refutes(means):
        mean = means.view(-1, 1, 1)
        products = (1 + stakes.minimum(MOST / mean) * (values - mean)).prod(-1)
        return products.mean(-1) * risks

    positive = bounds > 0
    assert (refutes(bounds)[positive] >= 1 - 1e-9).all()
    assert (refutes((1 + 1e-6) * bounds + betting.TINY) <= 1 + 1e-9).all()


def test_neither_the_order_of_rows_nor_their_type_or_names_matter():
    cells, queries = population(5, 200)
    found = bound_error(cells, queries, 0.95)
    order = torch.randperm(200, generator=seeded(1))
    state = torch.get_rng_state()
    assert bound_error(cells[order], queries[order], 0.95) == found
    assert torch.equal(torch.get_rng_state(), state)
    for dtype in (torch.float16, torch.bfloat16):
        other = bound_error(cells - 3, queries.to(dtype), 0.95)
        assert other.lower == pytest.approx(found.lower, rel=0.2), dtype
    # Equal values in another type, or with another sign of 0, are the same queries.
    coarse = (queries * 4).round() / 4
    found = bound_error(cells, coarse, 0.95)
    for same in (coarse.half(), coarse.float(), torch.where(coarse == 0, -coarse, coarse)):
        assert bound_error(cells, same, 0.95).lower == pytest.approx(found.lower, rel=1e-6)


# Groups: rows that depend on each other.


def people(seed: int, count: int = 30) -> tuple[Tensor, Tensor]:
    """Return people's numbers and their pictures: many alike; one in twenty is another sort."""
    generator = seeded(seed)
    sort = (torch.rand(count, generator=generator) < 0.05).double()
    sizes = torch.where(sort > 0, 30, 10)
    groups = torch.repeat_interleave(torch.arange(count), sizes)
    noise = 0.05 * torch.rand(len(groups), 1, generator=generator).double()
    return groups, 0.95 * sort[groups].unsqueeze(-1) + noise


PEOPLE_ERROR = 0.95**2 * 0.05 * 0.95 + 0.05**2 / 12


@pytest.mark.usefixtures("quick")
def test_bounds_over_groups_hold_where_those_over_rows_do_not():
    misses = [0, 0]
    for seed in range(DRAWS):
        groups, queries = people(seed)
        cells = torch.zeros_like(groups)
        found = bound_error(cells, queries, 0.95, groups)
        misses[0] += not found.low <= PEOPLE_ERROR <= found.high or found.lower > PEOPLE_ERROR
        misses[1] += bound_error(cells, queries, 0.95).lower > PEOPLE_ERROR
    assert misses[0] <= MISSES < misses[1]


def test_groups_of_one_are_rows_and_copies_of_a_row_in_one_group_count_once():
    cells, queries = population(4, 300)
    alone = torch.randperm(300, generator=seeded(2))
    single = bound_error(cells, queries, 0.95)
    assert bound_error(cells, queries, 0.95, alone).lower == pytest.approx(single.lower, rel=0.1)
    groups, thrice = torch.arange(300).repeat(3), (cells.repeat(3), queries.repeat(3, 1))
    assert bound_error(*thrice, 0.95, groups).lower == pytest.approx(single.lower, rel=0.1)
    estimate = certified_error(cells, queries).estimate
    assert certified_error(*thrice, groups=groups).estimate == pytest.approx(estimate)
    assert certified_error(cells, queries, groups=torch.zeros_like(cells)).estimate == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 6))
def test_the_estimate_over_groups_is_that_of_all_pairs(seed, count, kinds):
    generator = seeded(seed)
    cells, groups = torch.randint(kinds, (2, count), generator=generator)
    queries = torch.rand(count, 3, generator=generator)
    found, alone = estimate_over_groups(7 * cells + 3, queries, groups - 2)
    wanted = slow.within_cells_of_groups(cells.tolist(), queries.double().numpy(), groups.tolist())
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert 0 <= alone <= 1 + 1e-12
    one = torch.arange(count)
    values, lone = error_shares(cells, queries)
    found, alone = estimate_over_groups(cells, queries, one)
    assert found == pytest.approx(float(values.mean()), rel=1e-9, abs=1e-12)
    assert alone == pytest.approx(float(lone.double().mean()))


def test_one_row_of_each_group_is_drawn_and_all_rows_and_places_alike():
    groups = torch.tensor([4, 4, 4, 9, 0, 0])
    generator, counts = seeded(0), torch.zeros(3, 6)
    for _ in range(1000):
        rows = one_of_each(groups, generator)
        assert sorted(groups[rows].tolist()) == [0, 4, 9]
        counts[torch.arange(3), rows] += 1
    wanted = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2]) / 3
    assert ((counts / 1000 - wanted).abs() < 0.06).all()


# Parts of the traffic.


def test_the_worst_part_is_certified_and_parts_with_few_queries_are_counted(monkeypatch):
    cells, queries = population(4, 800)
    # Queries of part 1 are nearly alike; part 2 has 19 queries.
    parts = torch.arange(800) // 4 % 2
    queries[parts == 1] /= 20
    parts[:19] = 2
    (found,) = certify_parts([Kind(parts)], cells, queries, 0.95)
    assert list(found.errors) == ["0", "1"]
    assert (found.few, found.few_share) == (1, 19 / 800)
    for part, error in found.errors.items():
        own = parts == int(part)
        alone = certified_error(cells[own], queries[own], 0.975)
        # Filled up to another length, sums may differ in their last bit.
        assert vars(error) == pytest.approx(vars(alone), rel=1e-12)
    assert found.errors["1"].high < 0.3 * found.errors["0"].lower_bound
    monkeypatch.setattr(betting, "NUMBERS_AT_ONCE", 1)  # one part after the other
    (again,) = certify_parts([Kind(parts)], cells, queries, 0.95)
    for part, error in found.errors.items():
        assert vars(again.errors[part]) == pytest.approx(vars(error), rel=1e-12)
    # Of groups, as many are needed.
    (by_group,) = certify_parts([Kind(parts)], cells, queries, 0.95, torch.arange(800) // 50)
    assert by_group.errors == {}
    assert by_group.few == 3


def test_kinds_of_parts_are_certified_together_as_each_by_itself():
    cells, queries = population(30, 900)
    kinds = [Kind(torch.zeros_like(cells), least=1), Kind(cells), Kind(cells % 4), Kind(cells // 9)]
    for groups in (None, torch.arange(900) // 2):
        found = certify_parts(kinds, cells, queries, 0.9, groups)
        for kind, together in zip(kinds, found, strict=True):
            (alone,) = certify_parts([kind], cells, queries, 0.9, groups)
            assert (together.few, together.few_share) == (alone.few, alone.few_share)
            assert together.errors.keys() == alone.errors.keys()
            for part, error in together.errors.items():
                # Filled up to another length, sums may differ in their last bit.
                assert vars(error) == pytest.approx(vars(alone.errors[part]), rel=1e-12)
        # Each kind's parts share the risk among themselves alone.
        (whole,) = found[0].errors.values()
        assert whole == certified_error(cells, queries, 0.9, groups)


def test_pairs_are_compared_as_numpy_does_in_any_type_and_layout(monkeypatch):
    wide = torch.rand(50, 12, generator=seeded(6), dtype=torch.float64)
    rows, partners = torch.randint(50, (2, 200), generator=seeded(7))
    for count in (2**17, 30):  # at once
        monkeypatch.setattr(betting, "NUMBERS_AT_ONCE", count)
        for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.half, 1e-6)):
            for queries in (wide.to(dtype), wide.to(dtype)[:, ::3], wide.to(dtype).T.clone().T):
                values = queries.double().numpy()
                wanted = ((values[rows] - values[partners]) ** 2).mean(1) / 2
                found = betting.half_squared(queries, rows, partners)
                assert found.tolist() == pytest.approx(wanted.tolist(), rel=tolerance), dtype


@pytest.mark.usefixtures("quick")
def test_bounds_of_parts_hold_all_at_once():
    cells, queries = population(1)
    truth, generator, misses = true_error(cells, queries, zipf(0.0)), seeded(4), 0
    for _ in range(40):
        rows = torch.randint(2000, (240,), generator=generator)
        kinds = [Kind(torch.arange(240) % 6)]
        (found,) = certify_parts(kinds, cells[rows], queries[rows], 0.8)
        misses += max(error.lower_bound for error in found.errors.values()) > truth
    # At 80 % for each by itself, 1 - .8^6 = 74 % of draws would miss one.
    assert misses <= 14
    assert math.isclose(truth, 1 / 12, rel_tol=0.05)


def test_many_rows_are_paired_in_fewer_orders_and_at_least_in_one():
    keys = torch.arange(2**15 + 1)
    for count, orders in ((4096, 8), (4097, 7), (2**14, 2), (2**15 + 1, 1)):
        cells = torch.zeros(count, dtype=torch.int64)
        asked, met = betting.orders_of_pairs(cells, keys[:count], None)
        assert asked.shape == met.shape == (orders, count // 2), count
