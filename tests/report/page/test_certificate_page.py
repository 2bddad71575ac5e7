"""The page of a certificate says what is certified, how sure it is, and what it rests on."""

import dataclasses
import os
from pathlib import Path

from oneway.defenses.codebook import (
    ASSUMPTIONS,
    Certificate,
    CertifiedError,
    HeldOut,
    Identification,
    NamedShare,
    SensitiveAccuracy,
    Traffic,
    WorstCase,
    Yardstick,
    Yardsticks,
)
from oneway.report.page.certificate import (
    MEANINGS,
    NO_CLEAN_ATTACK,
    NOT_EXCLUDED,
    certificate_figures,
    certificate_lines,
    certificate_page,
    certificate_verdict,
    further_figures,
)
from oneway.report.page.render import render
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
    identification=Identification(
        cells=61,
        labels=10,
        distinct=480,
        curve=(
            NamedShare(10, 0.65, 0.923, 1.0, 1.0, 1.0),
            NamedShare(20, 0.44, 0.847, 1.0, 0.999, 1.0),
            NamedShare(100, 0.1, 0.479, 0.99, 0.998, 0.61),
            NamedShare(1000, None, None, None, None, 0.061),
        ),
    ),
    sensitive=SensitiveAccuracy(3, 0.51, 0.55, 0.62, 0.68, 0.043),
    worst_case=WorstCase(0.5, 0.971, 0.955),
    yardsticks=Yardsticks(
        prior=Yardstick(0.0512, 0.0501, 0.0523),
        label=Yardstick(0.0356, 0.0346, 0.0366),
        by_label={"10": 0.0311, "2": 0.0422},
        clean=Yardstick(0.0256, 0.0244, 0.0268),
        least_gap=0.62,
    ),
)


def compared(**changes):
    """Return the yardsticks with some changed."""
    return dataclasses.replace(WHOLE.yardsticks, **changes)


def page_of(name="guard.safetensors", **changes):
    certificate = dataclasses.replace(WHOLE, **changes)
    return assert_stands_alone(render(certificate_page(certificate, name, "oneway certify x")))


def verdict(page):
    (section,) = [one for one in page.every("section") if one.has("verdict")]
    return section.text().replace("\xa0", " ")


def test_the_verdict_has_the_error_its_interval_its_lower_bound_and_the_bits():
    words = verdict(page_of())
    assert "Hides at least 62 % of the gap from any attacker" in words
    for part in ("estimated at 0.0345", "95 % interval: 0.0321 to 0.0367", "2.58 bits"):
        assert part in words
    assert "Distribution-free lower bound (95 %): 0.0111" in words
    assert "No label-preserving release can help" in words
    assert "5.0 % of queries are alone in their cell" in words


def test_what_is_weaker_is_said_above():
    for changes, words in (
        ({"held_out": HeldOut("no")}, FITTED),
        ({"bits_most": None}, "reveals 1.75 bits on average over these queries; nothing bounds"),
        ({"error": None, "error_by_label": {}, "yardsticks": None}, "No error is certified"),
    ):
        page = page_of(**changes)
        assert words in verdict(page)
        charts = str([title.attributes for title in page.every("title")])
        assert ("certified-chart-t" in charts) == (changes.get("error", WHOLE.error) is not None)


def test_the_verdict_claims_no_more_than_the_bound_proves():
    for yardsticks, tone, stamp, words in (
        (compared(), "good", "Hides at least 62 %", "hides at least 62 % from any attacker (95 %)"),
        (compared(least_gap=0.2), "mixed", "Hides at least 20 %", "Estimated G: 0.89."),
        (compared(least_gap=None), "mixed", "Not proven to hide more", NOT_EXCLUDED),
        (compared(least_gap=None, clean=None), "mixed", "not compared", NO_CLEAN_ATTACK),
        (
            compared(least_gap=None, clean=Yardstick(0.0356, 0.03, 0.04)),
            *("mixed", "Not proven to hide more", "no gap to close"),
        ),
    ):
        certificate = dataclasses.replace(WHOLE, yardsticks=yardsticks)
        got = certificate_verdict(certificate)
        assert got[0] == tone
        assert stamp in got[1]
        assert words in got[2]
        # Whatever the verdict is, the error stands beside that of the label alone.
        assert "given the label alone 0.0356" in got[2]
        assert words in " ".join(certificate_lines(certificate))
    for answer, stamp in (
        ("no", "Certified on the queries that fitted it"),
        ("not checked", "Hides at least 62 % of the gap from any attacker, if held out"),
    ):
        certificate = dataclasses.replace(WHOLE, held_out=HeldOut(answer))
        assert certificate_verdict(certificate)[:2] == ("mixed", stamp)


def test_the_first_screen_names_the_worst_part_and_the_chart_has_every_error_to_compare_with():
    figures = [(name, value) for value, name in certificate_figures(WHOLE)]
    assert ("worst", "label 10: 0.0000") in figures
    assert len(figures) == 10
    assert ("certified G", "0.62") in figures
    unproven = dataclasses.replace(WHOLE, yardsticks=compared(least_gap=None))
    assert ("none", "certified G") in certificate_figures(unproven)
    page = page_of()
    levels = [
        each.text() for each in page.every("text") if each.attributes["class"] == "level-name"
    ]
    assert levels == [
        "fully reconstructed 0.0000",
        "lower bound 0.0111",
        "clean scores 0.0256",
        "label alone 0.0356",
        "mean query 0.0512",
    ]


def test_page_and_terminal_say_the_same_sentences():
    for changes in ({}, {"held_out": HeldOut("no")}, {"bits_most": None}, {"labels_alone": 0}):
        certificate = dataclasses.replace(WHOLE, **changes)
        text = page_of(**changes).every("main")[0].text().replace("\xa0", " ")
        for line in (*certificate_lines(certificate), *certificate_verdict(certificate)[1:]):
            assert line.replace("`", "") in text


def test_every_number_of_the_tables_is_the_certificates():
    shown = tables(page_of())
    rows = rows_of(shown["The least mean squared error per pixel of any attacker"])
    assert rows == [
        ["all", "480", "0.0345", "0.0321", "0.0367", "0.0111", "0.0356", "5.0"],
        ["2", "80", "0.0400", "0.0300", "0.0500", "0.0000", "0.0422", "10.0"],
        ["10", "90", "0.0300", "0.0200", "0.0400", "0.0000", "0.0311", "0.0"],
    ]
    distortion = rows_of(shown["Distortion of released scores, over queries"])
    assert distortion == [
        ["L1 of probabilities", "0.0123", "0.0100", "0.0456", "0.0700", "0.0891"],
        ["centered logits, nats per class", "0.5000", "0.0100", "0.0456", "0.0700", "0.0891"],
    ]


def test_identification_stands_first_in_words_in_a_chart_and_in_a_table():
    page = page_of()
    text = page.every("main")[0].text().replace("\xa0", " ")
    assert text.index("84.7 %") < text.index("0.0345", text.index("In numbers"))
    for part in (
        "Of 20 equally likely candidates, an attacker who may ask the service about each names "
        "the right one in 84.7 % of cases (label alone: 44.0 %, clean scores: 99.9 %)",
        "61 cells name the right one in at most 61.0 % of cases among 100, 6.1 % of cases among "
        "1,000. Of 61 candidates or fewer they may name every one.",
        "best chance by at most 61, and by at most 6 beyond the label",
        "guessed right for at most 68.0 % of queries to come",
        "4.3 % of these queries are in a cell with one sensitive value alone",
        "97.1 % of these queries get an answer within an L1 distance of 0.5",
        "at least 95.5 % of queries to come do (95 %)",
    ):
        assert part in text
    shown = tables(page)
    assert rows_of(shown["How often the right one of so many candidates is named"]) == [
        ["10", "65.0 %", "92.3 %", "100.0 %", "100.0 %", "100.0 %"],
        ["20", "44.0 %", "84.7 %", "100.0 %", "99.9 %", "100.0 %"],
        ["100", "10.0 %", "47.9 %", "99.0 %", "99.8 %", "61.0 %"],
        ["1,000", "-", "-", "-", "-", "6.1 %"],
    ]
    assert rows_of(shown["Best accuracy at the sensitive value"]) == [
        ["none", "51.0 %", "-"],
        ["label alone", "55.0 %", "-"],
        ["release", "62.0 %", "68.0 %"],
    ]
    assert "named-chart-t" in str([title.attributes for title in page.every("title")])
    bare = page_of(identification=None, sensitive=None, worst_case=None)
    assert "candidates" not in bare.every("main")[0].text().split("Assumptions")[0]


def test_every_figure_of_the_page_has_its_meaning():
    text = page_of().every("main")[0].text().replace("\xa0", " ")
    for value, name in certificate_figures(WHOLE) + further_figures(WHOLE):
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
