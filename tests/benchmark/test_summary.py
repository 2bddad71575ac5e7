"""Seeds become one row: intervals by the book, and nothing pooled that differs."""

import copy
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.benchmark import estimate, summarise
from oneway.errors import InvalidOptionError, MissingExtraError

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
T = {2: 12.706204736, 3: 4.302652730, 4: 3.182446305, 5: 2.776445105, 10: 2.262157163}
"""The 97.5 % quantiles of Student's t, by the number of values, from a printed table."""


def record_of(release="none", seed=0, step=0.5, **changed):
    rows = [
        {"name": "none", "options": {}, "attackers": []},
        {"name": "noise", "options": {"step": step}, "attackers": ["static"]},
    ]
    spec = {"name": "small", "preset": "", "seed": seed, "releases": rows, "data": {"test": 9}}
    spec |= {"attackers": {"names": ["label-only", "static"], "widths": [4]}}
    record = {
        "release": release,
        "seed": seed,
        "accuracy": 0.75,
        "label_changes": 0,
        "logit_distortion": 1.5,
        "l1_mean": 0.25,
        "l1_p99": 0.5,
        "l1_max": 0.75,
        "errors": {"label-only": 0.5, "static": 0.25 + seed / 8},
        "adaptive_error": 0.25,
        "closed_gap": 0.5,
        "closed_gap_least_confident": None,
        "baselines": {"clean": 0.125, "label": 0.5, "prior": 0.625},
        "milliseconds_single_query": 4.0,
        "milliseconds_per_query_batched": 1.0,
        "training_seconds": 10.0,
        "training": {"surrogate_held_out_error": 0.375},
        "flags": [],
        "environment": {"torch": "2.13"},
        "spec": spec,
    }
    return copy.deepcopy(record | changed)


@given(st.lists(NUMBERS, min_size=2, max_size=12))
def test_an_interval_is_the_one_that_scipy_gives(values):
    stats = pytest.importorskip("scipy.stats")
    mean = stats.tmean(values)
    error = stats.sem(values)
    ours = estimate(values)
    scale = max(1.0, *map(abs, values))
    assert ours.count == len(values)
    assert ours.mean == pytest.approx(mean, abs=1e-9 * scale)
    if error > 0:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
        assert ours.half_width == pytest.approx((high - low) / 2, rel=1e-6, abs=1e-9 * scale)
    else:
        assert ours.half_width == pytest.approx(0, abs=1e-9 * scale)


@looped("count", T)
def test_an_interval_is_the_one_of_the_textbook(count):
    values = [0.0] * (count - 1) + [1.0]
    variance = ((count - 1) * (1 / count) ** 2 + (1 - 1 / count) ** 2) / (count - 1)
    found = estimate(values)
    assert found.mean == pytest.approx(1 / count)
    assert found.half_width == pytest.approx(T[count] * (variance / count) ** 0.5, rel=1e-8)


def test_one_value_has_no_interval_and_none_no_mean(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)  # nor does it take scipy
    assert (estimate([0.3]).mean, estimate([0.3]).half_width) == (0.3, None)
    with pytest.raises(InvalidOptionError, match="at least one value"):
        estimate([])
    with pytest.raises(MissingExtraError, match=r"'scipy'.*pip install 'oneway\[demo\]'"):
        estimate([0.3, 0.4])


def test_seeds_of_a_release_become_one_row_whatever_the_order_they_come_in():
    records = [
        record_of(release, seed, label_changes=seed)
        for seed in (2, 0, 1)
        for release in ("noise", "none")
    ]
    noise, none = summarise(records)
    assert (noise.release, none.release) == ("noise", "none")
    assert noise.seeds == none.seeds == (0, 1, 2)
    assert noise.record.seed == 0
    assert noise.values["error static"] == estimate([0.25, 0.375, 0.5])
    assert noise.values["baseline clean"].mean == 0.125
    assert noise.values["label_changes"].mean == 1
    assert noise.label_changes == 3


def test_every_number_of_a_record_is_averaged():
    [summary] = summarise([record_of()])
    assert {name: value.mean for name, value in summary.values.items()} == {
        "accuracy": 0.75,
        "label_changes": 0,
        "logit_distortion": 1.5,
        "l1_mean": 0.25,
        "l1_p99": 0.5,
        "l1_max": 0.75,
        "adaptive_error": 0.25,
        "closed_gap": 0.5,
        "baseline clean": 0.125,
        "baseline label": 0.5,
        "baseline prior": 0.625,
        "milliseconds_single_query": 4.0,
        "milliseconds_per_query_batched": 1.0,
        "training_seconds": 10.0,
        "surrogate_held_out_error": 0.375,
        "error label-only": 0.5,
        "error static": 0.25,
    }
    assert {value.half_width for value in summary.values.values()} == {None}


def test_a_value_that_one_seed_lacks_is_left_out_rather_than_averaged_over_fewer():
    records = [record_of(seed=0), record_of(seed=1, closed_gap=None, errors={"label-only": 0.5})]
    [summary] = summarise(records)
    assert {
        "closed_gap",
        "closed_gap_least_confident",
        "error static",
    } & summary.values.keys() == set()
    assert summary.values["error label-only"].count == 2


def test_flags_are_counted_by_kind_though_their_numbers_differ():
    records = [
        record_of(seed=0, flags=["17 labels changed", "odd"]),
        record_of(seed=1, flags=["3 labels changed"]),
        record_of(seed=2),
    ]
    [summary] = summarise(records)
    assert summary.flags == {"labels changed": 2, "odd": 1}


def test_every_machine_is_kept_once():
    machines = [{"cores": 2}, {"cores": 16}, {"cores": 2}]
    records = [record_of(seed=seed, environment=machine) for seed, machine in enumerate(machines)]
    assert summarise(records)[0].environments == ({"cores": 2}, {"cores": 16})


def test_a_seed_that_occurs_twice_is_refused():
    with pytest.raises(InvalidOptionError, match=r"'none' has records of seeds \[0, 1, 1\]"):
        summarise([record_of(seed=seed) for seed in (1, 0, 1)])


def changed_spec(seed=1, **changed):
    record = record_of(seed=seed)
    record["spec"] |= changed
    return record


@looped(
    "changed",
    [
        {"data": {"test": 10}},
        {"preset": "cpu"},
        {"name": "large"},
        {"attackers": {"names": ["label-only", "static", "retrained"], "widths": [4]}},
        {"attackers": {"names": ["label-only", "static"], "widths": [8]}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_seeds_of_different_experiments_are_refused(changed):
    with pytest.raises(InvalidOptionError, match="'none' come from different experiments"):
        summarise([record_of(seed=0), changed_spec(**changed)])


def test_seeds_of_one_release_with_different_options_are_refused():
    with pytest.raises(InvalidOptionError, match="'noise' come from different experiments"):
        summarise([record_of("noise", 0), record_of("noise", 1, step=0.25)])


def test_seeds_with_different_floors_are_refused():
    other = record_of("noise", 1)
    other["spec"]["releases"][0]["attackers"] = ["label-only"]
    with pytest.raises(InvalidOptionError, match="'noise' come from different experiments"):
        summarise([record_of("noise", 0), other])


def test_a_release_that_was_added_between_two_seeds_hinders_nothing():
    """Cells that were done before it keep the shorter list of releases in their spec."""
    old, new = record_of("noise", 0), record_of("noise", 1)
    new["spec"]["releases"].insert(1, {"name": "added", "options": {}, "attackers": []})
    # Nor does who attacks where a release does not say it, if these do.
    for row in new["spec"]["releases"]:
        row["attackers"] = row["attackers"] or ["label-only", "static"]
    new["spec"]["attackers"]["names"] = ["label-only", "static", "retrained"]
    [summary] = summarise([old, new])
    assert summary.seeds == (0, 1)


def test_the_records_are_left_as_they_were():
    records = [record_of(seed=seed) for seed in (1, 0)]
    before = copy.deepcopy(records)
    summarise(records)
    assert records == before
