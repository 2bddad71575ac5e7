"""The frontier: Pareto-optimal releases, which close most of the gap at their distortion."""

from collections.abc import Sequence
from itertools import product

from oneway.benchmark import Summary

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
    less.

    Args:
        summaries: Summaries of an experiment. Releases without this gap or distortion are left out.
        distortion: Key of ``AXES``.
        gap: Key of ``GAPS``.
    """
    able = [s for s in summaries if {gap, distortion} <= s.values.keys()]
    # Of releases with equal distortion only the release that closes most is Pareto-optimal.
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
