"""The part that audits and experiments share: build defenses, run attackers and grade them."""

from oneway.evaluation.convergence import Convergence
from oneway.evaluation.flags import FLAGS, Flag
from oneway.evaluation.grading import AttackResult, Baselines, run_attack, take_baselines
from oneway.evaluation.matching import GalleryMatching, MatchedScores, MatchingResult
from oneway.evaluation.recorded import Recording, attack_recorded
from oneway.evaluation.records import (
    AttackRecord,
    Environment,
    JudgedRelease,
    Outcome,
    Provenance,
    ReleaseRecord,
    read_records,
    write_records,
)
from oneway.evaluation.settings import AttackerSpec, ReleaseSpec, sketch_defense
from oneway.evaluation.store import Store, write_queries
from oneway.evaluation.verdict import (
    LEAST_CONFIDENT_SHARE,
    Verdict,
    judge,
    standard_error,
)
from oneway.evaluation.yardsticks import compare_with_clean_scores

__all__ = [
    "FLAGS",
    "LEAST_CONFIDENT_SHARE",
    "AttackRecord",
    "AttackResult",
    "AttackerSpec",
    "Baselines",
    "Convergence",
    "Environment",
    "Flag",
    "GalleryMatching",
    "JudgedRelease",
    "MatchedScores",
    "MatchingResult",
    "Outcome",
    "Provenance",
    "Recording",
    "ReleaseRecord",
    "ReleaseSpec",
    "Store",
    "Verdict",
    "attack_recorded",
    "compare_with_clean_scores",
    "judge",
    "read_records",
    "run_attack",
    "sketch_defense",
    "standard_error",
    "take_baselines",
    "write_queries",
    "write_records",
]
