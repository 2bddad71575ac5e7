"""Places of labels beside the points of a chart, so that no label covers another or a mark."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

LETTER, BOLD_LETTER = 7.0, 7.9
"""Width of a letter of a label, in SVG units: of DejaVu Sans, which is wider than most fonts."""

ABOVE, BELOW = 10.0, 4.0
"""Height of a label above and below its baseline."""

NEAR = 10.0
"""Distance of the nearest labels from the center of their point."""

FAR = 100.0
"""Distance up to which a label gets out of the way of lines."""

JOINED = 22.0
"""Distance from which on a line joins a label and its point."""

STEP = 6.0
"""Distance of two places that are tried."""


class Box(NamedTuple):
    """A rectangle, in SVG units; ``top`` is above ``bottom``, and less."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Return whether both share an area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, frame: "Box") -> bool:
        """Return whether no part is outside the frame."""
        return (
            frame.left <= self.left
            and self.right <= frame.right
            and frame.top <= self.top
            and self.bottom <= frame.bottom
        )


class Labelled(NamedTuple):
    """A point that gets a label.

    Attributes:
        text: The label.
        x: Center of the point.
        y: Center of the point.
        bold: Whether the label is bold.
    """

    text: str
    x: float
    y: float
    bold: bool = False


class Placed(NamedTuple):
    """A label with its place.

    Attributes:
        text: The text.
        x: Middle of the text.
        y: Baseline of the text.
        box: What the text covers.
        distance: Distance from the center of the point, in SVG units.
    """

    text: str
    x: float
    y: float
    box: Box
    distance: float


def text_box(text: str, x: float, y: float, *, bold: bool = False) -> Box:
    """Return what a text covers whose middle is at ``x`` and whose baseline is at ``y``."""
    half = (BOLD_LETTER if bold else LETTER) * len(text) / 2
    return Box(x - half, y - ABOVE, x + half, y + BELOW)


def place_labels(
    points: Sequence[Labelled], taken: Sequence[Box], frame: Box, avoided: Sequence[Box] = ()
) -> list[Placed | None]:
    """Return a place for the label of each point: the nearest that covers nothing.

    Args:
        points: Points in the order of importance: the first get the nearest places.
        taken: Boxes that no label may cover, such as marks.
        frame: Box that no label leaves.
        avoided: Boxes that a label covers only if there is no other place nearer than ``FAR``, such
            as intervals.

    Returns:
        Places in the order of the points; None where no place is left.
    """
    used = list(taken)
    placed: list[Placed | None] = []
    for point in points:
        free = (spot for spot in _spots(point, frame) if not any(map(spot.box.overlaps, used)))
        label = _best(free, avoided)
        placed.append(label)
        if label is not None:
            used.append(label.box)
    return placed


def _best(spots: Iterator[Placed], avoided: Sequence[Box]) -> Placed | None:
    """Return the first spot that covers nothing avoided, if it is near; else the first of all."""
    first: Placed | None = None
    for spot in spots:
        first = first or spot
        if spot.distance > FAR:
            break
        if not any(map(spot.box.overlaps, avoided)):
            return spot
    return first


def _spots(point: Labelled, frame: Box) -> Iterator[Placed]:
    """Yield places of a label within the frame, from the nearest on."""
    half = text_box(point.text, 0, 0, bold=point.bold).right
    middle = (ABOVE - BELOW) / 2
    for ring in range(int(max(frame.right, frame.bottom) / STEP)):
        distance = NEAR + STEP * ring
        # Beside the point, from its middle up and down; then above and below it.
        spots = [
            (side * (distance + half), way * STEP * lift)
            for lift in range(int(distance / STEP) + 1)
            for side, way in SIDES
        ]
        spots += [
            (side * shift, way * (distance + ABOVE / 2))
            for shift in (0.0, half / 2, half)
            for side, way in SIDES
        ]
        for across, up in dict.fromkeys(spots):
            x, y = point.x + across, point.y + middle + up
            box = text_box(point.text, x, y, bold=point.bold)
            if box.inside(frame):
                yield Placed(point.text, x, y, box, distance)


SIDES = tuple(product((1, -1), (-1, 1)))
"""Directions that are tried: to the right and to the left, up and down."""
