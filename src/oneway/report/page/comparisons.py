"""The two charts of every report: errors between baselines, and gaps against distortion."""

from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

from oneway.report.page.charts import (
    HEIGHT,
    LOWEST,
    NEAR,
    WIDTH,
    Chart,
    Legend,
    Level,
    Place,
    Point,
    change_axis,
    gap_axis,
    line_chart,
    plane_chart,
)
from oneway.report.sentences import gap_number
from oneway.report.table import Column, Listing

BASELINES = {
    "clean": "clean scores",
    "label": "the label alone",
    "prior": "the mean of all",
}
"""Names of the baselines."""


def baselines_chart(
    name: str, title: str, baselines: Sequence[float], places: Sequence[Place], kind: str
) -> Chart:
    """Return errors of attackers or releases (the kind) on a line between the baselines.

    The errors of the baselines are in the order of ``BASELINES``.
    """
    levels = [
        Level(label, value) for label, value in zip(BASELINES.values(), baselines, strict=True)
    ]
    rows = [(f"baseline: {level.label}", f"{level.value:.4f}") for level in levels]
    rows += [(f"{kind}: {place.label}", place.text) for place in places]
    columns = {f"baseline or {kind}": itemgetter(0), "error": itemgetter(1)}
    return line_chart(
        name,
        title,
        "A line of mean squared errors. The shaded band reaches from the best attack on clean "
        f"scores, {baselines[0]:.4f}, to the best given the label alone, {baselines[1]:.4f}. On "
        f"it: {'; '.join(f'{place.label} {place.text}' for place in places)}.",
        levels,
        places,
        numbers=Listing(title, columns, rows),
    )


def _text(point: Point) -> str:
    """Return the gap of a point as text."""
    return point.text or gap_number(point.up)


def gap_chart(
    name: str,
    title: str,
    points: Sequence[Point],
    labels: tuple[str, str],
    *,
    legend: Sequence[Legend],
    columns: dict[str, Callable[[Any], str]] | None = None,
    steps: Sequence[Point] = (),
    linear_below: float = 0.0,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    spare: float = 0.05,
) -> Chart:
    """Return closed gaps against distortions, on a plane.

    Args:
        name: Identifier, unique on the page.
        title: Subject of the chart.
        points: Releases.
        labels: Names of the distortion and of the gap.
        legend: Meanings of the marks.
        columns: Additional columns of the table of points.
        steps: Points on the frontier, from the least distortion to the most.
        linear_below: Distortion at which the axis across turns from linear to logarithmic; 0: the
            axis is linear.
        size: Width and height, in SVG units.
        spare: Share of the axis across that is free beyond the last point.
    """
    lowest = LOWEST if any(point.up < NEAR for point in points) else NEAR
    if any(point.up < lowest for point in points):
        legend = [*legend, Legend("below", "plain", f"below {lowest:g}, with its number")]
    if any(point.shape == "at least" for point in points):
        legend = [*legend, Legend("at least", "plain", "at least so much: the attack failed")]
    strong = [f"{point.name}, {_text(point)} at {point.across:.3g}" for point in points if point.on]
    table: dict[str, Callable[[Any], str]] = {
        "release": Column(attrgetter("name")),
        labels[0]: Column(attrgetter("across"), ".4f"),
        labels[1]: Column(_text),
        "95 % from": Column(attrgetter("low"), ".2f"),
        "to": Column(attrgetter("high"), ".2f"),
    }
    return plane_chart(
        name,
        title,
        f"A plane: across, {labels[0]}; up, {labels[1]}. Up and to the left is better. Standing "
        f"out: {'; '.join(strong) or 'nothing'}.",
        points,
        (
            change_axis(labels[0], points, size[0], linear_below=linear_below, spare=spare),
            gap_axis(labels[1], lowest, size[1]),
        ),
        lowest=lowest,
        size=size,
        levels=(Level("1: no more than the label", 1.0), Level("0: as without a defense", 0.0)),
        steps=steps,
        numbers=Listing(title, table | (columns or {}), points),
        legend=legend,
    )
