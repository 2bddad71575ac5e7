"""What a page is made of, apart from how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from oneway.report.page.charts import Chart
from oneway.report.page.pictures import Pictures
from oneway.report.table import Listing


@dataclass(frozen=True)
class Prose:
    """Paragraphs.

    Attributes:
        lines: One each.
    """

    lines: Sequence[str]
    kind: str = "prose"


@dataclass(frozen=True)
class Bullets:
    """A list.

    Attributes:
        lines: Its items.
    """

    lines: Sequence[str]
    kind: str = "bullets"


@dataclass(frozen=True)
class Key:
    """What the numbers in figures stand for.

    Attributes:
        names: From number 1 on.
    """

    names: Sequence[str]
    kind: str = "key"


@dataclass(frozen=True)
class Facts:
    """What something is, and how it was done.

    Attributes:
        pairs: Name and text.
    """

    pairs: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Figure:
    """One number that sums up much.

    Attributes:
        value: It, as it is printed.
        told: What it is.
        note: How to read it.
    """

    value: str
    told: str
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Numbers to see first.

    Attributes:
        items: From the most telling on.
    """

    items: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        listing: Its cells.
        note: Below it.
    """

    listing: Listing
    note: str = ""
    kind: str = "grid"


@dataclass(frozen=True)
class FlagText:
    """A raised flag and what it means.

    Attributes:
        name: Its name, and that of its anchor.
        says: What it says.
        details: What raised it.
        parts: Headings with text of their own.
    """

    name: str
    says: str
    details: Sequence[str]
    parts: Sequence[tuple[str, Markup]]
    kind: str = "flag"


Block = Prose | Bullets | Key | Facts | Figures | Grid | FlagText | Chart | Pictures


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        anchor: Unique on its page.
        title: Its heading.
        blocks: What it holds.
        chapter: Whether it begins a part of its own, to which those after it belong.
        level: Of its heading: 2, or 3 below a chapter.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]
    chapter: bool = False
    level: int = 2


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        kind: What it reports on, in a word or two.
        title: Its heading.
        subtitle: What was looked at.
        tone: ``bad``, ``mixed``, ``good`` or ``void``: the color of the verdict.
        stamp: The verdict in a few words.
        verdict: The verdict in a sentence.
        notices: What must be known before the verdict is used.
        flags: Names of the flags that are raised.
        sections: What follows.
    """

    kind: str
    title: str
    subtitle: str
    tone: str
    stamp: str
    verdict: str
    notices: Sequence[str]
    sections: Sequence[Section]
    flags: Sequence[str] = field(default_factory=tuple)
