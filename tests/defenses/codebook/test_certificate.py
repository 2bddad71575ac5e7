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
)
from oneway.defenses.codebook.certificate import certify_cells
from oneway.defenses.codebook.measures import (
    CellMoments,
    bits_beyond_label,
    distances,
    error_shares,
)
from oneway.defenses.codebook.parts import Kind, certify_parts
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
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


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 20))
def test_the_estimate_is_the_unbiased_variance_within_cells(seed, count, kinds):
    cells, queries = drawn(seed, count, torch.full((kinds,), 1 / kinds))
    cells = 7 * cells + 3  # numbers are names
    found = certified_error(cells, queries.float())
    wanted = slow.within_cells(cells.numpy(), queries.float().double().numpy())
    assert found.estimate == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    counts = [cells.tolist().count(cell) for cell in cells.tolist()]
    assert found.alone == pytest.approx(counts.count(1) / count)
    assert found.queries == count
    assert 0 <= found.low <= found.lower_bound <= found.estimate <= found.high


def test_more_rows_than_are_computed_at_once_change_nothing():
    cells, queries = drawn(5, 9000)
    # Of one cell half of 9,000 rows ask.
    found = certified_error(torch.zeros_like(cells), queries)
    assert found.estimate == pytest.approx(float(queries.var(0).mean()), rel=1e-9)
    assert 0.97 * found.estimate < found.lower_bound < found.estimate


def test_sums_of_cells_give_those_of_unions_without_the_queries():
    cells, queries = drawn(7, 60)
    finer = 100 * cells + torch.arange(60) % 3
    moments = CellMoments.of(finer, queries)
    for coarser in (cells, -cells, torch.zeros_like(cells), finer):
        found = moments.joined(coarser).error_shares()
        for mine, wanted in zip(found, error_shares(coarser, queries), strict=True):
            torch.testing.assert_close(mine, wanted)


def test_the_estimate_is_unbiased_where_no_cell_is_small():
    found = torch.tensor([float(error_shares(*drawn(seed, 200))[0].mean()) for seed in range(400)])
    error = float(found.std()) / 400**0.5
    assert abs(float(found.mean()) - TRUE_ERROR) < 3.5 * error
    # A variance that is divided by all rows would be off by six standard errors.
    assert float(VARIANCES.sum()) / 200 > 6 * error


def test_the_estimate_errs_to_the_low_side_by_what_is_alone():
    kinds, count = 60, 60
    shares = torch.full((kinds,), 1 / kinds, dtype=torch.float64)
    true = float(VARIANCES.mean())
    results = [error_shares(*drawn(seed, count, shares)) for seed in range(400)]
    mean = sum(float(values.mean()) for values, _ in results) / 400
    # A row is alone in its cell with this chance.
    alone = (1 - 1 / kinds) ** (count - 1)
    assert sum(float(lone.double().mean()) for _, lone in results) / 400 == pytest.approx(
        alone, abs=0.02
    )
    assert mean == pytest.approx(true * (1 - alone), rel=0.03)
    assert mean < 0.7 * true


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
    return certify(book, *scored(2, 1200), held_out=HeldOut("yes"))


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
    assert found.error.low < found.error.lower_bound < found.error.estimate < found.error.high
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
        assert told["mean"] == pytest.approx(wanted[0], rel=1e-9)
        # Distances of single queries have few digits: nobody tests candidates with them.
        np.testing.assert_allclose(list(told.values())[1:], wanted[1:], rtol=0, atol=5.1e-5)
        assert all(value == round(value, 4) for value in list(told.values())[1:])


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
    told = certify(book, logits[rows], images[rows])
    assert list(told.error_by_label) == ["0"]
    assert told.error.alone == pytest.approx(1 / 301, abs=0.02)


def test_without_queries_bits_and_distortion_are_told_alone(book, found):
    told = certify(book, scored(2, 1200)[0])
    assert told.error is None
    assert told.error_by_label == {}
    assert told.held_out == NOT_CHECKED
    for name in ("bits_measured", "bits_most", "distortion", "table", "members_least"):
        assert getattr(told, name) == getattr(found, name)


def test_a_certificate_comes_back_from_json(book, found):
    bare = certify(book, scored(2, 1200)[0])
    for one in (found, bare):
        text = json.dumps(one.as_json(), allow_nan=False)
        assert Certificate.from_json(json.loads(text)) == one
    values = found.as_json()
    for name in ("table", "queries", "traffic", "distortion", "error_by_label"):
        with pytest.raises(InvalidOptionError, match=f"the certificate lacks the key '{name}'"):
            Certificate.from_json({key: value for key, value in values.items() if key != name})
    for more in ({"more": 1}, {"error": {**values["error"], "more": 1}}):
        with pytest.raises(UnknownNameError, match="'more'"):
            Certificate.from_json(values | more)
    kinds = {"members_least": "10", "labels_alone": False, "queries": 160.5, "level": "0.95"}
    kinds |= {"held_out": {"answer": "perhaps"}, "distortion": [], "bits_most": True}
    kinds |= {"traffic": {**values["traffic"], "copies": "some"}}
    for name, value in kinds.items():
        with pytest.raises(InvalidOptionError, match=rf"certificate\.{name}.* must be"):
            Certificate.from_json(values | {name: value})


def test_an_error_that_its_cells_contradict_is_noticed(book, found):
    assert found.fault(book) is None
    for estimate in (found.error.estimate / 2, found.error.estimate * 2):
        ends = {"low": 0.0, "lower_bound": 0.0, "high": 0.25}
        false = dataclasses.replace(found.error, estimate=estimate, **ends)
        false = dataclasses.replace(found, error=false)
        assert false.fault(book) == "its error is not the mean of those of its cells"


def test_the_same_queries_in_any_order_have_the_same_certificate(book, found):
    logits, images = scored(2, 1200)
    order = torch.randperm(1200, generator=seeded(3))
    state = torch.get_rng_state()
    again = certify(book, logits[order], images[order])
    assert torch.equal(torch.get_rng_state(), state)
    assert (again.error.low, again.error.lower_bound, again.error.high) == (
        found.error.low,
        found.error.lower_bound,
        found.error.high,
    )
    assert again.worst.keys() == found.worst.keys() == {"label", "cell"}


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
    assert told.low < told.lower_bound <= best <= told.high

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
    assert decoded(learning[0], asked[0]) < told.low


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
    with pytest.raises(InvalidTensorError, match=r"shape \(N, K\) with N >= 2.*\(1, 4\)"):
        certify(book, logits[:1])
    with pytest.raises(InvalidTensorError, match=r"shape \(N, K\) with N >= 2.*\(4,\)"):
        certify(book, logits[0])
    with pytest.raises(InvalidTensorError, match="4 classes"):
        certify(book, logits[:, :3])
    with pytest.raises(InvalidTensorError, match="one per row of scores, 60, but got 59"):
        certify(book, logits, images[:59])
    with pytest.raises(InvalidTensorError, match=r"shape \(N, K\) with N >= 2.*\(1, 60, 4\)"):
        certify(book, logits[None], images)
    with pytest.raises(InvalidTensorError, match=r"must have values, but have shape \(60, 1, 0\)"):
        certify(book, logits, torch.zeros(60, 1, 0))
    with pytest.raises(
        InvalidOptionError, match=r"different groups' queries .* but 60 queries make 0"
    ):
        certify(book, logits, images, groups=torch.zeros(60, dtype=torch.int64))
    for level in (0.0, 1.0, 1, True, "0.9", math.nan):
        with pytest.raises(InvalidOptionError, match="level must be between 0 and 1"):
            certify(book, logits, level=level)


def test_queries_outside_0_to_1_are_refused_and_not_shown(book):
    logits, images = scored(2, 60)
    for value in (-0.01, 1.01, 255.0):
        images[3, 0, 1, 2] = value
        with pytest.raises(InvalidTensorError, match=r"queries must lie in \[0, 1\]") as caught:
            certify(book, logits, images)
        assert str(value) not in str(caught.value)


def test_queries_that_are_mostly_alone_are_refused_with_the_remedy():
    logits = random_rows(1, 200, 20, torch.float64, 9)
    book = fit_codebook(logits, FitSettings(min_members=1, rate_weight=0.0))
    asked = torch.cat([logits, logits[:40]])
    with pytest.raises(InvalidOptionError, match=r"6\d% of 240 are alone.*Pass more"):
        certify(book, asked, torch.zeros(240, 1, 2, 2))


def test_an_error_is_certified_of_thirty_pairs_and_of_labels_with_twenty_queries():
    book = Codebook(2, 2, 1, 2)
    logits = torch.tensor([[2.0, 0.0]]).repeat(59, 1)
    for count in (59, 60):
        more = torch.cat([logits[:count], torch.tensor([[2.0, 0.0]]).repeat(count - 59, 1)])
        images = random_images(1, count, (1, 2, 2))
        if count < 60:
            with pytest.raises(InvalidOptionError, match=r"at least 30 pairs.*59 queries make 29"):
                certify(book, more, images)
        else:
            found = certify(book, more, images)
            assert found.error is not None
    for count, labels in ((19, ["0"]), (20, ["0", "1"])):
        few = torch.tensor([[0.0, 2.0]]).repeat(count, 1)
        both = torch.cat([logits, few, logits[:1]])
        images = random_images(2, 60 + count, (1, 2, 2))
        found = certify(book, both, images)
        assert list(found.error_by_label) == labels
        assert found.parts["cell"].few == 2 - len(labels)
        assert found.worst["label"][0] in labels


def test_dependent_queries_are_certified_over_groups_and_by_group(book, found):
    logits, images = scored(2, 1200)
    groups = torch.arange(1200) // 6
    told = certify(book, logits, images, groups=groups)
    assert told.error.estimate == pytest.approx(found.error.estimate, rel=0.03)
    # 200 groups say less than 1,200 queries.
    assert told.error.lower_bound < 0.97 * found.error.lower_bound
    assert told.parts["group"].errors == {}
    assert told.parts["group"].few == 200
    large = certify(book, logits, images, groups=torch.arange(1200) // 30)
    assert large.worst["group"][1].queries == 30
    assert Certificate.from_json(json.loads(json.dumps(large.as_json()))) == large
    for wrong in (groups[:9], groups.double(), groups.unsqueeze(1)):
        with pytest.raises(InvalidTensorError, match=r"groups must be int64 of shape \(1200,\)"):
            certify(book, logits, images, groups=wrong)


def test_a_cell_that_two_labels_share_tells_of_both():
    cells, labels = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert bits_beyond_label(cells, labels) == pytest.approx(1.0)


def test_assumptions_are_said_in_words():
    assert len(ASSUMPTIONS) == 6
    assert all(one.endswith(".") for one in ASSUMPTIONS)
    assert [field.name for field in dataclasses.fields(Certificate)][:2] == ["table", "queries"]
    assert len(list(itertools.chain(*ASSUMPTIONS))) > 200


def test_labels_of_a_release_that_mixes_them_are_certified_by_themselves():
    logits, images = scored(4, 300)
    labels, flat = logits.argmax(-1), images.flatten(1)
    moved = distances(logits.softmax(-1), logits)
    found = [
        certify_cells(cells, moved, logits, images, held_out=NOT_CHECKED)
        for cells in (labels // 2, labels)
    ]
    (by_label,) = certify_parts([Kind(labels)], labels // 2, flat, 0.95)
    assert found[0].error_by_label == by_label.errors
    # What is guessed from the label does not depend on the cells.
    guessed = [each.yardsticks.label.error for each in found]
    assert guessed[0] == pytest.approx(guessed[1])
    assert found[1].error.estimate == pytest.approx(guessed[1])
