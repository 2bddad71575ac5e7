"""Pareto-optimal releases: the frontier of an experiment, and the candidates of a choice."""

import math
from collections.abc import Sequence
from itertools import product
from operator import attrgetter

from oneway.benchmark import Summary
from oneway.defenses import ReleaseCandidate
from oneway.report.sentences import FAILED, bound_text, gap_number
from oneway.report.table import Column, Listing

AXES = {
    "l1_mean": "L1 of probabilities",
    "logit_distortion": "logit distortion, nats per class",
}
"""Kinds of distortion, by name of a summary's value."""

GAPS = {"closed_gap": "G", "closed_gap_least_confident": "G of the least confident 5 %"}
"""Closed gaps, by name of a summary's value."""


def frontier(
    summaries: Sequence[Summary], distortion: str, gap: str = "closed_gap"
) -> list[Summary]:
    """Return the Pareto-optimal releases, from the least distortion to the most.

    A release beats another if it closes more of the gap with no more distortion, or as much with
    less. Where the attack failed, the bound of G counts.

    Args:
        summaries: Summaries of an experiment. Releases without this gap or distortion are left out,
            and so are those of which nothing can be claimed.
        distortion: Key of ``AXES``.
        gap: Key of ``GAPS``.
    """
    able = [
        (summary.values[distortion].mean, claimed, summary)
        for summary in summaries
        if distortion in summary.values and (claimed := summary.claimed(gap)) is not None
    ]
    # Of releases with equal distortion only the release that closes most is Pareto-optimal.
    ordered = sorted(able, key=lambda place: (place[0], -place[1]))
    best, highest = list[Summary](), -math.inf
    for _, claimed, summary in ordered:
        if claimed > highest:
            best.append(summary)
            highest = claimed
    return best


def gap_label(summary: Summary, gap: str = "closed_gap") -> str:
    """Return a closed gap without its interval, or its bound; for a release with either."""
    claimed = summary.claimed(gap)
    if claimed is None:
        return FAILED
    return bound_text(claimed) if gap in summary.failed else gap_number(claimed)


def frontier_lines(summaries: Sequence[Summary]) -> list[str]:
    """Return a sentence for each frontier, with the releases on it."""
    lines = []
    for (name, title), (gap, letter) in product(AXES.items(), GAPS.items()):
        places = ", ".join(
            f"{s.release} ({gap_label(s, gap)} at {s.values[name].mean:.3g})"
            for s in frontier(summaries, name, gap)
        )
        if places:
            lines.append(f"On the frontier of {letter} against {title}: {places}.")
    return lines


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
