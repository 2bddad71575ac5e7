"""Charts put numbers where they belong, whatever the numbers and the names."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneway.report import Listing
from oneway.report.page.charts import (
    ROOM,
    Level,
    Place,
    Point,
    line_chart,
    plane_chart,
    reliability_chart,
)
from report.page.reading import read

ERRORS = st.floats(0.001, 0.5)
LETTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))
NAMES = st.text(LETTERS).map("a<{}>&".format)
NONE = Listing("numbers", {}, ())


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


@given(st.lists(ERRORS, min_size=1, max_size=14), ERRORS, ERRORS, ERRORS)
def test_who_errs_less_lies_further_left_and_nobody_off_the_line(errors, clean, label, prior):
    places = [Place(str(place), error, f"{error}") for place, error in enumerate(errors)]
    page = line_of([("clean", clean), ("label", label), ("prior", prior)], places)
    at = [percent(one.attributes["x"]) for one in marks_of(page)]
    assert len(at) == len(errors)
    assert all(0 <= x <= ROOM for x in at)
    baselines = [percent(one.attributes["x1"]) for one in page.every() if one.has("level")]
    assert len(baselines) == 3
    everybody = sorted(zip([*errors, clean, label, prior], [*at, *baselines], strict=True))
    for (one, x), (other, y) in itertools.pairwise(everybody):
        # To a hundredth of a percent, as it is written.
        assert x <= y + 0.011, (one, other)


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
        assert 0 <= left <= right <= ROOM
        assert left + right == pytest.approx(2 * percent(one.attributes["x"]), abs=0.03)


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
    assert percent(marks_of(page)[1].attributes["x"]) == ROOM
    assert "3.0000" in [one.text() for one in page.every("text")]
    page = line_of([("zero", 0.0), ("floor", 0.04)], [near, far], banded=False)
    assert [one.children[0].name for one in marks_of(page)] == ["circle", "circle"]


@given(NAMES)
def test_names_are_text_whatever_is_in_them(name):
    page = line_of([(name, 0.1), ("label", 0.3)], [Place(name, 0.2, name, strongest=True)])
    texts = ["".join(one.children) for one in page.every("text")]
    assert texts == [f"{name} 0.1000", "label 0.3000", name, name]
    point = Point(name, 0.1, 0.5, label=name)
    chart = plane_chart("x", name, name, [point], across=name, up=name, numbers=NONE)
    assert ["".join(one.children) for one in drawn(chart).every("text")].count(name) == 3


def places_on(chart):
    page = drawn(chart)
    return [
        tuple(map(float, re.findall(r"-?[\d.]+", one.attributes["transform"])))
        for one in page.every("g")
    ]


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(-1, 1)), min_size=2, max_size=12),
    st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_more_change_lies_further_right_and_more_hidden_further_up(pairs, linear_below):
    points = [Point(str(place), *pair) for place, pair in enumerate(pairs)]
    chart = plane_chart(
        "x", "t", "d", points, across="a", up="u", linear_below=linear_below, numbers=NONE
    )
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
    chart = plane_chart("x", "t", "d", points, across="a", up="u", numbers=NONE)
    assert "2: -6.1" in [one.text() for one in drawn(chart).every("text")]
    (_, high), (_, low) = places_on(chart)
    assert high < low < chart.size[1]


def test_the_frontier_is_a_stair_through_its_points():
    points = [Point("a", 0.1, 0.2, on=True), Point("b", 0.3, 0.9, on=True), Point("c", 0.2, 0.1)]
    chart = plane_chart("x", "t", "d", points, across="a", up="u", steps=points[:2], numbers=NONE)
    page = drawn(chart)
    (stair,) = [one for one in page.every("path") if one.has("steps")]
    plain, first, second = places_on(chart)  # those that stand out come last
    assert plain[1] > first[1]
    said = list(map(float, re.findall(r"[\d.]+", stair.attributes["d"])))
    assert said == [*first, *second]
    weights = [one.attributes["class"] for one in page.every("g")]
    assert weights == ["mark plain", "mark strong", "mark strong"]


def test_reliability_is_on_the_line_where_answers_are_as_sure_as_right():
    points = [(0.2, 0.2), (0.5, 0.9), (1.0, 1.0)]
    chart = reliability_chart("x", "t", "d", [("clean", "ring", points)], numbers=NONE)
    side = chart.size[0]
    (low_x, low_y), (x, y), (high_x, high_y) = places_on(chart)
    assert low_x + low_y == pytest.approx(side)
    assert high_x + high_y == pytest.approx(side)
    assert x + y < side
    assert low_x < x < high_x
    assert [told for _, _, told in chart.legend] == ["clean"]
