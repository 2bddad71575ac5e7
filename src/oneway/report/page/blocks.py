"""The blocks of a page, without their layout."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from oneway.report.page.charts import Chart
from oneway.report.page.pictures import Pictures
from oneway.report.table import Listing


@dataclass(frozen=True)
class Prose:
    """Paragraphs, one for each line."""

    lines: Sequence[str]
    kind: str = "prose"


@dataclass(frozen=True)
class Bullets:
    """A list with an item for each line."""

    lines: Sequence[str]
    kind: str = "bullets"


@dataclass(frozen=True)
class Facts:
    """Facts as pairs of name and text, such as how a record was made."""

    pairs: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Figure:
    """A number that sums up much, as text, with its name and how to read it."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Figures:
    """Numbers to see first, the most important at the start."""

    items: Sequence[Figure]
    kind: str = "figures"


@dataclass(frozen=True)
class Grid:
    """A table, with a note below it before the meanings of its columns."""

    listing: Listing
    note: str = ""
    kind: str = "grid"

    def notes(self) -> list[str]:
        """Return the sentences below it."""
        return [*([self.note] if self.note else []), *self.listing.notes()]


@dataclass(frozen=True)
class FlagText:
    """A raised flag and what it means.

    Attributes:
        name: Name of the flag, and of its anchor.
        says: Statement of the flag, as a sentence.
        details: Findings that raised the flag.
        parts: Headings, each with its text.
    """

    name: str
    says: str
    details: Sequence[str]
    parts: Sequence[tuple[str, Markup]]
    kind: str = "flag"


Block = Prose | Bullets | Facts | Figures | Grid | FlagText | Chart | Pictures


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        anchor: Identifier, unique on the page.
        title: Heading.
        blocks: Content.
        chapter: Whether the next sections are parts of this section.
        level: Level of the heading: 2, or 3 below a chapter.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]
    chapter: bool = False
    level: int = 2


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        kind: Subject of the report, in a word or two.
        title: Heading of the page.
        subtitle: Model and data of the report.
        tone: ``bad``, ``mixed``, ``good``, ``void`` or ``plain``: the color of the verdict.
        stamp: The verdict in a few words.
        verdict: The verdict in a sentence.
        notices: Facts that a reader must know before using the verdict.
        sections: Sections below the verdict.
        flags: Names of the raised flags.
    """

    kind: str
    title: str
    subtitle: str
    tone: str
    stamp: str
    verdict: str
    notices: Sequence[str]
    sections: Sequence[Section]
    flags: Sequence[str] = ()
