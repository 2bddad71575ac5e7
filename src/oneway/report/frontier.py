"""The frontier: Pareto-optimal releases, which close most of the gap at their distortion."""

import math
from collections.abc import Sequence
from itertools import product

from oneway.benchmark import Summary
from oneway.report.sentences import FAILED, bound_text, gap_number

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
    """Return a sentence for each frontier, with the releases on it; then the releases without G."""
    lines = []
    for (name, title), (gap, letter) in product(AXES.items(), GAPS.items()):
        places = "; ".join(
            f"{s.release} ({gap_label(s, gap)} at {s.values[name].mean:.3g})"
            for s in frontier(summaries, name, gap)
        )
        if places:
            lines.append(f"On the frontier of {letter} against {title}: {places}.")
    failed = [s.release for s in summaries if "closed_gap" in s.failed and s.claimed() is None]
    if lines and failed:
        lines.append(f"Without a G to compare, since the attack failed: {'; '.join(failed)}.")
    return lines
