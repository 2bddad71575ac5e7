"""A page as one file of HTML that needs nothing else."""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from oneway.files import atomic_file
from oneway.report.page.blocks import Page
from oneway.report.table import Listing

FOLDER = "oneway.report.page"

NUMBER = re.compile(r"$|-?[\d.]+\b|-$")
"""How a cell begins that is set flush right."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for a page: nothing but what is in it."""


def render(page: Page) -> str:
    """Return a page as HTML: no script, and no address that a browser would fetch.

    Every text of a record is escaped.

    Args:
        page: What is on it.
    """
    template, style = _template()
    return template.render(page=page, style=style, policy=POLICY)


def write_page(path: Path, page: Page) -> None:
    """Write a page as a file that stands alone.

    Args:
        path: The file, .html.
        page: What is on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(render(page), encoding="utf-8")


@cache
def _template() -> tuple[Template, Markup]:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"texts": _texts, "tight": _tight}
    folder = files(FOLDER)
    style = (folder / "page.css").read_text(encoding="utf-8")
    text = (folder / "page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text), Markup(style)  # noqa: S704  our own file


def _tight(text: str) -> str:
    """Keep a number together with its name, its interval and its unit."""
    for loose in (" = ", " ± ", " %"):
        text = text.replace(loose, loose.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _texts(listing: Listing) -> set[int]:
    """Return which columns hold texts rather than numbers."""
    columns = enumerate(zip(*listing.cells(), strict=True))
    return {place for place, cells in columns if not all(map(NUMBER.match, cells))}
