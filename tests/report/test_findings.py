"""The results page: all of its numbers are the records', and its words follow its numbers."""

import re

import pytest

from oneway.benchmark import published, summarise
from oneway.report import results_page
from oneway.report.results import verdict_lines
from oneway.report.summary import COLUMNS, COSTS, published_rows
from report.planted import ENVIRONMENT, STEPS, record_of

PAPER = "paper, step 0.1"


def page_of(records, theirs=None):
    return results_page(records, theirs or {}, "oneway results there --out page.md")


def words(*records):
    return "\n".join(verdict_lines(summarise([record_of(), *records])))


def rows_of(page):
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in page.splitlines()
        if line.startswith("| ")
    ]


def test_the_page_shows_every_cell_of_every_table():
    names = ("none", "adversarial noise")
    records = [
        record_of(name, seed, static=0.03 + seed / 100, names=names)
        for name in names
        for seed in range(3)
    ]
    theirs = published("table1-mnist")
    page, summaries = page_of(records, {"table1-mnist": theirs}), summarise(records)
    rows = rows_of(page)
    for columns in (COLUMNS, COSTS):
        assert list(columns) in rows
        for summary in summaries:
            assert [show(summary) for show in columns.values()] in rows
    for row in published_rows(theirs, summaries):
        assert row in rows
    for remark in theirs.remarks:
        assert f"- {remark.text}" in page
    assert "Table I, MNIST. 30,000 private, 3,000 auxiliary images, 1,000 queries." in page
    assert "`oneway results there --out page.md`" in page


def test_each_experiment_and_preset_has_a_section_of_its_own():
    kinds = [("table1-mnist", "cpu"), ("table1-mnist", "paper"), ("table2-faces", "cpu")]
    records = [
        record_of(experiment=experiment, preset=preset, side=32 if "faces" in experiment else 0)
        for experiment, preset in kinds
    ]
    page = page_of(records)
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == [f"## {experiment}, preset {preset}" for experiment, preset in kinds]
    for experiment, preset in kinds:
        table, kind = experiment.split("-")
        assert f"`oneway reproduce {table} --data {kind} --preset {preset}`" in page
    assert page.count("scaled to 32x32") == 1


def test_an_experiment_of_ones_own_is_made_from_its_file():
    page = page_of([record_of(experiment="my-own", preset="")])
    assert "## my-own\n" in page
    assert "`oneway reproduce my-own.toml`" in page
    assert "Theirs" not in page


def test_the_page_names_every_seed_and_every_machine():
    other = ENVIRONMENT | {"processor": "Another", "device": "Some GPU", "cores": 16}
    records = [
        record_of(seed=0),
        record_of(seed=1, environment=other),
        record_of(PAPER, seed=0),
        record_of(PAPER, seed=1),
    ]
    page = page_of(records)
    assert "seeds 0, 1;" in page
    assert "Some Processor 9000, 2 cores, 1 of them used, device cpu, torch 2.13.0" in page
    assert "Another, 16 cores, 1 of them used, device Some GPU" in page
    assert page.count("Some Processor 9000") == 1


def test_releases_with_fewer_seeds_are_named():
    records = [record_of(seed=0), record_of(seed=1), record_of(PAPER, seed=0)]
    assert f"seeds 0, 1 of none, seeds 0 of {PAPER};" in page_of(records)


def test_a_name_with_a_bar_does_not_break_the_table():
    page = page_of([record_of("a | b", names=("a | b",))])
    assert r"| a \| b | 98.12 |" in page


@pytest.mark.parametrize(
    ("static", "holds"), [(0.061, True), (0.14, True), (0.059, False), (0.02, False)]
)
def test_the_papers_claim_holds_where_its_attacker_does_worse_than_the_label(static, holds):
    text = words(record_of(PAPER, static=static))
    assert ("here the paper's claim holds" in text) == holds
    assert ("less than the label alone would give it." in text) == (not holds)
    assert f"{static / 0.02:.1f} times the error it had without a defense" in text


@pytest.mark.parametrize(
    ("gap", "error", "phrase"),
    [
        (-0.2, 0.012, "tells an attacker who adapts *more* than clean scores did"),
        (0.0, 0.02, "undoes most of the defense"),
        (0.49, 0.04, "undoes most of the defense"),
        (0.51, 0.04, "undoes part of the defense"),
        (0.94, 0.0576, "undoes part of the defense"),
        (0.96, 0.0584, "Nobody here did much better than with the label alone"),
        (1.0, 0.06, "Nobody here did much better than with the label alone"),
    ],
)
def test_the_reading_of_the_gap_follows_the_gap(gap, error, phrase):
    text = words(record_of(PAPER, retrained=error, gap=gap, static=0.14))
    assert phrase in text
    assert f"{error / 0.02:.2f} times the clean error, so that G is {gap:.2f}" in text
    phrases = ("*more* than clean", "undoes most", "undoes part", "Nobody here")
    assert sum(other in text for other in phrases) == 1


@pytest.mark.parametrize(
    ("large", "phrase"),
    [(0.025, "More step, more leakage"), (0.035, "More step, less leakage here")],
)
def test_two_step_sizes_are_compared_in_words(large, phrase):
    records = [record_of("paper, step 0.4", retrained=large), record_of(PAPER, retrained=0.03)]
    text = words(*records)
    assert phrase in text
    assert f"error is 0.0300 at step 0.1, {large:.4f} at step 0.4" in text


def test_a_claim_that_the_seeds_do_not_tell_is_not_said_to_hold():
    errors = (0.05, 0.06, 0.075)
    text = words(*(record_of(PAPER, seed, static=error) for seed, error in enumerate(errors)))
    assert "about what the label alone would give it: these seeds do not tell" in text
    assert "claim holds" not in text


def test_seeds_that_overlap_do_not_tell_two_steps_apart():
    errors = {0.1: (0.030, 0.034, 0.032), 0.4: (0.029, 0.034, 0.031)}
    text = words(
        *(
            record_of(f"paper, step {step}", seed, retrained=error)
            for step, found in errors.items()
            for seed, error in enumerate(found)
        )
    )
    assert "not told apart by these seeds" in text
    assert "More step" not in text


def test_steps_of_searches_that_differ_otherwise_are_not_compared():
    first, second = record_of(PAPER), record_of("paper, step 0.4")
    second["options"]["search"] = "momentum"
    for record in (first, second):
        for row in record["spec"]["releases"]:
            if row["name"] == "paper, step 0.4":
                row["options"]["search"] = "momentum"
    assert "A larger step" not in words(first, second)


def test_one_step_size_is_not_compared_nor_is_another_surrogate():
    assert "larger step" not in words(record_of(PAPER))
    assert STEPS["hardened"] == STEPS[PAPER]
    assert "larger step" not in words(record_of(PAPER), record_of("hardened", retrained=0.01))


def test_releases_are_ranked_by_the_gap_they_close():
    text = words(
        record_of(PAPER, gap=0.25, accuracy=0.5),
        record_of("hardened", gap=0.75),
        record_of("paper, step 0.4", gap=None),
    )
    assert (
        "By closed gap: hardened 0.75 (98.1 % accuracy, L1 0.346), "
        f"{PAPER} 0.25 (50.0 % accuracy, L1 0.346)." in text
    )


@pytest.mark.parametrize(("retrained", "failed"), [(0.061, True), (0.059, False)])
def test_an_attacker_who_retrained_to_less_than_the_label_is_not_believed(retrained, failed):
    text = words(record_of(PAPER, retrained=retrained, gap=1.0))
    assert (f"did worse ({retrained:.4f}) than the label alone (0.0600)" in text) == failed


def test_an_attacker_who_did_not_run_is_not_spoken_of():
    record = record_of(PAPER, gap=1.0)
    record["errors"] = {"label-only": 0.06}
    record["adaptive_error"] = 0.06
    other = record_of("paper, step 0.4", gap=0.5)
    text = words(record, other)
    assert f"**{PAPER}**: the attacker of the paper" not in text
    assert "larger step" not in text
    assert f"**{PAPER}**: the strongest attacker has 3.00 times" in text


def test_records_of_different_settings_make_no_page():
    other = record_of(seed=1)
    other["spec"]["data"]["private"] = 9
    with pytest.raises(ValueError, match="different experiments"):
        page_of([record_of(seed=0), other])
