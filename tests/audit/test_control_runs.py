"""The controls in full, on real digits with the decoders of a real audit."""

import dataclasses

import pytest
import torch

from oneway.audit import CONTROLS, AuditPlan, AuditTarget
from oneway.audit import control_runs as controls_module
from oneway.audit.audit_target import ask
from oneway.audit.control_runs import run_controls
from oneway.audit.plan import MOST_EPOCHS
from oneway.data import load_dataset, no_progress, split_dataset
from oneway.defenses.identity import Identity
from oneway.evaluation import Store
from oneway.targets import TargetNetwork, TargetTrainingSettings, TorchTarget, train_target

AUXILIARY, TEST, EPOCHS = 1500, 500, 12
"""Half as many epochs as an audit begins with on so few rows: the margins are wide."""


@pytest.fixture(scope="module")
def digits():
    """A classifier of digits, and what it is audited with."""
    splits = split_dataset(
        load_dataset("digits", None), private=1500, auxiliary=AUXILIARY, test=TEST, seed=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TargetNetwork(10, splits.private_images.shape[1:], width=8, blocks=3)
        train_target(
            network,
            splits.private_images,
            splits.private_labels,
            settings=TargetTrainingSettings(4, 0.01, batch_size=64),
            generator=torch.Generator().manual_seed(0),
        )
    return AuditTarget(
        TorchTarget(network), splits.auxiliary_images, splits.test_images, splits.test_labels
    )


def judged(audited, folder, names=tuple(CONTROLS), repeats=(10,)):
    plan = AuditPlan(
        attacks=("label-only", "static", "retrained"),
        input_transforms=("standardized",),
        widths=(8, 16),
        repeats=repeats,
        most_epochs=MOST_EPOCHS,
        controls=names,
        seeds=1,
        auxiliary=AUXILIARY,
    )
    found = ask(audited, Identity())
    return run_controls(
        plan, audited, found, audited.auxiliary, EPOCHS, Store(folder), 0, no_progress
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # 44 seconds alone, several times that beside other work
def test_real_decoders_judge_every_control_as_they_must(digits, tmp_path, monkeypatch):
    found = judged(digits, tmp_path)
    assert list(found) == list(CONTROLS)
    for name in ("identity", "permutation", "temperature", "class-offsets", "averaged-noise"):
        assert found[name].measured < 0.2, found
    assert found["noisy-tail"].measured < 0.1, found
    assert found["planted-leak"].measured > 0.6, found
    assert found["label-only"].measured > 0.85, found
    assert all(one.passed for one in found.values())

    # The planted faults. Decoders whose input transform loses what is told within a label.
    prepare = controls_module.prepare_attackers

    def without(spec, *others):
        return prepare(dataclasses.replace(spec, input_transforms=("standardized",)), *others)

    monkeypatch.setattr(controls_module, "prepare_attackers", without)
    blind = judged(digits, tmp_path, ("planted-leak",))["planted-leak"]
    assert blind.measured < 0.3, blind
    assert blind.passed is False
    # And one that looks at all entries of a row whose small ones are noise.
    drowned = judged(digits, tmp_path, ("noisy-tail",))["noisy-tail"]
    assert drowned.measured > 0.45, drowned
    assert drowned.passed is False
    # And averaging that asks but once.
    single = judged(digits, tmp_path, ("averaged-noise",), repeats=(1,))["averaged-noise"]
    assert single.passed is False, single
