"""Records of experiments with planted numbers, as `oneway reproduce` writes them."""

import dataclasses
from typing import Any

from oneway.evaluation import Environment, Provenance, ReleaseRecord
from oneway.evaluation.records import BaselineErrors, numerics_of

ENVIRONMENT = Environment(
    oneway="0.1",
    torch="2.13.0",
    python="3.11",
    system="Linux x86_64",
    processor="Some Processor 9000",
    device="cpu",
    cores=2,
    threads=1,
)
PROVENANCE = Provenance("0f" * 20, "2026-01-31T12:00:00+00:00", "da" * 32, "0d" * 32)


def row_of(name: str, defense: str = "none", **options: Any) -> dict[str, Any]:
    """Return a row of an experiment's releases, as JSON values."""
    return {
        "name": name,
        "defense": defense,
        "options": options,
        "surrogate": "plain",
        "attackers": [],
    }


def spec_of(*rows: dict[str, Any], seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return an experiment, as JSON values; `none` is its first release."""
    spec = {
        "name": "small",
        "preset": "",
        "seed": seed,
        "data": {"name": "mnist", "private": 30000, "auxiliary": 3000, "test": 1000, "side": 0},
        "attackers": {"names": ["label-only", "static", "retrained"], "widths": [16, 32]},
        "releases": [row_of("none"), *rows],
    }
    return spec | changes


def release_record(
    release: str = "none", seed: int = 0, *, options: dict[str, Any] | None = None, **changes: Any
) -> ReleaseRecord:
    """Return a record, by default of no defense: clean baseline 0.02, label 0.06, prior 0.08.

    Args:
        release: Its name; any but `none` is of adversarial noise.
        seed: Of the experiment.
        options: Of the noise; None: steps of 0.5.
        **changes: Other fields.
    """
    row = row_of(release)
    if release != "none":
        row = row_of(release, "adversarial-noise", **({"step_size": 0.5} | (options or {})))
    record = ReleaseRecord(
        experiment="small",
        preset="",
        cell=f"{release} {seed}",
        release=release,
        defense=row["defense"],
        options=row["options"],
        effective_options=row["options"],
        seed=seed,
        auxiliary=3000,
        queries=1000,
        accuracy=0.75,
        label_changes=0,
        keeps_label=True,
        random=False,
        logit_distortion=1.5,
        l1_mean=0.25,
        l1_p99=0.5,
        l1_max=0.75,
        errors={"label-only": 0.0625, "static": 0.03125, "retrained": 0.0234375},
        reconstructors=dict.fromkeys(("label-only", "static", "retrained"), "decoder"),
        reconstructor_errors={
            "label-only": {"decoder": 0.0625},
            "static": {"decoder": 0.03125},
            "retrained": {"decoder": 0.0234375},
        },
        baselines=BaselineErrors(clean=0.015625, label=0.0625, prior=0.078125),
        adaptive_error=0.0234375,
        strongest="retrained",
        closed_gap=0.5,
        closed_gap_least_confident=-0.125,
        flags=(),
        errors_per_query={},
        training_seconds=10.0,
        training={"surrogate_held_out_error": 0.375} if release != "none" else {},
        milliseconds_single_query=4.0,
        milliseconds_per_query_batched=1.0,
        environment=ENVIRONMENT,
        provenance=PROVENANCE,
        numerics=numerics_of(("label-only", "static", "retrained")),
        spec=spec_of(*(() if release == "none" else (row,)), seed=seed),
    )
    return dataclasses.replace(record, **changes)
