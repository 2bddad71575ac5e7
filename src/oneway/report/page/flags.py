"""The meaning of raised flags, as blocks of a page, which needs no network."""

from collections.abc import Mapping, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from oneway.evaluation import FLAGS
from oneway.report.page.blocks import FlagText


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
