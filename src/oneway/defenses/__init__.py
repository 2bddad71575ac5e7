"""Defenses by name, and the networks that they need: what serves, without anything that attacks."""

from oneway.defenses.candidate_releases import Member, best_members, choose_member, measure_family
from oneway.defenses.keyed import KeyedRandomness, SecretKey
from oneway.defenses.network_files import (
    StoredNetwork,
    load_network,
    save_network,
)
from oneway.defenses.onnx_export import codebook_to_onnx, guard_onnx_model
from oneway.defenses.registry import (
    DEFENSES,
    STRENGTHS,
    TEST_SIGNALS,
    build_defense,
    check_options,
    effective_options,
    needs_network,
    needs_surrogate,
    trained_defense,
    training_options,
)
from oneway.defenses.servable import ServableDefense, open_guard, open_guard_file

__all__ = [
    "DEFENSES",
    "STRENGTHS",
    "TEST_SIGNALS",
    "KeyedRandomness",
    "Member",
    "SecretKey",
    "ServableDefense",
    "StoredNetwork",
    "best_members",
    "build_defense",
    "check_options",
    "choose_member",
    "codebook_to_onnx",
    "effective_options",
    "guard_onnx_model",
    "load_network",
    "measure_family",
    "needs_network",
    "needs_surrogate",
    "open_guard",
    "open_guard_file",
    "save_network",
    "trained_defense",
    "training_options",
]
