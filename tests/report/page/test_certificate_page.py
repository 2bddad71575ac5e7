"""The page of a certificate says what is certified, how sure it is, and what it rests on."""

import dataclasses
import os
from pathlib import Path

from oneway.defenses.codebook import ASSUMPTIONS, Certificate, CertifiedError, HeldOut, Traffic
from oneway.report.page import certificate_page, render
from oneway.report.page.certificate import (
    MEANINGS,
    certificate_figures,
    certificate_lines,
    certificate_verdict,
)
from oneway.report.page.traffic import FITTED
from report.page.reading import assert_stands_alone, rows_of, tables

MOVED = {"mean": 0.0123, "p50": 0.01, "p95": 0.0456, "p99": 0.07, "max": 0.0891}
WHOLE = Certificate(
    table="ab" * 32,
    queries=480,
    held_out=HeldOut("yes"),
    traffic=Traffic("kept", (240, 240), 400, 0.15, 30, 0.025, 0.4),
    bits_most=2.58,
    bits_measured=1.75,
    error=CertifiedError(0.0345, 0.0321, 0.0367, 0.0111, 480, 0.05),
    error_by_label={
        "10": CertifiedError(0.03, 0.02, 0.04, 0.0, 90, 0.0),
        "2": CertifiedError(0.04, 0.03, 0.05, 0.0, 80, 0.1),
    },
    distortion={"l1_probabilities": MOVED, "logits": {**MOVED, "mean": 0.5}},
    members_least=20,
    labels_alone=1,
)


def page_of(name="guard.safetensors", **changes):
    certificate = dataclasses.replace(WHOLE, **changes)
    return assert_stands_alone(render(certificate_page(certificate, name, "oneway certify x")))


def verdict(page):
    (section,) = [one for one in page.every("section") if one.has("verdict")]
    return section.text().replace("\xa0", " ")


def test_the_verdict_has_the_error_its_interval_its_lower_bound_and_the_bits():
    words = verdict(page_of())
    assert "Certified for any attacker" in words
    for part in ("at least 0.0345", "95 % interval: 0.0321 to 0.0367", "2.58 bits"):
        assert part in words
    assert "Distribution-free lower bound (95 %): 0.0111" in words
    assert "No label-preserving release can help" in words
    assert "5.0 % of queries are alone in their cell" in words


def test_what_is_weaker_is_said_above():
    for changes, words in (
        ({"held_out": HeldOut("no")}, FITTED),
        ({"bits_most": None}, "reveals 1.75 bits on average over these queries; nothing bounds"),
        ({"error": None, "error_by_label": {}}, "No error is certified"),
    ):
        page = page_of(**changes)
        assert words in verdict(page)
        charts = str([title.attributes for title in page.every("title")])
        assert ("certified-chart-t" in charts) == (changes.get("error", WHOLE.error) is not None)


def test_page_and_terminal_say_the_same_sentences():
    for changes in ({}, {"held_out": HeldOut("no")}, {"bits_most": None}, {"labels_alone": 0}):
        certificate = dataclasses.replace(WHOLE, **changes)
        text = page_of(**changes).every("main")[0].text().replace("\xa0", " ")
        for line in (*certificate_lines(certificate), *certificate_verdict(certificate)[1:]):
            assert line in text


def test_every_number_of_the_tables_is_the_certificates():
    shown = tables(page_of())
    rows = rows_of(shown["The least mean squared error per pixel of any attacker"])
    assert rows == [
        ["all", "480", "0.0345", "0.0321", "0.0367", "0.0111", "5.0"],
        ["2", "80", "0.0400", "0.0300", "0.0500", "0.0000", "10.0"],
        ["10", "90", "0.0300", "0.0200", "0.0400", "0.0000", "0.0"],
    ]
    distortion = rows_of(shown["Distortion of released scores, over queries"])
    assert distortion == [
        ["L1 of probabilities", "0.0123", "0.0100", "0.0456", "0.0700", "0.0891"],
        ["centered logits, nats per class", "0.5000", "0.0100", "0.0456", "0.0700", "0.0891"],
    ]


def test_every_figure_of_the_page_has_its_meaning():
    text = page_of().every("main")[0].text().replace("\xa0", " ")
    for value, name in certificate_figures(WHOLE):
        assert value in text
        assert MEANINGS[name] in text


def test_the_page_of_codebooks_says_what_the_code_says():
    """With ONEWAY_WRITE_DOCS=1 the table of figures in docs/codebook.md is written."""
    path = Path(__file__).parents[3] / "docs" / "codebook.md"
    rows = "".join(f"| {name} | {meaning} |\n" for name, meaning in MEANINGS.items())
    table = f"| figure | what it says |\n| --- | --- |\n{rows}"
    before, begin, rest = path.read_text(encoding="utf-8").partition("<!-- figures -->\n")
    written, end, after = rest.partition("<!-- end of figures -->\n")
    if os.environ.get("ONEWAY_WRITE_DOCS"):
        path.write_text(before + begin + table + end + after, encoding="utf-8")
    else:
        assert written == table


def test_what_it_rests_on_is_all_there():
    text = page_of().every("main")[0].text().replace("\xa0", " ")
    for line in ASSUMPTIONS:
        assert line in text
    assert "oneway certify x" in text


def test_a_name_is_text():
    assert page_of(name="<script>x</script>").every("h1")[0].text().startswith("What <script>x")
