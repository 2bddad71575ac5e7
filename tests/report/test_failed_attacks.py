"""Where trained attackers failed, no output states that G is 1."""

import dataclasses
import re

from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.benchmark import summarise
from oneway.report.experiments import summary_table
from oneway.report.findings import report_lines
from oneway.report.frontier import frontier_lines
from oneway.report.page.experiments import frontier_charts, records_page, results_page
from oneway.report.page.render import render
from oneway.report.sentences import bound_text, gap_number
from report.planted import record_of

FELL_BACK = {
    "gap": 1.0,
    "retrained": 0.07,
    "static": 0.14,
    "closed_gap_least_confident": 1.0,
    "attack_failed": True,
}
PAPER = "paper, step 0.1"


def seeds(count=3, **changes):
    """A release on which trained attackers failed with each seed, beside no defense."""
    return [
        record
        for seed in range(count)
        for record in (record_of(seed=seed), record_of(PAPER, seed, **(FELL_BACK | changes)))
    ]


def outputs_of(records):
    """Return all that is printed, written or drawn of records, as text."""
    summaries = summarise(records)
    return "\n".join(
        [
            summary_table(summaries).markdown(),
            *report_lines(summaries),
            *frontier_lines(summaries),
            *(f"{chart.svg} {chart.numbers.cells()}" for chart in frontier_charts(summaries)),
            results_page(records, {}, "oneway results"),
            render(records_page(records, {})),
        ]
    )


def states_one(text):
    """Return every place where a text states a G of 1, or of 1 give or take nothing."""
    return re.findall(r"1\.00+ ± 0\.00+|G = 1\.00|\| 1\.00+ \||[^.\d]1\.00 at", text)


@looped(
    ("changes", "said"),
    [
        ({}, "attack failed"),
        ({"attack_failed": None}, "attack failed"),  # an older record
        ({"detection_limit": 0.05, "closed_gap_at_least": 0.93}, "≥ 0.93 (failed)"),
        ({"detection_limit": 0.01, "closed_gap_at_least": 0.9899}, "≥ 0.98 (failed)"),
    ],
)
@looped("count", [1, 3])
def test_nothing_states_that_g_is_1(changes, said, count):
    text = outputs_of(seeds(count, **changes))
    assert states_one(text) == []
    assert said in text
    assert "trained attackers failed" in text


def test_a_number_just_below_1_is_not_rounded_up_to_it():
    near = {"gap": 0.9996, "retrained": 0.05998, "closed_gap_least_confident": 0.9999}
    assert states_one(outputs_of(seeds(3, **near, attack_failed=False))) == []


def bound_of(records):
    (summary,) = [each for each in summarise(records) if each.release == PAPER]
    assert "closed_gap" not in summary.values
    return summary.bound


def test_a_bound_over_seeds_is_below_that_of_each_seed_and_needs_all_of_them():
    known = {"detection_limit": 0.05, "closed_gap_at_least": 0.9}
    records = seeds(3, **known)
    assert bound_of(records) == 0.9
    lower = dataclasses.replace(records[1], closed_gap_at_least=0.8)
    assert bound_of([records[0], lower, *records[2:]]) < 0.8
    unknown = dataclasses.replace(lower, closed_gap_at_least=None, detection_limit=None)
    assert bound_of([records[0], unknown, *records[2:]]) is None
    # A seed whose attack did not fail counts with what was measured.
    measured = dataclasses.replace(
        lower, attack_failed=False, closed_gap=0.5, closed_gap_at_least=None, adaptive_error=0.04
    )
    assert bound_of([records[0], measured, *records[2:]]) < 0.5


@given(st.floats(0, 1))
def test_a_bound_is_never_rounded_up_and_no_number_below_1_reads_as_1(value):
    stated = float(re.search(r"\d\.\d+", bound_text(value))[0])
    assert value - 0.0100001 <= stated <= value
    assert (float(gap_number(value)) == 1) == (value > 1 - 1e-6)
