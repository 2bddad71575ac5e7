"""Identification: exact beside enumeration, reached by who may ask, and beyond nobody's reach."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.attacks import Matching
from oneway.contracts import AttackerKnowledge
from oneway.defenses.codebook import (
    Certificate,
    CodebookRelease,
    FitSettings,
    certify,
    chance_named,
    fit_codebook,
    mean_chance_named,
)
from oneway.defenses.codebook.identification import (
    CANDIDATES,
    GUESSES,
    SensitiveAccuracy,
    sensitive_accuracy,
)
from oneway.defenses.codebook.worst_case import WorstCase, worst_case
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics import expected_hits
from oneway.releases import release

CELLS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def best_of_all_rules(cells, prior, guesses):
    """The chance of the best rule from a cell to a set of candidates, by trying every rule."""
    names = sorted(set(cells))
    sets = list(itertools.combinations(range(len(cells)), min(guesses, len(cells))))
    return max(
        sum(mass for at, mass in enumerate(prior) if at in rule[names.index(cells[at])])
        for rule in itertools.product(sets, repeat=len(names))
    )


@settings(max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 3), st.data())
def test_the_chance_is_that_of_the_best_rule_of_all(cells, guesses, data):
    masses = data.draw(
        st.lists(st.integers(0, 9), min_size=len(cells), max_size=len(cells)).filter(any)
    )
    prior = torch.tensor(masses, dtype=torch.float64) / sum(masses)
    named = [9 * cell + 4 for cell in cells]  # numbers are names
    found = chance_named(torch.tensor(named), prior, guesses)
    assert found == pytest.approx(best_of_all_rules(cells, prior.tolist(), guesses))
    # At most C-fold what the prior allows, whatever the prior.
    alone = chance_named(torch.zeros(len(cells), dtype=torch.int64), prior, guesses)
    assert found <= min(1.0, len(set(cells)) * alone) + 1e-12


@settings(max_examples=30)
@given(CELLS, st.integers(1, 6), st.integers(1, 4))
def test_the_mean_is_that_over_every_set(cells, candidates, guesses):
    numbers, candidates = torch.tensor(cells), min(candidates, len(cells))
    sets = itertools.combinations(range(len(cells)), candidates)
    wanted = [chance_named(numbers[list(rows)], None, guesses) for rows in sets]
    found = mean_chance_named(numbers, candidates, guesses)
    assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-9)


def test_the_mean_keeps_its_digits_among_a_hundred_thousand_queries():
    cells = torch.arange(100_000) % 1000
    for candidates in (1, 10, 1000, 99_950, 100_000):
        # By a product instead of factorials: a cell of 100 is missed by every candidate.
        rest = np.arange(100_000 - candidates - 99, 100_000 - candidates + 1).clip(0)
        missed = float(np.prod(rest / np.arange(99_901, 100_001)))
        wanted = 1000 * (1 - missed) / candidates
        assert mean_chance_named(cells, candidates) == pytest.approx(wanted, rel=1e-6)


def test_what_is_no_set_of_candidates_is_refused_with_the_remedy():
    cells = torch.arange(4)
    for wrong in (cells.float(), cells[:, None], cells[:0]):
        with pytest.raises(InvalidTensorError, match=r"cells must be int64 of shape \(N,\)"):
            chance_named(wrong)
        with pytest.raises(InvalidTensorError, match=r"cells must be int64 of shape \(N,\)"):
            mean_chance_named(wrong, 1)
    for prior in (torch.tensor([1, 0, 0, 0]), torch.tensor([0.5, 0.5]), torch.full((4,), 0.3)):
        with pytest.raises(InvalidTensorError, match="Divide it by its sum"):
            chance_named(cells, prior)
    with pytest.raises(InvalidTensorError, match="Divide it by its sum"):
        chance_named(cells, torch.tensor([1.5, -0.5, 0.0, 0.0]))
    with pytest.raises(InvalidOptionError, match=r"at most the 4 queries.*got 5"):
        mean_chance_named(cells, 5)
    for guesses in (0, -1):
        with pytest.raises(InvalidOptionError, match="guesses"):
            chance_named(cells, guesses=guesses)


# What a real table lets out.


@pytest.fixture(scope="module")
def book():
    return fit_codebook(scored(1, 800)[0], FitSettings(min_members=10, rate_weight=0.02))


def certified(book, logits, images=None, **more):
    return certify(book, logits, images, **more)


def test_a_certificate_states_the_curve_and_copies_are_one_candidate(book):
    logits, images = scored(2, 300)
    cells, labels = book(logits), logits.argmax(-1)
    found = certified(book, logits, images).identification
    assert (found.cells, found.labels, found.distinct) == (book.sizes.cells, 4, 300)
    assert [each.candidates for each in found.curve] == list(CANDIDATES)
    for each in found.curve:
        assert each.most == min(1.0, book.sizes.cells / each.candidates)
        if each.candidates > 300:
            assert (each.label, each.release, each.release_guesses, each.clean) == (None,) * 4
            continue
        assert each.release == mean_chance_named(cells, each.candidates)
        assert each.release_guesses == mean_chance_named(cells, each.candidates, GUESSES)
        assert each.label == mean_chance_named(labels, each.candidates)
        assert each.clean == pytest.approx(1)
        assert 1 / each.candidates < each.label < each.release <= each.most
    # Half of all rows are one query now, and no figure moves; nor where only scores are given.
    rows = torch.cat([torch.arange(300), torch.full((300,), 7)])
    assert certified(book, logits[rows], images[rows]).identification == found
    assert certified(book, logits[rows]).identification == found


def test_the_bound_is_reached_by_candidates_of_different_cells_and_beaten_by_none(book):
    cells = book(scored(3, 2000)[0])
    first = [(cells == cell).nonzero()[0, 0] for cell in cells.unique()]
    ward = cells[torch.stack(first)]
    assert chance_named(ward) == pytest.approx(
        1
    )  # every one of as many candidates as there are cells
    for candidates in CANDIDATES:
        most = min(1.0, book.sizes.cells / candidates)
        extra = cells[: max(0, candidates - len(ward))]
        worst = chance_named(torch.cat([ward, extra])[:candidates])
        assert worst <= most + 1e-12
        if len(ward) == book.sizes.cells:
            assert worst == pytest.approx(most)


def test_who_asks_about_each_candidate_names_as_many_as_the_certificate_says(book):
    logits, images = scored(4, 200)
    scores_of = {image.numpy().tobytes(): row for image, row in zip(images, logits, strict=True)}
    guard = CodebookRelease(book)

    def answer(asked, count):
        rows = torch.stack([scores_of[image.numpy().tobytes()] for image in asked])
        return release(guard(rows)).expand(count, -1, -1)

    own = images[:40]
    knowledge = AttackerKnowledge(own, None, answer(own, 1)[0], torch.arange(40) < 12, query=answer)
    matcher = Matching()(knowledge, torch.clone)
    distances = matcher.distances(answer(images, 1)[0], matcher.ask(images))
    cells, generator = book(logits), seeded(1)
    for candidates in (20, 100):
        rates = []
        for _ in range(60):
            rows = torch.randperm(200, generator=generator)[:candidates]
            places = torch.arange(candidates)
            hits = expected_hits(distances[rows][:, rows], places)
            rates.append(float(hits.mean()))
            assert rates[-1] == pytest.approx(chance_named(cells[rows]))
        spread = np.std(rates) / len(rates) ** 0.5
        assert np.mean(rates) == pytest.approx(mean_chance_named(cells, candidates), abs=5 * spread)


def test_figures_come_back_from_json_and_impossible_ones_are_named(book):
    logits, images = scored(2, 300)
    values = torch.arange(300) % 3
    whole = certified(book, logits, images, sensitive=values, max_l1_worst=0.5)
    text = json.dumps(whole.as_json(), allow_nan=False)
    assert Certificate.from_json(json.loads(text)) == whole
    assert whole.fault(book) is None
    found, most = whole.identification, whole.identification.curve[-1]

    def curve(at, **changes):
        points = [*found.curve]
        points[at] = dataclasses.replace(points[at], **changes)
        return {"curve": tuple(points)}

    for changes, words in (
        ({"cells": found.cells - 1}, "cells and labels are not those of the table"),
        ({"labels": 3}, "cells and labels are not those of the table"),
        ({"distinct": 301}, "more different queries than queries"),
        ({"distinct": 0}, "more different queries than queries, or none"),
        ({"distinct": 50}, "more than it has queries"),
        ({"curve": found.curve[:-1]}, "numbers of candidates"),
        (curve(-1, most=most.most / 2), "largest share for 1000 candidates"),
        (curve(0, release=0.0), "a share for 10 candidates is out of range"),
        (curve(0, clean=None), "a share for 10 candidates is out of range"),
        (curve(0, label=math.nan), "a share for 10 candidates is out of range"),
        (curve(1, label=found.curve[1].release + 0.01), "the label alone names too many for 20"),
        (curve(4, release=0.99), "the release names too many for 200"),
    ):
        broken = dataclasses.replace(found, **changes)
        assert words in dataclasses.replace(whole, identification=broken).fault(book)
    assert "how many candidates" in dataclasses.replace(whole, identification=None).fault(book)
    for part, changes, words in (
        ("sensitive", {"release_most": 0.1}, "not in their order"),
        ("sensitive", {"values": 0}, "number of sensitive values"),
        ("sensitive", {"homogeneous": 1.0}, "cells of a single value"),
        ("worst_case", {"kept_least": 1.0}, "keep a cap is out of range"),
        ("worst_case", {"limit": 3.0}, "keep a cap is out of range"),
        ("worst_case", {"kept": math.nan}, "keep a cap is out of range"),
    ):
        broken = dataclasses.replace(getattr(whole, part), **changes)
        assert words in dataclasses.replace(whole, **{part: broken}).fault(book)


# A sensitive value.


def slow_accuracy(keys, values, groups):
    """The weight of each key's heaviest value, each group of weight 1."""
    sizes, masses = Counter(groups), Counter()
    for key, value, group in zip(keys, values, groups, strict=True):
        masses[key, value] += 1 / sizes[group] / len(sizes)
    return sum(
        max(mass for (other, _), mass in masses.items() if other == key) for key in set(keys)
    )


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=30
    ),
    st.booleans(),
)
def test_accuracies_are_those_of_the_most_frequent_value_of_each_cell(rows, grouped):
    cells, values, groups = zip(*rows, strict=True)
    labels = [cell // 2 for cell in cells]
    if not grouped:
        groups = range(len(rows))
    found = sensitive_accuracy(
        torch.tensor(cells),
        torch.tensor(labels),
        torch.tensor(values),
        0.9,
        torch.tensor(groups) if grouped else None,
    )
    for keys, accuracy in (
        ([0] * len(rows), found.nothing),
        (labels, found.label),
        (cells, found.release),
    ):
        assert accuracy == pytest.approx(slow_accuracy(keys, values, groups))
    sizes = Counter(groups)
    single = [
        1 / sizes[group] / len(sizes)
        for cell, group in zip(cells, groups, strict=True)
        if len({value for other, value, _ in rows if other == cell}) == 1
    ]
    assert found.homogeneous == pytest.approx(sum(single))
    assert not list(found.faults())
    assert found.release <= found.release_most <= 1
    if found.release < 1 - 1e-9:
        # Chernoff's bound with relative entropy, at its end.
        p, q = found.release, found.release_most
        entropy = p * math.log(p / q) + ((1 - p) * math.log((1 - p) / (1 - q)) if q < 1 else 0)
        assert len(set(groups)) * entropy == pytest.approx(math.log(10), rel=1e-3)


def missed(chances, count, cells, *, copies=1, groups=False, draws=120):
    """The share of draws in which the bound is below the truth; values are coins of their cell."""
    numbers, wrong = np.random.default_rng(0), 0
    chances = np.asarray(chances)
    truth = np.maximum(chances, 1 - chances).mean()
    for _ in range(draws):
        own = numbers.integers(0, cells, count // copies)
        heads = numbers.random(len(own)) < chances[own % len(chances)]
        rows, people = torch.from_numpy(np.repeat(own, copies)), np.arange(len(own))
        found = sensitive_accuracy(
            rows,
            torch.zeros_like(rows),
            torch.from_numpy(np.repeat(heads, copies)).long(),
            0.8,
            torch.from_numpy(np.repeat(people, copies)) if groups else None,
        )
        wrong += found.release_most < truth
    return wrong / draws


def test_the_bound_on_the_accuracy_holds_at_its_level_and_misses_where_rows_are_no_draws():
    # One giant cell; rare values; many cells of two, where the best rule here is far too good.
    assert 0.02 < missed([0.75], 300, 1) <= 0.2
    assert 0.02 < missed([0.97], 300, 1) <= 0.2
    assert missed([0.9, 0.2, 0.6], 300, 6) <= 0.2
    assert missed([0.5], 300, 150, draws=20) == 0
    # Twenty pictures of each person: a bound over pictures is none, one over people is.
    assert missed([0.75], 1000, 1, copies=20) > 0.25
    assert missed([0.75], 1000, 1, copies=20, groups=True) <= 0.2


def test_a_value_that_the_cell_decides_is_read_and_one_that_is_noise_is_not(book):
    logits, _ = scored(2, 600)
    noise = torch.randint(0, 2, (600,), generator=seeded(3))
    for values, least, most in ((book(logits) % 2, 1.0, 1.0), (noise, 0.5, 0.7)):
        found = certified(book, logits, sensitive=values).sensitive
        assert isinstance(found, SensitiveAccuracy)
        assert found.values == 2
        assert least <= found.release <= found.release_most <= most
    assert certified(book, logits).sensitive is None
    for wrong in (noise[:-1], noise.float()):
        with pytest.raises(InvalidTensorError, match=r"sensitive must be int64 of shape \(600,\)"):
            certified(book, logits, sensitive=wrong)


# A cap on each answer's distance.


def test_a_cap_is_kept_by_as_many_queries_as_the_certificate_says_and_of_others_by_more(book):
    logits, _ = scored(2, 400)
    released = book.expand(book.values, book(logits))
    l1 = (released - logits.softmax(-1)).abs().sum(-1)
    for limit in (0.05, float(l1.median()), 2.0):
        found = certified(book, logits, max_l1_worst=limit).worst_case
        assert found == WorstCase(limit, found.kept, found.kept_least)
        assert found.kept == pytest.approx(float((l1 <= limit).double().mean()))
        assert found.kept_least <= found.kept
    assert found.kept_least == pytest.approx(0.05 ** (1 / 400), rel=1e-6)
    generator, wrong = seeded(5), 0
    for _ in range(150):
        wrong += worst_case(torch.rand(200, generator=generator), 0.9, 0.8).kept_least > 0.9
    assert 0.02 < wrong / 150 <= 0.2
    # Copies of few rows: each group is one draw.
    l1 = torch.rand(20, generator=generator).repeat_interleave(10)
    groups = torch.arange(20).repeat_interleave(10)
    one, many = worst_case(l1, 0.5, 0.95, groups), worst_case(l1[::10], 0.5, 0.95)
    assert one.kept_least == pytest.approx(many.kept_least)
    with pytest.raises(InvalidOptionError, match="max_l1_worst"):
        certified(book, logits, max_l1_worst=2.5)
