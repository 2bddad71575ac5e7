"""Seeds become one row: intervals by the book, and nothing pooled that differs."""

import copy
import dataclasses
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.benchmark import estimate, summarise
from oneway.errors import InvalidOptionError, MissingExtraError
from oneway.evaluation import FLAGS, Flag
from planted_records import ENVIRONMENT, release_record, row_of

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
T = {2: 12.706204736, 3: 4.302652730, 4: 3.182446305, 5: 2.776445105, 10: 2.262157163}
"""The 97.5 % quantiles of Student's t, by the number of values, from a printed table."""


@given(st.lists(NUMBERS, min_size=2, max_size=6))
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
        release_record(release, seed, label_changes=seed, errors={"static": 0.25 + seed / 8})
        for seed in (2, 0, 1)
        for release in ("noise", "none")
    ]
    noise, none = summarise(records)
    assert (noise.release, none.release) == ("noise", "none")
    assert noise.seeds == none.seeds == (0, 1, 2)
    assert noise.record.seed == 0
    assert noise.values["error static"] == estimate([0.25, 0.375, 0.5])
    assert noise.values["baseline clean"].mean == 0.015625
    assert noise.values["label_changes"].mean == 1
    assert noise.label_changes == 3


def test_every_number_of_a_record_is_averaged():
    facts = {"surrogate_held_out_error": 0.375, "bits_most": 3.0, "text": "is none"}
    [summary] = summarise([release_record(training=facts, closed_gap_least_confident=None)])
    assert {name: value.mean for name, value in summary.values.items()} == {
        "accuracy": 0.75,
        "label_changes": 0,
        "logit_distortion": 1.5,
        "l1_mean": 0.25,
        "l1_p99": 0.5,
        "l1_max": 0.75,
        "adaptive_error": 0.0234375,
        "closed_gap": 0.5,
        "baseline clean": 0.015625,
        "baseline label": 0.0625,
        "baseline prior": 0.078125,
        "milliseconds_single_query": 4.0,
        "milliseconds_per_query_batched": 1.0,
        "training_seconds": 10.0,
        "surrogate_held_out_error": 0.375,
        "bits_most": 3.0,
        "error label-only": 0.0625,
        "error static": 0.03125,
        "error retrained": 0.0234375,
    }
    assert {value.half_width for value in summary.values.values()} == {None}


def test_a_value_that_one_seed_lacks_is_left_out_rather_than_averaged_over_fewer():
    lacking = release_record(seed=1, closed_gap=None, errors={"label-only": 0.5})
    [summary] = summarise([release_record(seed=0), lacking])
    missing = {"closed_gap", "error static", "error retrained"}
    assert missing & summary.values.keys() == set()
    assert {"closed_gap_least_confident", "error label-only"} <= summary.values.keys()
    assert summary.values["error label-only"].count == 2


def test_flags_are_counted_by_kind_and_attack_though_their_numbers_differ():
    statement = FLAGS["labels-changed"].statement

    def changed(count):
        return Flag("labels-changed", f"{count} {statement}")

    def failed(attack):
        return Flag("attack-failed", f"{attack} {FLAGS['attack-failed'].statement}", attack)

    records = [
        release_record(seed=0, flags=(changed(17), failed("static"))),
        release_record(seed=1, flags=(changed(3), failed("static"), failed("retrained"))),
        release_record(seed=2),
    ]
    [summary] = summarise(records)
    assert summary.flags == {
        Flag("labels-changed", statement): 2,
        failed("static"): 2,
        failed("retrained"): 1,
    }


def test_every_machine_is_kept_once():
    machines = [dataclasses.replace(ENVIRONMENT, cores=cores) for cores in (2, 16, 2)]
    records = [
        release_record(seed=seed, environment=machine) for seed, machine in enumerate(machines)
    ]
    assert summarise(records)[0].environments == tuple(machines[:2])


def test_a_seed_that_occurs_twice_is_refused():
    with pytest.raises(
        InvalidOptionError, match=r"'none' must have distinct seeds, but has \[0, 1, 1\]"
    ):
        summarise([release_record(seed=seed) for seed in (1, 0, 1)])


def changed_spec(release="none", seed=1, **changes):
    record = release_record(release, seed)
    return dataclasses.replace(record, spec=record.spec | changes)


def test_seeds_of_different_experiments_are_refused():
    attackers = release_record().spec["attackers"]
    for changes in (
        {"data": {"test": 10}},
        {"preset": "cpu"},
        {"name": "large"},
        {"attackers": attackers | {"names": ["label-only", "static"]}},
        {"attackers": attackers | {"widths": [8]}},
    ):
        records = [release_record(seed=0), changed_spec(**changes)]
        with pytest.raises(InvalidOptionError, match="'none' must be of the same experiment"):
            summarise(records)


def test_seeds_of_one_release_with_different_options_are_refused():
    other = release_record("noise", 1, options={"step_size": 0.25})
    with pytest.raises(InvalidOptionError, match="'noise' must be of the same experiment"):
        summarise([release_record("noise", 0), other])


def test_seeds_with_different_baselines_are_refused():
    noise = release_record("noise", 1).spec["releases"][1]
    other = changed_spec("noise", releases=[row_of("none") | {"attackers": ["label-only"]}, noise])
    with pytest.raises(InvalidOptionError, match="'noise' must be of the same experiment"):
        summarise([release_record("noise", 0), other])


def test_a_release_that_was_added_between_two_seeds_hinders_nothing():
    """Cells that were done before it keep the shorter list of releases in their spec."""
    old = release_record("noise", 0)
    none, noise = old.spec["releases"]
    # Nor does who attacks where a release does not say it, if these do.
    named = {"attackers": old.spec["attackers"]["names"]}
    new = changed_spec(
        "noise",
        releases=[row | named for row in (none, row_of("added"), noise)],
        attackers=old.spec["attackers"] | {"names": ["label-only", "static"]},
    )
    [summary] = summarise([old, new])
    assert summary.seeds == (0, 1)


def test_the_records_are_left_as_they_were():
    records = [release_record(seed=seed) for seed in (1, 0)]
    before = copy.deepcopy(records)
    summarise(records)
    assert records == before
