"""Charts as SVG, for a page or a file: text is text, and marks differ by shape.

Charts measure nothing, and only place numbers. Colors come from ``chart.css``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

from markupsafe import Markup

from oneway.report.page.labels import JOINED, LETTER, Box, Labelled, place_labels, text_box
from oneway.report.table import Listing

WIDTH, HEIGHT = 920, 430
"""Size of a plot with two axes, in its own units; a page scales it."""

ROOM = 60
"""Percent of a line's width up to which a level's name stands to the right of its line."""

CHARACTER = 1.9
"""Percent of a phone's line that a character of a level's name takes."""

SHARE = 78
"""Percent of a line's width that places lie on; their numbers stand beside them."""

LEAST = 1e-9
"""Distortions below this count as 0, so that the axis has a length even so."""

NEAR, LOWEST, PEAK = -0.25, -1.0, 1.15
"""Where an axis of gaps begins and ends: it begins at ``LOWEST`` if a gap lies below ``NEAR``.

Gaps below ``LOWEST`` are drawn at it, with their number, so that other gaps stay apart.
"""

LINEAR = 0.4
"""Length of the linear part of a mixed axis, in decades of its logarithmic part."""

LEFT, RIGHT, TOP, BOTTOM = 56, 16, 18, 52
"""Margins of a plane."""

MARK = 7.0
"""Half the width of a mark."""

MOST_LETTERS, MOST_ON_LINE = 48, 34
"""Most letters of a label on a plane, and of a name on a line, which a number follows."""

SHAPES = {
    "disc": Markup('<circle r="5.5"/>'),
    "ring": Markup('<circle r="5"/>'),
    "diamond": Markup('<path d="M0-6.5 6.5 0 0 6.5-6.5 0Z"/>'),
    "below": Markup('<path d="M-6-4H6L0 6Z"/>'),
    "at least": Markup('<path d="M-6 4H6L0-6Z"/>'),
    "beyond": Markup('<path d="M-4-6V6L6 0Z"/>'),
}
"""Marks around the origin: a reader who cannot see a color sees the shape."""


@dataclass(frozen=True)
class Legend:
    """A mark and its meaning.

    Attributes:
        shape: Key of ``SHAPES``.
        weight: ``strong`` or ``plain``.
        label: Meaning of the mark.
    """

    shape: str
    weight: str
    label: str

    def mark(self) -> Markup:
        """Return the mark around the origin."""
        return SHAPES[self.shape]


@dataclass(frozen=True)
class Chart:
    """A picture of numbers, with a description and a table for readers who cannot see it.

    Attributes:
        name: Identifier, unique on the page, and part of the chart's ids.
        title: Subject of the chart, in a few words.
        description: Content of the chart, in sentences.
        svg: Content of the ``<svg>``.
        size: Width and height in SVG units; a width of 0: the whole width of the page.
        numbers: All numbers of the chart.
        legend: Meanings of the marks.
    """

    name: str
    title: str
    description: str
    svg: Markup
    size: tuple[int, int]
    numbers: Listing
    legend: Sequence[Legend] = ()
    kind: str = "chart"


@dataclass(frozen=True)
class Level:
    """A named number to compare with, such as a baseline.

    Attributes:
        label: Name of the number.
        value: The number.
        text: Text at its line; empty: the name and the number.
    """

    label: str
    value: float
    text: str = ""


@dataclass(frozen=True)
class Place:
    """An attacker or a release on a line of numbers.

    Attributes:
        label: Name of the attacker or release.
        value: Number that is placed.
        text: The number as text.
        strongest: Whether the place is highlighted.
        low: Lower end of the interval; None without an interval.
        high: Upper end of the interval; None without an interval.
    """

    label: str
    value: float
    text: str
    strongest: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A release on a plane.

    Attributes:
        name: Name of the release.
        across: Distortion of the release.
        up: Closed gap of the release.
        low: Lower end of the interval of ``up``; None without an interval.
        high: Upper end of the interval of ``up``; None without an interval.
        on: Whether the point is highlighted.
        label: Text next to the point.
        shape: Key of ``SHAPES``.
        nudge: Shift to the right, in SVG units, so that two points at one place are both seen.
        text: ``up`` as text; empty: as a number.
    """

    name: str
    across: float
    up: float
    low: float | None = None
    high: float | None = None
    on: bool = False
    label: str = ""
    shape: str = "ring"
    nudge: float = 0.0
    text: str = ""


def element(tag: str, text: str | None = None, /, **attributes: object) -> Markup:
    """Return an element of SVG with escaped attributes and text.

    Args:
        tag: Name of the element.
        text: Content of the element; None: the element is empty and closes itself.
        attributes: Values by name, with ``kind`` for ``class`` and ``_`` for ``-``. Floats are
            rounded to a tenth; None is left out.
    """
    parts = [Markup("<") + tag]
    for name, value in attributes.items():
        if value is not None:
            written = f"{value:.1f}" if isinstance(value, float) else value
            spelled = "class" if name == "kind" else name.replace("_", "-")
            parts.append(Markup(' {}="{}"').format(spelled, written))
    parts.append(Markup("/>") if text is None else Markup(">{}</{}>").format(text, tag))
    return Markup("").join(parts)


def _percent(value: float) -> str:
    return f"{value:.2f}%"


def line_chart(
    name: str,
    title: str,
    description: str,
    levels: Sequence[Level],
    places: Sequence[Place],
    *,
    numbers: Listing,
    banded: bool = True,
) -> Chart:
    """Return a :class:`Chart` of numbers on a line: levels, and places between them and beyond.

    Places are shares of the page's width, so that text keeps its size on a phone. In a ``banded``
    chart, the range between the first two levels is shaded. Places further beyond these levels than
    twice their distance are drawn at the edge, as an arrow.
    """
    first, second = levels[0].value, levels[1].value
    reach = max(first, second) + 2 * abs(second - first) if banded else math.inf
    at, limit = _line_scale(levels, places, reach)
    if not banded:
        # Names stand beside the upper ends of lines, in an order in which no line crosses a name:
        # first those to the right of their line, from the left on, then the others, from the right.
        rising = sorted(levels, key=attrgetter("value"))
        levels = [level for level in rising if at(level.value) <= ROOM]
        levels += [level for level in rising[::-1] if at(level.value) > ROOM]
    step, lift, size = (26, 6, " small") if len(places) > 9 else (46, 14, "")
    head = 22
    top = head * len(levels) + 10
    height = top + step * len(places) + 8
    parts = []
    if banded:
        left, right = sorted((at(first), at(second)))
        band = {"x": _percent(left), "width": _percent(right - left)}
        parts.append(element("rect", kind="between", y=top - 4, height=height - top, **band))
    for order, level in enumerate(levels):
        x, y = at(level.value), head * (order + 1) - 6
        across = {"x1": _percent(x), "x2": _percent(x)}
        # Dashes as far apart as rows: they cross the tracks, and leave out the names above them.
        dash, begin = step - 15, (top - 2 * lift + 4 - (y + 5)) % step
        dashes = f"stroke-dasharray:{dash} {step - dash};stroke-dashoffset:{step - begin}"
        parts.append(element("line", kind="level", y1=y + 5, y2=height - 4, style=dashes, **across))
        text = level.text or f"{level.label} {level.value:.4f}"
        # The first stands to the left of its line, others to the right, where a phone has room.
        room = ROOM if order else max(25.0, CHARACTER * len(text))
        beside = {"dx": -5, "text_anchor": "end"} if x > room else {"dx": 5}
        parts.append(element("text", text, kind="level-name", x=_percent(x), y=y, **beside))
    for order, place in enumerate(places):
        y = top + step * (order + 1) - lift
        parts += _on_line(place, at, y, beyond=place.value > limit)
        weight = "strong" if place.strongest else "plain"
        label = _shortened(place.label, MOST_ON_LINE)
        for text, x, anchor in ((label, 0, None), (place.text, 100, "end")):
            spot = {"x": f"{x}%", "y": y - lift, "text_anchor": anchor}
            parts.append(element("text", text, kind=weight + size, **spot))
    return Chart(name, title, description, Markup("\n").join(parts), (0, height), numbers)


def _shortened(text: str, most: int) -> str:
    """Return a text of at most so many letters; the numbers of a chart have the whole text."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _line_scale(
    levels: Sequence[Level], places: Sequence[Place], reach: float
) -> tuple[Callable[[float], float], float]:
    """Return the percent at which a number lies, and the largest number on the line."""
    known = [level.value for level in levels]
    for place in places:
        known += [end for end in (place.value, place.low, place.high) if end is not None]
    low = min(known)
    high = max([value for value in known if value <= reach] or [max(known)])
    high = max(high, *(level.value for level in levels))
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    return lambda value: SHARE * (min(max(value, low), high) - low) / (high - low), high


def _on_line(place: Place, at: Callable[[float], float], y: float, *, beyond: bool) -> list[Markup]:
    """Return the track of a place, its interval and its mark."""
    parts = [element("line", kind="track", x1=0, x2=f"{SHARE}%", y1=y, y2=y)]
    if place.low is not None and place.high is not None and not beyond:
        ends = {"x1": _percent(at(place.low)), "x2": _percent(at(place.high))}
        parts.append(element("line", kind="whisker", y1=y, y2=y, **ends))
    shape = "beyond" if beyond else "disc" if place.strongest else "ring"
    weight = "mark strong" if place.strongest else "mark plain"
    spot = {"x": _percent(at(place.value)), "y": y, "overflow": "visible"}
    return [*parts, element("svg", SHAPES[shape], kind=weight, **spot)]


@dataclass(frozen=True)
class Axis:
    """An axis of a plane; ``at`` returns where a number lies, in the chart's units."""

    label: str
    ticks: Sequence[float]
    at: Callable[[float], float]


def _span(pixels: float, *, up: bool = False) -> Callable[[float], float]:
    """Return where a share of an axis lies, on a plane of so many units across, or upwards."""
    if up:
        return lambda share: TOP + (pixels - TOP - BOTTOM) * (1 - share)
    return lambda share: LEFT + 10 + (pixels - LEFT - RIGHT - 10) * share


def change_axis(
    label: str, points: Sequence[Point], width: int, *, linear_below: float = 0.0, spare: float
) -> Axis:
    """Return the axis across of what releases change, from 0 to the last point and a share more.

    It is linear up to ``linear_below`` and logarithmic beyond; 0: linear.
    """
    most = max([point.across for point in points], default=0.0)
    most, span = (most if most >= LEAST else 1.0), _span(width)
    if linear_below <= 0:
        return Axis(label, _ticks(most), lambda value: span(value / most / (1 + spare)))

    def length(value: float) -> float:
        if value <= linear_below:
            return LINEAR * value / linear_below
        return LINEAR + math.log10(value / linear_below)

    ticks = [0.0, *_log_ticks(linear_below, most)] if most > linear_below else _ticks(most)
    return Axis(label, ticks, lambda value: span(length(value) / length(most) / (1 + spare)))


def _log_ticks(least: float, most: float) -> list[float]:
    """Return powers of ten within a range that begins with one; if they are few, 2 and 5 of each.

    A single number would not say that an axis is logarithmic.
    """
    powers = range(round(math.log10(least)), math.floor(math.log10(most)) + 1)
    steps = (1, 2, 5) if len(powers) < 3 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if tick <= most]


def gap_axis(label: str, lowest: float, height: int) -> Axis:
    """Return the axis upwards of closed gaps; those below the lowest are drawn there."""
    span, bottom = _span(height, up=True), lowest - 0.12
    ticks = [half / 2 for half in range(math.ceil(2 * lowest), 3)]
    return Axis(label, ticks, lambda value: span((max(value, lowest) - bottom) / (PEAK - bottom)))


def plane_chart(
    name: str,
    title: str,
    description: str,
    points: Sequence[Point],
    axes: tuple[Axis, Axis],
    *,
    lowest: float,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    levels: Sequence[Level] = (),
    steps: Sequence[Point] = (),
    numbers: Listing,
    legend: Sequence[Legend] = (),
) -> Chart:
    """Return a :class:`Chart` of points on a plane: what releases hide, against what they change.

    Points below ``lowest`` are drawn there, as an arrow with their number. ``levels`` are gaps to
    compare with, ``steps`` the points on the frontier, from the least change to the most.
    """
    across, up = axes
    parts, right = _grid(axes, size), size[0] - RIGHT
    # The name of the axis upwards is in the corner.
    fixed, lines = [text_box(up.label, LETTER * len(up.label) / 2, 12)], list[Box]()
    for level in levels:
        y = up.at(level.value)
        parts.append(element("line", kind="level", x1=LEFT, x2=right, y1=y, y2=y))
        place = {"x": LEFT + 18, "y": y - 6 if level.value > 0 else y + 15}
        parts.append(element("text", level.label, kind="level-name", **place))
        middle = place["x"] + LETTER * len(level.label) / 2
        fixed.append(text_box(level.label, middle, place["y"]))
        lines.append(Box(LEFT, y - 1, right, y + 1))
    if len(steps) > 1:
        way = f"M{across.at(steps[0].across):.1f} {up.at(steps[0].up):.1f}" + "".join(
            f"H{across.at(point.across):.1f}V{up.at(point.up):.1f}" for point in steps[1:]
        )
        parts.append(element("path", kind="steps", d=way))
        corners = [(across.at(point.across), up.at(point.up)) for point in steps]
        for (x0, y0), (x1, y1) in pairwise(corners):
            lines += [Box(x0, y0 - 1, x1, y0 + 1), Box(x1 - 1, min(y0, y1), x1 + 1, max(y0, y1))]
    # Points that stand out are drawn last, above the others, and get their labels first.
    ordered = sorted(points, key=lambda point: point.on)
    marks = []
    for point in ordered:
        x, y = across.at(point.across) + point.nudge, up.at(point.up)
        below, weight = point.up < lowest, "strong" if point.on else "plain"
        if point.low is not None and point.high is not None and not below:
            ends = f"M{x:.1f} {up.at(point.low):.1f}V{up.at(min(point.high, PEAK)):.1f}"
            parts.append(element("path", kind="whisker", d=ends))
        marks.append(_mark("below" if below else point.shape, weight, x, y))
    parts += _labels(ordered[::-1], (across, up), lowest, size[0], fixed, lines)
    parts += marks
    return Chart(name, title, description, Markup("\n").join(parts), size, numbers, legend)


def _mark(shape: str, weight: str, x: float, y: float) -> Markup:
    place = f"translate({x:.1f} {y:.1f})"
    return element("g", SHAPES[shape], kind=f"mark {weight}", transform=place)


def _labels(
    points: Sequence[Point],
    axes: tuple[Axis, Axis],
    lowest: float,
    width: int,
    taken: Sequence[Box],
    lines: Sequence[Box],
) -> list[Markup]:
    """Return the labels of points, with a line to those that stand far from their point."""
    across, up = axes
    centers = [(across.at(point.across) + point.nudge, up.at(point.up)) for point in points]
    marks = [Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in centers]
    whiskers = [
        Box(x - 2, up.at(min(point.high, PEAK)), x + 2, up.at(max(point.low, lowest)))
        for point, (x, _) in zip(points, centers, strict=True)
        if point.low is not None and point.high is not None
    ]
    labelled = []
    for point, (x, y) in zip(points, centers, strict=True):
        text = f"{point.label}: {point.up:.1f}" if point.up < lowest else point.label
        labelled.append(Labelled(_shortened(text, MOST_LETTERS), x, y, point.on))
    frame = Box(LEFT, 2, width, up.at(lowest) + 2 * MARK)
    parts = []
    spots = place_labels(labelled, [*marks, *taken], frame, [*whiskers, *lines])
    for label, spot in zip(labelled, spots, strict=True):
        if spot is None or not spot.text:
            continue
        if spot.distance > JOINED:
            end = min(max(label.x, spot.box.left), spot.box.right)
            foot = spot.box.bottom if spot.box.bottom < label.y else spot.box.top
            ends = {"x1": label.x, "y1": label.y, "x2": end, "y2": foot}
            parts.append(element("line", kind="leader", **ends))
        kind = f"{'strong' if label.bold else 'plain'} small"
        place = {"x": spot.x, "y": spot.y, "text_anchor": "middle"}
        parts.append(element("text", spot.text, kind=kind, **place))
    return parts


def _grid(axes: tuple[Axis, Axis], size: tuple[int, int]) -> list[Markup]:
    """Return the axes of a plane with their numbers."""
    (across, up), (width, height) = axes, size
    parts, floor, right = [], height - BOTTOM, width - RIGHT
    for value in up.ticks:
        y = up.at(value)
        parts.append(element("line", kind="grid", x1=LEFT, x2=right, y1=y, y2=y))
        spot = {"x": LEFT - 8, "y": y + 4, "text_anchor": "end"}
        parts.append(element("text", f"{value:,.10g}", kind="tick", **spot))
    for value in across.ticks:
        x = across.at(value)
        parts.append(element("line", kind="grid", x1=x, x2=x, y1=TOP, y2=floor))
        spot = {"x": x, "y": floor + 18, "text_anchor": "middle"}
        parts.append(element("text", f"{value:,.10g}", kind="tick", **spot))
    corner = {"x": right, "y": height - 10, "text_anchor": "end"}
    parts.append(element("text", across.label, kind="axis", **corner))
    return [*parts, element("text", up.label, kind="axis", x=0, y=8)]


def _ticks(most: float) -> list[float]:
    """Return numbers to write below a linear axis from 0 on."""
    step = 10 ** math.floor(math.log10(most))
    for finer in (1.0, 0.5, 0.2, 0.1):
        if most / (finer * step) >= 4:
            step *= finer
            break
    return [round(step * count, 12) for count in range(int(most / step + 1e-9) + 1)]


def reliability_chart(
    name: str,
    title: str,
    description: str,
    series: Sequence[tuple[Legend, Sequence[tuple[float, float]]]],
    *,
    numbers: Listing,
) -> Chart:
    """Return a :class:`Chart` of how often answers are right, against how sure they say they are.

    Each series has a legend and points ``(confidence, accuracy)`` in ``[0, 1]``.
    """
    size, ticks = (400, 380), (0.0, 0.25, 0.5, 0.75, 1.0)
    across = Axis("how sure the answer says it is", ticks, _span(size[0]))
    axes = across, share_axis("how often it is right", size[1])
    diagonal = [(0.0, 0.0), (1.0, 1.0)]
    return curves_chart(
        name, title, description, series, axes, numbers=numbers, size=size, level=diagonal
    )


def share_axis(label: str, height: int) -> Axis:
    """Return the axis upwards of shares, from 0 to 1."""
    return Axis(label, (0.0, 0.25, 0.5, 0.75, 1.0), _span(height, up=True))


def log_axis(label: str, ticks: Sequence[float], width: int) -> Axis:
    """Return a logarithmic axis across, from the first of at least two ticks to the last."""
    span, length = _span(width), math.log10(ticks[-1] / ticks[0])
    return Axis(label, ticks, lambda value: span(math.log10(value / ticks[0]) / length))


def curves_chart(
    name: str,
    title: str,
    description: str,
    series: Sequence[tuple[Legend, Sequence[tuple[float, float]]]],
    axes: tuple[Axis, Axis],
    *,
    numbers: Listing,
    size: tuple[int, int],
    level: Sequence[tuple[float, float]] = (),
) -> Chart:
    """Return a :class:`Chart` of curves with marks at their points.

    Each series has a legend and points. ``level`` is a line to compare with, without marks.
    """
    across, up = axes
    parts = _grid(axes, size)

    def way(places: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)

    if level:
        line = way([(across.at(x), up.at(y)) for x, y in level])
        parts.append(element("path", kind="level", d=line))
    for legend, points in series:
        places = [(across.at(x), up.at(y)) for x, y in points]
        if len(places) > 1:
            parts.append(element("path", kind=f"curve {legend.weight}", d=way(places)))
        parts += [_mark(legend.shape, legend.weight, x, y) for x, y in places]
    svg, keys = Markup("\n").join(parts), [legend for legend, _ in series]
    return Chart(name, title, description, svg, size, numbers, keys)
