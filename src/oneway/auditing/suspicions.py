"""Flags of an audit: suspicious facts about its evaluation and about the release."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from oneway.auditing.controls import ControlResult, failed_controls
from oneway.auditing.measures import SeedResult, convergence_over
from oneway.auditing.plan import SEEDS
from oneway.contracts import Defense
from oneway.evaluation import Flag, standard_error
from oneway.evaluation.convergence import not_trained_out

LUCK = 0.05
"""Share of an error by which decoders of the same knowledge differ."""

WORSE_CALIBRATED = 0.02
"""Rise of the expected calibration error that is flagged."""

_MUST = {"broken": "broken (G about 0)", "read": "read", "holds": "unbroken (G about 1)"}


def suspicions(
    seed_results: Sequence[SeedResult],
    seeds: int,
    controls: Mapping[str, ControlResult],
    defense: Defense,
    useful: Mapping[str, Any],
) -> list[Flag]:
    """Return flags about the evaluation and about the release.

    Args:
        seed_results: Result of each seed that was run.
        seeds: Number of seeds that were requested.
        controls: Result of each control, by name.
        defense: The audited defense.
        useful: Result of :func:`oneway.auditing.measures.utility`.
    """
    flags = list[Flag]()
    raised = Counter(flag for result in seed_results for flag in result.verdict.flags)
    for flag, count in raised.items():
        detail = f"{flag.detail} ({count} of {len(seed_results)} seeds)"
        flags.append(dataclasses.replace(flag, detail=detail))
    gain = torch.stack(
        [result.baselines.clean - result.strongest.errors for result in seed_results]
    ).mean(0)
    slack = LUCK * float(torch.stack([result.baselines.clean for result in seed_results]).mean())
    better = float(gain.mean()) > max(2 * standard_error(gain), slack)
    if defense.requires_input or better:
        reads = "the defense reads the query itself" if defense.requires_input else ""
        more = "attackers reconstruct better than from clean scores" if better else ""
        detail = "; ".join(part for part in (reads, more) if part)
        flags.append(Flag("tells-more-than-scores", detail))
    before, after = useful.get("clean"), useful["released"]
    if before and before["expected_calibration_error"] is not None:
        worse = after["expected_calibration_error"] - before["expected_calibration_error"]
        if worse > WORSE_CALIBRATED:
            detail = (
                "expected calibration error rises from "
                f"{before['expected_calibration_error']:.3f} to "
                f"{after['expected_calibration_error']:.3f}"
            )
            flags.append(Flag("worse-calibrated", detail))
    if len(seed_results) < max(SEEDS, seeds):
        detail = f"{len(seed_results)} of {seeds} seeds were run"
        if len(seed_results) < SEEDS:
            detail += f"; use at least {SEEDS} for results that you share"
        flags.append(Flag("too-few-seeds", detail))
    flags += not_trained_out(convergence_over([result.results for result in seed_results]))
    on_clean = convergence_over([result.clean_results for result in seed_results])
    flags += not_trained_out(on_clean, "clean scores")
    for name in failed_controls(controls):
        result = controls[name]
        detail = f"{name} must be {_MUST[result.expected]}, but measured {result.measured:.2f}"
        flags.append(Flag("control-failed", detail))
    return flags


def unexplained_flags(flags: Sequence[Flag], seeds: int, *, run: int, blind: bool) -> list[Flag]:
    """Return the flags that neither the user's own settings nor the other findings explain.

    Fewer than 3 seeds on purpose explain ``too-few-seeds``, unless even fewer were run. An attacker
    who fails is explained by others who do not, since the strongest counts. Where a release reveals
    the label alone, all trained attackers must fail. This is explained by leaks of known worth that
    they find, and is unexplained if they are blind.

    Args:
        flags: Flags of an audit.
        seeds: Number of seeds that were requested.
        run: Number of seeds that were run.
        blind: Whether the attack failed, and nothing can be claimed of G even so.
    """
    explained = {"too-few-seeds"} if seeds < SEEDS and run >= seeds else set()
    explained |= set() if blind else {"attack-failed"}
    return [flag for flag in flags if flag.name not in explained]
