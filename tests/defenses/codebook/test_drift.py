"""The drift test: its p-values are exact, it rarely alarms without a change, and soon with one."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defenses.codebook.scored import scored
from oneway.defenses.codebook import CodebookRelease, DriftTest, FitSettings, HeldOut, drift
from oneway.errors import InvalidOptionError

SHARES = np.array([0.4, 0.2, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02])
MOVED = SHARES[::-1].copy()


def begun(reference, seed=0, **given):
    return DriftTest(reference, generator=np.random.default_rng(seed), clock=lambda: 12.5, **given)


def counts(generator, total, shares=SHARES):
    return generator.multinomial(total, shares).tolist()


def stream(generator, length, shares=SHARES):
    return torch.from_numpy(generator.choice(len(shares), length, p=shares))


def test_the_chance_of_a_block_is_that_over_all_parts_of_the_bag():
    bag, rng = np.array([5, 3, 2]), np.random.default_rng(0)
    rows = np.repeat(np.arange(3), bag)
    parts = [np.bincount(part, minlength=3) for part in itertools.combinations(rows, 4)]
    expected = bag * 4 / 10

    def distance(part):
        return sum((n - e) ** 2 / (e + 1) for n, e in zip(part, expected, strict=True))

    for block in ([4, 0, 0], [1, 1, 2], [2, 1, 1]):
        exact = [distance(part) >= distance(block) - 1e-9 for part in parts]
        above = [distance(part) > distance(block) + 1e-9 for part in parts]
        found = [drift.chance_of_block(np.array(block), bag, rng) for _ in range(100)]
        assert np.mean(above) - 0.05 < min(found) < np.mean(above) + 0.2
        assert abs(np.mean(found) - (np.mean(exact) + np.mean(above)) / 2) < 0.05, block
        assert 0 < max(found) < np.mean(exact) + 0.05


def alarms(monkeypatch, repetitions, certified=80):
    """Alarms and p-values of small blocks, of calibrations and streams that are drawn anew."""
    monkeypatch.setattr(drift, "DRAWS", 99)
    rng, seen, chances = np.random.default_rng(1), 0, list[float]()
    inner = drift.chance_of_block

    def kept(block, *given):
        chance = inner(block, *given)
        if block.sum() == min(drift.BLOCKS):
            chances.append(chance)
        return chance

    monkeypatch.setattr(drift, "chance_of_block", kept)
    for seed in range(repetitions):
        test = begun(counts(rng, certified), seed, risk=0.05)
        test.see(stream(rng, 1600))
        seen += test.drift is not None
    return seen, np.array(chances)


def test_fresh_traffic_rarely_alarms_though_few_queries_were_certified(monkeypatch):
    seen, _ = alarms(monkeypatch, 40)
    assert seen <= 8  # at most 2 expected; more than 8 with a chance of 1 in 5,000


def test_chances_are_uniform_and_do_not_depend_on_each_other(monkeypatch):
    monkeypatch.setattr(drift, "BLOCKS", (50,))
    _, chances = alarms(monkeypatch, 40, certified=20)
    means = chances.reshape(40, 32).mean(1)
    assert 0.45 < chances.mean() < 0.55
    assert 0.9 < 12 * chances.var() < 1.1
    # Chances that all rest on the same few certified queries would move together: 9.
    assert 0.4 < 12 * 32 * means.var() < 2


def test_shares_that_are_taken_as_known_alarm_falsely(monkeypatch):
    """The law above can fail: with the fault that it is about, most streams alarm."""

    def known(block, bag, generator):
        reference = bag / bag.sum()
        parts = generator.multinomial(int(block.sum()), reference, 99)
        expected = reference * block.sum()
        far = (np.square(np.vstack([block, parts]) - expected) / (expected + 1)).sum(-1)
        return (int((far[1:] >= far[0]).sum()) + 1 - generator.random()) / 100

    def keeps_bag(self, *given):
        bag = self.bag
        see(self, *given)
        self.bag = bag

    see = drift._Gambler.see
    monkeypatch.setattr(
        drift, "chance_of_block", lambda block, bag, rng: known(block, bag - block, rng)
    )
    monkeypatch.setattr(drift._Gambler, "see", keeps_bag)
    assert alarms(monkeypatch, 12)[0] > 8


def after_a_million(test):
    """Let a test think that it has seen a million answers."""
    values = test.as_json()
    for gambler in values["gamblers"]:
        gambler["blocks"] = 10**6 // gambler["size"]
        gambler["bag"] = (drift.LARGEST_BAG * SHARES).astype(int).tolist()
    test.resume(values)
    return test


def test_a_change_is_found_soon_at_first_and_after_a_million_answers():
    rng = np.random.default_rng(2)
    for seed in range(4):
        for test in (begun(counts(rng, 400), seed), after_a_million(begun(counts(rng, 400), seed))):
            assert test.see(stream(rng, 200)) is None
            found = test.see(stream(rng, 400, MOVED))
            assert found == test.drift
            assert test.wealth >= 2 / test.risk
            assert found.since == 12.5
            assert 200 < found.answers <= 500
            assert test.see(stream(rng, 400, MOVED)) is None
            assert test.answers == found.answers


def test_a_small_change_is_found_by_large_blocks():
    rng = np.random.default_rng(3)
    test = begun(counts(rng, 4000))
    test.see(stream(rng, 12_000, 0.85 * SHARES + 0.15 * MOVED))
    assert test.drift is not None


@settings(max_examples=15)
@given(st.lists(st.integers(1, 130), min_size=1, max_size=8), st.integers(0, 5))
def test_batches_and_restarts_change_nothing(sizes, restart):
    rng = np.random.default_rng(4)
    reference, answers = counts(rng, 60), stream(rng, sum(sizes))
    whole, parts = begun(reference), begun(reference)
    whole.see(answers)
    for place, batch in enumerate(answers.split(sizes)):
        if place == restart:
            generator = parts._generator
            values = json.loads(json.dumps(parts.as_json(), allow_nan=False))
            parts = begun(reference)
            parts.resume(values)
            parts._generator = generator
        parts.see(batch)
    assert parts.as_json() == whole.as_json()
    assert parts.wealth == whole.wealth
    assert parts.answers == len(answers)


def test_a_bag_is_thinned_and_the_test_remains_the_same(monkeypatch):
    monkeypatch.setattr(drift, "LARGEST_BAG", 200)
    rng = np.random.default_rng(5)
    test = begun(counts(rng, 390))
    test.see(stream(rng, 2000))
    assert all(200 <= sum(each["bag"]) < 800 for each in test.as_json()["gamblers"])
    assert test.drift is None
    test.see(stream(rng, 800, MOVED))
    assert test.drift is not None


def test_states_of_something_else_are_refused():
    rng = np.random.default_rng(6)
    test = begun(counts(rng, 100))
    test.see(stream(rng, 70))
    state = test.as_json()
    first, second = state["gamblers"]
    for broken in (
        {**state, "answers": -1},
        {**state, "drift": {"since": 1.0}},
        {**state, "drift": 5},
        {**state, "gamblers": [first]},
        {**state, "gamblers": [second, first]},
        *(
            {**state, "gamblers": [first | fault, second]}
            for fault in (
                {"bag": first["bag"][1:]},
                {"bag": [1.5, *first["bag"][1:]]},
                {"bag": None},
                {"block": [50, *first["block"][1:]]},
                {"wealths": [-1.0, *first["wealths"][1:]]},
                {"wealths": [float("nan"), *first["wealths"][1:]]},
                {"blocks": True},
                {"began": []},
            )
        ),
        {},
        [],
    ):
        with pytest.raises((AttributeError, KeyError, TypeError, ValueError)):
            begun(counts(rng, 100)).resume(broken)


def test_certificates_of_queries_that_are_no_draws_of_the_traffic_are_refused():
    logits, images = scored(1, 400)
    guard = CodebookRelease.fit(
        logits,
        images,
        generator=torch.Generator().manual_seed(0),
        settings=FitSettings(min_members=20),
    )
    certificate = guard.certificate
    test = DriftTest.of(certificate, risk=0.5)
    assert test.as_json()["gamblers"][0]["bag"] == list(certificate.traffic.cells)
    traffic = certificate.traffic
    for broken, said in (
        (replace(certificate, held_out=HeldOut("no")), "were fitted, too"),
        (replace(certificate, traffic=replace(traffic, copies="dropped")), "copies"),
        (replace(certificate, traffic=replace(traffic, groups=9)), "within groups"),
    ):
        with pytest.raises(InvalidOptionError, match=f"{said}.*oneway certify GUARD FILE --write"):
            DriftTest.of(broken)
    for risk in (0.0, 1.0, 1, True):
        with pytest.raises(InvalidOptionError, match="risk"):
            DriftTest.of(certificate, risk=risk)
    for reference in ([], [0, 0], [-1, 5], [1.5]):
        with pytest.raises(InvalidOptionError, match="number of queries for each cell"):
            DriftTest(reference)
