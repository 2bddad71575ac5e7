"""A record is stale if an attacker has another version today, or is missing, and only then."""

import dataclasses
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneway.attacks import ATTACKS, Retrained
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.attacks.stealing import STEALING_ATTACKS
from oneway.benchmark import summarise
from oneway.benchmark.spec import bundled_spec
from oneway.benchmark.summary import outdated_attackers
from oneway.evaluation.records import numerics_of, outdated
from planted_records import release_record

NAMES = ("label-only", "static", "retrained")


@given(
    st.dictionaries(st.sampled_from([*ATTACKS, "gone"]), st.integers(0, 3)),
    st.lists(st.sampled_from([*ATTACKS, "gone"])),
)
def test_outdated_are_those_whose_number_in_the_record_is_not_todays(numerics, attackers):
    found = outdated(MappingProxyType(numerics), attackers)
    for name in {*numerics, *attackers}:
        fresh = name in ATTACKS and numerics.get(name) == ATTACKS[name].numerics
        assert (name in found) != fresh
    assert len(set(found)) == len(found)
    assert outdated(numerics_of(attackers), set(attackers) - {"gone"}) == ()


def test_attacks_of_all_threats_have_names_of_their_own():
    apart = [*ATTACKS, *MEMBERSHIP_ATTACKS, *STEALING_ATTACKS]
    assert sorted(numerics_of(apart)) == sorted(apart)


def test_an_attack_that_is_registered_later_has_a_version(monkeypatch):
    monkeypatch.setitem(ATTACKS, "own", Retrained())
    assert numerics_of(["own"]) == {"own": 1}
    assert outdated({"own": 1}, ["own"]) == ()


def test_a_record_older_than_versions_is_stale_in_all_its_attackers(monkeypatch):
    record = release_record("noise")
    assert outdated_attackers(record) == ()
    assert outdated_attackers(dataclasses.replace(record, numerics={})) == NAMES
    monkeypatch.setattr(Retrained, "numerics", 2)
    assert outdated_attackers(record) == ("retrained",)


def shipped(release, without=(), **changes):
    """Return a record of today's table of the paper, made by all attackers that apply but some."""
    spec = bundled_spec("table2-mnist", "cpu")
    row = next(row for row in spec.releases if row.name == release)
    names = [name for name in spec.applying_attackers(row) if name not in without]
    return release_record(
        release,
        experiment="table2-mnist",
        preset="cpu",
        errors=dict.fromkeys(names, 0.03),
        numerics=numerics_of(names),
        **changes,
    )


def test_an_attacker_of_todays_experiment_that_applies_and_is_missing_makes_it_stale():
    name = bundled_spec("table2-mnist", "cpu").releases[1].name
    whole = shipped(name)
    assert "adversarial-training" in whole.errors
    assert "averaging" not in whole.errors  # the noise is not random
    assert outdated_attackers(whole) == ()
    assert outdated_attackers(shipped(name, ["adversarial-training"])) == ("adversarial-training",)
    # Those who attack clean scores give the baselines.
    assert "static" in outdated_attackers(shipped(name, ["static"]))
    # Of an experiment that does not ship, who took part is all that is known.
    own = dataclasses.replace(shipped(name, ["adversarial-training"]), experiment="own")
    assert outdated_attackers(own) == ()


def test_seeds_of_todays_attackers_count_alone_and_stale_ones_only_without_them():
    fresh = [release_record("noise", seed, closed_gap=0.25) for seed in (0, 1)]
    stale = [release_record("noise", seed, numerics={}, closed_gap=0.75) for seed in (0, 1, 2)]
    [summary] = summarise([*fresh, stale[2]])
    assert (summary.seeds, summary.outdated) == ((0, 1), ())
    assert summary.values["closed_gap"].mean == 0.25
    [summary] = summarise(stale)
    assert (summary.seeds, summary.outdated) == ((0, 1, 2), NAMES)
    assert summary.values["closed_gap"].mean == pytest.approx(0.75)


def test_stale_seeds_of_two_settings_are_not_mixed():
    stale = [release_record("noise", seed, numerics={}) for seed in (0, 1)]
    other = release_record("noise", 2, numerics={}, options={"step_size": 0.25})
    [summary] = summarise([other, *stale])
    assert summary.seeds == (0, 1)
