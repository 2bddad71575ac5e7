"""Defenses by name, and the networks that they need: what serves, without anything that attacks."""

from oneway.defenses.candidate_releases import (
    MemberLeak,
    ReleaseCandidate,
    certify_candidate,
    choose_candidate,
    measure_candidates,
    pareto_optimal,
)
from oneway.defenses.guard_versions import guard_version
from oneway.defenses.keyed import KeyedRandomness, SecretKey
from oneway.defenses.module_files import (
    StoredModule,
    load_module,
    save_module,
)
from oneway.defenses.onnx_export import codebook_to_onnx, guard_onnx_model
from oneway.defenses.registry import (
    DEFENSES,
    TEST_SIGNALS,
    build_defense,
    check_options,
    effective_options,
    needs_state,
    needs_surrogate,
    registered_name,
    strength_option,
    trained_defense,
    training_options,
)
from oneway.defenses.servable import ServableDefense, open_guard, open_guard_file

__all__ = [
    "DEFENSES",
    "TEST_SIGNALS",
    "KeyedRandomness",
    "MemberLeak",
    "ReleaseCandidate",
    "SecretKey",
    "ServableDefense",
    "StoredModule",
    "build_defense",
    "certify_candidate",
    "check_options",
    "choose_candidate",
    "codebook_to_onnx",
    "effective_options",
    "guard_onnx_model",
    "guard_version",
    "load_module",
    "measure_candidates",
    "needs_state",
    "needs_surrogate",
    "open_guard",
    "open_guard_file",
    "pareto_optimal",
    "registered_name",
    "save_module",
    "strength_option",
    "trained_defense",
    "training_options",
]
