"""What fewer, larger steps of Algorithm 2 hide from attackers, beside its ten steps.

Targets, images and surrogates are those of the leaderboard, with fewer auxiliary rows. Attackers
are mixtures of kernel ridge regressions: the retrained one is fitted to released scores of its own
images, the static one to clean scores. G is 0 where the retrained one reads as much as from clean
scores, and 1 where it reads no more than from the label. Rows that a record already has are left
out, so that a run that was stopped goes on where it stopped.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from codebook_speed import read
from rich.console import Console

from oneway.attacks import KernelRidge, Stack
from oneway.attacks.label_means import label_means
from oneway.benchmark import bundled_spec, load_data
from oneway.benchmark.runner import Experiment, trained_target
from oneway.data import no_progress
from oneway.evaluation import ReleaseSpec, Store
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.evaluation.yardsticks import ridge_errors
from oneway.metrics import closed_gap, inversion_errors
from oneway.releases import release

STEP_SIZE, STEPS = 0.1, 10
COARSE = (None, 2, 1)
"""Numbers of coarse steps; None: all ten steps."""

AUXILIARY, TEST = 1000, 500
"""Rows of attackers and of the graded queries."""

Row = dict[str, Any]


def rows_of(preset: str, seed: int, cache: Path, root: Path | None) -> Iterator[Row]:
    """Yield a record for each number of coarse steps."""
    options: Row = {"step_size": STEP_SIZE, "steps": STEPS}
    releases = tuple(
        ReleaseSpec(
            f"{coarse or STEPS} steps",
            "adversarial-noise",
            options if coarse is None else {**options, "coarse_steps": coarse},
        )
        for coarse in COARSE
    )
    spec = bundled_spec("leaderboard", preset)
    spec = replace(
        spec,
        seed=seed,
        releases=(ReleaseSpec("none", "none", {}), *releases),
        data=replace(spec.data, auxiliary=AUXILIARY, test=TEST),
    )
    dataset, auxiliary = load_data(spec.data, root)
    store = Store(cache)
    experiment = Experiment(
        spec, dataset, store, auxiliary_dataset=auxiliary, device=torch.device("cpu")
    )
    target = trained_target(spec, experiment.splits, store, no_progress)
    own, asked = experiment.splits.auxiliary_images, experiment.splits.test_images
    logits = target.logits(own), target.logits(asked)
    clean = release(logits[0]), release(logits[1])
    least = float(ridge_errors([clean], own, asked).mean())
    means = label_means(own, logits[0].argmax(-1), clean[0].shape[-1])
    label = float(inversion_errors(asked, means[logits[1].argmax(-1)]).mean())
    exact = None
    for row in releases:
        guard = experiment.defender.build(row, target, clean[0]).defense
        guard(logits[1][:64], asked[:64])
        begin = time.process_time()
        answers = guard(logits[0], own), guard(logits[1], asked)
        seconds = time.process_time() - begin
        exact = answers[1] if exact is None else exact
        seen = release(answers[0]), release(answers[1])
        retrained = float(ridge_errors([seen], own, asked).mean())
        equal = (answers[1] - logits[1]).sign() == (exact - logits[1]).sign()
        yield {
            "data": preset,
            "seed": seed,
            "steps": row.name,
            "milliseconds_a_query": 1000 * seconds / (len(own) + len(asked)),
            "equal_signs": float(equal.double().mean()),
            "l1": float((seen[1] - clean[1]).abs().sum(-1).mean()),
            "clean_error": least,
            "static_error": float(ridge_errors([(clean[0], seen[1])], own, asked).mean()),
            "retrained_error": retrained,
            "label_error": label,
            "closed_gap": closed_gap(retrained, least, label),
        }


def main() -> None:
    """Measure what the record lacks, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed", "faces"])
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench-coarse-steps.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = origin([KernelRidge.name, Stack.name])
    records = read(options.out) if options.out.exists() else []
    for data in options.data:
        for seed in options.seeds:
            if any((row["data"], row["seed"]) == (data, seed) for row in records):
                continue
            made = list(rows_of(data, seed, options.cache, options.data_root))
            records += [{**row, **facts} for row in made]
            write_json_lines(options.out, records)
            for row in made:
                Console(width=140).print(row)


if __name__ == "__main__":
    main()
