"""Candidate releases as a table."""

from collections.abc import Sequence
from operator import attrgetter

from oneway.defenses import ReleaseCandidate
from oneway.report.table import Column, Listing


def candidates_table(candidates: Sequence[ReleaseCandidate]) -> Listing:
    """Return what each candidate release moves, certifies and reveals of members."""
    columns: dict[str, Column] = {}
    if any(each.members is not None for each in candidates):
        columns = {
            "G_mem": Column(attrgetter("members.closed"), ".2f"),
            "AUC of members": Column(attrgetter("members.area"), ".3f"),
            "TPR - FPR, at most": Column(attrgetter("members.bound"), ".2f"),
        }
    hidden = "certified error" if not columns else "what is hidden"
    return Listing(
        f"Pareto-optimal releases: distortion and {hidden}",
        {
            "release": Column(attrgetter("defense")),
            "options": Column(
                lambda row: ", ".join(
                    f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in row.options.items()
                )
            ),
            "L1": Column(attrgetter("l1_mean"), ".4f"),
            "certified error": Column(attrgetter("certified"), ".4f"),
            "alone, %": Column(lambda row: 100 * row.alone, ".1f"),
            "bits": Column(attrgetter("bits"), ".2f"),
            "cells": Column(attrgetter("cells")),
            **columns,
        },
        candidates,
    )
