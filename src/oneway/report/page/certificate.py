"""The page of a certificate: what a codebook lets out at most, and what that rests on."""

from oneway.defenses.codebook import ASSUMPTIONS, Certificate
from oneway.report.certificate import (
    FITTED,
    MEANINGS,
    alone_sentence,
    certificate_figures,
    certificate_lines,
    certificate_table,
    certificate_verdict,
    certified_errors,
    distortion_table,
)
from oneway.report.page.blocks import Block, Bullets, Facts, Figure, Figures, Grid, Page, Section
from oneway.report.page.charts import Chart, Level, Place, line_chart
from oneway.report.sentences import LABEL_LEAKS
from oneway.report.table import Column, Listing


def certificate_page(certificate: Certificate, name: str, command: str = "") -> Page:
    """Return the page of a certificate.

    Args:
        certificate: What to report.
        name: Name of the codebook, such as its file's.
        command: The command that certified it, if it is known.
    """
    notices = [LABEL_LEAKS]
    if not certificate.independent:
        notices.append(FITTED)
    alone = alone_sentence(certificate)
    if alone is not None:
        notices.append(alone)
    figures = [
        Figure(value, each[0].upper() + each[1:], MEANINGS[each])
        for value, each in certificate_figures(certificate)
    ]
    sections = [
        Section("numbers", "In numbers", [Figures(figures)]),
        Section("words", "In words", [Bullets(certificate_lines(certificate))]),
    ]
    if certificate.error is not None:
        blocks: list[Block] = [_chart(certificate), Grid(certificate_table(certificate))]
        sections.append(Section("errors", "The least error of any attacker", blocks))
    sections += [
        Section("moved", "What users lose", [Grid(distortion_table(certificate))]),
        Section("rests", "Assumptions", [Bullets(ASSUMPTIONS)]),
        Section("how", "How it was certified", [Facts(_facts(certificate, command))]),
    ]
    tone, stamp, verdict = certificate_verdict(certificate)
    queries = "not used for fitting" if certificate.independent else "used for fitting, too"
    return Page(
        kind="certificate",
        title=f"What {name} lets out, at most",
        subtitle=f"Certified on {certificate.queries:,} queries, {queries}.",
        tone=tone,
        stamp=stamp,
        verdict=verdict,
        notices=notices,
        sections=sections,
    )


def _chart(certificate: Certificate) -> Chart:
    """Return the certified error, and that of each label, on a line from a perfect attacker on."""
    rows = [
        ("all queries" if label == "all" else f"label {label}", error)
        for label, error in certified_errors(certificate)
    ]
    places = [
        Place(name, error.estimate, f"{error.estimate:.4f}", place == 0, error.low, error.high)
        for place, (name, error) in enumerate(rows)
    ]
    title = "Least error of any attacker (0: fully reconstructed)"
    total = rows[0][1]
    return line_chart(
        "certified-chart",
        title,
        f"A line of mean squared errors from 0 on. All queries: {total.estimate:.4f}, from "
        f"{total.low:.4f} to {total.high:.4f}; and {len(rows) - 1} labels by themselves.",
        (Level("fully reconstructed", 0.0), Level("lower bound", total.lower_bound)),
        places,
        numbers=Listing(
            title,
            {
                "queries": Column(lambda row: row[0]),
                "error": Column(lambda row: row[1].estimate, ".4f"),
                "low": Column(lambda row: row[1].low, ".4f"),
                "high": Column(lambda row: row[1].high, ".4f"),
            },
            rows,
        ),
        banded=False,
    )


def _facts(certificate: Certificate, command: str) -> list[tuple[str, str]]:
    facts = [("Command", command)] if command else []
    level = f"{100 * certificate.level:g} %"
    table = certificate.table[:16] + "..." if certificate.table else "none"
    return [
        *facts,
        ("Queries", f"{certificate.queries:,}"),
        ("Level of intervals and bounds", level),
        ("Table", table),
    ]
