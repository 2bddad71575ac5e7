"""Rows over seeds: every mean with its interval, theirs as printed, and a dash for what is not."""

import dataclasses
import io

from rich.console import Console

from oneway.benchmark import Estimate, bundled_spec, estimate, published, summarise
from oneway.evaluation import Flag, MatchingResult
from oneway.report.experiments import (
    CERTIFICATES,
    COLUMNS,
    COSTS,
    OPTIONAL,
    published_table,
    raised_flags,
    spread,
    summary_table,
)
from oneway.report.sentences import MARK
from report.planted import record_of


def cells(columns, *records):
    [summary] = summarise(records)
    return {name: show(summary) for name, show in columns.items()}


def rendered(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table, crop=False)
    return console.file.getvalue()


def test_a_mean_is_shown_with_its_interval_if_it_has_one():
    for value, digits, scale, text in (
        (Estimate(0.12345, 0.0067, 3), 4, 1, "0.1235 ± 0.0067"),
        (Estimate(0.12344, None, 1), 4, 1, "0.1234"),
        (Estimate(0.9812, 0.001, 3), 2, 100, "98.12 ± 0.10"),
        (Estimate(-0.126, 0.5, 2), 2, 1, "-0.13 ± 0.50"),
        (None, 4, 1, "-"),
    ):
        assert spread(value, digits, scale) == text


def test_a_row_shows_every_number_of_one_seed():
    record = record_of("paper, step 0.1", static=0.0777, retrained=0.0333, gap=0.374)
    assert list(cells(COLUMNS, record).values()) == [
        *("paper, step 0.1", "98.12", "0", "1.23", "0.3456"),
        *("0.0777", "0.0333", "-", "0.37", "-0.13", "not recorded", "-"),
    ]
    stale = dataclasses.replace(record, numerics={})
    assert cells(COLUMNS, stale)["release"] == f"paper, step 0.1 {MARK}"
    assert list(cells(COSTS, record).values()) == [
        *("paper, step 0.1", "123", "0.0345", "4.6", "0.79")
    ]


def test_a_row_shows_means_and_intervals_of_several_seeds():
    errors = [0.05, 0.06, 0.10]
    records = [record_of(seed=seed, static=error) for seed, error in enumerate(errors)]
    found = estimate(errors)
    assert cells(COLUMNS, *records)["static error"] == f"0.0700 ± {found.half_width:.4f}"
    assert cells(COLUMNS, *records)["accuracy, %"] == "98.12 ± 0.00"


def test_the_adaptive_error_is_that_of_the_attacker_who_copies_or_repeats():
    for errors, text in (
        ({"adversarial-training": 0.0444}, "0.0444"),
        ({"averaging": 0.0555}, "0.0555"),
        ({}, "-"),
    ):
        assert cells(COLUMNS, record_of(errors=errors))["adaptive error"] == text


MATCHED = MatchingResult(
    rank_1=0.125,
    rank_5=0.25,
    gallery=200,
    chance=0.005,
    distance="L1",
    repeats=1,
    clean_rank_1=1.0,
    clean_rank_5=1.0,
    label_rank_1=0.05,
    label_rank_5=0.25,
)


def test_the_adaptive_error_has_a_column_only_where_an_attacker_adapts():
    headings = [heading for heading in COLUMNS if heading not in OPTIONAL]
    assert list(summary_table(summarise([record_of()])).columns) == headings
    both = [record_of(), record_of("hardened", errors={"averaging": 0.0555})]
    shown = list(summary_table(summarise(both)).columns)
    assert shown == [heading for heading in COLUMNS if heading != "identified, %"]


def test_identified_queries_have_a_column_where_a_record_has_them():
    matching = {"true inputs": MATCHED}
    both = [record_of(), record_of("coarse", matching=matching)]
    table = summary_table(summarise(both))
    assert list(table.columns) == [heading for heading in COLUMNS if heading != "adaptive error"]
    assert [row[-1] for row in table.cells()] == ["-", "12.5"]
    assert any(note.startswith("identified, %: ") for note in table.notes())


def test_a_gap_that_one_seed_lacks_is_a_dash():
    shown = cells(COLUMNS, record_of(seed=0), record_of(seed=1, gap=None))
    assert [name for name, text in shown.items() if text == "-"] == [
        "adaptive error",
        "closed gap G",
        "identified, %",
    ]


def test_the_terminal_cuts_no_number_at_the_width_that_it_asks_for():
    for experiment in ("table1-mnist", "table1-faces", "table2-mnist"):
        names = [release.name for release in bundled_spec(experiment).releases]
        records = [
            record_of(
                *(name, seed),
                names=names,
                errors={"averaging": 0.05},
                logit_distortion=4.0 + 8 * seed,
                label_changes=seed,
                matching={"true inputs": MATCHED},
            )
            for name in names
            for seed in range(3)
        ]
        summaries = summarise(records)
        text = rendered(summary_table(summaries, "title [red]"))
        assert "title [red]" in text
        assert all(word in text for column in COLUMNS for word in column.split())
        lines = [" ".join(line.split()) for line in text.splitlines()]
        for summary in summaries:
            shown = " ".join(show(summary) for show in COLUMNS.values())
            assert lines.count(shown) == 1, (experiment, shown)


def test_theirs_stand_beside_ours_as_multiples_of_no_defense():
    ours = [record_of("none"), record_of("adversarial noise", static=0.14, retrained=0.03)]
    table = published_table(published("table1-mnist"), summarise(ours))
    rows = table.cells()
    assert rows[0] == ["None", "98.96", "0", "0.0096", "1.0", "1.0", "1.0"]
    assert rows[3] == ["Ours", "98.96", "0.4762", "0.0663", "6.9", "7.0", "1.5"]
    assert [row[-2:] for row in rows[1:3]] == [["-", "-"]] * 2  # not run
    assert "Table I, MNIST: theirs, as printed" in rendered(table)


def test_an_accuracy_that_was_not_printed_is_a_dash():
    rows = published_table(published("table2-faces"), summarise([record_of()])).cells()
    assert {row[1] for row in rows} == {"-"}
    assert [row[2] for row in rows] == ["0", "2.235", "2.738", "3.888"]


FLAGGED = {
    "attack-failed": "retrained error not below the label-only baseline: that attack failed",
    "labels-changed": "labels changed or tied in what was released",
}


def test_flags_are_counted_over_seeds_and_named_with_their_releases():
    changed = "3 labels changed or tied in what was released"
    raised = {
        0: (Flag("attack-failed", FLAGGED["attack-failed"], "retrained"),),
        1: (Flag("labels-changed", changed),),
    }
    records = [record_of(name, seed, flags=raised[seed])
               for name in ("none", "hardened") for seed in (0, 1)]  # fmt: skip
    flags = raised_flags(summarise(records))
    assert {flag.name: flag.detail for flag in flags} == FLAGGED
    for flag in flags:
        assert list(flag.releases) == ["none (1 of 2 seeds)", "hardened (1 of 2 seeds)"]
        assert flag.text() == f"{flag.detail}: {'; '.join(flag.releases)}"


def test_a_certified_error_stands_beside_label_and_clean_scores_and_proves_what_its_bound_does():
    figures = {"certified_error": 0.055, "bits_most": 2.0, "members_least": 20}
    # Of a clean error of .02 and a label of .06.
    for bound, gap in ((0.05, "0.75"), (0.02, "none"), (0.0, "none"), (None, "-")):
        more = {} if bound is None else {"certified_error_lower_bound": bound}
        row = cells(CERTIFICATES, record_of(training={**figures, **more}))
        assert (row["label alone"], row["clean scores"]) == ("0.0600", "0.0200")
        assert row["G of the bound"] == gap
