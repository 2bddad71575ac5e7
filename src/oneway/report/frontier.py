"""The frontier: which releases close more of the gap than any other that changes as little."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from oneway.benchmark import Summary
from oneway.extras import load_extra

AXES = {
    "l1_mean": "L1 of probabilities",
    "logit_distortion": "logit distortion, nats per class",
}


LOWEST = -1.0
"""Gaps below this are drawn here, with their number: else all others would be one line."""

GAPS = {"closed_gap": "G", "closed_gap_least_confident": "G of the least confident 5 %"}


def frontier(
    summaries: Sequence[Summary], distortion: str, gap: str = "closed_gap"
) -> list[Summary]:
    """Return the releases that no other beats, from the least distortion to the most.

    One beats another that closes more of the gap with no more distortion, or as much with less.

    Args:
        summaries: Of one experiment; those without a closed gap or this distortion are left out.
        distortion: A key of ``AXES``.
        gap: A key of ``GAPS``.
    """
    able = [s for s in summaries if {gap, distortion} <= s.values.keys()]
    # Of those with equal distortion only the one that closes most can be on it.
    ordered = sorted(able, key=lambda s: (s.values[distortion].mean, -s.values[gap].mean))
    best: list[Summary] = []
    for summary in ordered:
        if not best or summary.values[gap].mean > best[-1].values[gap].mean:
            best.append(summary)
    return best


def frontier_lines(summaries: Sequence[Summary]) -> list[str]:
    """Say in words which releases are on the frontiers."""
    lines = []
    for (name, told), (gap, letter) in product(AXES.items(), GAPS.items()):
        places = ", ".join(
            f"{s.release} ({s.values[gap].mean:.2f} at {s.values[name].mean:.3g})"
            for s in frontier(summaries, name, gap)
        )
        lines.append(f"On the frontier of {letter} against {told}: {places}.")
    return lines


def draw_frontier(summaries: Sequence[Summary], path: Path, title: str) -> None:
    """Draw the closed gap of each release against both distortions.

    Args:
        summaries: Of one experiment.
        path: File to write; its ending gives the format.
        title: Written above.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    new_figure = load_extra("matplotlib.figure", extra="demo", purpose="drawing figures").Figure
    figure = new_figure(figsize=(12.5, 5.2), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    numbers = {summary.release: place for place, summary in enumerate(summaries, start=1)}
    for axis, (name, told) in zip(figure.subplots(1, 2, sharey=True), AXES.items(), strict=True):
        best = frontier(summaries, name)
        axis.plot(
            [s.values[name].mean for s in best],
            [s.values["closed_gap"].mean for s in best],
            color="0.75",
            drawstyle="steps-post",
            zorder=1,
        )
        for summary in summaries:
            if not {"closed_gap", name} <= summary.values.keys():
                continue
            gap, moved = summary.values["closed_gap"], summary.values[name]
            on, below = summary in best, gap.mean < LOWEST
            height = LOWEST if below else gap.mean
            axis.errorbar(
                moved.mean,
                height,
                yerr=None if below else gap.half_width,
                fmt="v" if below else "o",
                color="C0" if on else "0.45",
                markersize=5,
                linewidth=0.8,
            )
            number = str(numbers[summary.release])
            axis.annotate(
                f"{number}: {gap.mean:.1f}" if below else number,
                (moved.mean, height),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
                color="C0" if on else "0.3",
            )
        axis.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axis.axhline(1, color="0.85", linewidth=0.8, zorder=0)
        # Distortions spread over orders of magnitude, and none has 0.
        axis.set_xscale("symlog", linthresh=1e-3 if name == "l1_mean" else 1)
        axis.set_xlim(left=0)
        axis.set_ylim(LOWEST - 0.1, 1.2)
        axis.set_xlabel(told)
    figure.axes[0].set_ylabel("closed gap G (1: the label alone, below 0: more than clean)")
    listing = "\n".join(f"{place:2d}  {release}" for release, place in numbers.items())
    figure.text(1.01, 0.5, listing, fontsize=8, va="center", ha="left", parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
