"""The page of a certificate says what is certified, how sure it is, and what it rests on."""

import dataclasses

import pytest

from oneway.defenses.codebook import ASSUMPTIONS, Certificate, CertifiedError
from oneway.report.page import certificate_page, render
from report.page.reading import assert_stands_alone, rows_of, tables

MOVED = {"mean": 0.0123, "p50": 0.01, "p95": 0.0456, "p99": 0.07, "max": 0.0891}
WHOLE = Certificate(
    table="ab" * 32,
    queries=480,
    independent=True,
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


def test_the_verdict_has_the_error_its_interval_what_is_proven_and_the_bits():
    told = verdict(page_of())
    assert "Certified for any attacker" in told
    for part in ("estimated 0.0345", "0.0321 to 0.0367", "proven", "0.0111", "2.58 bits"):
        assert part in told
    assert "No label-preserving release can help" in told
    assert "5.0 % of queries are alone in their cell" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"independent": False}, "These queries fitted the codebook too: all figures flatter it."),
        ({"bits_most": None}, "tells 1.75 bits beyond its label in the mean, with no bound"),
        ({"error": None, "error_by_label": {}}, "no error of an attacker is certified"),
    ],
)
def test_what_is_weaker_is_said_above(changes, told):
    page = page_of(**changes)
    assert told in verdict(page)
    assert ("certified-chart-t" in str([one.attributes for one in page.every("title")])) == (
        changes.get("error", WHOLE.error) is not None
    )


def test_every_number_of_the_tables_is_the_certificates():
    found = tables(page_of())
    rows = rows_of(found["The least mean squared error per pixel of any attacker"])
    assert rows == [
        ["all", "480", "0.0345", "0.0321", "0.0367", "0.0111", "5.0"],
        ["2", "80", "0.0400", "0.0300", "0.0500", "0.0000", "10.0"],
        ["10", "90", "0.0300", "0.0200", "0.0400", "0.0000", "0.0"],
    ]
    moved = rows_of(found["How far releases move, over queries"])
    assert moved == [
        ["L1 of probabilities", "0.0123", "0.0100", "0.0456", "0.0700", "0.0891"],
        ["centered logits, nats per class", "0.5000", "0.0100", "0.0456", "0.0700", "0.0891"],
    ]


def test_what_it_rests_on_is_all_there():
    text = page_of().every("main")[0].text().replace("\xa0", " ")
    for line in ASSUMPTIONS:
        assert line in text
    assert "oneway certify x" in text


def test_a_name_is_text():
    assert page_of(name="<script>x</script>").every("h1")[0].text().startswith("What <script>x")
