"""Candidate releases as a table."""

from collections.abc import Sequence
from operator import attrgetter

from oneway.defenses import ReleaseCandidate
from oneway.report.table import Column, Listing


def candidates_table(candidates: Sequence[ReleaseCandidate]) -> Listing:
    """Return what each candidate release moves and certifies."""
    return Listing(
        "Pareto-optimal releases: distortion and certified error",
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
        },
        candidates,
    )
