"""What several answers reveal: sentences and a table of a certificate."""

from operator import itemgetter

from oneway.defenses.codebook import Certificate, Composition
from oneway.report.page.blocks import Block, Bullets, Grid, Section
from oneway.report.page.identification import percent
from oneway.report.sentences import gap_number
from oneway.report.table import Column, Listing

MEANINGS = {
    "sequences": "share of the certified queries that is named by the cells of so many answers: to "
    "each query, and to changed copies of it; exact for these copies and for an attacker who can "
    "make the same copies of each candidate",
    "sequences, at most": "min(candidates, cells^answers) / candidates: holds for any changes",
    "error of answers": "mean squared error of the best attack that was run on so many answers: an "
    "estimate, and no bound; better attacks may exist",
}
"""Meanings of the figures of several answers, by name."""

NOT_MEASURED = (
    "What answers to changed copies of a query add was not measured: each may fall into another "
    "cell. Pass --repeats (the model answers changed copies) or --variants (their scores)."
)


def composition_lines(certificate: Certificate) -> list[str]:
    """Return what several answers reveal, sentence by sentence."""
    found = certificate.composition
    if found is None:
        return [NOT_MEASURED] if certificate.table else []
    one, last = found.rows[0], found.rows[-1]
    lines = [
        f"Of these {found.distinct:,} queries, {last.answers} answers (to a query and to changed "
        f"copies of it) name {percent(last.release)}, and one answer names {percent(one.release)} "
        f"(labels alone: {percent(last.label)} and {percent(one.label)}), for an attacker who can "
        "make the same copies of each."
    ]
    if last.most < 1:
        lines.append(f"Whatever the changes, they name at most {percent(last.most)}.")
    else:
        lines.append("No bound below 100 % holds for so many answers and any changes.")
    if last.error is not None and one.error is not None:
        lines.append(
            f"The best attack that was run errs by {last.error:.4f} with {last.answers} answers, "
            f"and by {one.error:.4f} with one{_gaps(certificate)}. That is an estimate: no bound "
            "of the error, and no G, is certified for more than one answer."
        )
    return lines


def _gaps(certificate: Certificate) -> str:
    gaps = [each["gap"] for each in _rows(certificate)]
    if gaps[0] is None or gaps[-1] is None:
        return ""
    return f" (G {gap_number(gaps[-1])} and {gap_number(gaps[0])})"


def _rows(certificate: Certificate) -> list[dict[str, float | None]]:
    found = certificate.composition
    return [] if found is None else [{**vars(each), "gap": found.gap(each)} for each in found.rows]


def composition_table(certificate: Certificate, found: Composition) -> Listing:
    """Return what several answers reveal, by their number."""
    columns = {"answers": Column(itemgetter("answers"))}
    columns |= {
        "labels alone": Column(itemgetter("label"), percent),
        "release": Column(itemgetter("release"), percent, MEANINGS["sequences"]),
        "at most": Column(itemgetter("most"), percent, MEANINGS["sequences, at most"]),
        "of 20, labels alone": Column(itemgetter("label_of_ward"), percent),
        "of 20, release": Column(itemgetter("release_of_ward"), percent),
        "error": Column(itemgetter("error"), ".4f", MEANINGS["error of answers"]),
        "G": Column(itemgetter("gap"), ".2f"),
    }
    title = f"How many of {found.distinct:,} queries several answers name, and how well"
    return Listing(title, columns, _rows(certificate))


def composition_sections(certificate: Certificate) -> list[Section]:
    """Return the section on several answers, if they were measured."""
    found = certificate.composition
    if found is None:
        return []
    blocks: list[Block] = [
        Bullets(composition_lines(certificate)),
        Grid(composition_table(certificate, found)),
    ]
    return [Section("several", "If a query is changed and sent again", blocks)]
