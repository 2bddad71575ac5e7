"""What a release is chosen for: to hide queries, members, or both."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from oneway.auditing import MembershipSettings
from oneway.auditing.membership import MembershipAudit
from oneway.data import ProgressCallback, check_disjoint
from oneway.defenses import MemberLeak, ReleaseCandidate
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.evaluation import ReleaseSpec, Store
from oneway.interface.audit_source import AuditSource, OpenedMembers
from oneway.report.threats import shown

Goal = Literal["inversion", "membership", "all"]
GOALS: tuple[Goal, ...] = ("inversion", "membership", "all")

CHEAP_ATTACKS = (
    "label-gap",
    "true-label-confidence",
    "modified-entropy",
    "quantile-regression",
    "offline-rmia",
    "online-lira",
    "cell-likelihood",
)
"""Membership attackers that judge a candidate in about a second."""

REFERENCES = 4
"""Reference models of the attacker, where none are asked for."""


def check_goal(goal: str, data: Mapping[str, Any], references: int | None) -> None:
    """Refuse a goal without its data, or with what it does not use.

    Args:
        goal: The goal.
        data: Members, non-members and the attacker's data, by option; None: not given.
        references: Number of reference models; None: not given.

    Raises:
        UnknownNameError: There is no such goal.
        InvalidOptionError: Data is missing, or something is given that inversion does not use.
    """
    UnknownNameError.check("goal", goal, GOALS)
    for option, value in {**data, "--references": references}.items():
        if goal == "inversion" and value is not None:
            raise InvalidOptionError(
                f"{option} is for the goals membership and all, but the goal is inversion. Pass "
                f"--goal membership (goal=...), or leave {option} out."
            )
        if goal != "inversion" and value is None and option in data:
            raise InvalidOptionError(
                f"{option} must be given for the goal {goal!r}, but is not. Pass {option} DATA."
            )


def open_for_members(
    source: AuditSource, queries: Tensor, report: ProgressCallback
) -> OpenedMembers:
    """Open the model and the rows that candidates are attacked with, and check them.

    Args:
        source: The model, members, non-members and the attacker's data.
        queries: ``(N, ...)`` what candidates are fitted to and judged on.
        report: Receives the progress.

    Raises:
        OverlappingSplitsError: Queries are among the members or non-members.
        OnewayError: The model or the data cannot be used.
    """
    opened = source.open_members(report=report)
    check_disjoint({"queries": queries, "members and non-members": opened.rows.inputs})
    return opened


def judged_for_members(
    goal: Goal,
    candidates: Sequence[ReleaseCandidate],
    opened: OpenedMembers,
    settings: MembershipSettings,
    *,
    cache: Path,
    report: ProgressCallback,
) -> list[ReleaseCandidate]:
    """Attack every candidate for membership, and let the goal say how much each hides.

    G_mem is by the area under the ROC curve of the strongest of a few attackers. More than 1, which
    is chance, counts as 1. The goal all counts the smaller of G_mem and the certified error as a
    share of the largest.

    Args:
        goal: ``"membership"`` or ``"all"``.
        candidates: Candidates that were fitted to other rows.
        opened: From :func:`open_for_members`.
        settings: Size of the audit.
        cache: Folder of reference models.
        report: Receives the progress.

    Raises:
        InvalidOptionError: It is not certain that clean scores leak more than labels.
    """
    audit = MembershipAudit(opened.target, opened.rows, settings, Store(cache), report=report)
    most = max(each.certified for each in candidates)
    judged = []
    for number, candidate in enumerate(candidates):
        report("attack the candidates", number / len(candidates))
        spec = ReleaseSpec(candidate.defense, candidate.defense, candidate.options)
        found = audit.measured(spec, candidate.release, own_copies=False)
        gap, variation = found.gaps()["area"], found.total_variation
        if gap.closed is None:
            raise InvalidOptionError(
                "a release cannot be chosen to hide members: it is not certain that clean scores "
                f"leak more than labels (area under the ROC curve {shown(gap.clean)} and "
                f"{shown(gap.label)}). Pass more members and non-members, or --goal inversion "
                "(goal=...)."
            )
        hidden = min(gap.closed.estimate, 1.0)
        if goal == "all":
            hidden = min(hidden, candidate.certified / most if most > 0 else 0.0)
        leak = MemberLeak(
            gap.released.estimate,
            gap.closed.estimate,
            None if variation is None else variation.high,
        )
        judged.append(replace(candidate, hidden=hidden, members=leak))
    report("attack the candidates", 1.0)
    return judged
