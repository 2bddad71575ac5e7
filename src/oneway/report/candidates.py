"""Candidate releases as a table."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from oneway.defenses import ReleaseCandidate
from oneway.report.table import Column, Listing


def candidates_table(candidates: Sequence[ReleaseCandidate], chosen: ReleaseCandidate) -> Listing:
    """Return what each candidate release moves, certifies and reveals of members.

    Options that all codebooks share stand below the table.

    Args:
        candidates: The rows.
        chosen: The one to mark.
    """
    columns: dict[str, Column] = {}
    if any(each.members is not None for each in candidates):
        columns = {
            "G_mem": Column(attrgetter("members.closed"), ".2f"),
            "AUC of members": Column(attrgetter("members.area"), ".3f"),
            "TPR - FPR, at most": Column(attrgetter("members.bound"), ".2f"),
        }
    hidden = "certified error" if not columns else "what is hidden"
    books = [each.options for each in candidates if each.defense == "codebook"]
    shared = {
        name: value
        for name, value in (books[0] if books[1:] else {}).items()
        if all(name in each and each[name] == value for each in books)
    }

    def named(row: ReleaseCandidate) -> str:
        common = shared if row.defense == "codebook" else {}
        options = {name: value for name, value in row.options.items() if name not in common}
        mark = " *" if row == chosen else ""
        return f"{row.defense}: {_as_text(options)}{mark}" if options else f"{row.defense}{mark}"

    return Listing(
        f"Pareto-optimal releases: distortion and {hidden}",
        {
            "release": Column(named),
            "L1": Column(attrgetter("l1_mean"), ".4f", "what users lose, 0 to 2."),
            "certified error": Column(
                attrgetter("certified"), ".4f", "estimated least error of any attacker."
            ),
            **columns,
            "cells": Column(attrgetter("cells")),
            "alone, %": Column(
                lambda row: 100 * row.alone, ".1f", "queries whose answer no other query gets."
            ),
            "bits": Column(attrgetter("bits"), ".2f"),
        },
        candidates,
        ["*: recommended.", *([f"All codebooks: {_as_text(shared)}."] if shared else [])],
        ("bits", "alone, %", *reversed(columns)),
    )


def _as_text(options: Mapping[str, Any]) -> str:
    """Return options as a list of names and values."""
    return ", ".join(
        f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in options.items()
    )
