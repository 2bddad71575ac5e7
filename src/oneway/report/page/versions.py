"""Versions of a guard, and what answers of several reveal: sentences and a table."""

from operator import attrgetter, itemgetter

from oneway.defenses.codebook import Certificate, Together
from oneway.report.page.blocks import Block, Bullets, Grid, Section
from oneway.report.page.identification import percent
from oneway.report.table import Column, Listing

MEANINGS = {
    "guard version": "digest of what decides the answers, which servers state in each of them: "
    "guards of one version answer alike",
    "told apart": "different answers / different certified queries: how often an attacker who may "
    "ask about each of them names the right one",
}
"""Meanings of the figures of versions, by name."""


def version_lines(certificate: Certificate) -> list[str]:
    """Return which versions a certificate is about, and what several reveal together."""
    together, found = certificate.together, certificate.identification
    if together is None or found is None:
        return [f"Guard version: {certificate.version}."] if certificate.version else []
    names = [each.version for each in together.alone]
    cells = [each.cells for each in together.alone]
    lines = [
        f"About attackers who have the answers of the versions {' and '.join(names)} to the same "
        "query. Figures are about all answers together; distortion is that of the first version."
    ]
    finest = max(together.alone, key=attrgetter("cells"))
    if finest.cells == found.cells:
        lines.append(
            f"The cells of the other versions are made of those of {finest.version}: together they "
            f"reveal what {finest.version} reveals alone ({found.cells:,} cells)."
        )
    else:
        lines.append(
            f"Together they have at most {found.cells:,} cells (alone: "
            f"{' and '.join(f'{each:,}' for each in cells)})."
        )
    alone = " and ".join(percent(each.named) for each in together.alone)
    lines.append(
        f"They tell {percent(together.named)} of the different queries apart (alone: {alone})."
    )
    return lines


def together_table(certificate: Certificate, together: Together) -> Listing:
    """Return each version by itself, and all together."""
    rows = [vars(each) for each in together.alone]
    found, error = certificate.identification, certificate.error
    rows.append(
        {
            "version": "together",
            "cells": None if found is None else found.cells,
            "bits_measured": certificate.bits_measured,
            "error": None if error is None else error.estimate,
            "named": together.named,
        }
    )
    return Listing(
        "Versions alone and together",
        {
            "version": Column(itemgetter("version"), help=MEANINGS["guard version"]),
            "cells": Column(itemgetter("cells"), ","),
            "bits": Column(itemgetter("bits_measured"), ".2f"),
            "certified error": Column(itemgetter("error"), ".4f"),
            "told apart": Column(itemgetter("named"), percent, MEANINGS["told apart"]),
        },
        rows,
    )


def version_sections(certificate: Certificate) -> list[Section]:
    """Return the section on several versions, if the certificate is about those."""
    together = certificate.together
    if together is None:
        return []
    blocks: list[Block] = [
        Bullets(version_lines(certificate)),
        Grid(together_table(certificate, together)),
    ]
    return [Section("versions", "Versions together", blocks)]
