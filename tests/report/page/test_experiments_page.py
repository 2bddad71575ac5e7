"""The page of experiments: its numbers are the records', and no release is told as more."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneway.benchmark import published, summarise
from oneway.report import frontier
from oneway.report.frontier import AXES, GAPS
from oneway.report.page import records_page, render
from oneway.report.summary import COLUMNS, COSTS, published_rows
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


def test_every_cell_of_every_table_is_the_summarys(board):
    records = board()
    page, summaries = page_of(records), summarise(records)
    found = tables(page)
    for title, columns in (
        ("Means, with 95 % intervals over seeds", COLUMNS),
        ("Training and answers", COSTS),
    ):
        table = found[title]
        assert heads_of(table) == list(columns)
        assert rows_of(table) == [
            [show(summary) for show in columns.values()] for summary in summaries
        ]


@pytest.mark.parametrize("distortion", AXES)
@pytest.mark.parametrize("gap", GAPS)
def test_each_frontier_is_drawn_with_all_points_and_says_who_is_on_it(board, distortion, gap):
    summaries = summarise(board())
    page = page_of(board())
    table = tables(page)[f"{GAPS[gap]} against {AXES[distortion]}"]
    on = {row[0] for row in rows_of(table) if row[-1] == "yes"}
    assert on == {one.release for one in frontier(summaries, distortion, gap)}
    assert [row[0] for row in rows_of(table)] == [one.release for one in summaries]
    assert names_on(page, distortion, gap) >= {one.release for one in summaries}


def names_on(page, distortion, gap):
    """What is written into a frontier's figure."""
    name = f"e0-{distortion}-{gap}".replace("_", "-")
    (chart,) = page.every("svg", **{"aria-labelledby": f"{name}-t {name}-d"})
    return {one.text() for one in chart.every("text")}


def test_many_releases_have_numbers_in_figures_and_a_key_to_them():
    names = ("none", *(f"defense {place}" for place in range(11)))
    records = [
        record_of(name, gap=place / 11, l1_mean=place / 100, names=names)
        for place, name in enumerate(names)
    ]
    page = page_of(records)
    (key,) = [one for one in page.every("ol") if one.has("key")]
    assert [one.text() for one in key.every("li")] == list(names)
    table = tables(page)["G against L1 of probabilities"]
    assert [row[:2] for row in rows_of(table)] == [
        [name, str(number)] for number, name in enumerate(names, start=1)
    ]
    assert names_on(page, "l1_mean", "closed_gap") >= {str(number) for number in range(1, 13)}


def test_the_verdict_names_who_hides_most_and_who_changes_least_of_those_that_hide_enough(board):
    told = sentence(page_of(board()))
    assert told.startswith("Of 3 defenses with 3 seeds or more, “hardened” hides most: G = 0.96 ± ")
    assert "at an L1 distance of 0.3000" in told
    assert "More than clean scores did tells 1 of them, “paper, step 0.4” most: G = -0.49" in told
    records = [one for one in board() if one["release"] != "hardened"]
    assert "none closes 0.9 of the gap" in sentence(page_of(records))


def test_a_gap_about_zero_is_not_told_as_more_than_clean_scores():
    records = [
        record_of(name, seed, gap=gap, names=("none", "hardened"))
        for name, gaps in (("none", (0, 0, 0)), ("hardened", (-0.1, 0.02, -0.03)))
        for seed, gap in enumerate(gaps)
    ]
    assert "More than clean scores" not in sentence(page_of(records))


def test_a_release_of_one_seed_is_never_the_verdict_beside_others_of_three(board):
    records = [one for one in board() if one["release"] != "hardened" or one["seed"] == 0]
    page = page_of(records)
    assert "hardened" not in sentence(page)
    (told,) = [one for one in notices(page) if "seed" in one]
    assert told == (
        "One seed was run: not to be quoted. A number that others will read takes 3. This is "
        "about: hardened."
    )


def test_one_seed_of_all_says_so_of_all(board):
    page = page_of([one for one in board() if one["seed"] == 1])
    (told,) = [one for one in notices(page) if "seed" in one]
    assert told == "One seed was run: not to be quoted. A number that others will read takes 3."
    assert sentence(page).startswith("Of 3 defenses, “hardened” hides most: G = 0.96 of the gap")


def test_without_any_gap_nothing_is_drawn_that_is_not_there(board):
    records = [one | {"closed_gap": None, "closed_gap_least_confident": None} for one in board()]
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
    assert rows == published_rows(theirs, summarise(records))
    assert all(" ".join(remark.text.split()) in words(page) for remark in theirs.remarks)


FLAGGED = {
    "attack-failed": "retrained error above the label-only baseline: that attack failed",
    "retraining-failed": "retrained is weaker than static: the retraining failed",
    "labels-changed": "3 labels changed or tied in what was released",
}


def test_flags_of_records_are_found_by_what_they_say():
    records = [record_of(seed=seed, flags=list(FLAGGED.values())) for seed in range(3)]
    page = page_of(records)
    for name, detail in FLAGGED.items():
        (section,) = page.every("section", id=f"flag-{name}")
        assert detail.lstrip("3 ") in section.text()
        assert "3 of 3 seeds" in section.text()


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
        one | {"experiment": name, "preset": name, "release": one["release"].replace("hard", name)}
        for one in experiment()
    ]
    for one in records:
        for row in one["spec"]["releases"]:
            row["name"] = row["name"].replace("hard", name)
        one["environment"] = one["environment"] | {"processor": name}
    page = page_of(records)
    assert page.every("img") == []
    assert "<img src=x" in words(page)
