"""Models and queries that an audit takes seconds on, for tests of whatever audits."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from oneway.attacks import gmi, kernel_ridge, optimising
from oneway.auditing import (
    AuditRecord,
    AuditSettings,
    AuditTarget,
    ModelAudit,
    control_runs,
    measures,
    model_audit,
    pacing,
    tasks,
)
from oneway.auditing.controls import controls_for
from oneway.benchmark import runner
from oneway.data import Column
from oneway.evaluation import Store, yardsticks
from oneway.inversion import TrainingSettings
from oneway.releases import release
from oneway.targets import TorchTarget
from oneway.targets.callables import CallableTarget

CLASSES, SIDE = 3, 8
ROWS, TESTS = 300, 100


def shapes():
    """One blob per class, ``(K, 8, 8)``."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centers = torch.arange(CLASSES).view(-1, 1, 1)
    return torch.exp(-((x - (1 + 2.5 * centers)) ** 2 + (y - 3.5) ** 2) / 6)


def blobs(rows, seed):
    """A blob whose place is the class; its brightness is in the scores, but not in the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    bright = 0.1 + 0.8 * torch.rand(rows, 1, 1, generator=generator)
    noise = 0.05 * torch.rand(rows, SIDE, SIDE, generator=generator)
    return (bright * shapes()[labels] + noise).clamp(0, 1).unsqueeze(1), labels


class Scores(nn.Module):
    """How much of each class's blob an image holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shapes", shapes().flatten(1))

    def forward(self, images):
        return 0.5 * images.flatten(1) @ self.shapes.T


def answers(images):
    """The same from arrays to arrays, as confidences."""
    return release(Scores()(torch.as_tensor(images).float())).numpy()


def black_box(answer=answers):
    return CallableTarget(answer, name="the model")


def unknowing(images):
    """Answer with a label alone: nothing about the query beside it."""
    labels = Scores()(torch.as_tensor(images).float()).argmax(-1)
    return (0.7 * nn.functional.one_hot(labels, CLASSES) + 0.1).numpy()


COLUMNS = (
    Column("age", "numeric", 0, 1),
    Column("income", "numeric", 1, 2),
    Column("sex", "categorical", 2, 4, categories=("f", "m")),
    Column("city", "categorical", 4, 7, categories=("a", "b", "c")),
)
"""How :func:`records` are encoded."""


def records(rows, seed):
    generator = np.random.default_rng(seed)
    numbers = generator.random((rows, 2))
    sexes = np.eye(2)[generator.integers(2, size=rows)]
    cities = np.eye(3)[generator.integers(3, size=rows)]
    return torch.from_numpy(np.hstack([numbers, sexes, cities]).astype(np.float32))


class RecordScores(nn.Module):
    """A linear model of records: the scores tell most of them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("weights", 3 * torch.randn(7, CLASSES, generator=generator))

    def forward(self, rows):
        return rows @ self.weights


def subject_of(target=None, *, rows=ROWS, tests=TESTS, **options):
    """A model on blobs, with a gradient unless another target is given."""
    (auxiliary, _), (test, labels) = blobs(rows, 0), blobs(tests, 1)
    target = TorchTarget(Scores()) if target is None else target
    return AuditTarget(target, auxiliary, test, **{"labels": labels, **options})


BLACK_BOX = {
    "label-only",
    "cell-means",
    "kernel-ridge",
    "smooth-kernel-ridge",
    "bagged-perceptrons",
    "static",
    "retrained",
    "stack",
}
"""Names of the attackers of a model without a gradient, whose release is not random."""


def whole(record, **options):
    """The record of an audit of inversion alone."""
    return AuditRecord(inversion=record, **options)


TINY = AuditSettings(
    seeds=1,
    controls=False,
    input_transforms=("standardized",),
    widths=(4,),
    first_epochs=4,
    most_epochs=4,
    repeats=(3,),
)


def time_little(patch):
    """Time a handful of queries: what they take is reported, and decides nothing."""
    patch.setattr(measures, "SINGLE_QUERIES", 5)
    patch.setattr(runner, "TIMED_QUERIES", 3)
    patch.setattr(runner, "TIMED_BATCHES", 1)


@pytest.fixture(scope="module", autouse=True)
def little_timing():
    """Time a handful of queries in all tests of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        time_little(patch)
        yield


def search_little(patch):
    """Leave attackers who train no decoder few choices, and attacks of certificates few rows."""
    time_little(patch)
    patch.setattr(yardsticks, "ATTACKER_ROWS", 80)
    patch.setattr(gmi, "STEPS", 20)
    patch.setattr(gmi, "BUDGET", 4 * gmi.OFFSPRING)
    patch.setattr(optimising, "STEPS", (20,))
    patch.setattr(kernel_ridge, "LENGTHS", (1.0, 4.0))
    patch.setattr(kernel_ridge, "PENALTIES", (0.1, 1.0))


FEW_CONTROLS = ("identity", "planted-levels", "planted-scores", "label-only")
"""One or two of each result that controls are expected to have."""


def run_few_controls(patch):
    """Leave audits these controls; ``test_model_audit.py`` runs all of them."""

    def few(attacks, classes):
        return tuple(name for name in controls_for(attacks, classes) if name in FEW_CONTROLS)

    patch.setattr(model_audit, "controls_for", few)


def quickly(patch):
    """Train on small batches, whatever the epochs, and measure what things cost in a moment."""

    def settings_for(epochs):
        return TrainingSettings(
            epochs=epochs,
            learning_rate=0.02,
            batch_size=16,
            averaging=0.8,
            schedule="one-cycle",
            grace=2,
        )

    for module in (tasks, control_runs):
        patch.setattr(module, "settings_for", settings_for)
    patch.setattr(pacing, "TIMED_SECONDS", 0.01)
    patch.setattr(pacing, "SOLVED_ROWS", 100)
    search_little(patch)


def audit(audited, folder, seed=0, report=None, **settings):
    more = {} if report is None else {"report": report}
    own = dataclasses.replace(TINY, **settings)
    return ModelAudit(audited, Store(folder), own, seed=seed, **more).run()


def raised(outcome):
    """The names of an audit's flags."""
    return {flag.name for flag in outcome.record.flags}


def lasting(record):
    """What must be the same in every run of an audit: no times."""
    record = record if isinstance(record, dict) else record.to_json()
    timed = {"seconds", "defender_training_seconds", "environment", "provenance"}
    kept = {key: value for key, value in record.items() if key not in timed}
    kept["plan"] = {key: value for key, value in record["plan"].items() if key != "seconds"}
    kept["utility"] = {key: value for key, value in record["utility"].items() if key != "cost"}
    return kept
