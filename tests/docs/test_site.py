"""The site builds without a warning, asks the network for nothing, and is fit to be read."""

import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from browsing import axe_violations, overflow
from fences import ROOT

pytest.importorskip("sphinx", reason="needs the dependency group docs")
pytestmark = pytest.mark.slow

LOOKED_AT = ("index", "defenses/top-k", "tutorials/engineer", "reference/api/inversion")
"""A page of cards, of equations and tables, of commands, and of signatures; short ones."""

FITTED = ("leaderboard", "reference/cli", "audit", "glossary")
"""Pages of wide tables and long names, which a phone must show, too."""

PHONE = {"width": 390, "height": 844}

READERS = {
    "I serve a model": "engineer",
    "I must show what an API leaks": "privacy-team",
    "I compare defenses and attacks": "researcher",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build it as `make docs` does, but for the navigation of pages that nobody opens here."""
    out = tmp_path_factory.mktemp("site") / "html"
    shown = (*LOOKED_AT, *FITTED, "search", *(f"tutorials/{name}" for name in READERS.values()))
    done = subprocess.run(  # noqa: S603  our own interpreter and arguments
        [sys.executable, str(ROOT / "tests" / "docs" / "quick_site.py"), "docs", str(out), *shown],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors, self.images = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") != "canonical":
            self.loads.append(found.get("href", ""))
        if tag in ("script", "img", "iframe", "source", "video") and "src" in found:
            self.loads.append(found["src"])
        if tag == "img":
            self.images.append(found)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_link_leads_to_a_page_and_an_anchor_that_are_there(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = link.partition("#")
            target = (path.parent / unquote(place)).resolve() if place else path
            known = pages.get(target)
            if not target.is_file() or (anchor and known and unquote(anchor) not in known.anchors):
                broken.append((path.relative_to(site).as_posix(), link))
    assert broken == []
    assert len(pages) > 100


def test_nothing_is_asked_of_the_network(site, pages):
    asked = [
        (path.name, load)
        for path, page in pages.items()
        for load in page.loads
        if re.match(r"(https?:)?//", load)
    ]
    assert asked == []
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"url\([\"']?(https?:)?//|@import", text), sheet.name


def test_pictures_say_what_they_show(pages):
    assert [one for page in pages.values() for one in page.images if not one.get("alt")] == []


def test_equations_are_drawn_by_the_browser_itself(site):
    text = (site / "defenses" / "codebook.html").read_text(encoding="utf-8")
    assert text.count("<math") >= 3
    assert "MathJax" not in text


@pytest.fixture
def opened(browser, site):
    """Open pages from the disk, one after the other; whatever asks the network fails."""
    context = browser.new_context()
    context.set_offline(True)
    page = context.new_page()

    def show(name):
        page.goto((site / f"{name}.html").as_uri())
        return page

    yield show
    context.close()


def test_everybody_can_read_it(opened):
    # Colors are those of the theme, and the same on all pages.
    for name, scheme in zip(LOOKED_AT, itertools.cycle(("light", "dark"))):
        page = opened(name)
        page.emulate_media(color_scheme=scheme)
        assert axe_violations(page) == [], (name, scheme)


def test_a_phone_needs_no_sideways_scrolling(opened):
    for name in (*LOOKED_AT, *FITTED):
        page = opened(name)
        page.set_viewport_size(PHONE)
        assert overflow(page) == 0, name


def test_search_works_offline_and_from_the_disk(opened):
    page = opened("index")
    page.fill(".sidebar-search", "planted leak")
    page.press(".sidebar-search", "Enter")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(one => one.href)")
    assert any("defenses/planted-leak" in link for link in found)


def test_each_reader_is_led_from_the_front_page(opened):
    for said, tutorial in READERS.items():
        page = opened("index")
        page.locator(".sd-card", has_text=said).click()
        page.wait_for_url(f"**/tutorials/{tutorial}.html")


def test_dark_is_dark(opened):
    shades = {}
    page = opened("index")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(int(part) for part in re.findall(r"\d+", color)[:3])
    assert shades["dark"] < 200 < 600 < shades["light"]
