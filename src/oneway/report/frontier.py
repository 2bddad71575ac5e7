"""The frontier: which releases close more of the gap than any other that changes as little."""

from collections.abc import Sequence
from itertools import product

from oneway.benchmark import Summary

AXES = {
    "l1_mean": "L1 of probabilities",
    "logit_distortion": "logit distortion, nats per class",
}
"""What releases change."""

GAPS = {"closed_gap": "G", "closed_gap_least_confident": "G of the least confident 5 %"}
"""What releases hide."""


def frontier(
    summaries: Sequence[Summary], distortion: str, gap: str = "closed_gap"
) -> list[Summary]:
    """Return the Pareto-optimal releases, from the least distortion to the most.

    A release beats another if it closes more of the gap with no more distortion, or as much with
    less.

    Args:
        summaries: Of one experiment; those without a closed gap or this distortion are left out.
        distortion: A key of ``AXES``.
        gap: A key of ``GAPS``.
    """
    able = [s for s in summaries if {gap, distortion} <= s.values.keys()]
    # Of those with equal distortion only the release that closes most can be on it.
    ordered = sorted(able, key=lambda s: (s.values[distortion].mean, -s.values[gap].mean))
    best: list[Summary] = []
    for summary in ordered:
        if not best or summary.values[gap].mean > best[-1].values[gap].mean:
            best.append(summary)
    return best


def frontier_lines(summaries: Sequence[Summary]) -> list[str]:
    """Return a sentence for each frontier, with the releases on it."""
    lines = []
    for (name, title), (gap, letter) in product(AXES.items(), GAPS.items()):
        places = ", ".join(
            f"{s.release} ({s.values[gap].mean:.2f} at {s.values[name].mean:.3g})"
            for s in frontier(summaries, name, gap)
        )
        if places:
            lines.append(f"On the frontier of {letter} against {title}: {places}.")
    return lines
