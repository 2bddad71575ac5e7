"""Rows over seeds: every mean with its interval, theirs as printed, and a dash for what is not."""

import io

import pytest
from rich.console import Console

from oneway.benchmark import Estimate, bundled_spec, estimate, published, summarise
from oneway.report import SUMMARY_WIDTH, published_table, summary_remarks, summary_table
from oneway.report.summary import COLUMNS, COSTS, published_rows, spread
from report.planted import record_of


def cells(columns, *records):
    [summary] = summarise(records)
    return {name: show(summary) for name, show in columns.items()}


def rendered(table, width=SUMMARY_WIDTH):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "digits", "scale", "text"),
    [
        (Estimate(0.12345, 0.0067, 3), 4, 1, "0.1235 ± 0.0067"),
        (Estimate(0.12344, None, 1), 4, 1, "0.1234"),
        (Estimate(0.9812, 0.001, 3), 2, 100, "98.12 ± 0.10"),
        (Estimate(-0.126, 0.5, 2), 2, 1, "-0.13 ± 0.50"),
        (None, 4, 1, "-"),
    ],
)
def test_a_mean_is_shown_with_its_interval_if_it_has_one(value, digits, scale, text):
    assert spread(value, digits, scale) == text


def test_a_row_shows_every_number_of_one_seed():
    record = record_of("paper, step 0.1", static=0.0777, retrained=0.0333, gap=0.374)
    assert list(cells(COLUMNS, record).values()) == [
        *("paper, step 0.1", "98.12", "0", "1.23", "0.3456"),
        *("0.0777", "0.0333", "-", "0.37", "-0.13"),
    ]
    assert list(cells(COSTS, record).values()) == [
        *("paper, step 0.1", "123", "0.0345", "4.6", "0.79")
    ]


def test_a_row_shows_means_and_intervals_of_several_seeds():
    errors = [0.05, 0.06, 0.10]
    records = [record_of(seed=seed, static=error) for seed, error in enumerate(errors)]
    found = estimate(errors)
    assert cells(COLUMNS, *records)["static error"] == f"0.0700 ± {found.half_width:.4f}"
    assert cells(COLUMNS, *records)["accuracy, %"] == "98.12 ± 0.00"


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        ({"adversarial-training": 0.0444}, "0.0444"),
        ({"averaging": 0.0555}, "0.0555"),
        ({}, "-"),
    ],
)
def test_the_adaptive_column_is_of_whoever_copies_or_repeats(errors, text):
    assert cells(COLUMNS, record_of(errors=errors))["adaptive error"] == text


def test_a_gap_that_one_seed_lacks_is_a_dash():
    found = cells(COLUMNS, record_of(seed=0), record_of(seed=1, gap=None))
    assert [name for name, text in found.items() if text == "-"] == [
        "adaptive error",
        "closed gap G",
    ]


@pytest.mark.parametrize("experiment", ["table1-mnist", "table1-faces", "table2-mnist"])
def test_the_terminal_cuts_no_number_at_the_width_that_it_asks_for(experiment):
    names = [release.name for release in bundled_spec(experiment).releases]
    errors = {"averaging": 0.05}
    records = [
        record_of(
            name,
            seed,
            names=names,
            errors=errors,
            logit_distortion=4.0 + 8 * seed,
            label_changes=seed,
        )
        for name in names
        for seed in range(3)
    ]
    summaries = summarise(records)
    text = rendered(summary_table(summaries, "title [red]"))
    assert "title [red]" in text
    assert all(word in text for column in COLUMNS for word in column.split())
    for summary in summaries:
        shown = [show(summary) for show in COLUMNS.values()]
        assert [" ".join(shown)] == [
            " ".join(line.split())
            for line in text.splitlines()
            if line.strip().startswith(f"{summary.release} ")
            and line.split(summary.release)[1].split()[0] == shown[1].split()[0]
        ]


def test_a_name_is_shown_as_it_is_though_it_looks_like_markup():
    [summary] = summarise([record_of("noise [bold] [/] eta", names=("noise [bold] [/] eta",))])
    assert "noise [bold] [/] eta" in rendered(summary_table([summary], "title"))


def test_theirs_stand_beside_ours_as_multiples_of_no_defense():
    theirs = published("table1-mnist")
    ours = [record_of("none"), record_of("adversarial noise", static=0.14, retrained=0.03)]
    rows = published_rows(theirs, summarise(ours))
    assert rows[0] == ["None", "98.96", "0", "0.0096", "1.0", "1.0", "1.0"]
    assert rows[3] == ["Ours", "98.96", "0.4762", "0.0663", "6.9", "7.0", "1.5"]
    assert [row[-2:] for row in rows[1:3]] == [["-", "-"]] * 2  # not run
    text = rendered(published_table(theirs, summarise(ours)))
    assert all(cell in text for row in rows for cell in row)
    assert "Table I, MNIST: theirs, as printed" in text


def test_an_accuracy_that_was_not_printed_is_a_dash():
    rows = published_rows(published("table2-faces"), summarise([record_of()]))
    assert {row[1] for row in rows} == {"-"}
    assert [row[2] for row in rows] == ["0", "2.235", "2.738", "3.888"]


def test_remarks_give_floors_seeds_limits_and_flags_with_their_counts():
    records = [record_of(seed=0), record_of(seed=1, flags=["3 labels changed", "odd"])]
    lines = summary_remarks(summarise(records))
    text = "\n".join(lines)
    assert all(f"{floor} ± 0.0000" in text for floor in ("0.0200", "0.0600", "0.0800"))
    assert "2 seeds of splits" in text
    assert "smoke run" not in text
    assert "up to 3000 queried images" in text
    assert [line for line in lines if line.startswith("Flag")] == [
        "Flag: labels changed. Raised by none (1 of 2 seeds).",
        "Flag: odd. Raised by none (1 of 2 seeds).",
    ]
    assert "1 seed of splits, target, defense and attackers: a smoke run" in "\n".join(
        summary_remarks(summarise([record_of()]))
    )
