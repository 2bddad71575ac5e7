"""Experiments: specs in, records out."""

from oneway.benchmark.recorded import Recording, attack_recorded
from oneway.benchmark.records import Outcome
from oneway.benchmark.registry import ATTACKS, DEFENSES, build_defense, needs_surrogate
from oneway.benchmark.runner import Experiment, count_stages
from oneway.benchmark.spec import ExperimentSpec, bundled_spec, load_spec
from oneway.benchmark.store import (
    Store,
    atomic_file,
    load_network,
    save_network,
    write_records,
)

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "Experiment",
    "ExperimentSpec",
    "Outcome",
    "Recording",
    "Store",
    "atomic_file",
    "attack_recorded",
    "build_defense",
    "bundled_spec",
    "count_stages",
    "load_network",
    "load_spec",
    "needs_surrogate",
    "save_network",
    "write_records",
]
