"""How many candidates a codebook tells apart: sentences, a table and a chart of its certificate."""

import math
from operator import attrgetter, itemgetter

from oneway.defenses.codebook import Certificate, Identification, SensitiveAccuracy, WorstCase
from oneway.report.page.blocks import Block, Grid, Section
from oneway.report.page.charts import Axis, Chart, Legend, curves_chart, log_axis, share_axis
from oneway.report.table import Column, Listing

WARD = 20
"""Number of candidates of the figure that stands first."""

STREET, HOSPITAL = 100, 1_000
"""Numbers of candidates that sentences state the largest share for."""

MEANINGS = {
    "named of 20": "how often an attacker names the right one of 20 equally likely candidates, by "
    "asking the service about each: mean over all sets of 20 different certified queries, exact; "
    "no attacker does better on one answer",
    "named": "share of right answers among so many equally likely candidates: (cells that hold a "
    "candidate) / candidates, averaged over all sets of different certified queries",
    "in 5 guesses": "share of queries that are among five guesses",
    "at most": "cells of the table / candidates: holds for any candidates that are equally likely "
    "given all that the attacker knows, and for any attacker who sees one answer",
    "sensitive value": "best accuracy at a sensitive value given the cell; the bound holds for "
    "queries to come, at the certificate's level",
    "within the cap": "share of queries whose answer is within `--max-l1-worst` of their clean "
    "scores, and a lower bound on that share of queries to come",
}
"""Meanings of the figures of identification, by name."""

CURVES = (
    ("clean", Legend("ring", "plain", "clean scores")),
    ("most", Legend("beyond", "plain", "at most, any candidates")),
    ("release", Legend("disc", "strong", "release")),
    ("label", Legend("diamond", "plain", "label alone")),
)
"""Curves of the chart: attribute of :class:`NamedShare`, and mark."""


def percent(share: float) -> str:
    """Return a share as text, such as ``"4.1 %"``."""
    return f"{100 * share:.1f} %"


def identification_lines(certificate: Certificate) -> list[str]:
    """Return how many candidates a codebook tells apart, sentence by sentence."""
    lines = list[str]()
    if certificate.identification is not None:
        lines += _named_lines(certificate.identification, certificate.bits_most)
    if certificate.sensitive is not None:
        lines += _sensitive_lines(certificate.sensitive, certificate.level)
    if certificate.worst_case is not None:
        lines.append(_worst_case_line(certificate.worst_case, certificate.level))
    return lines


def _named_lines(found: Identification, bits_most: float | None) -> list[str]:
    lines = []
    known = [each for each in found.curve if each.release is not None]
    shown = next((each for each in known if each.candidates == WARD), known[-1] if known else None)
    if shown is not None:
        release, label, clean = (
            percent(share or 0.0) for share in (shown.release, shown.label, shown.clean)
        )
        lines.append(
            f"Of {shown.candidates} equally likely candidates, an attacker who may ask the service "
            f"about each names the right one in {release} of cases (label alone: {label}, clean "
            f"scores: {clean}): the mean over all sets of certified queries."
        )
    most = ", ".join(
        f"{percent(each.most)} of cases among {each.candidates:,}"
        for each in found.curve
        if each.candidates in (STREET, HOSPITAL)
    )
    lines.append(
        f"Whoever the candidates are, {found.cells:,} cells name the right one in at most {most}. "
        f"Of {found.cells:,} candidates or fewer they may name every one."
    )
    if bits_most is not None:
        beyond = round(2**bits_most)
        lines.append(
            "By any measure of success and with any side knowledge, one answer multiplies an "
            f"attacker's best chance by at most {found.cells:,}, and by at most {beyond:,} beyond "
            "the label."
        )
    return lines


def _sensitive_lines(found: SensitiveAccuracy, level: float) -> list[str]:
    return [
        f"The sensitive value ({found.values} different values) is guessed right for at most "
        f"{percent(found.release_most)} of queries to come, by any attacker who sees only the "
        f"answer ({100 * level:g} %). On these queries: {percent(found.release)}, from the label "
        f"alone {percent(found.label)}, without any answer {percent(found.nothing)}.",
        f"{percent(found.homogeneous)} of these queries are in a cell with one sensitive value "
        "alone.",
    ]


def _worst_case_line(found: WorstCase, level: float) -> str:
    return (
        f"{percent(found.kept)} of these queries get an answer within an L1 distance of "
        f"{found.limit:g} of their clean scores; at least {percent(found.kept_least)} of queries "
        f"to come do ({100 * level:g} %)."
    )


def identification_figures(certificate: Certificate) -> list[tuple[str, str]]:
    """Return the figure of identification to see first: value, and name in ``MEANINGS``."""
    found = certificate.identification
    shares = [] if found is None else [each for each in found.curve if each.candidates == WARD]
    return [(percent(each.release), "named of 20") for each in shares if each.release is not None]


def identification_table(found: Identification) -> Listing:
    """Return how often the right one of so many candidates is named."""

    def share(name: str, meaning: str = "") -> Column:
        return Column(attrgetter(name), percent, meaning)

    return Listing(
        "How often the right one of so many candidates is named",
        {
            "candidates": Column(attrgetter("candidates"), ","),
            "label alone": share("label"),
            "release": share("release", MEANINGS["named"]),
            "release, 5 guesses": share("release_guesses", MEANINGS["in 5 guesses"]),
            "clean scores": share("clean"),
            "at most": share("most", MEANINGS["at most"]),
        },
        found.curve,
    )


def sensitive_table(found: SensitiveAccuracy) -> Listing:
    """Return how well the sensitive value is guessed from no answer, the label and the release."""
    rows = [
        {"answer": "none", "accuracy": found.nothing, "most": None},
        {"answer": "label alone", "accuracy": found.label, "most": None},
        {"answer": "release", "accuracy": found.release, "most": found.release_most},
    ]
    return Listing(
        "Best accuracy at the sensitive value",
        {
            "answer": Column(itemgetter("answer")),
            "these queries": Column(itemgetter("accuracy"), percent),
            "at most": Column(itemgetter("most"), percent, MEANINGS["sensitive value"]),
        },
        rows,
    )


def identification_sections(certificate: Certificate) -> list[Section]:
    """Return the section on identification, if it was certified."""
    found = certificate.identification
    if found is None:
        return []
    table = identification_table(found)
    blocks: list[Block] = [_chart(found, table), Grid(table)]
    if certificate.sensitive is not None:
        blocks.append(Grid(sensitive_table(certificate.sensitive)))
    return [Section("named", "Who is identified", blocks)]


def _chart(found: Identification, numbers: Listing) -> Chart:
    """Return the shares by number of candidates, as curves on a logarithmic axis."""
    sizes = [each.candidates for each in found.curve]
    powers = [10.0**power for power in range(1, round(math.log10(sizes[-1])) + 1)]
    size = (760, 380)
    axes: tuple[Axis, Axis] = (
        log_axis("candidates, equally likely", powers, size[0]),
        share_axis("share named", size[1]),
    )
    series = [
        (
            legend,
            [
                (float(each.candidates), float(getattr(each, name)))
                for each in found.curve
                if getattr(each, name) is not None
            ],
        )
        for name, legend in CURVES
    ]
    return curves_chart(
        "named-chart",
        "How often the right candidate is named, by number of candidates",
        f"Curves for clean scores, the release and the label alone, over 10 to {sizes[-1]:,} "
        f"candidates, and the largest share that {found.cells:,} cells allow. All numbers are in "
        "the table.",
        series,
        axes,
        numbers=numbers,
        size=size,
    )
