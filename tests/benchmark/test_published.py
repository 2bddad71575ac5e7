"""What the paper printed is what it printed, and stands beside what our experiments run."""

from importlib import resources

import pytest

from laws import looped
from oneway.benchmark import FigureSpec, bundled_spec, figure_spec, published
from oneway.errors import InvalidOptionError, UnknownNameError

TABLE_1 = """
MNIST	None	98.96%	0	0.0096
MNIST	PPF	96.67%	0.4156	0.0544
MNIST	MID	75.83%	1.8206	0.0604
MNIST	Ours	98.96%	0.4762	0.0663
FaceScrub	None	81.52%	0	0.0126
FaceScrub	PPF	69.71%	3.106	0.1256
FaceScrub	MID	55.62%	4.716	0.0446
FaceScrub	Ours	81.52%	2.2352	0.2453
"""
"""Table I as printed: data set, defense, model accuracy, confidence distortion, error."""

TABLE_2 = """
None	0	0.0126
Our defense	2.2352	0.0271
Adv defense	2.738	0.1657
High dist.	3.888	0.0562
"""
"""Table II as printed, turned on its side."""

DATA = {"mnist": "MNIST", "faces": "FaceScrub"}
EXPERIMENTS = [f"{table}-{kind}" for table in ("table1", "table2") for kind in DATA]
FIGURES = ("figure1", "figure2")
PRESETS = (None, "cpu", "paper")


def printed(text):
    return [line.split("\t") for line in text.strip().splitlines()]


@looped("kind", DATA)
def test_table_1_is_the_papers_to_the_last_digit(kind):
    found = published(f"table1-{kind}")
    rows = [cells[1:] for cells in printed(TABLE_1) if cells[0] == DATA[kind]]
    assert len(rows) == 4
    assert [[row.printed, row.accuracy, row.logit_distortion, row.error] for row in found.rows] == [
        [name, pytest.approx(float(accuracy.rstrip("%")) / 100), float(moved), float(error)]
        for name, accuracy, moved, error in rows
    ]
    assert found.table == f"Table I, {DATA[kind]}"


def test_table_2_is_the_papers_to_the_last_digit_and_prints_no_accuracy():
    rows = published("table2-faces").rows
    assert [[row.printed, row.logit_distortion, row.error] for row in rows] == [
        [name, float(moved), float(error)] for name, moved, error in printed(TABLE_2)
    ]
    assert all(row.accuracy < 0 for row in rows)
    assert published("table2-mnist").rows == ()


@looped("preset", PRESETS)
@looped("name", EXPERIMENTS)
def test_every_printed_row_has_a_release_of_ours_beside_it(name, preset):
    releases = {row.name: row for row in bundled_spec(name, preset).releases}
    for row in published(name).rows:
        release = releases[row.release]
        defense = {"None": "none", "PPF": "purification", "MID": "mutual-information"}
        assert release.defense == defense.get(row.printed, "adversarial-noise")


@looped("preset", PRESETS)
@looped(("kind", "step"), [("mnist", 0.1), ("faces", 0.4)])
def test_our_releases_are_the_papers_defenses(kind, step, preset):
    """Section V-A: 10 steps of 0.1 for MNIST and of 0.4 for faces; V-D: steps of 1."""
    table1 = {row.name: row for row in bundled_spec(f"table1-{kind}", preset).releases}
    table2 = {row.name: row for row in bundled_spec(f"table2-{kind}", preset).releases}
    plain = table1["adversarial noise"]
    assert plain.options == {"step_size": step, "steps": 10}
    assert table2["adversarial noise"].options == plain.options
    assert table2["adversarial noise"].surrogate == "plain"
    assert table2["adv defense"].options == plain.options
    assert table2["adv defense"].surrogate == "augmented"
    assert table2["high dist."].options == {"step_size": 1.0, "steps": 10}
    assert table2["high dist."].surrogate == "plain"
    # What the paper says of its label modifier: PPF and MID can have it, too.
    kept = {row.defense for row in table1.values() if row.options.get("keep_label")}
    assert kept == {"purification", "mutual-information"}


@looped("kind", DATA)
@looped("name", FIGURES)
def test_every_strip_of_a_figure_is_of_an_attack_that_its_experiment_runs(name, kind):
    figure = figure_spec(name)
    spec = bundled_spec(f"{figure.experiment}-{kind}", "cpu")
    releases = {row.name: row for row in spec.releases}
    for row in figure.rows:
        assert row.attack in spec.attackers_of(releases[row.release])
    assert len({row.label for row in figure.rows}) == len(figure.rows)


def test_every_figure_and_every_expectation_is_covered_above():
    folder = resources.files("oneway.benchmark") / "experiments"
    files = {entry.name for entry in folder.iterdir() if entry.name.endswith(".toml")}
    expected = {name for name in files if name.endswith(".expected.toml")}
    assert expected == {f"{name}.expected.toml" for name in EXPERIMENTS}
    figures = {name for name in files if name.startswith("figure")}
    assert figures == {f"{name}.toml" for name in FIGURES}


@looped("name", EXPERIMENTS)
def test_a_reader_is_told_what_to_know_before_comparing(name):
    found = published(name)
    assert all(remark.text.strip() for remark in found.remarks)
    assert found.remarks


def test_what_is_not_there_is_refused_by_name():
    with pytest.raises(UnknownNameError, match=r"'table1-mnst\.expected'.*'table1-mnist"):
        published("table1-mnst")
    with pytest.raises(UnknownNameError, match=r"'figure3'.*'figure[12]'"):
        figure_spec("figure3")


def test_a_figure_without_rows_is_refused():
    with pytest.raises(InvalidOptionError, match="at least one row"):
        FigureSpec("title", "table1", ())
