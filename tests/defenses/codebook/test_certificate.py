"""Certificates, on queries whose answer is known: what is estimated, how sure, and what is refused.

Cells stand for themselves here: a table whose label is the cell, with scores that name it.
"""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from defenses.codebook.scored import scored
from oneway.defenses.codebook import (
    ASSUMPTIONS,
    NOT_CHECKED,
    Certificate,
    Codebook,
    CodebookRelease,
    FitSettings,
    HeldOut,
    certified_error,
    certify,
    fit_codebook,
    measures,
)
from oneway.defenses.codebook.measures import bits_beyond_label, lower_expectation
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import Interval
from reference import codebook as slow
from rows import random_rows
from surrogates import random_images


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SHARES = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
SHAPES = torch.tensor([[1.0, 1.0], [2.0, 6.0], [0.5, 0.5], [30.0, 10.0]])
"""Of the Beta distribution of a cell's pixels: even, low, at the ends, high and narrow."""

PIXELS = 6
VARIANCES = (SHAPES.prod(-1) / (SHAPES.sum(-1) ** 2 * (SHAPES.sum(-1) + 1))).double()
TRUE_ERROR = float((SHARES * VARIANCES).sum())
MEANS = (SHAPES[:, 0] / SHAPES.sum(-1)).double()


def drawn(seed: int, count: int, shares: Tensor = SHARES) -> tuple[Tensor, Tensor]:
    """Draw cells by their shares, and Beta pixels by their cell."""
    numbers = np.random.default_rng(seed)
    cells = numbers.choice(len(shares), count, p=shares.numpy())
    a, b = SHAPES.double().numpy()[cells % 4].T
    queries = numbers.beta(a[:, None], b[:, None], (count, PIXELS))
    return torch.from_numpy(cells), torch.from_numpy(queries)


def no_interval(values: Tensor, **_: object) -> Interval:
    """Stand in for the bootstrap where only estimate and lower bound are looked at."""
    return Interval(math.nan, float(values.mean()), math.nan)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "bootstrap_mean", no_interval)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 20))
def test_the_estimate_is_the_unbiased_variance_within_cells(seed, count, kinds):
    cells, queries = drawn(seed, count, torch.full((kinds,), 1 / kinds))
    cells = 7 * cells + 3  # numbers are names
    found = certified_error(cells, queries.float(), seeded(0))
    wanted = slow.within_cells(cells.numpy(), queries.float().double().numpy())
    assert found.estimate == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    counts = [cells.tolist().count(cell) for cell in cells.tolist()]
    assert found.alone == pytest.approx(counts.count(1) / count)
    assert found.queries == count
    assert 0 <= found.lower_bound <= found.estimate + 1e-12


@pytest.mark.usefixtures("quick")
def test_more_rows_than_are_computed_at_once_change_nothing():
    cells, queries = drawn(5, 9000)
    found = certified_error(cells, queries, seeded(0))
    assert found.estimate == pytest.approx(
        slow.within_cells(cells.numpy(), queries.numpy()), rel=1e-9
    )
    # Half of 8,192 rows and more are pairs.
    halves = pairs_of(cells, queries)
    assert len(halves) > 4096


@pytest.mark.usefixtures("quick")
def test_the_estimate_is_unbiased_where_no_cell_is_small():
    found = torch.tensor(
        [certified_error(*drawn(seed, 200), seeded(0)).estimate for seed in range(400)]
    )
    error = float(found.std()) / 400**0.5
    assert abs(float(found.mean()) - TRUE_ERROR) < 3.5 * error
    # A variance that is divided by all rows would be off by six standard errors.
    assert float(VARIANCES.sum()) / 200 > 6 * error


@pytest.mark.usefixtures("quick")
def test_the_estimate_errs_to_the_low_side_by_what_is_alone():
    kinds, count = 60, 60
    shares = torch.full((kinds,), 1 / kinds, dtype=torch.float64)
    true = float(VARIANCES.mean())
    results = [certified_error(*drawn(seed, count, shares), seeded(0)) for seed in range(400)]
    mean = sum(one.estimate for one in results) / 400
    # A row is alone in its cell with this chance.
    alone = (1 - 1 / kinds) ** (count - 1)
    assert sum(one.alone for one in results) / 400 == pytest.approx(alone, abs=0.02)
    assert mean == pytest.approx(true * (1 - alone), rel=0.03)
    assert mean < 0.7 * true


def test_the_interval_covers_at_its_level():
    draws = 120
    for level, least, most in ((0.95, 0.90, 1.0), (0.6, 0.46, 0.74)):
        held = 0
        for seed in range(draws):
            found = certified_error(*drawn(seed, 150), seeded(seed), level)
            assert found.low <= found.estimate <= found.high
            held += found.low <= TRUE_ERROR <= found.high
        # Two and a half to three and a half standard errors of a share of 120 draws.
        assert least <= held / draws <= most


def test_the_interval_narrows_with_the_root_of_the_queries():
    widths = []
    for count in (200, 3200):
        found = certified_error(*drawn(1, count), seeded(0))
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)
    # And is as wide as the spread of the estimate over draws.
    assert widths[1] > 0


def pairs_of(cells: Tensor, queries: Tensor) -> list[float]:
    """Return half the mean squared difference of pairs within cells, in the order of the rows."""
    halves = []
    for cell in cells.unique().tolist():
        rows = queries[cells == cell].numpy()
        for one, other in zip(rows[::2], rows[1::2], strict=False):
            halves.append(float(((one - other) ** 2).mean()) / 2)
    return halves


def evenly_apart(sizes: list[int], scales: list[float]) -> tuple[Tensor, Tensor]:
    """Cells whose rows are all as far from each other: pairs differ alike, however they meet."""
    most = max(sizes)
    cells = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rows = [
        scale * torch.eye(most, dtype=torch.float64)[:size]
        for size, scale in zip(sizes, scales, strict=True)
    ]
    return cells, torch.cat(rows)


@pytest.mark.usefixtures("quick")
def test_the_lower_bound_is_the_reference_s():
    for sizes in ([400, 399, 3, 2, 1], [5, 1, 1], [2, 1, 1], [2, 2], [3, 2], [151] * 7, [2] * 300):
        scales = [(1 + at % 5) / 5 for at in range(len(sizes))]
        cells, queries = evenly_apart(sizes, scales)
        # Pixels beyond the few that differ would hide how the bound grows.
        queries = queries[:, :2] if max(sizes) <= 2 else queries
        order = torch.randperm(len(cells), generator=seeded(4))
        halves = pairs_of(cells, queries)
        for level in (0.5, 0.95, 0.999):
            error = certified_error(cells[order], queries[order], seeded(0), level)
            wanted = slow.lower_bound_of(halves, len(cells), level)
            case = f"cells of {sizes[:5]}, level {level}"
            assert error.lower_bound == pytest.approx(wanted, rel=1e-6, abs=1e-12), case
            if sizes == [2] * 300 and level == 0.5:
                assert error.lower_bound > 0.05


@pytest.mark.usefixtures("quick")
def test_pairs_are_disjoint_and_of_one_cell_and_as_many_as_can_be(monkeypatch):
    cells, _ = drawn(2, 501)
    # From i - j and i^2 - j^2 follow the numbers of the rows that met.
    numbers = torch.arange(501, dtype=torch.float64) / 512
    queries = torch.stack([numbers, numbers.square()], -1)
    squared, real = [], torch.Tensor.square

    def watched(difference: Tensor) -> Tensor:
        squared.append(difference.clone())
        return real(difference)

    seen = set()
    for seed in range(20):
        squared.clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "square", watched)
            certified_error(cells, queries, seeded(seed))
        # Besides pairs only distances of all rows from their means are squared.
        (pairs,) = [some for some in squared if len(some) < 501]
        difference, total = pairs[:, 0] * 512, pairs[:, 1] / pairs[:, 0] * 512
        one, other = ((total + sign * difference) / 2 for sign in (1, -1))
        met = torch.stack([one, other], -1).round().long()
        assert len(met.flatten().unique()) == met.numel()
        assert torch.equal(cells[met[:, 0]], cells[met[:, 1]])
        assert torch.equal(cells[met[:, 0]].bincount(), cells.bincount() // 2)
        seen.add(frozenset(frozenset(pair) for pair in met.tolist()))
    # Who meets whom is drawn.
    assert len(seen) == 20


@pytest.mark.usefixtures("quick")
def test_pairs_meet_within_a_cell_alone():
    # Cells are far apart and have no width: any pair across cells would show.
    cells = torch.arange(400) % 8
    queries = (cells.double() / 7).unsqueeze(-1).expand(-1, 3)
    found = certified_error(cells, queries, seeded(0))
    assert found.estimate == pytest.approx(0, abs=1e-15)
    assert found.lower_bound == 0
    # Within a cell of two kinds half of the pairs differ, each by 1.
    kinds = (torch.arange(4000) // 8 % 2).double().unsqueeze(-1).expand(-1, 3)
    found = certified_error(torch.arange(4000) % 8, kinds, seeded(0))
    assert found.estimate == pytest.approx(0.25, rel=0.01)
    assert 0.2 < found.lower_bound < 0.25


@pytest.mark.usefixtures("quick")
def test_each_row_is_in_one_pair_at_most():
    # One row far from all others: it is in one pair, or left over.
    cells = torch.zeros(2001, dtype=torch.int64)
    queries = torch.zeros(2001, 1, dtype=torch.float64)
    queries[0] = 1
    lower_bounds = {certified_error(cells, queries, seeded(seed)).lower_bound for seed in range(40)}
    assert lower_bounds == {0.0}
    # Where half of the rows are, all of their pairs are counted, and none twice.
    queries[:1000] = 1
    halves = [0.5] * 500 + [0.0] * 500
    found = [certified_error(cells, queries, seeded(seed)).lower_bound for seed in range(200)]
    wanted = slow.lower_bound_of(halves, 2001, 0.95)
    # The number of unlike pairs is spread about 500 by its draw, and no more.
    assert np.mean(found) == pytest.approx(wanted, rel=0.02)
    assert 0.01 < np.std(found) / wanted < 0.06


@pytest.mark.usefixtures("quick")
def test_the_lower_bound_is_below_the_true_error_in_every_draw_and_says_something():
    lower_bounds = [
        certified_error(*drawn(seed, 4000), seeded(seed)).lower_bound for seed in range(200)
    ]
    assert max(lower_bounds) < TRUE_ERROR
    assert min(lower_bounds) > 0.6 * TRUE_ERROR
    # It holds where a normal approximation does not: hardly any query differs from its cell.
    rare = 0.003
    for seed in range(200):
        few = torch.rand(400, 1, generator=seeded(seed), dtype=torch.float64) < rare
        found = certified_error(torch.zeros(400).long(), few.double(), seeded(seed))
        assert found.lower_bound < rare * (1 - rare)


@pytest.mark.usefixtures("quick")
def test_the_lower_bound_nears_the_error_with_more_queries_and_less_confidence():
    counts = [certified_error(*drawn(1, count), seeded(0)).lower_bound for count in (50, 500, 5000)]
    assert counts[0] < counts[1] < counts[2] < TRUE_ERROR
    drawn_once = drawn(1, 2000)
    levels = [
        certified_error(*drawn_once, seeded(0), level).lower_bound for level in (0.5, 0.9, 0.999)
    ]
    assert levels[0] > levels[1] > levels[2] > 0


@given(
    st.one_of(st.floats(0, 1), st.floats(0, 1e-6)),
    st.integers(1, 10**6),
    st.floats(1e-9, 0.999),
)
def test_the_least_expectation_is_what_scipy_finds(mean, count, risk):
    found = lower_expectation(mean, count, risk)
    assert found == pytest.approx(slow.chernoff_lower(mean, count, risk), rel=1e-6, abs=1e-12)
    # And never on the unsafe side of it.
    if 0 < found < mean < 1:
        assert count * slow.relative_entropy(mean, found) >= math.log(1 / risk) * (1 - 1e-9) - 1e-9


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5000), st.floats(1e-6, 0.9))
def test_the_least_expectation_grows_with_what_was_seen(one, other, count, risk):
    low, high = (lower_expectation(mean, count, risk) for mean in sorted((one, other)))
    assert low <= high + 1e-12
    assert low <= min(one, other)
    assert lower_expectation(one, count, risk / 2) <= lower_expectation(one, count, risk) + 1e-12


def test_the_least_expectation_holds_for_coins_at_its_risk():
    numbers = np.random.default_rng(0)
    for chance, count in ((0.5, 40), (0.05, 100), (0.9, 25)):
        heads = numbers.binomial(count, chance, 4000)
        bounds = {head: lower_expectation(head / count, count, 0.1) for head in set(heads)}
        missed = np.mean([bounds[head] > chance for head in heads])
        assert missed <= 0.1
        assert missed > 0.01


def test_at_its_ends_the_least_expectation_is_known():
    assert lower_expectation(0.0, 50, 0.05) == 0
    assert lower_expectation(-0.1, 50, 0.05) == 0
    assert lower_expectation(1.0, 50, 0.05) == pytest.approx(0.05 ** (1 / 50), rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=80))
def test_bits_are_the_entropy_of_cells_given_labels(pairs):
    labels = [label for label, _ in pairs]
    cells = [10 * label + cell for label, cell in pairs]
    found = bits_beyond_label(torch.tensor(cells), torch.tensor(labels))
    assert found == pytest.approx(slow.entropy_beyond_label(cells, labels), abs=1e-9)
    assert found >= 0


# What a real table lets out.


@pytest.fixture(scope="module")
def book() -> Codebook:
    return fit_codebook(scored(1, 1500)[0], FitSettings(min_members=20, rate_weight=0.02))


@pytest.fixture(scope="module")
def found(book) -> Certificate:
    return certify(book, *scored(2, 1200), held_out=HeldOut("yes"), generator=seeded(0))


def test_a_certificate_says_what_was_found(book, found):
    logits, images = scored(2, 1200)
    cells, labels = book(logits), logits.argmax(-1)
    assert found.table == book.digest()
    assert (found.queries, found.held_out, found.level) == (1200, HeldOut("yes"), 0.95)
    assert found.bits_most == math.log2(max(book.labels.tolist().count(k) for k in range(4))) > 1
    assert found.bits_measured == pytest.approx(
        slow.entropy_beyond_label(cells.tolist(), labels.tolist())
    )
    assert found.bits_measured <= found.bits_most
    assert found.error.estimate == pytest.approx(
        slow.within_cells(cells.numpy(), images.flatten(1).numpy())
    )
    assert found.error.lower_bound < found.error.low < found.error.estimate < found.error.high
    assert found.members_least == min(book.members[book.members > 0].tolist()) >= 20
    assert found.labels_alone == book.members.tolist().count(0) == 0
    clean = slow.softmaxes(logits.numpy())
    released = book.expand(book.values, cells).numpy()
    moved = np.abs(released - clean).sum(1)
    logs, own = np.log(released), logits.numpy()
    apart = (logs - logs.mean(1, keepdims=True)) - (own - own.mean(1, keepdims=True))
    for name, values in (("l1_probabilities", moved), ("logits", np.abs(apart).mean(1))):
        told = found.distortion[name]
        assert list(told) == ["mean", "p50", "p95", "p99", "max"]
        wanted = [values.mean(), *np.quantile(values, [0.5, 0.95, 0.99]), values.max()]
        np.testing.assert_allclose(list(told.values()), wanted, rtol=1e-9)


def test_each_label_has_an_error_of_its_own(book, found):
    logits, images = scored(2, 1200)
    cells, labels = book(logits).numpy(), logits.argmax(-1).numpy()
    assert list(found.error_by_label) == ["0", "1", "2", "3"]
    for label, one in found.error_by_label.items():
        own = labels == int(label)
        wanted = slow.within_cells(cells[own], images.flatten(1).numpy()[own])
        assert one.estimate == pytest.approx(wanted)
        assert one.queries == own.sum()
    shares = [one.queries / 1200 * one.estimate for one in found.error_by_label.values()]
    assert sum(shares) == pytest.approx(found.error.estimate)


def test_labels_that_were_not_asked_or_once_have_none(book):
    logits, images = scored(2, 1200)
    labels = logits.argmax(-1)
    rows = torch.cat([(labels == 0).nonzero()[:300, 0], (labels == 2).nonzero()[:1, 0]])
    told = certify(book, logits[rows], images[rows], generator=seeded(0))
    assert list(told.error_by_label) == ["0"]
    assert told.error.alone == pytest.approx(1 / 301, abs=0.02)


def test_without_queries_bits_and_distortion_are_told_alone(book, found):
    told = certify(book, scored(2, 1200)[0], generator=seeded(0))
    assert told.error is None
    assert told.error_by_label == {}
    assert told.held_out == NOT_CHECKED
    for name in ("bits_measured", "bits_most", "distortion", "table", "members_least"):
        assert getattr(told, name) == getattr(found, name)


def test_a_certificate_comes_back_from_json(book, found):
    bare = certify(book, scored(2, 1200)[0], generator=seeded(0))
    for one in (found, bare):
        text = json.dumps(one.as_json(), allow_nan=False)
        assert Certificate.from_json(json.loads(text)) == one
    values = found.as_json()
    for name in values:
        with pytest.raises((KeyError, TypeError)):
            Certificate.from_json(
                {key: value for key, value in values.items() if key != name}
                | ({"more": 1} if name in ("level", "groups_least") else {})
            )
    with pytest.raises(TypeError):
        Certificate.from_json(values | {"error": {**values["error"], "more": 1}})


def test_the_draws_are_the_generator_s_alone(book):
    state = torch.get_rng_state()
    one, again, other = (
        certify(book, *scored(2, 300), generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.error.estimate == other.error.estimate
    assert one.error.low != other.error.low
    assert torch.equal(torch.get_rng_state(), state)


def test_nobody_beats_what_is_certified_and_who_knows_the_cells_reaches_it():
    """The best attacker, learned on many more queries; a network; and one that is let cheat."""
    logits, images = scored(1, 4000)
    fitted = CodebookRelease.fit(
        logits, images, generator=seeded(0), settings=FitSettings(min_members=20, rate_weight=0.02)
    )
    told = fitted.certificate.error
    learning, asked = scored(3, 20000), scored(4, 10000)
    cells = [fitted.state(scores) for scores, _ in (learning, asked)]
    flat = [some.flatten(1) for _, some in (learning, asked)]
    count = fitted.state.sizes.cells
    sums = torch.zeros(count, 16, dtype=torch.float64).index_add_(0, cells[0], flat[0])
    means = sums / cells[0].bincount(minlength=count).clamp_min(1).unsqueeze(-1)
    best = float((means[cells[1]] - flat[1]).square().mean())
    assert told.lower_bound < told.low <= best <= told.high

    def decoded(answers: Tensor, scores: Tensor) -> float:
        """Train a small decoder of answers, and return its error about others."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Sequential(
                nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)
            ).double()
            mean, spread = answers.mean(0), answers.std(0)
            optimizer = torch.optim.Adam(network.parameters(), 5e-3)
            for step in range(200):
                rows = torch.arange(step * 200, step * 200 + 200) % 20000
                guess = network((answers[rows] - mean) / spread)
                loss = (guess - flat[0][rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                guess = network((scores - mean) / spread)
        return float((guess - flat[1]).square().mean())

    trained = decoded(fitted(learning[0]), fitted(asked[0]))
    assert told.low <= trained < 1.05 * told.high
    # Whoever sees clean scores goes far below: the codebook is what stops the others.
    assert decoded(learning[0], asked[0]) < 0.95 * told.low


def test_the_table_s_hash_tells_every_value_and_every_size(book):
    known = {book.digest()}
    for name, tensor in book.state_dict().items():
        other = Codebook(**book.architecture)
        other.load_state_dict(book.state_dict())
        assert other.digest() in known
        flat = other.state_dict()[name].view(-1)
        flat[-1] = (
            flat[-1].nextafter(torch.tensor(9.0).double())
            if tensor.is_floating_point()
            else flat[-1] + 1
        )
        known.add(other.digest())
    assert len(known) == 1 + len(book.state_dict())
    assert all(len(one) == 64 for one in known)


def test_what_cannot_be_certified_is_refused(book):
    logits, images = scored(2, 60)
    options = {"generator": seeded(0)}
    with pytest.raises(InvalidTensorError, match=r"shape \(N, K\) with N >= 2.*\(1, 4\)"):
        certify(book, logits[:1], **options)
    with pytest.raises(InvalidTensorError, match=r"shape \(N, K\) with N >= 2.*\(4,\)"):
        certify(book, logits[0], **options)
    with pytest.raises(InvalidTensorError, match="4 classes"):
        certify(book, logits[:, :3], **options)
    with pytest.raises(InvalidTensorError, match="one per row of scores, 60, but got 59"):
        certify(book, logits, images[:59], **options)
    for level in (0.0, 1.0, 1, True, "0.9", math.nan):
        with pytest.raises(InvalidOptionError, match="level must be between 0 and 1"):
            certify(book, logits, level=level, **options)


def test_queries_outside_0_to_1_are_refused_and_not_shown(book):
    logits, images = scored(2, 60)
    for value in (-0.01, 1.01, 255.0):
        images[3, 0, 1, 2] = value
        with pytest.raises(InvalidTensorError, match=r"queries must lie in \[0, 1\]") as caught:
            certify(book, logits, images, generator=seeded(0))
        assert str(value) not in str(caught.value)


def test_queries_that_are_mostly_alone_are_refused_with_the_remedy():
    logits = random_rows(1, 200, 20, torch.float64, 9)
    book = fit_codebook(logits, FitSettings(min_members=1, rate_weight=0.0))
    asked = torch.cat([logits, logits[:40]])
    with pytest.raises(InvalidOptionError, match=r"6\d% of 240 are alone.*Pass more"):
        certify(book, asked, torch.zeros(240, 1, 2, 2), generator=seeded(0))


def test_an_error_is_certified_of_thirty_pairs_and_of_labels_that_have_as_many():
    book = Codebook(2, 2, 1, 2)
    logits = torch.tensor([[2.0, 0.0]]).repeat(59, 1)
    for count in (59, 60):
        more = torch.cat([logits[:count], torch.tensor([[2.0, 0.0]]).repeat(count - 59, 1)])
        images = random_images(1, count, (1, 2, 2))
        if count < 60:
            with pytest.raises(InvalidOptionError, match=r"at least 30 pairs.*59 queries make 29"):
                certify(book, more, images, generator=seeded(0))
        else:
            found = certify(book, more, images, generator=seeded(0))
            assert found.error is not None
    few = torch.tensor([[0.0, 2.0]]).repeat(20, 1)
    both = torch.cat([logits, few, logits[:1]])
    found = certify(book, both, random_images(2, 80, (1, 2, 2)), generator=seeded(0))
    assert list(found.error_by_label) == ["0"]


def test_a_cell_that_two_labels_share_tells_of_both():
    cells, labels = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert bits_beyond_label(cells, labels) == pytest.approx(1.0)


def test_an_interval_of_pairs_is_as_wide_as_pairs_are_independent():
    # Cells of two: N / 2 independent terms, each of half the squared distance of two numbers.
    generator, widths, ends = seeded(5), [], []
    for _ in range(60):
        rows = torch.rand(200, 1, generator=generator, dtype=torch.float64)
        found = certified_error(torch.arange(200) // 2, rows, generator)
        widths.append(found.high - found.low)
        ends.append(found.estimate)
    # Two standard errors each way, and no more than the pseudo-values' own factor above.
    spread = 2 * 1.96 * float(torch.tensor(ends).std())
    assert spread * 0.9 < float(torch.tensor(widths).mean()) < spread * 1.7


def test_assumptions_are_said_in_words():
    assert len(ASSUMPTIONS) == 6
    assert all(one.endswith(".") for one in ASSUMPTIONS)
    assert [field.name for field in dataclasses.fields(Certificate)][:2] == ["table", "queries"]
    assert len(list(itertools.chain(*ASSUMPTIONS))) > 200
