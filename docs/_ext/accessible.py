"""What the theme's HTML lacks for its readers, above all those with a keyboard or a screen reader.

Most changes are asked for by axe, which the tests run on the built pages.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

CHANGES = (
    # A heading has a level.
    (r'role="heading">', 'role="heading" aria-level="2">'),
    # Two landmarks of one kind have names.
    (r'<aside class="sidebar-drawer', '<aside aria-label="All pages" class="sidebar-drawer'),
    (r'<aside class="toc-drawer', '<aside aria-label="This page" class="toc-drawer'),
    # What scrolls can be reached by the keyboard.
    (r"<pre>", '<pre tabindex="0">'),
    (r'<div class="table-wrapper', '<div tabindex="0" class="table-wrapper'),
    # Markdown wants a head for every table; one without words is none.
    (r"<thead>\s*<tr[^>]*>\s*(?:<th[^>]*><p></p></th>\s*)+</tr>\s*</thead>", ""),
    (r'<th class="head"><p></p></th>', '<td class="head"></td>'),
    # A number, its interval and its mark stay on one line; so do a range and an option's dashes.
    (r" ± ", "&#160;±&#160;"),
    (r" †</p>", "&#160;†</p>"),
    (r'<span class="pre">--', '<span class="pre option">--'),
    (r"<td><p>(-?[\d.]+) to (-?[\d.]+)</p></td>", r"<td><p>\1&#160;to&#160;\2</p></td>"),
    # What docstrings call attributes.
    (r">Variables<", ">Attributes<"),
    # The lines of a long signature are no list of definitions.
    (
        r'<dl>\n((?:<dd><(?:em|span) class="(?:sig-param|optional).*?</dd>\n)+)</dl>',
        lambda found: '<span class="sig-lines">{}</span>'.format(
            found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
        ),
    ),
)


def _mend(app: Sphinx, failure: Exception | None) -> None:
    if failure is not None or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for wrong, right in CHANGES:
            text = re.sub(wrong, right, text)
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Change pages when all are written."""
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
