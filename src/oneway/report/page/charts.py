"""Charts as SVG for a page: text is text, colors are the page's, and marks differ by shape.

Nothing is measured here: a chart is given numbers, and says where on paper they lie.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from oneway.report.table import Listing

WIDTH, HEIGHT = 920, 430
"""Of a plot with two axes, in its own units; a page scales it."""

ROOM = 78
"""Percent of a line's width that places lie on; beside them stand their numbers."""

LEAST = 1e-9
"""Changes below this are none: the axis has a length even so."""

NEAR = -0.25
"""Where an axis of gaps begins, unless one lies below."""

LEFT, RIGHT, TOP, BOTTOM = 56, 16, 18, 52

SHAPES = {
    "disc": '<circle r="5.5"/>',
    "ring": '<circle r="5"/>',
    "diamond": '<path d="M0-6.5 6.5 0 0 6.5-6.5 0Z"/>',
    "square": '<rect x="-5" y="-5" width="10" height="10"/>',
    "below": '<path d="M-6-4H6L0 6Z"/>',
    "beyond": '<path d="M-4-6V6L6 0Z"/>',
}
"""Marks around the origin: who cannot see a color sees the shape."""


@dataclass(frozen=True)
class Chart:
    """A picture of numbers, with the same in words and as a table.

    Attributes:
        name: Unique on its page; part of the ids in it.
        title: What it shows, in a few words.
        description: What there is to see in it, for who cannot.
        svg: What is inside of the ``<svg>``.
        size: Width and height of its own units; a width of 0: as wide as there is room.
        numbers: All of its numbers.
        legend: What its marks mean: name of a shape, class of its color, text.
    """

    name: str
    title: str
    description: str
    svg: Markup
    size: tuple[int, int]
    numbers: Listing
    legend: tuple[tuple[Markup, str, str], ...] = ()
    kind: str = "chart"


@dataclass(frozen=True)
class Level:
    """A number that others are compared with, such as a baseline.

    Attributes:
        told: What it is.
        value: It.
    """

    told: str
    value: float


@dataclass(frozen=True)
class Place:
    """Somebody on a line of numbers.

    Attributes:
        told: Who.
        value: Where.
        text: The number as it is printed.
        strongest: Whether it is the one that counts.
        low: Where its interval begins, if there is one.
        high: Where it ends.
    """

    told: str
    value: float
    text: str
    strongest: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """A release on a plane.

    Attributes:
        told: Its name.
        across: How much it changes.
        up: How much it hides.
        low: Where its interval begins, if there is one.
        high: Where it ends.
        on: Whether it is to stand out.
        label: What is written beside it.
        mark: A key of ``SHAPES``.
        nudge: By how many units it is drawn aside, so that two at one place are both seen.
    """

    told: str
    across: float
    up: float
    low: float | None = None
    high: float | None = None
    on: bool = False
    label: str = ""
    mark: str = "ring"
    nudge: float = 0.0


def mark(shape: str) -> Markup:
    """Return a mark around the origin."""
    return Markup(SHAPES[shape])  # noqa: S704  our own constants


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
    """Return a line of numbers from the first level to the second, and who lies where on it.

    It has no width of its own: places are shares of the page's, so that text keeps its size on a
    phone. Where it is banded, what lies further beyond the second level than twice their distance
    is drawn at the edge, with an arrow and its number.

    Args:
        name: Unique on the page.
        title: What it shows.
        description: The same for who cannot see it.
        levels: The clean baseline, the label-only one, and others.
        places: Attackers or releases.
        numbers: All of them, as a table.
        banded: Whether what lies between the first two levels is shaded.
    """
    clean, label = levels[0].value, levels[1].value
    known = [one.value for one in levels]
    for one in places:
        known += [end for end in (one.value, one.low, one.high) if end is not None]
    reach = max(clean, label) + 2 * abs(label - clean) if banded else math.inf
    low = min(known)
    high = max([one for one in known if one <= reach] or [max(known)])
    high = max(high, *(one.value for one in levels))
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room

    def at(value: float) -> float:
        return ROOM * (min(max(value, low), high) - low) / (high - low)

    row, lift, size = (26, 6, " small") if len(places) > 9 else (46, 14, "")
    head = 22
    top = head * len(levels) + 10
    height = top + row * len(places) + 8
    parts = list[Markup]()
    if banded:
        left, right = sorted((at(clean), at(label)))
        parts.append(
            Markup('<rect class="between" x="{:.2f}%" y="{}" width="{:.2f}%" height="{}"/>').format(
                left, top - 4, right - left, height - top
            )
        )
    for order, level in enumerate(levels):
        x, y = at(level.value), head * (order + 1) - 6
        parts.append(
            Markup('<line class="level" x1="{x:.2f}%" x2="{x:.2f}%" y1="{}" y2="{}"/>').format(
                y + 5, height - 4, x=x
            )
        )
        # The first stands to the left of its line, others to the right, where there is room.
        left_of = x > (25 if order == 0 else 60)
        parts.append(_words(f"{level.told} {level.value:.4f}", x, y, left_of=left_of))
    for order, place in enumerate(places):
        y = top + row * (order + 1) - lift
        out = place.value > high
        shape = "beyond" if out else "disc" if place.strongest else "ring"
        weight = "strong" if place.strongest else "plain"
        parts.append(
            Markup('<line class="track" x1="0" x2="{}%" y1="{y}" y2="{y}"/>').format(ROOM, y=y)
        )
        if place.low is not None and place.high is not None and not out:
            parts.append(
                Markup(
                    '<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="{y}" y2="{y}"/>'
                ).format(at(place.low), at(place.high), y=y)
            )
        parts.append(
            Markup('<svg class="mark {}" x="{:.2f}%" y="{}" overflow="visible">{}</svg>').format(
                weight, at(place.value), y, mark(shape)
            )
        )
        for text, x, anchor in ((place.told, 0, "start"), (place.text, 100, "end")):
            parts.append(
                Markup('<text class="{}{}" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
                    weight, size, x, y - lift, anchor, text
                )
            )
    return Chart(name, title, description, Markup("\n").join(parts), (0, height), numbers)


def _words(text: str, x: float, y: float, *, left_of: bool) -> Markup:
    """Return the name of a level beside its line."""
    anchor, shift = ("end", -5) if left_of else ("start", 5)
    return Markup(
        '<text class="level-name" x="{:.2f}%" dx="{}" y="{}" text-anchor="{}">{}</text>'
    ).format(x, shift, y, anchor, text)


def plane_chart(
    name: str,
    title: str,
    description: str,
    points: Sequence[Point],
    *,
    across: str,
    up: str,
    levels: Sequence[Level] = (),
    lowest: float = -1.0,
    linear_below: float = 0.0,
    steps: Sequence[Point] = (),
    numbers: Listing,
    legend: Sequence[tuple[str, str, str]] = (),
    size: tuple[int, int] = (WIDTH, HEIGHT),
    spare: float = 0.05,
) -> Chart:
    """Return points on a plane: how much releases hide, against how much they change.

    Args:
        name: Unique on the page.
        title: What it shows.
        description: The same for who cannot see it.
        points: Releases.
        across: Name of the axis of what changes.
        up: Name of the axis of what is hidden.
        levels: Heights that others are compared with.
        lowest: Points below this are drawn here, as an arrow, with their number.
        linear_below: The axis across is linear up to here and logarithmic beyond; 0: linear.
        steps: Points on the frontier, from the least change to the most.
        numbers: All of them, as a table.
        legend: Shape, class and meaning of each kind of mark.
        size: Its width and height.
        spare: Share of the axis across that is kept free beyond the last point.
    """
    width, height = size
    most = max([one.across for one in points], default=0.0)
    if most < LEAST:
        most = 1.0

    def share(value: float) -> float:
        if linear_below <= 0:
            return value / most / (1 + spare)
        return _symlog(value, linear_below) / _symlog(most, linear_below) / (1 + spare)

    bottom, peak = lowest - 0.12, 1.15

    def x_of(value: float) -> float:
        return LEFT + 10 + (width - LEFT - RIGHT - 10) * share(value)

    def y_of(value: float) -> float:
        return TOP + (height - TOP - BOTTOM) * (peak - max(value, lowest)) / (peak - bottom)

    parts = _grid(size, across, up, x_of, y_of, lowest, most, linear_below)
    for level in levels:
        y = y_of(level.value)
        parts.append(
            Markup('<line class="level" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                LEFT, width - RIGHT, y=y
            )
        )
        above = level.value > 0
        parts.append(
            Markup('<text class="level-name" x="{}" y="{:.1f}">{}</text>').format(
                LEFT + 18, y - 6 if above else y + 15, level.told
            )
        )
    if len(steps) > 1:
        way = [f"M{x_of(steps[0].across):.1f} {y_of(steps[0].up):.1f}"]
        for one in steps[1:]:
            way.append(f"H{x_of(one.across):.1f}V{y_of(one.up):.1f}")
        parts.append(Markup('<path class="steps" d="{}"/>').format("".join(way)))
    # Centers of what is drawn, with half their widths.
    taken = [(x_of(one.across) + one.nudge, y_of(one.up), 7.0) for one in points]
    # Those that stand out are drawn last, above the others.
    for one in sorted(points, key=lambda point: point.on):
        x, y = x_of(one.across) + one.nudge, y_of(one.up)
        below = one.up < lowest
        if one.low is not None and one.high is not None and not below:
            parts.append(
                Markup('<path class="whisker" d="M{x:.1f} {:.1f}V{:.1f}"/>').format(
                    y_of(min(one.high, peak)), y_of(one.low), x=x
                )
            )
        parts.append(
            Markup('<g class="mark {}" transform="translate({:.1f} {:.1f})">{}</g>').format(
                "strong" if one.on else "plain", x, y, mark("below" if below else one.mark)
            )
        )
        text = f"{one.label}: {one.up:.1f}" if below and one.label else one.label
        if text:
            parts.append(_beside(text, x, y, one.on, taken, width))
    shapes = tuple((mark(shape), kind, told) for shape, kind, told in legend)
    return Chart(name, title, description, Markup("\n").join(parts), size, numbers, shapes)


LINEAR = 0.4
"""Of a mixed axis, the length of its linear part, in decades of the other."""


def _symlog(value: float, linear_below: float) -> float:
    """Return a place that is linear in small values and logarithmic in others."""
    if value <= linear_below:
        return LINEAR * value / linear_below
    return LINEAR + math.log10(value / linear_below)


def _beside(
    text: str, x: float, y: float, on: bool, taken: list[tuple[float, float, float]], width: int
) -> Markup:
    """Return text beside a point, where it covers least of what is there already."""
    half = 3.6 * len(text)
    options = [
        (x + side * (9 + half), y + lift)
        for lift in (-8, 4, 15, -19, 27, -30, -41)
        for side in (1, -1)
    ]

    def crowd(place: tuple[float, float]) -> float:
        near = sum(
            abs(place[0] - across) < half + wide + 1 and abs(place[1] - 4 - up) < 11
            for across, up, wide in taken
        )
        outside = place[0] - half < LEFT or place[0] + half > width - RIGHT + 8 or place[1] < 10
        return near + 5 * outside

    best = min(options, key=crowd)
    taken.append((best[0], best[1] - 4, half))
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
        "strong small" if on else "plain small", best[0], best[1], text
    )


def _grid(
    size: tuple[int, int],
    across: str,
    up: str,
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    lowest: float,
    most: float,
    linear_below: float,
) -> list[Markup]:
    """Return axes with their numbers."""
    width, height = size
    parts = []
    heights = [step / 2 for step in range(math.ceil(2 * lowest), 3)]
    for value in heights:
        y = y_of(value)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                LEFT, width - RIGHT, y=y
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(
                LEFT - 8, y + 4, value
            )
        )
    floor = height - BOTTOM
    for value in _ticks(most, linear_below):
        x = x_of(value)
        parts.append(
            Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(
                TOP, floor, x=x
            )
        )
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
                x, floor + 18, value
            )
        )
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(
            width - RIGHT, height - 10, across
        )
    )
    parts.append(Markup('<text class="axis" x="{}" y="{}">{}</text>').format(0, 12, up))
    return parts


def _ticks(most: float, linear_below: float) -> list[float]:
    """Return numbers to write below an axis from 0 on."""
    if linear_below > 0 and most > linear_below:
        last = math.floor(math.log10(most))
        first = round(math.log10(linear_below))
        return [0.0, *(10.0**power for power in range(first, last + 1))]
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
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    *,
    numbers: Listing,
) -> Chart:
    """Return how often answers are right, against how sure they say they are.

    Args:
        name: Unique on the page.
        title: What it shows.
        description: The same for who cannot see it.
        series: Name, shape, and points ``(confidence, accuracy)`` of each.
        numbers: All of them, as a table.
    """
    side, edge = 360, 44

    def at(value: float) -> float:
        return edge + (side - edge - 14) * value

    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = at(value), side - at(value)
        for kind, before, after in (("v", x, x), ("h", at(0), at(1))):
            top, bottom = (side - at(1), side - at(0)) if kind == "v" else (y, y)
            parts.append(
                Markup(
                    '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                ).format(before, after, top, bottom)
            )
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
                x, side - edge + 17, value
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{:g}</text>').format(
                edge - 7, y + 4, value
            )
        )
    parts.append(
        Markup('<path class="level" d="M{a:.1f} {b:.1f}L{b2:.1f} {a2:.1f}"/>').format(
            a=at(0), b=side - at(0), b2=at(1), a2=side - at(1)
        )
    )
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>').format(
            side - 14, side - 8, "how sure the answer says it is"
        )
    )
    parts.append(
        Markup('<text class="axis" x="{}" y="{}">{}</text>').format(0, 10, "how often it is right")
    )
    legend = []
    for order, (told, shape, points) in enumerate(series):
        weight = "strong" if order else "plain"
        places = [(at(across), side - at(up)) for across, up in points]
        if len(places) > 1:
            way = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(Markup('<path class="curve {}" d="{}"/>').format(weight, way))
        parts += [
            Markup('<g class="mark {}" transform="translate({:.1f} {:.1f})">{}</g>').format(
                weight, x, y, mark(shape)
            )
            for x, y in places
        ]
        legend.append((mark(shape), weight, told))
    svg = Markup("\n").join(parts)
    return Chart(name, title, description, svg, (side, side), numbers, tuple(legend))
