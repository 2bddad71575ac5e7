"""From errors of attackers to a verdict on a release, which is that of the strongest attacker.

Where no trained attacker beats the label-only baseline, the attack failed: G = 1 then says that
these attackers read nothing, and not that there is nothing to read. Such a verdict states a bound
instead, ``closed_gap_at_least``. It takes off what may hide from these attackers: the detection
limit, which is the smallest known leak that they find (:mod:`oneway.evaluation.detection`), and
half the interval of G of the trained attacker that is best. Without a detection limit, nothing is
claimed.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.attacks import LabelOnly, inversion_attacks
from oneway.errors import InvalidOptionError
from oneway.evaluation.flags import FLAGS, Flag
from oneway.evaluation.grading import AttackResult, Baselines
from oneway.metrics import bootstrap_gap, closed_gap

LEAST_CONFIDENT_SHARE = 0.05
"""Share of least confident queries with a verdict by itself, since the mean hides it."""

BEYOND_CHANCE = 2
"""Standard errors by which an attacker's gain over the label must exceed 0."""

BOOTSTRAP_SEED = 0
"""Seed of the intervals of bounds: a verdict has no other randomness."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on a release.

    Attributes:
        adaptive_error: Lowest mean error over all attackers; each may fall back on the label.
        strongest: Name of the attacker with that error.
        closed_gap: G over all queries; None if clean scores add nothing to the label. Where the
            attack failed, it is no measurement.
        closed_gap_least_confident: G over the least confident 5 % of queries, of the attacker who
            is strongest over all queries, or who falls back on the label.
        flags: Suspicious facts about this evaluation.
        attack_failed: Whether no trained attacker beats the label by more than chance.
        detection_limit: Smallest known leak that these attackers find, as a share of the gap. None
            if they find none; and where the attack did not fail, which asks for no limit.
        closed_gap_at_least: Bound of G against these attackers, from 0 to 1, where the attack
            failed; None if nothing can be claimed, and where the attack did not fail.
    """

    adaptive_error: float
    strongest: str
    closed_gap: float | None
    closed_gap_least_confident: float | None
    flags: tuple[Flag, ...]
    attack_failed: bool
    detection_limit: float | None = None
    closed_gap_at_least: float | None = None


def no_limit() -> None:
    """Return no detection limit: nothing is known about what attackers find."""


def judge(
    results: Mapping[str, AttackResult],
    baselines: Baselines,
    clean_confidences: Tensor,
    label_changes: int,
    find_limit: Callable[[], float | None] = no_limit,
) -> Verdict:
    """Compare attackers with the baselines.

    Args:
        results: Result of each attacker, by name.
        baselines: Baselines of the same queries.
        clean_confidences: ``(N, K)`` clean confidences, which say what queries are least confident.
        label_changes: Number of queries with another released label than the model's.
        find_limit: Returns the detection limit of these attackers. It is called only where the
            attack failed and there is a gap.
    """
    strongest = min(results, key=lambda name: results[name].error)
    tail = least_confident(clean_confidences)
    adaptive = results[strongest].error
    label_error = float(baselines.label.mean())
    flags = failed_attacks(results, baselines.label)
    if label_changes:
        flags.append(Flag("labels-changed", f"{label_changes} {FLAGS['labels-changed'].statement}"))
    gap = gap_or_none(adaptive, float(baselines.clean.mean()), label_error)
    trained = [results[name].errors for name in trained_attacks(results)]
    failed = not any(beats_label(errors, baselines.label) for errors in trained)
    limit = find_limit() if failed and gap is not None else None
    return Verdict(
        adaptive_error=adaptive,
        strongest=strongest,
        closed_gap=gap,
        closed_gap_least_confident=gap_or_none(
            float(errors_on(tail, results, strongest).mean()),
            float(baselines.clean[tail].mean()),
            float(baselines.label[tail].mean()),
        ),
        flags=tuple(flags),
        attack_failed=failed,
        detection_limit=limit,
        closed_gap_at_least=None
        if limit is None or not trained
        else gap_at_least(min(trained, key=lambda errors: float(errors.mean())), baselines, limit),
    )


def trained_attacks(names: Iterable[str]) -> list[str]:
    """Return the attacks that read more of a release than its label.

    Args:
        names: Names of attacks. An attack that is not registered counts as one of them.
    """
    attacks = inversion_attacks()
    return [
        name
        for name in names
        if name != LabelOnly.name and (name not in attacks or attacks[name].reads_query)
    ]


def beats_label(errors: Tensor, label_errors: Tensor) -> bool:
    """Return whether an attacker errs less than the label-only baseline, by more than chance.

    Args:
        errors: ``(N)`` errors of the attacker.
        label_errors: ``(N)`` errors of the label-only baseline on the same queries.
    """
    gain = label_errors - errors
    mean = float(gain.mean())
    return mean > 0 and mean > BEYOND_CHANCE * standard_error(gain)


def gap_at_least(errors: Tensor, baselines: Baselines, limit: float) -> float | None:
    """Return the bound of G where the attack failed.

    It is the smaller of 1 and G of the best trained attacker, less the detection limit, less half
    the width of the 95 % interval of that G over queries.

    Args:
        errors: ``(N)`` errors of the best trained attacker.
        baselines: Baselines of the same queries, whose mean label error exceeds the clean one.
        limit: Detection limit, from 0 to 1.

    Returns:
        From 0 to 1; None if the interval is infinite, or there is a single query.
    """
    if len(errors) < 2:
        return None
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    interval = bootstrap_gap(errors, baselines.clean, baselines.label, generator=generator)
    half_width = (interval.high - interval.low) / 2
    if not math.isfinite(half_width):
        return None
    return max(0.0, min(1.0, interval.estimate) - limit - half_width)


def failed_attacks(results: Mapping[str, AttackResult], label_errors: Tensor) -> list[Flag]:
    """Return a flag for each attack that does no better than an attacker who knows less.

    Args:
        results: Result of each attacker, by name. An attack that is not registered counts as
            adaptive.
        label_errors: ``(N)`` errors of the label-only baseline on the same queries.
    """
    attacks, flags = inversion_attacks(), list[Flag]()
    declared = {name: attacks[name] for name in results if name in attacks}
    label_error = float(label_errors.mean())
    improving = {attack.improves_on for attack in declared.values()}
    for name in trained_attacks(results):
        attack = declared.get(name)
        # A defense is meant to mislead an attacker that does not know of it. Where an adaptive
        # attacker improves on that attacker, the failure raises no flag.
        misled = attack is not None and not attack.adaptive and name in improving
        # No tolerance: an attacker who reads anything errs less than the label.
        if not misled and not results[name].error < label_error:
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
