"""A page as one file of HTML or as Markdown, and charts as one file of SVG that loads nothing."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from oneway.files import atomic_file
from oneway.report.page.blocks import Block, Bullets, Facts, Grid, Page, Prose, Section
from oneway.report.page.charts import WIDTH, Chart, element
from oneway.report.table import Listing

CODE = re.compile(r"`([^`]+)`")

NUMBER = re.compile(r"$|-?[\d.]+\b|-$")
"""The start of a cell that holds a number, which is flush right."""

FLAG = re.compile(r"flag ([\w-]+): (.*) \[docs/flags/\1\.md\]")
"""A raised flag as a terminal shows it, with the path of its page; a page has its text."""

OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
"""An option of a command, which a browser would break after a dash."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy of a page: a browser loads nothing for it."""


def render(page: Page) -> str:
    """Return a page as HTML: no script, and no address that a browser would fetch.

    Every text of a record is escaped.
    """
    style = Markup(_read("chart.css") + _read("page.css"))  # noqa: S704  our own files
    return _template().render(page=page, style=style, policy=POLICY)


def write_page(path: Path, page: Page) -> None:
    """Write a page as a file that stands alone, in a folder that is made if it is missing."""
    _write(path, render(page))


def write_charts(path: Path, title: str, charts: Sequence[Chart]) -> None:
    """Write charts below each other as one picture, an SVG that loads nothing.

    Args:
        path: The file, .svg; its folder is made if it is missing.
        title: Title above the charts, and name of the picture for people who cannot see it.
        charts: Charts with a fixed width.
    """
    parts, y = [element("text", title, kind="title", x=0, y=20)], 34
    for chart in charts:
        parts.append(element("text", chart.title, kind="strong", x=0, y=y + 18))
        y += 30
        size = {"width": chart.size[0], "height": chart.size[1]}
        parts.append(element("svg", chart.svg, y=y, overflow="visible", **size))
        y += chart.size[1] + 10
    x = 0
    for legend in charts[0].legend:
        parts.append(
            element(
                "g",
                legend.mark(),
                kind=f"mark {legend.weight}",
                transform=f"translate({x + 8} {y + 8})",
            )
        )
        parts.append(element("text", legend.label, kind="small", x=x + 22, y=y + 12))
        x += 50 + 7 * len(legend.label)
    y += 30
    height = y + 6
    described = " ".join(chart.description for chart in charts)
    inside = [
        element("title", title),
        element("desc", described),
        element("style", Markup(_read("chart.css"))),  # noqa: S704  our own file
        element("rect", kind="paper", x=-16, y=-8, width=WIDTH + 32, height=height + 16),
        *parts,
    ]
    box = {"viewBox": f"-16 -8 {WIDTH + 32} {height + 16}", "role": "img", "kind": "alone"}
    svg = element("svg", Markup("\n").join(inside), xmlns="http://www.w3.org/2000/svg", **box)
    _write(path, f"{svg}\n")


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def _read(name: str) -> str:
    return (files("oneway.report.page") / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"texts": _texts, "tight": _tight, "whole": _whole}
    return environment.from_string(_read("page.html.j2"))


def _tight(text: str) -> Markup:
    """Keep a number together with its name, interval, unit and mark, and options on one line."""
    for loose in (" = ", " ± ", " %", " †"):
        text = text.replace(loose, loose.replace(" ", "\N{NO-BREAK SPACE}"))
    return _whole(text)


def _whole(text: str) -> Markup:
    """Keep options of commands on one line, show text in backticks as code, and link flags."""
    marked = OPTION.sub(r'<span class="option">\g<0></span>', str(escape(text)))
    marked = FLAG.sub(r'flag <a href="#flag-\1">\1</a>: \2', marked)
    return Markup(CODE.sub(r"<code>\1</code>", marked))  # noqa: S704  escaped above


def _texts(listing: Listing) -> set[int]:
    """Return which columns hold texts rather than numbers."""
    columns = enumerate(zip(*listing.cells(), strict=True))
    return {place for place, cells in columns if not all(map(NUMBER.match, cells))}


def render_markdown(
    sections: Sequence[Section], *, level: int = 2, images: Mapping[str, str] | None = None
) -> str:
    """Return sections as Markdown.

    Charts, pictures and empty sections are left out.

    Args:
        sections: Sections of a page.
        level: Level of the headings.
        images: Images in Markdown, by anchor of the section that each begins.
    """
    parts = []
    for section in sections:
        blocks = [text for block in section.blocks if (text := _block(block))]
        if section.anchor in (images or {}):
            blocks.insert(0, f"{(images or {})[section.anchor]}\n")
        if blocks:
            parts += [f"{'#' * level} {section.title}\n", *blocks]
    return "\n".join(parts)


def _block(block: Block) -> str:
    """Return a block as Markdown; empty for a block that only a page can show."""
    match block:
        case Prose(lines):
            return "\n".join(f"{line}\n" for line in lines)
        case Bullets(lines):
            return _bullets(lines)
        case Facts(pairs):
            return _bullets([f"{name}: {text}" for name, text in pairs])
        case Grid(listing):
            notes = block.notes()
            return listing.markdown() + (f"\n{_bullets(notes)}" if notes else "")
        case _:
            return ""


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)
