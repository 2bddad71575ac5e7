"""Which threats an audit or a choice is about: their data, their sizes, and their time."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from oneway.auditing import THREATS, AuditSettings, MembershipSettings, StealingSettings
from oneway.auditing.membership import MembershipAudit
from oneway.data import ProgressCallback
from oneway.defenses import MemberLeak, ReleaseCandidate
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.evaluation import ReleaseSpec, Store
from oneway.interface.audit_source import OpenedMembers
from oneway.report.threats import shown

CHEAP_FIRST = ("membership", "stealing", "inversion")
"""Threats in the order they are audited: what an audit leaves of its time goes to the next."""

NEEDED = {
    "--queries": ("inversion", "stealing"),
    "--members": ("membership",),
    "--non-members": ("membership",),
}
"""Data by option, and the threats that need it."""

OPTIONAL = {
    "--public": "stealing",
    "--budget": "stealing",
    "--references": "membership",
    "membership=": "membership",
    "stealing=": "stealing",
    "--executor ray": "inversion",
}
"""Options that one threat alone takes."""


def parse_threats(threats: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of threats, each once.

    Args:
        threats: Names; a text has commas between them.
    """
    names = threats.split(",") if isinstance(threats, str) else threats
    return tuple(dict.fromkeys(str(name).strip() for name in names))


@dataclass(frozen=True)
class ThreatSettings:
    """Threats of an audit, and the size of each audit.

    Attributes:
        threats: Of ``oneway.auditing.THREATS``.
        seeds: Number of seeds; each repeats all attacks of inversion and stealing.
        minutes: Target run time of all threats together; None: no limit.
        controls: Whether controls are run.
        membership: Size of the audit for membership; its ``controls`` and ``seed`` do not count.
        stealing: Budgets and steps of thieves; its ``seeds`` do not count.
    """

    threats: tuple[str, ...] = ("inversion",)
    seeds: int = AuditSettings.seeds
    minutes: float | None = None
    controls: bool = True
    membership: MembershipSettings = field(default_factory=MembershipSettings)
    stealing: StealingSettings = field(default_factory=StealingSettings)

    def __post_init__(self) -> None:
        """Refuse settings that could not run.

        Raises:
            UnknownNameError: There is no such threat.
            InvalidOptionError: There is no threat, or a number is outside its range.
        """
        if not self.threats:
            raise InvalidOptionError(
                f"threats must name one of {', '.join(THREATS)}, but is empty."
            )
        for name in self.threats:
            UnknownNameError.check("threat", name, THREATS)
        AuditSettings(seeds=self.seeds, minutes=self.minutes)

    def of_inversion(self, rows: int, seconds: float) -> AuditSettings:
        """Return the settings of the audit for inversion.

        Args:
            rows: Number of auxiliary rows.
            seconds: Target run time; infinite: no limit.
        """
        minutes = None if seconds == math.inf else seconds / 60
        return AuditSettings.for_rows(
            rows, seeds=self.seeds, minutes=minutes, controls=self.controls
        )

    def of_membership(self, seed: int) -> MembershipSettings:
        """Return the settings of the audit for membership."""
        return replace(self.membership, controls=self.controls, seed=seed)

    def of_stealing(self) -> StealingSettings:
        """Return the settings of the audit against thieves."""
        return replace(self.stealing, seeds=self.seeds)

    def plan(self) -> list[str]:
        """Return what an audit will do at most, a line for each threat in the order of work."""
        sizes = {
            "membership": f"up to {self.membership.references} reference models",
            "stealing": f"thieves with {', '.join(map(str, self.stealing.budgets))} queries, up to "
            f"{self.seeds} seeds of {self.stealing.steps:,} training steps",
            "inversion": f"up to {self.seeds} seeds of all attackers",
        }
        order = [threat for threat in CHEAP_FIRST if threat in self.threats]
        lines = [f"Plan: {threat}: {sizes[threat]}" for threat in order]
        if self.minutes is not None:
            for place, left in enumerate(range(len(order), 0, -1)):
                part = "the rest" if left == 1 else f"1/{left} of what is left"
                lines[place] += f"; {part} of {self.minutes:g} minutes"
        return lines

    def shares(self) -> Iterator[tuple[str, float]]:
        """Yield each threat with its seconds: an equal part of the time that is left by then."""
        begin = time.perf_counter()
        order = [threat for threat in CHEAP_FIRST if threat in self.threats]
        for place, threat in enumerate(order):
            limit = math.inf if self.minutes is None else 60 * self.minutes
            left = limit - (time.perf_counter() - begin)
            # Never nothing: late threats say by themselves what they leave out.
            yield threat, max(left, 0.01) / (len(order) - place)


def check_data(threats: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Refuse an audit if a threat lacks its data, or if data belongs to no threat.

    Args:
        threats: Names of the audited threats.
        given: Values of the options of ``NEEDED`` and ``OPTIONAL``; None or missing: not given.

    Raises:
        InvalidOptionError: Data of a threat is missing, or given without its threat.
    """
    for option, users in NEEDED.items():
        needs = [name for name in users if name in threats]
        if needs and given.get(option) is None:
            argument = option.strip("-").replace("-", "_")
            raise InvalidOptionError(
                f"{option} must be given for the threat {needs[0]!r}, but is not. "
                f"Pass {option} DATA ({argument}=...)."
            )
    check_options(threats, given)


def check_options(threats: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Refuse options that belong to no audited threat.

    Args:
        threats: Names of the audited threats.
        given: Values of options of ``NEEDED`` and ``OPTIONAL``; None or missing: not given.

    Raises:
        InvalidOptionError: An option is given without its threat.
    """
    users_of = NEEDED | {option: (user,) for option, user in OPTIONAL.items()}
    for option, users in users_of.items():
        if given.get(option) is not None and not set(users) & set(threats):
            raise InvalidOptionError(
                f"{option} is for the threat {users[0]!r}, which is not audited. Add it to "
                f"--threats (threats=...), or leave {option} out."
            )


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
        opened: From :meth:`oneway.interface.AuditSource.open_members`.
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
