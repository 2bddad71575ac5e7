"""The blocks of a page, without their layout, and the meaning of raised flags as such blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from oneway.evaluation import FLAGS
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


def flag_texts(raised: Mapping[str, Sequence[str]]) -> list[FlagText]:
    """Return the text of each raised flag.

    Args:
        raised: Findings that raised each flag, by the flag's name.
    """
    return [_flag_text(name, raised) for name in raised]


def _flag_text(name: str, raised: Mapping[str, Sequence[str]]) -> FlagText:
    kind = FLAGS[name]
    parts = (
        ("Raised if", kind.raised_if),
        ("Why it matters", kind.why),
        ("What to do", kind.what_to_do),
    )
    return FlagText(
        name,
        f"{kind.says[0].upper()}{kind.says[1:]}.",
        raised[name],
        [(title, _html(text, raised)) for title, text in parts],
    )


def _html(text: str, raised: Mapping[str, Sequence[str]]) -> Markup:
    """Return Markdown of ours as HTML; links lead to flags on this page, or are plain text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        if token.children:
            token.children = _without_far_links(token.children, raised)
        if token.type == "table_open":
            token.attrSet("class", "prose-table")
    html = parser.renderer.render(tokens, parser.options, {})
    framed = html.replace("<table", '<div class="scroll" tabindex="0"><table')
    return Markup(framed.replace("</table>", "</table></div>"))  # noqa: S704  of our own texts


def _without_far_links(tokens: Sequence[Token], raised: Mapping[str, Sequence[str]]) -> list[Token]:
    kept, near = list[Token](), True
    for token in tokens:
        if token.type == "link_open":
            name = str(token.attrGet("href")).removesuffix(".md")
            near = name in raised
            token.attrSet("href", f"#flag-{name}")
        if near or token.type not in ("link_open", "link_close"):
            kept.append(token)
    return kept
