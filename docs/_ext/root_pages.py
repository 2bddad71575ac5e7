"""Pages whose text lives elsewhere in the repository, where a code host looks for it."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PAGES = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "weakness": "SECURITY.md",
    "records": "results/README.md",
}
"""Pages of the site, and the files that they show."""


LINK = re.compile(r"(?<=\]\()(?!https?:|#)[^)\s]+(?=\))")


def _show(app: Sphinx, page: str, source: list[str]) -> None:
    if page in PAGES:
        path = ROOT / PAGES[page]
        source[0] = path.read_text(encoding="utf-8")
    else:
        path = Path(app.env.doc2path(page))
    folder = Path(app.env.doc2path(page)).parent
    source[0] = LINK.sub(lambda link: _seen(link[0], path, folder), source[0])


def _seen(link: str, path: Path, folder: Path) -> str:
    """Return a link of a file as seen from a page's folder; what a page shows is that page."""
    place, _, anchor = link.partition("#")
    target = (path.parent / place).resolve()
    if target.is_dir():
        target = target / "index.md"
    shown = {
        (ROOT / source).resolve(): ROOT / "docs" / f"{page}.md" for page, source in PAGES.items()
    }
    found = os.path.relpath(shown.get(target, target), folder)
    return f"{found}#{anchor}" if anchor else found


def setup(app: Sphinx) -> dict[str, bool]:
    """Show them when their pages are read."""
    app.connect("source-read", _show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
