"""Pages as they are read: by a browser, on a phone, in the dark, on paper, by a screen reader."""

import dataclasses
import re

import pytest

from auditing.audits import whole
from browsing import axe_violations, overflow
from oneway.benchmark import published
from oneway.evaluation import Flag
from oneway.report.page.audit import audit_page
from oneway.report.page.certificate import certificate_page
from oneway.report.page.experiments import records_page
from oneway.report.page.render import render, write_page
from report.page.conftest import experiment
from report.page.test_certificate_page import WHOLE

KINDS = ("audit", "records", "experiments", "certificate")


@pytest.fixture(scope="module")
def pages(audits, tmp_path_factory):
    """One page of each kind, as files."""
    folder = tmp_path_factory.mktemp("pages")
    flags = (Flag("control-failed", "so"), Flag("labels-changed", "so"))
    command = "oneway audit " + "--attacker-data a --require-gap 0.9 " * 5 + "long-" * 60
    record = dataclasses.replace(audits.images.record, flags=flags)
    long = {"a name without any space that goes on and on, " + "x" * 80: 1}
    several = experiment() + experiment(experiment="table2-faces")
    made = {
        "audit": audit_page(
            whole(dataclasses.replace(record, options=long), command=command),
            audits.images.pictures,
        ),
        "records": audit_page(whole(audits.tables.record)),
        "experiments": records_page(several, {"table1-mnist": published("table1-mnist")}),
        "certificate": certificate_page(WHOLE, "guard.safetensors"),
    }
    for kind, page in made.items():
        write_page(folder / f"{kind}.html", page)
    return folder


@pytest.fixture(scope="module")
def opened(browser, pages):
    """Open a page, in one tab; whatever it fetches or the browser complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, wrong, addresses = context.new_page(), [], set()
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            asked.url.partition("#")[0] in addresses
            or asked.url.startswith("data:")
            or wrong.append(asked.url)
        ),
    )

    def open_page(kind, color_scheme="light"):
        address = (pages / f"{kind}.html").as_uri()
        addresses.add(address)
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(media="screen", color_scheme=color_scheme)
        page.goto(address)
        assert wrong == []
        return page

    yield open_page
    context.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_accessible_in_both_colors_and_fits_every_window_and_paper(opened, kind):
    page = opened(kind)
    assert page.locator("h1").inner_text()
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert axe_violations(page, colors_alone=scheme == "dark") == [], scheme
    for width in (320, 390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert overflow(page) == 0, width
        lines = page.locator("dd .option").evaluate_all(
            "all => all.map(one => one.getClientRects().length)"
        )
        assert set(lines) <= {1}, f"an option is broken at {width}"
        assert lines or kind != "audit"
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
    page.set_viewport_size({"width": 688, "height": 900})  # A4 without its margins, in CSS pixels
    page.emulate_media(media="print", color_scheme="light")
    assert overflow(page) == 0
    wide = page.locator("svg.chart, table.pictures").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().right - innerWidth)"
    )
    assert all(beyond <= 0 for beyond in wide)
    tables = page.locator("details table")
    assert tables.count() >= 1
    assert all(tables.evaluate_all("all => all.map(one => one.checkVisibility())"))
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 1


def test_the_first_sheet_of_a_printed_audit_holds_what_is_to_be_filed(browser, audits):
    """With pictures, nine numbers, three flags and a command of two lines."""
    flags = tuple(Flag(name, "so") for name in ("ties-or-zeros", "too-few-seeds", "labels-changed"))
    command = "oneway audit model.onnx --attacker-data pictures --queries tests --guard g " * 2
    record = whole(dataclasses.replace(audits.images.record, flags=flags), command=command)
    page = browser.new_page(viewport={"width": 688, "height": 900})  # A4 without its margins
    page.emulate_media(media="print")
    page.set_content(render(audit_page(record, audits.images.pictures)))
    filing = page.locator("#filing")
    assert filing.evaluate("e => e.getBoundingClientRect().bottom + scrollY") < 1009
    assert filing.evaluate("e => getComputedStyle(e).breakAfter") == "page"
    page.close()


CUT = """all => all.filter(text => {
  const frame = text.closest(".scroll, figure").getBoundingClientRect();
  const box = text.getBoundingClientRect();
  return box.top < frame.top || box.bottom > frame.bottom;
}).map(text => text.textContent)"""
"""Texts that reach above or below the frame that scrolls them, which cuts them off."""


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_chart_is_cut(opened, kind):
    page = opened(kind)
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator("svg.chart text").evaluate_all(CUT) == []


def test_the_first_column_of_a_table_stays_while_the_others_scroll(opened):
    page = opened("experiments")
    page.set_viewport_size({"width": 390, "height": 900})
    table = page.locator(".scroll.wide").first
    table.evaluate("e => e.scrollTo(200, 0)")
    assert table.evaluate("e => e.scrollLeft") > 100
    for head in ("thead th", "tbody tr:last-child th"):
        distance = f"""e => e.querySelector("{head}").getBoundingClientRect().left
            - e.getBoundingClientRect().left"""
        assert abs(table.evaluate(distance)) <= 1


def lightness(page, selector, what):
    told = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{what}")
    return sum(map(int, re.findall(r"\d+", told)[:3])) / 3


def test_dark_is_dark_and_paper_is_white_even_then(opened):
    page = opened("audit", color_scheme="dark")
    assert lightness(page, "body", "backgroundColor") < 60
    assert lightness(page, "body", "color") > 180
    page.emulate_media(media="print", color_scheme="dark")
    assert lightness(page, "body", "backgroundColor") > 250
    assert lightness(page, "body", "color") < 20


def test_links_to_flags_lead_there_and_pictures_are_sharp_and_of_one_size(opened):
    page = opened("audit")
    page.get_by_role("link", name="control-failed").first.click()
    assert page.url.endswith("#flag-control-failed")
    assert page.locator("#flag-control-failed").is_visible()
    images = page.locator(".pictures img")
    assert images.count() > 20
    assert set(images.evaluate_all("all => all.map(e => getComputedStyle(e).imageRendering)")) == {
        "pixelated"
    }
    sizes = images.evaluate_all("all => all.map(e => [e.width, e.height, e.complete].join())")
    assert len(set(sizes)) == 1
