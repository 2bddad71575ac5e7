"""The page of experiments, as HTML and Markdown: its numbers are the records', and no more."""

import dataclasses
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneway.benchmark import Estimate, published, summarise
from oneway.evaluation import Flag
from oneway.report.experiments import costs_table, published_table, summary_table
from oneway.report.frontier import AXES, GAPS, frontier
from oneway.report.page.experiments import overview_charts, records_page, results_page
from oneway.report.page.render import render
from report.page.conftest import experiment
from report.page.reading import assert_stands_alone, heads_of, rows_of, tables
from report.planted import record_of


def page_of(records, theirs=None, **options):
    return assert_stands_alone(render(records_page(records, theirs or {}, **options)))


def words(page):
    return page.every("main")[0].text().replace("\xa0", " ")


def sentence(page):
    (section,) = [one for one in page.every("section") if one.has("verdict")]
    return section.every("p")[0].text().replace("\xa0", " ")


def notices(page):
    return [one.text().replace("\xa0", " ") for one in page.every("p") if one.has("notice")]


def test_the_page_says_when_by_what_and_of_what_its_records_were_made(board):
    records = board()
    last = dataclasses.replace(
        records[-1].provenance, date="2026-02-03T00:00:00+00:00", commit=None, model=None
    )
    records[-1] = dataclasses.replace(records[-1], provenance=last)
    said = words(page_of(records))
    first = records[0].provenance
    for text in (first.date[:10], first.commit, first.data, first.model):
        assert text in said
    for text in (f"{first.date[:10]} to 2026-02-03", "an installed package", "not at hand"):
        assert text in said


def test_errors_of_a_table_stand_beside_those_from_the_label_alone(board):
    page, summaries = page_of(board()), summarise(board())
    (title,) = [title for title in tables(page) if title.startswith("Means")]
    for name in ("label", "clean"):
        assert f"{summaries[0].values[f'baseline {name}'].mean:.4f}" in title


def test_every_cell_of_every_table_is_the_summarys(board):
    records = board()
    page, summaries = page_of(records), summarise(records)
    found = tables(page)
    for listing in (summary_table(summaries), costs_table(summaries)):
        table = found[listing.title]
        assert heads_of(table) == list(listing.columns)
        assert rows_of(table) == listing.cells()


def test_each_frontier_is_drawn_with_all_points_and_says_who_is_on_it(board):
    summaries, page = summarise(board()), page_of(board())
    for distortion, gap in itertools.product(AXES, GAPS):
        table = tables(page)[f"{GAPS[gap]} against {AXES[distortion]}"]
        on = {row[0] for row in rows_of(table) if row[-1] == "yes"}
        assert on == {one.release for one in frontier(summaries, distortion, gap)}
        assert [row[0] for row in rows_of(table)] == [one.release for one in summaries]
        for row, one in zip(rows_of(table), summaries, strict=True):
            assert row[1:3] == [f"{one.values[distortion].mean:.4f}", f"{one.values[gap].mean:.2f}"]
        assert names_on(page, distortion, gap) >= {one.release for one in summaries}


def names_on(page, distortion, gap):
    """What is written into a frontier's figure."""
    name = f"e0-{distortion}-{gap}".replace("_", "-")
    (chart,) = page.every("svg", **{"aria-labelledby": f"{name}-t {name}-d"})
    return {one.text() for one in chart.every("text")}


def test_many_releases_are_all_named_within_the_figures():
    names = ("none", *(f"defense {place}" for place in range(11)))
    records = [
        record_of(name, gap=place / 12, l1_mean=place / 100, names=names)
        for place, name in enumerate(names)
    ]
    page = page_of(records)
    table = tables(page)["G against L1 of probabilities"]
    assert [row[0] for row in rows_of(table)] == list(names)
    assert names_on(page, "l1_mean", "closed_gap") >= set(names)


def test_the_verdict_names_who_hides_most_and_who_changes_least_of_those_that_hide_enough(board):
    told = sentence(page_of(board()))
    assert told.startswith("Of 3 defenses with 3 seeds or more, “hardened” hides most: G = 0.96 ± ")
    assert "at an L1 distance of 0.3000" in told
    assert "1 of them reveals more than clean scores, “paper, step 0.4” most: G = -0.49" in told
    records = [one for one in board() if one.release != "hardened"]
    assert "none closes 0.9 of the gap" in sentence(page_of(records))


def test_a_gap_about_zero_is_not_said_to_be_more_than_clean_scores():
    records = [
        record_of(name, seed, gap=gap, names=("none", "hardened"))
        for name, gaps in (("none", (0, 0, 0)), ("hardened", (-0.1, 0.02, -0.03)))
        for seed, gap in enumerate(gaps)
    ]
    assert "more than clean scores" not in sentence(page_of(records))


def test_a_release_of_one_seed_is_never_the_verdict_beside_others_of_three(board):
    records = [one for one in board() if one.release != "hardened" or one.seed == 0]
    page = page_of(records)
    assert "hardened" not in sentence(page)
    (told,) = [one for one in notices(page) if "seed" in one]
    assert told == (
        "Only 1 seed was run of hardened: do not quote. Use at least 3 seeds for shared results."
    )


def test_one_seed_of_all_says_so_of_all(board):
    page = page_of([one for one in board() if one.seed == 1])
    (told,) = [one for one in notices(page) if "seed" in one]
    assert told == "Only 1 seed was run: do not quote. Use at least 3 seeds for shared results."
    assert sentence(page).startswith("Of 3 defenses, “hardened” hides most: G = 0.96 of the gap")


def test_without_any_gap_nothing_is_drawn_that_is_not_there(board):
    records = [
        dataclasses.replace(one, closed_gap=None, closed_gap_least_confident=None)
        for one in board()
    ]
    page = page_of(records)
    assert sentence(page).startswith("There is no gap to close")
    assert not any("against" in title for title in tables(page))


def test_several_experiments_are_chapters_with_a_sentence_each(board):
    records = board() + board(experiment="table2-faces", preset="paper")
    page = page_of(records, {"table1-mnist": published("table1-mnist")})
    titles = [one.text() for one in page.every("h2")]
    assert {"Table1-mnist, cpu", "Table2-faces, paper"} <= set(titles)
    (nav,) = page.every("nav")
    assert [one.text() for one in nav.every("a")] == ["Table1-mnist, cpu", "Table2-faces, paper"]
    assert words(page).count("Of 3 defenses with 3 seeds or more, “hardened” hides most") == 2
    assert "2 experiments" in [one.text() for one in page.every("h2")]


def test_what_the_paper_printed_stands_beside_ours():
    theirs = published("table1-mnist")
    records = [
        record_of(name, seed, names=("none", "adversarial noise"))
        for name in ("none", "adversarial noise")
        for seed in range(3)
    ]
    page = page_of(records, {"table1-mnist": theirs})
    rows = rows_of(tables(page)["Table I, MNIST: theirs, as printed"])
    assert rows == published_table(theirs, summarise(records)).cells()
    assert all(" ".join(remark.text.split()) in words(page) for remark in theirs.remarks)


def test_flags_of_records_are_explained_with_their_releases():
    detail = "labels changed or tied in what was released"
    records = [
        record_of(seed=seed, flags=(Flag("labels-changed", f"3 {detail}"),)) for seed in range(3)
    ]
    page = page_of(records)
    (said,) = [one for one in page.every("li") if f"flag labels-changed: {detail}" in one.text()]
    assert [link.attributes["href"] for link in said.every("a")] == ["#flag-labels-changed"]
    assert "docs/" not in said.text()
    (section,) = page.every("section", id="flag-labels-changed")
    assert f"{detail}: none (3 of 3 seeds)" in section.text()


def test_pictures_are_shown_of_every_release_that_has_some(board, gallery):
    page = page_of(board(static=0.05), gallery=gallery)
    (table,) = [one for one in page.every("table") if one.has("pictures")]
    rows = rows_of(table)
    assert rows[0][0] == "As it was sent"
    # The static attacker and the strongest of each release, and what the label alone gives.
    assert len(rows) == 1 + 2 * 4 + 1
    assert rows[-1][0].startswith("From the label alone")
    assert len(page.every("img")) == 10 * len(rows)
    alts = [one.attributes["alt"] for one in page.every("img")]
    assert len(set(alts)) == len(alts)
    assert "confidential" in notices(page)[-1]
    # Of 8 by 6 pixels: their shape is kept.
    assert {(one.attributes["width"], one.attributes["height"]) for one in page.every("img")} == {
        ("54", "72")
    }
    assert page_of(board()).every("img") == []


@settings(max_examples=15)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20))
def test_names_of_releases_and_experiments_are_escaped(text):
    name = f"<img src=x onerror=alert(1)>*{text}*![x](http://far.example/x.png)"
    records = [
        dataclasses.replace(
            one,
            experiment=name,
            preset=name,
            release=one.release.replace("hard", name),
            environment=dataclasses.replace(one.environment, processor=name),
        )
        for one in experiment()
    ]
    for one in records:
        for row in one.spec["releases"]:
            row["name"] = row["name"].replace("hard", name)
    page = page_of(records)
    assert page.every("img") == []
    assert "<img src=x" in words(page)


def markdown_of(records, theirs=None, images=None):
    return results_page(records, theirs or {}, "oneway results there --out page.md", images)


def markdown_rows(page):
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in page.splitlines()
        if line.startswith("| ")
    ]


def test_markdown_has_the_tables_and_sentences_of_the_page(board):
    records, theirs = board(), {"table1-mnist": published("table1-mnist")}
    page, text = page_of(records, theirs), markdown_of(records, theirs)
    cells = markdown_rows(text)
    for title, table in tables(page).items():
        if " against " not in title and not title.startswith("Error of"):
            assert heads_of(table) in cells
            assert all(row in cells for row in rows_of(table)), title
    said = " ".join(text.split())
    assert sentence(page) in said
    for line in page.every("section", id="e0-words")[0].every("li"):
        assert line.text().replace("\xa0", " ") in said
    assert "`oneway results there --out page.md`" in text
    shown = markdown_of(records, images={("table1-mnist", "cpu"): "images/a.svg"})
    assert "![G against distortion](images/a.svg)" in shown
    assert "![" not in text


def test_each_experiment_and_preset_has_a_section_of_its_own():
    kinds = [("table1-mnist", "cpu"), ("table1-mnist", "paper"), ("table2-faces", "cpu")]
    page = markdown_of(
        record_of(experiment=experiment, preset=preset, side=32 if "faces" in experiment else 0)
        for experiment, preset in kinds
    )
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == [f"## {experiment}, preset {preset}" for experiment, preset in kinds]
    assert page.count("scaled to 32 x 32") == 1
    assert "## my-own\n" in markdown_of([record_of(experiment="my-own", preset="")])


def test_a_name_with_a_bar_does_not_break_the_table():
    assert r"| a \| b | 98.12 |" in markdown_of([record_of("a | b", names=("a | b",))])


def test_records_of_different_settings_make_no_page():
    other = record_of(seed=1)
    other.spec["data"]["private"] = 9
    for layout in (page_of, markdown_of):
        with pytest.raises(ValueError, match="of the same experiment"):
            layout([record_of(seed=0), other])


def test_the_overview_has_each_release_at_one_place_in_both_charts(board):
    summaries = summarise(board())
    named = [
        dataclasses.replace(
            one, values={**one.values, "matching true inputs": Estimate(at / 10, None, 1)}
        )
        for at, one in enumerate(summaries)
    ]
    hides, names = overview_charts([*named[1:], summaries[0]])
    assert [row[0] for row in hides.numbers.cells()] == [one.release for one in named[1:]]
    assert [row[:2] for row in names.numbers.cells()] == [row[:2] for row in hides.numbers.cells()]
    shares = [row[2] for row in names.numbers.cells()]
    assert shares == [f"{at / 10:.3f}" for at in range(1, len(named))]
    assert overview_charts(summaries) == [], "nothing is drawn where nothing was identified"
