"""From errors of attackers to a verdict on a release, which is that of the strongest attacker."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from oneway.attacks import LabelOnly, inversion_attacks
from oneway.errors import InvalidOptionError
from oneway.evaluation.flag_kinds import FLAGS
from oneway.evaluation.flags import Flag
from oneway.evaluation.grading import AttackResult, Baselines
from oneway.metrics import closed_gap

LEAST_CONFIDENT_SHARE = 0.05
"""Share of least confident queries with a verdict by itself, since the mean hides it."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a release.

    Attributes:
        adaptive_error: Lowest mean error over all attackers; each may fall back on the label.
        strongest: Name of the attacker with that error.
        closed_gap: G over all queries; None if clean scores add nothing to the label.
        closed_gap_least_confident: G over the least confident 5 % of queries, of the attacker who
            is strongest over all queries, or who falls back on the label.
        flags: Suspicious facts about this evaluation.
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
        results: Result of each attacker, by name.
        baselines: Baselines of the same queries.
        clean_confidences: ``(N, K)`` clean confidences, which say what queries are least confident.
        label_changes: Number of queries with another released label than the model's.
    """
    strongest = min(results, key=lambda name: results[name].error)
    tail = least_confident(clean_confidences)
    adaptive = results[strongest].error
    label_error = float(baselines.label.mean())
    flags = failed_attacks(results, baselines.label)
    if label_changes:
        flags.append(Flag("labels-changed", f"{label_changes} {FLAGS['labels-changed'].statement}"))
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


def failed_attacks(results: Mapping[str, AttackResult], label_errors: Tensor) -> list[Flag]:
    """Return a flag for each attack that does worse than an attacker who knows less.

    Args:
        results: Result of each attacker, by name. An attack that is not registered counts as
            adaptive.
        label_errors: ``(N)`` errors of the label-only baseline on the same queries.
    """
    attacks, flags = inversion_attacks(), list[Flag]()
    declared = {name: attacks[name] for name in results if name in attacks}
    label_error = float(label_errors.mean())
    improving = {attack.improves_on for attack in declared.values()}
    for name, result in results.items():
        attack = declared.get(name)
        # A defense is meant to mislead an attacker that does not know of it. Where an adaptive
        # attacker improves on that attacker, the failure raises no flag.
        misled = attack is not None and not attack.adaptive and name in improving
        exempt = name == LabelOnly.name or (attack is not None and not attack.reads_query)
        # Two standard errors or 1 percent, so that a tie is not called a failure.
        slack = max(2 * standard_error(result.errors - label_errors), 0.01 * label_error)
        if not (exempt or misled) and result.error > label_error + slack:
            statement = FLAGS["attack-failed"].statement
            flags.append(Flag("attack-failed", f"{name} {statement}", name))
    for name, attack in declared.items():
        if attack.improves_on is not None and attack.improves_on in results:
            gain = results[name].errors - results[attack.improves_on].errors
            if float(gain.mean()) > 2 * standard_error(gain):
                statement = FLAGS["retraining-failed"].statement
                flags.append(Flag("retraining-failed", statement, name))
    return flags


def least_confident(clean_confidences: Tensor) -> Tensor:
    """Return the least confident 5 % of ``(N, K)`` confidences, as ``(n)`` int64 row numbers."""
    count = max(1, round(LEAST_CONFIDENT_SHARE * len(clean_confidences)))
    return clean_confidences.amax(-1).argsort(stable=True)[:count]


def errors_on(tail: Tensor, results: Mapping[str, AttackResult], strongest: str) -> Tensor:
    """Return ``(n)`` errors on the tail, of the strongest attacker or of the label-only attacker.

    These two alone compete, since on a few queries a failed decoder may win by chance.

    Args:
        tail: ``(n)`` int64 row numbers.
        results: Result of each attacker, by name.
        strongest: Name of the strongest attacker over all queries.
    """
    able = [results[name].errors[tail] for name in (strongest, LabelOnly.name) if name in results]
    return min(able, key=lambda errors: float(errors.mean()))


def standard_error(differences: Tensor) -> float:
    """Return the standard error of the mean of ``(N)`` differences; 0 for a single query."""
    count = len(differences)
    return float(differences.std()) / count**0.5 if count > 1 else 0.0


def gap_or_none(adaptive: float, clean: float, label: float) -> float | None:
    """Return the closed gap G, or None where clean scores add nothing to the label."""
    try:
        return closed_gap(adaptive, clean, label)
    except InvalidOptionError:
        return None
