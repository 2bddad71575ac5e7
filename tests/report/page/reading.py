"""Read a page as a parser does that knows nothing of how it was made."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input", "base", "source"}
EMPTY = {"circle", "path", "rect", "line"}
"""Elements of SVG that may close themselves."""


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: list = field(default_factory=list)

    def text(self) -> str:
        parts = [one if isinstance(one, str) else one.text() for one in self.children]
        return re.sub(r"\s+", " ", "".join(parts)).strip()

    def every(self, name=None, **attributes):
        """Return all elements within, of a name and with these attributes, in order."""
        found = []
        for one in self.children:
            if isinstance(one, str):
                continue
            given = all(one.attributes.get(key) == value for key, value in attributes.items())
            if name in (None, one.name) and given:
                found.append(one)
            found += one.every(name, **attributes)
        return found

    def has(self, kind: str) -> bool:
        return kind in self.attributes.get("class", "").split()


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> says an attribute twice"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attrs):
        assert tag in EMPTY, f"<{tag}/> closes itself"
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.at.name == tag, f"</{tag}> closes <{self.at.name}>"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.children.append(data)


def read(html: str) -> Element:
    """Return the tree of a page; every tag that is opened must be closed."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.at is reader.root, f"<{reader.at.name}> is left open"
    return reader.root


def rows_of(table: Element) -> list[list[str]]:
    """Return the cells of the body of a table."""
    (body,) = table.every("tbody")
    return [
        [cell.text() for cell in row.children if not isinstance(cell, str)]
        for row in body.every("tr")
    ]


def heads_of(table: Element) -> list[str]:
    (head,) = table.every("thead")
    return [cell.text() for cell in head.every("th")]


def tables(page: Element) -> dict[str, Element]:
    """Return all tables by their captions."""
    found = {}
    for table in page.every("table"):
        captions = table.every("caption")
        if captions:
            found[captions[0].text()] = table
    return found


def assert_stands_alone(html: str) -> Element:
    """Assert that a browser would fetch nothing and run nothing, whatever it meets."""
    page = read(html)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    equiv = {"http-equiv": "Content-Security-Policy"}
    assert [one.attributes["content"] for one in page.every("meta", **equiv)] == [policy]
    for name in ("script", "iframe", "object", "embed", "link", "base", "form", "video", "use"):
        assert not page.every(name), name
    ids = [one.attributes["id"] for one in page.every() if "id" in one.attributes]
    assert len(set(ids)) == len(ids)
    for one in page.every():
        for name, value in one.attributes.items():
            assert not name.startswith("on"), name
            assert "url(" not in value
            assert "javascript:" not in value.lower()
            if name in ("src", "srcset", "xlink:href", "action", "data", "poster"):
                assert (one.name, name) == ("img", "src")
                assert value.startswith("data:image/png;base64,")
            if name == "href":
                assert one.name == "a"
                assert value[:1] == "#"
                assert value[1:] in ids, value
            if name in ("aria-labelledby", "aria-describedby"):
                assert set(value.split()) <= set(ids)
    (style,) = page.every("style")
    assert not re.search(r"url\(|@import|expression", style.text())
    return page
