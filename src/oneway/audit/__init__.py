"""Grade attacks, judge releases, and question the judgement itself."""

from oneway.audit.controls import (
    CONTROLS,
    ControlResult,
    MakeControl,
    controls_for,
    failed_controls,
    judge_control,
    planted_errors,
    planted_positions,
)
from oneway.audit.flag_kinds import FLAGS, FlagKind
from oneway.audit.flags import Flag
from oneway.audit.grading import AttackResult, Floors, run_attack, take_floors
from oneway.audit.verdict import (
    CLASS_LEVEL,
    TAIL_SHARE,
    Verdict,
    errors_on,
    flag_named,
    gap_or_none,
    judge,
    least_confident,
    standard_error,
)

__all__ = [
    "CLASS_LEVEL",
    "CONTROLS",
    "FLAGS",
    "TAIL_SHARE",
    "AttackResult",
    "ControlResult",
    "Flag",
    "FlagKind",
    "Floors",
    "MakeControl",
    "Verdict",
    "controls_for",
    "errors_on",
    "failed_controls",
    "flag_named",
    "gap_or_none",
    "judge",
    "judge_control",
    "least_confident",
    "planted_errors",
    "planted_positions",
    "run_attack",
    "standard_error",
    "take_floors",
]
