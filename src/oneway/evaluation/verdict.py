"""From errors of attackers to a verdict on a release: the strongest attacker makes the headline."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from oneway.errors import InvalidOptionError
from oneway.evaluation.flags import Flag
from oneway.evaluation.grading import AttackResult, Baselines
from oneway.metrics import closed_gap

CLASS_LEVEL = frozenset({"class-representative"})
"""Attackers who look for a class and not for the query: to miss the query is no failure."""

LEAST_CONFIDENT_SHARE = 0.05
"""The least confident share of queries that is also judged by itself: the mean hides it."""


SAID = {
    "attack-failed": "error above the label-only baseline: that attack failed",
    "retraining-failed": "retrained is weaker than static: the retraining failed",
    "labels-changed": "labels changed or tied in what was released",
}
"""How the details end of the flags that :func:`judge` raises, by name."""


@dataclass(frozen=True)
class Verdict:
    """What the attacks on one release come to.

    Attributes:
        adaptive_error: Lowest mean error over all attackers; each may fall back on the label.
        strongest: Who achieved it.
        closed_gap: G over all queries; None if clean scores tell no more than the label.
        closed_gap_least_confident: G over the least confident 5 % of queries, of the attacker who
            is strongest over all of them, or who falls back on the label.
        flags: What is suspicious about this evaluation, in words.
    """

    adaptive_error: float
    strongest: str
    closed_gap: float | None
    closed_gap_least_confident: float | None
    flags: tuple[Flag, ...]


def judge(
    results: Mapping[str, AttackResult],
    baselines: Baselines,
    clean_confidences: Tensor,
    label_changes: int,
) -> Verdict:
    """Compare attackers with the baselines.

    Args:
        results: By name; all of them count, and the strongest makes the headline.
        baselines: Of the same queries.
        clean_confidences: ``(N, K)``, to find the least confident queries.
        label_changes: How many labels changed in what was released.
    """
    strongest = min(results, key=lambda name: results[name].error)
    tail = least_confident(clean_confidences)
    adaptive = results[strongest].error
    flags = list[Flag]()
    # To mislead who does not know of it is what a defense is for; nothing is wrong with that.
    unaware = ("static",) if "retrained" in results else ()
    label_error = float(baselines.label.mean())
    for name, result in results.items():
        # Two standard errors or one percent, so that a tie is not called a failure.
        slack = max(2 * standard_error(result.errors - baselines.label), 0.01 * label_error)
        measured = name not in ("label-only", *CLASS_LEVEL, *unaware)
        if measured and result.error > label_error + slack:
            flags.append(Flag("attack-failed", f"{name} {SAID['attack-failed']}"))
    if {"static", "retrained"} <= results.keys():
        gain = results["retrained"].errors - results["static"].errors
        if float(gain.mean()) > 2 * standard_error(gain):
            flags.append(Flag("retraining-failed", SAID["retraining-failed"]))
    if label_changes:
        flags.append(Flag("labels-changed", f"{label_changes} {SAID['labels-changed']}"))
    return Verdict(
        adaptive_error=adaptive,
        strongest=strongest,
        closed_gap=gap_or_none(adaptive, float(baselines.clean.mean()), label_error),
        closed_gap_least_confident=gap_or_none(
            float(errors_on(tail, results, strongest).mean()),
            float(baselines.clean[tail].mean()),
            float(baselines.label[tail].mean()),
        ),
        flags=tuple(flags),
    )


def flag_named(detail: str) -> str | None:
    """Return the name of a flag that :func:`judge` raised, of which a record keeps the detail.

    Args:
        detail: What raised it, with or without a count before it.
    """
    return next((name for name, said in SAID.items() if detail.endswith(said)), None)


def least_confident(clean_confidences: Tensor) -> Tensor:
    """Return which queries are in the tail, as ``(n)`` indices of ``(N, K)`` rows."""
    count = max(1, round(LEAST_CONFIDENT_SHARE * len(clean_confidences)))
    return clean_confidences.amax(-1).argsort(stable=True)[:count]


def errors_on(tail: Tensor, results: Mapping[str, AttackResult], strongest: str) -> Tensor:
    """Return ``(n)`` errors on some queries, of the strongest attacker or given the label alone.

    Not the lowest of all attackers there: on a few queries a failed decoder may win by chance.
    """
    told = [results[name].errors[tail] for name in (strongest, "label-only") if name in results]
    return min(told, key=lambda errors: float(errors.mean()))


def standard_error(differences: Tensor) -> float:
    """Return that of the mean; 0 of a single query, which has no spread."""
    count = len(differences)
    return float(differences.std()) / count**0.5 if count > 1 else 0.0


def gap_or_none(adaptive: float, clean: float, label: float) -> float | None:
    """Return the closed gap G, or None where clean scores tell no more than the label."""
    try:
        return closed_gap(adaptive, clean, label)
    except InvalidOptionError:
        return None
