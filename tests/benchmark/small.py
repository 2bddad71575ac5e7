"""Experiments on generated images that take seconds, for tests of whatever runs experiments."""

import numpy as np
import torch

from oneway.benchmark import Experiment, ExperimentSpec
from oneway.benchmark.spec import DataSpec, TargetSpec
from oneway.data import Dataset
from oneway.evaluation import Store, attackers
from oneway.evaluation.settings import AttackerSpec, ReleaseSpec, SurrogateSpec
from oneway.inversion import TrainingSettings
from oneway.targets import TargetTrainingSettings

CPU = torch.device("cpu")
CLASSES = 3
NOISE = {"step_size": 0.5, "steps": 2, "budget": 4, "norm": float("inf")}
NONE = ReleaseSpec("none", "none", attackers=("label-only", "static", "retrained"))
AGAIN = ReleaseSpec("again", "none", attackers=("label-only", "static", "retrained"))
NOISY = ReleaseSpec("noise", "adversarial-noise", NOISE)
LABEL = ReleaseSpec("label", "label-only")
SMALL = (NONE, NOISY, LABEL)
NAMES = ("label-only", "static", "retrained", "adversarial-training", "averaging")
"""All attackers but the one that asks thousands of queries."""

MEASURED = {
    "milliseconds_single_query",
    "milliseconds_per_query_batched",
    "training_seconds",
    "environment",
    "provenance",
}


def blobs(rows=420, seed=0):
    """A blob whose place is the class; its brightness is in the scores, but not in the label."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    y, x = np.mgrid[:16, :16]
    shapes = np.exp(-((x - (3 + 5 * labels[:, None, None])) ** 2 + (y - 8) ** 2) / 30)
    images = generator.uniform(0.1, 1, (rows, 1, 1)) * shapes
    images = np.clip(images + 0.03 * generator.random(images.shape), 0, 1)
    return Dataset("blobs", (255 * images).astype(np.uint8), labels, None, CLASSES)


def spec_of(
    *releases,
    epochs=1,
    width=4,
    seed=0,
    images=(60, 60, 45),
    target_epochs=1,
    removed=1,
    **attacker,
):
    """Describe an experiment on blobs with one decoder per contest."""
    training = TrainingSettings(
        epochs=epochs, patience=5, batch_size=32, learning_rate=0.02, averaging=0.8
    )
    options = {"names": NAMES, "input_transforms": ("standardized",), "widths": (width,)}
    options |= {"repeats": (2, 3), "most_epochs": epochs} | attacker
    return ExperimentSpec(
        "small",
        DataSpec(
            **dict(zip(("name", "private", "auxiliary", "test"), ("blobs", *images), strict=True))
        ),
        releases,
        seed=seed,
        target=TargetSpec(
            width=4,
            blocks=2,
            training=TargetTrainingSettings(
                epochs=target_epochs, learning_rate=0.01, batch_size=16
            ),
        ),
        surrogate=SurrogateSpec(
            width=width, hidden_layers_removed=removed, adversarial_steps=3, training=training
        ),
        attackers=AttackerSpec(training=training, **options),
    )


def experiment(folder, spec, report=attackers.no_progress, dataset=None, **options):
    return Experiment(spec, dataset or blobs(), Store(folder), device=CPU, report=report, **options)


def outcomes_of(folder, spec, **options):
    return list(experiment(folder, spec, **options).run())


def records_of(folder, spec, **options):
    return [outcome.record for outcome in outcomes_of(folder, spec, **options)]


def lasting(record):
    """What must be the same in every run."""
    record = record if isinstance(record, dict) else record.to_json()
    return {key: value for key, value in record.items() if key not in MEASURED}


class PlannedError(Exception):
    """Raised from the report, as Ctrl-C would be."""


def interrupting(stage, share=0.0):
    """Return a report that interrupts at a stage."""

    def report(now, done):
        if (now, done) == (stage, share):
            raise PlannedError

    return report
