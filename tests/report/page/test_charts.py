"""Charts put numbers where they belong, whatever the numbers and the names."""

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneway.benchmark import summarise
from oneway.evaluation.records import read_records
from oneway.report.page.charts import (
    CHARACTER,
    MOST_ON_LINE,
    ROOM,
    SHARE,
    Legend,
    Level,
    Place,
    Point,
    change_axis,
    line_chart,
    reliability_chart,
)
from oneway.report.page.comparisons import baselines_chart, gap_chart
from oneway.report.page.experiments import frontier_charts
from oneway.report.page.labels import Box
from oneway.report.page.render import write_charts
from oneway.report.table import Listing
from report.page.reading import read

ROOT = Path(__file__).parents[3]
ERRORS = st.floats(0.001, 0.5)
LETTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))
NAMES = st.text(LETTERS, max_size=40).map("a<{}>&".format)
NONE = Listing("numbers", {}, ())


def plane_of(points, across="a", up="u", **options):
    return gap_chart("x", "t", points, (across, up), legend=(), **options)


def drawn(chart):
    return read(f"<svg>{chart.svg}</svg>")


def line_of(levels, places, **options):
    levels = [Level(told, value) for told, value in levels]
    return drawn(line_chart("x", "title", "description", levels, places, numbers=NONE, **options))


def marks_of(page):
    return [one for one in page.every() if one.has("mark")]


def percent(text):
    assert text.endswith("%")
    return float(text[:-1])


@settings(max_examples=40)
@given(st.lists(ERRORS, min_size=1, max_size=14), ERRORS, ERRORS, ERRORS)
def test_who_errs_less_lies_further_left_and_nobody_off_the_line(errors, clean, label, prior):
    places = [Place(str(place), error, f"{error}") for place, error in enumerate(errors)]
    page = line_of([("clean", clean), ("label", label), ("prior", prior)], places)
    at = [percent(one.attributes["x"]) for one in marks_of(page)]
    assert len(at) == len(errors)
    assert all(0 <= x <= SHARE for x in at)
    baselines = [percent(one.attributes["x1"]) for one in page.every() if one.has("level")]
    assert len(baselines) == 3
    everybody = sorted(zip([*errors, clean, label, prior], [*at, *baselines], strict=True))
    for (one, x), (other, y) in itertools.pairwise(everybody):
        # To a hundredth of a percent, as it is written.
        assert x <= y + 0.011, (one, other)


@settings(max_examples=40)
@given(st.lists(st.tuples(ERRORS, st.floats(0, 0.1)), min_size=1, max_size=12), ERRORS, ERRORS)
def test_an_interval_reaches_as_far_to_both_sides_and_is_never_cut_short(pairs, clean, label):
    places = [
        Place("a", error, "text", low=error - half, high=error + half) for error, half in pairs
    ]
    page = line_of([("clean", clean), ("label", label)], places, banded=False)
    whiskers = [one for one in page.every("line") if one.has("whisker")]
    assert len(whiskers) == len(pairs)
    for whisker, one in zip(whiskers, marks_of(page), strict=True):
        left, right = (percent(whisker.attributes[end]) for end in ("x1", "x2"))
        assert 0 <= left <= right <= SHARE
        assert left + right == pytest.approx(2 * percent(one.attributes["x"]), abs=0.03)


@given(st.lists(ERRORS, min_size=2, max_size=6, unique=True))
def test_no_line_begins_above_a_name_on_the_side_where_the_name_stands(values):
    page = line_of([(f"{value}", value) for value in values], [], banded=False)
    lines = [one.attributes for one in page.every("line") if one.has("level")]
    names = [one.attributes for one in page.every("text") if one.has("level-name")]
    for row, name in enumerate(names):
        own = percent(name["x"])
        for above in lines[:row]:
            x = percent(above["x1"])
            if name.get("text-anchor") == "end":
                assert x >= own or x <= ROOM
            else:
                assert x <= own


@given(st.integers(1, 30), st.floats(0, 1))
def test_a_name_is_not_cut_at_the_left_edge_of_a_phone(length, least):
    levels = [Level("least", least, "n" * length), Level("second", 1.0)]
    page = drawn(
        line_chart("x", "t", "d", levels, [Place("a", -1.0, "")], numbers=NONE, banded=False)
    )
    name = next(one.attributes for one in page.every("text") if one.has("level-name"))
    if name.get("text-anchor") == "end":
        assert percent(name["x"]) >= CHARACTER * length


@pytest.mark.parametrize("length", [1, MOST_ON_LINE, MOST_ON_LINE + 1, 400])
def test_a_long_name_leaves_room_for_its_number_and_is_whole_in_the_table(length):
    name = "n" * length
    page = line_of([("clean", 0.1), ("label", 0.2)], [Place(name, 0.15, "0.1500")])
    (shown,) = (text for one in page.every("text") if (text := one.text()).startswith("n"))
    assert len(shown) <= MOST_ON_LINE
    assert (shown == name) == (length <= MOST_ON_LINE)
    chart = baselines_chart("x", "t", (0.1, 0.2, 0.3), [Place(name, 0.15, "0.1500")], "release")
    assert [f"release: {name}", "0.1500"] in chart.numbers.cells()


@given(st.floats(1e-3, 1e6))
def test_a_logarithmic_axis_has_two_numbers_beside_zero_and_none_beyond_its_end(most):
    axis = change_axis("x", [Point("a", most, 0.5)], 900, linear_below=1e-3, spare=0.05)
    assert list(axis.ticks) == sorted(set(axis.ticks))
    assert axis.ticks[-1] <= most * (1 + 1e-9)
    if most >= 2e-3:
        assert len(axis.ticks) >= 3


def test_the_band_reaches_from_one_floor_to_the_other():
    page = line_of([("clean", 0.02), ("label", 0.06)], [Place("a", 0.04, "0.04")])
    (band,) = [one for one in page.every("rect") if one.has("between")]
    baselines = [percent(one.attributes["x1"]) for one in page.every("line") if one.has("level")]
    (at,) = [percent(one.attributes["x"]) for one in marks_of(page)]
    left, width = percent(band.attributes["x"]), percent(band.attributes["width"])
    assert [left, left + width] == pytest.approx(baselines, abs=0.02)
    assert at == pytest.approx(sum(baselines) / 2, abs=0.02)


def test_who_is_far_beyond_the_label_is_drawn_at_the_edge_as_an_arrow_with_its_number():
    near, far = Place("near", 0.03, "0.0300"), Place("far", 3.0, "3.0000")
    page = line_of([("clean", 0.02), ("label", 0.04)], [near, far])
    shapes = [one.children[0].name for one in marks_of(page)]
    assert shapes == ["circle", "path"]
    assert percent(marks_of(page)[1].attributes["x"]) == SHARE
    assert "3.0000" in [one.text() for one in page.every("text")]
    page = line_of([("zero", 0.0), ("floor", 0.04)], [near, far], banded=False)
    assert [one.children[0].name for one in marks_of(page)] == ["circle", "circle"]


@settings(max_examples=40)
@given(NAMES)
def test_names_are_text_whatever_is_in_them(name):
    page = line_of([(name, 0.1), ("label", 0.3)], [Place(name, 0.2, name, strongest=True)])
    texts = ["".join(one.children) for one in page.every("text")]
    assert texts == [f"{name} 0.1000", "label 0.3000", name, name]
    point = Point(name, 0.1, 0.5, label=name)
    chart = plane_of([point], across=name, up=name)
    assert ["".join(one.children) for one in drawn(chart).every("text")].count(name) == 3


def places_on(chart):
    page = drawn(chart)
    return [
        tuple(map(float, re.findall(r"-?[\d.]+", one.attributes["transform"])))
        for one in page.every("g")
    ]


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(-1, 1)), min_size=2, max_size=12),
    st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_more_change_lies_further_right_and_more_hidden_further_up(pairs, linear_below):
    points = [Point(str(place), *pair) for place, pair in enumerate(pairs)]
    chart = plane_of(points, linear_below=linear_below)
    found = places_on(chart)
    width, height = chart.size
    for (across, up), (x, y) in zip(pairs, found, strict=True):
        assert 0 <= x <= width
        assert 0 <= y <= height
        for (further, higher), (other, above) in zip(pairs, found, strict=True):
            assert further < across or other >= x - 0.11
            assert higher < up or above <= y + 0.11


def test_a_gap_that_is_far_below_is_an_arrow_with_its_number():
    points = [Point("a", 0.1, 0.5, label="1"), Point("b", 0.2, -6.07, label="2")]
    chart = plane_of(points)
    assert "2: -6.1" in [one.text() for one in drawn(chart).every("text")]
    (_, high), (_, low) = places_on(chart)
    assert high < low < chart.size[1]


def test_the_frontier_is_a_stair_through_its_points():
    points = [Point("a", 0.1, 0.2, on=True), Point("b", 0.3, 0.9, on=True), Point("c", 0.2, 0.1)]
    chart = plane_of(points, steps=points[:2])
    page = drawn(chart)
    (stair,) = [one for one in page.every("path") if one.has("steps")]
    plain, first, second = places_on(chart)  # those that stand out come last
    assert plain[1] > first[1]
    said = list(map(float, re.findall(r"[\d.]+", stair.attributes["d"])))
    assert said == [*first, *second]
    weights = [one.attributes["class"] for one in page.every("g")]
    assert weights == ["mark plain", "mark strong", "mark strong"]


def test_an_interval_without_an_end_reaches_to_the_edge():
    chart = plane_of([Point("a", 0.1, 0.5, -math.inf, math.inf, on=True)])
    (whisker,) = [one for one in drawn(chart).every("path") if one.has("whisker")]
    _, low, high = map(float, re.findall(r"[\d.]+", whisker.attributes["d"]))
    assert 0 < high < low < chart.size[1]
    assert chart.numbers.cells() == [["a", "0.1000", "0.50", "-inf", "inf"]]


def test_reliability_is_on_the_line_where_answers_are_as_sure_as_right():
    points = [(0.2, 0.2), (0.5, 0.9), (1.0, 1.0)]
    legend = Legend("ring", "plain", "clean")
    chart = reliability_chart("x", "t", "d", [(legend, points)], numbers=NONE)
    (line,) = [one for one in drawn(chart).every("path") if one.has("level")]
    (x0, y0), (x1, y1) = (map(float, end.split()) for end in line.attributes["d"][1:].split("L"))

    def above(place):
        return y0 + (y1 - y0) * (place[0] - x0) / (x1 - x0) - place[1]

    first, second, last = places_on(chart)
    assert above(first) == pytest.approx(0, abs=0.2)
    assert above(last) == pytest.approx(0, abs=0.2)
    assert above(second) > 20
    assert first[0] < second[0] < last[0]
    assert list(chart.legend) == [legend]


def boxes_on(chart):
    """What each label of a point covers, by letters of a width that no test shares with charts."""
    for one in drawn(chart).every("text"):
        if one.has("small"):
            x, y = (float(one.attributes[axis]) for axis in "xy")
            half = len(one.text()) * (7.5 if one.has("strong") else 6.6) / 2
            yield one.text(), Box(x - half, y - 9, x + half, y + 3)


def assert_apart(chart):
    labels, (width, height) = list(boxes_on(chart)), chart.size
    for (one, box), (other, beside) in itertools.combinations(labels, 2):
        assert not box.overlaps(beside), (one, other)
    for name, box in labels:
        assert box.inside(Box(0, 0, width, height)), name
        for x, y in places_on(chart):
            assert not box.overlaps(Box(x - 5, y - 5, x + 5, y + 5)), name
    return [name for name, _ in labels]


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 0.01, 0.012, 1.5]), st.floats(-2, 1), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_no_label_covers_another_or_a_mark_or_leaves_the_chart(places):
    points = [
        Point(f"release {number}", across, up, up - 0.2, up + 0.2, on=on, label=f"release {number}")
        for number, (across, up, on) in enumerate(places)
    ]
    names = assert_apart(plane_of(points, linear_below=1e-3))
    # None is left out, and each is called by its own name.
    assert {name.partition(":")[0] for name in names} == {point.name for point in points}


@pytest.mark.parametrize("data", ["digits", "smoothed", "faces"])
def test_labels_of_the_published_leaderboards_are_apart_and_name_every_release(data):
    paths = sorted((ROOT / "results").glob(f"leaderboard-{data}-seed*.jsonl"))
    summaries = summarise([record for path in paths for record in read_records(path)])
    charts = frontier_charts(summaries)
    assert charts
    for chart in charts:
        names = assert_apart(chart)
        assert sorted(name.partition(":")[0] for name in names) == sorted(
            row[0] for row in chart.numbers.cells()
        )


@settings(max_examples=40)
@given(st.integers(1, 14), st.lists(ERRORS, min_size=2, max_size=4))
def test_no_level_is_drawn_through_the_name_of_a_row(rows, levels):
    places = [Place(f"name {row}", 0.1, "0.1000") for row in range(rows)]
    page = line_of([(f"{value}", value) for value in levels], places, banded=False)
    names = [one for one in page.every("text") if one.text().startswith("name ")]
    size = 11 if names[0].has("small") else 13
    for line in (one.attributes for one in page.every("line") if one.has("level")):
        dash, gap, offset = map(float, re.findall(r"[\d.]+", line["style"]))
        first, last = float(line["y1"]), float(line["y2"])
        for name in names:
            baseline = float(name.attributes["y"])
            for y in range(round(baseline - 0.8 * size), round(baseline) + 1):
                assert not first < y < last or (y - first + offset) % (dash + gap) >= dash


def test_charts_in_a_file_are_one_picture_that_loads_nothing(tmp_path):
    name = "a<b>&"
    points = [Point(name, 0.1, 0.5, on=True, label="1"), Point("b", 0.2, -6.07, label="2")]
    legend = [Legend("disc", "strong", name)]
    charts = [gap_chart("x", f"{axis} {name}", points, (axis, "u"), legend=legend)
              for axis in ("first", "second")]  # fmt: skip
    path = tmp_path / "new" / "charts.svg"
    write_charts(path, f"all {name}", charts)
    root = ElementTree.parse(path).getroot()  # noqa: S314  our own file
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert [root.find(f"{space}{tag}").text for tag in ("title", "desc")] == [
        f"all {name}",
        " ".join(chart.description for chart in charts),
    ]
    texts = ["".join(one.itertext()) for one in root.iter(f"{space}text")]
    for text in (f"all {name}", *(chart.title for chart in charts), name):
        assert text in texts
    assert texts.count("2: -6.1") == 2
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for one in root.iter(f"{space}text"):
        assert float(one.attrib["x"]) <= width
        assert float(one.attrib["y"]) <= height
    written = path.read_text(encoding="utf-8")
    assert not re.search(r"href|url\(|@import|<script|<image", written)
    assert list(path.parent.iterdir()) == [path]
