"""Records with planted numbers, as `oneway reproduce` writes them."""

import dataclasses

from oneway.attacks import ATTACKS
from oneway.evaluation.records import BaselineErrors, numerics_of
from planted_records import ENVIRONMENT, release_record

STEPS = {"paper, step 0.1": 0.1, "paper, step 0.4": 0.4, "hardened": 0.1}


def row_of(name):
    step = STEPS.get(name)
    return {
        "name": name,
        "defense": "adversarial-noise" if step else "none",
        "options": {"step_size": step} if step else {},
        "surrogate": "augmented" if name == "hardened" else "plain",
        "attackers": [],
    }


def record_of(
    name="none",
    seed=0,
    *,
    static=0.02,
    retrained=0.02,
    gap=0.0,
    experiment="table1-mnist",
    preset="cpu",
    side=0,
    names=("none", *STEPS),
    errors=None,
    **changed,
):
    """Return one record; clean baseline 0.02, label floor 0.06, mean image 0.08."""
    found = {"label-only": 0.06, "static": static, "retrained": retrained} | (errors or {})
    row = row_of(name)
    record = {
        "experiment": experiment,
        "preset": preset,
        "defense": row["defense"],
        "options": row["options"],
        "auxiliary": 3000,
        "queries": 1000,
        "accuracy": 0.9812,
        "label_changes": 0,
        "logit_distortion": 1.2345,
        "l1_mean": 0.3456,
        "l1_p99": 0.9,
        "l1_max": 1.1,
        "errors": found,
        "adaptive_error": min(found.values()),
        "strongest": min(found, key=found.get),
        "closed_gap": gap,
        "closed_gap_least_confident": -0.126,
        "baselines": BaselineErrors(clean=0.02, label=0.06, prior=0.08),
        "milliseconds_single_query": 4.56,
        "milliseconds_per_query_batched": 0.789,
        "training_seconds": 123.0,
        "training": {"surrogate_held_out_error": 0.0345} if name in STEPS else {},
        "flags": (),
        "numerics": numerics_of(ATTACKS),  # stale beside no experiment that ships
        "environment": ENVIRONMENT,
        "spec": {
            "name": experiment,
            "preset": preset,
            "seed": seed,
            "data": {"private": 30000, "auxiliary": 3000, "test": 1000, "side": side},
            "attackers": {"names": ["label-only", "static", "retrained"]},
            "releases": [row_of(each) for each in names],
        },
    }
    return dataclasses.replace(release_record(name, seed), **(record | changed))
