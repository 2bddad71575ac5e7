"""The page of a certificate: what a codebook lets out, at most, and what that rests on."""

from collections.abc import Callable

from oneway.defenses.codebook import ASSUMPTIONS, Certificate, CertifiedError
from oneway.report.certificate import FITTED, certificate_lines, certificate_table
from oneway.report.page.blocks import Block, Bullets, Facts, Figure, Figures, Grid, Page, Section
from oneway.report.page.charts import Chart, Level, Place, line_chart
from oneway.report.sentences import LABEL_LEAKS
from oneway.report.table import Listing

MOVED = {
    "l1_probabilities": "L1 of probabilities",
    "logits": "centered logits, nats per class",
}


def certificate_page(certificate: Certificate, name: str, command: str = "") -> Page:
    """Return the page of a certificate.

    Args:
        certificate: What was found.
        name: Of the codebook, such as its file's.
        command: What found it, if that is known.
    """
    told = certificate
    notices = [LABEL_LEAKS]
    if not told.independent:
        notices.append(FITTED)
    if told.error is not None and told.error.alone:
        notices.append(
            f"{100 * told.error.alone:.1f} % of queries are alone in their cell: nothing is "
            "certified of them."
        )
    sections = [
        Section("numbers", "In numbers", [_figures(told)]),
        Section("words", "In words", [Bullets(certificate_lines(told))]),
    ]
    if told.error is not None:
        blocks: list[Block] = [_chart(told, told.error), Grid(certificate_table(told), TABLE_NOTE)]
        sections.append(Section("errors", "The least error of any attacker", blocks))
    sections += [
        Section("moved", "What users pay", [Grid(_moved(told))]),
        Section("rests", "What it rests on", [Bullets(ASSUMPTIONS)]),
        Section("how", "How it was found", [Facts(_how(told, command))]),
    ]
    tone, stamp, sentence = _verdict(told)
    return Page(
        kind="certificate",
        title=f"What {name} lets out, at most",
        subtitle=f"Certified on {told.queries:,} queries"
        + (" that it was not fitted to." if told.independent else " that fitted it, too."),
        tone=tone,
        stamp=stamp,
        verdict=sentence,
        notices=notices,
        sections=sections,
    )


TABLE_NOTE = (
    "Error is estimated from the variance within cells, with its bootstrap interval from low to "
    "high; lower bound is what it is at least whatever the distribution of queries. Alone: share "
    "of queries that are the only ones in their cell, and count as read to the last pixel."
)


def _verdict(told: Certificate) -> tuple[str, str, str]:
    level = f"{100 * told.level:g} %"
    most = (
        f"tells at most {told.bits_most:.2f} bits beyond its label"
        if told.bits_most is not None
        else f"tells {told.bits_measured:.2f} bits beyond its label in the mean, with no bound"
    )
    if told.error is None:
        return (
            "mixed",
            "Bits are certified, no error is",
            f"A release {most}; no error of an attacker is certified, since the queries themselves "
            "were not given.",
        )
    error = told.error
    sentence = (
        "In the mean over queries no attacker, whatever they know, train or compute, errs by less "
        f"than an estimated {error.estimate:.4f} per pixel ({level} of resampled queries: "
        f"{error.low:.4f} to {error.high:.4f}; proven, whatever the distribution of queries: "
        f"{error.lower_bound:.4f}); and a release {most}."
    )
    if not told.independent:
        return "mixed", "Certified on the queries that fitted it", sentence
    return "good", "Certified for any attacker", sentence


def _figures(told: Certificate) -> Figures:
    items = []
    if told.error is not None:
        items += [
            Figure(
                f"{told.error.estimate:.4f}",
                "Least error of any attacker, estimated",
                f"in the mean over queries; {100 * told.level:g} %: {told.error.low:.4f} to "
                f"{told.error.high:.4f}",
            ),
            Figure(
                f"{told.error.lower_bound:.4f}",
                "Least error, proven",
                "for any distribution of queries",
            ),
        ]
    items += [
        Figure(
            "no bound" if told.bits_most is None else f"{told.bits_most:.2f}",
            "Bits beyond the label, at most",
            f"measured {told.bits_measured:.2f} in the mean",
        ),
        Figure(
            f"{told.members_least}",
            "Calibration queries behind a vector",
            "at least, of every one that tells more than its label",
        ),
        Figure(
            f"{told.distortion['l1_probabilities']['mean']:.4f}",
            "Probabilities moved",
            "mean L1 distance, from 0 to 2",
        ),
        Figure(str(told.labels_alone), "Labels told alone", "too few calibration queries"),
    ]
    return Figures(items)


def _chart(told: Certificate, error: CertifiedError) -> Chart:
    """Return the certified error, and that of each label, on a line from a perfect attacker on."""
    rows = [("all queries", error), *((f"label {k}", one) for k, one in _by_label(told))]
    places = [
        Place(
            who,
            one.estimate,
            f"{one.estimate:.4f}",
            strongest=who == "all queries",
            low=one.low,
            high=one.high,
        )
        for who, one in rows
    ]
    title = "No attacker's error lies further left than this (0: read to the last pixel)"
    columns: dict[str, Callable[[tuple[str, CertifiedError]], str]] = {
        "queries": lambda row: row[0],
        "error": lambda row: f"{row[1].estimate:.4f}",
        "low": lambda row: f"{row[1].low:.4f}",
        "high": lambda row: f"{row[1].high:.4f}",
    }
    return line_chart(
        "certified-chart",
        title,
        f"A line of mean squared errors from 0 on. All queries: {error.estimate:.4f}, from "
        f"{error.low:.4f} to {error.high:.4f}; and {len(rows) - 1} labels by themselves.",
        (
            Level("read to the last pixel", 0.0),
            Level("lower bound, any distribution", error.lower_bound),
        ),
        places,
        numbers=Listing(title, columns, rows),
        banded=False,
    )


def _by_label(told: Certificate) -> list[tuple[str, CertifiedError]]:
    return sorted(told.error_by_label.items(), key=lambda pair: int(pair[0]))


def _moved(told: Certificate) -> Listing:
    rows = [(MOVED[name], values) for name, values in told.distortion.items()]
    columns: dict[str, Callable[[tuple[str, dict[str, float]]], str]] = {
        "distance": lambda row: row[0]
    }
    for column, key in (
        ("mean", "mean"),
        ("median", "p50"),
        ("95 %", "p95"),
        ("99 %", "p99"),
        ("most", "max"),
    ):
        columns[column] = lambda row, key=key: f"{row[1][key]:.4f}"  # type: ignore[misc]
    return Listing("How far releases move, over queries", columns, rows)


def _how(told: Certificate, command: str) -> list[tuple[str, str]]:
    facts = [("Command", command)] if command else []
    return [
        *facts,
        (
            "Queries",
            f"{told.queries:,}, "
            + ("others than" if told.independent else "the same as")
            + " those that it was fitted to",
        ),
        ("Intervals", f"{100 * told.level:g} %, of resampled queries"),
        ("Table", told.table[:16] + "..." if told.table else "none"),
    ]
