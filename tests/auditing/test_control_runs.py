"""The controls in full, on real digits with the decoders of a real audit."""

import dataclasses
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from attacks.spying import spied
from oneway.attacks import (
    ATTACKS,
    adversarial_training,
    averaging,
    bagged_perceptrons,
    cell_means,
    kernel_ridge,
    optimising,
)
from oneway.auditing import CONTROLS, AuditPlan, AuditTarget
from oneway.auditing import control_runs as controls_module
from oneway.auditing.audit_target import ask
from oneway.auditing.control_runs import COPIES, ControlRun
from oneway.auditing.plan import MOST_EPOCHS
from oneway.data import load_dataset, no_progress, split_dataset
from oneway.defenses.controls import Permutation
from oneway.defenses.identity import Identity
from oneway.evaluation import Store
from oneway.evaluation.convergence import never_late
from oneway.releases import logits_from_confidences
from oneway.targets import TorchTarget

AUXILIARY, TEST, EPOCHS = 800, 800, 20
"""Half as many epochs as an audit begins with on so few rows: the margins are wide."""

SPREAD = 3.0
"""Standard deviation of the scores, in nats: much of an image is in them beside its label."""


def linear_model(images):
    """Random projections of an image: a model that took no time to train."""
    network = nn.Linear(images[0].numel(), 10)
    with torch.no_grad():
        network.weight.normal_(generator=torch.Generator().manual_seed(0))
        network.bias.copy_(-network.weight @ images.flatten(1).mean(0))
        scale = SPREAD / network(images.flatten(1)).std()
        network.weight.mul_(scale)
        network.bias.mul_(scale)
    return TorchTarget(nn.Sequential(nn.Flatten(), network))


@pytest.fixture(scope="module")
def digits():
    """Digits of 8x8 pixels, and a model of them."""
    splits = split_dataset(
        load_dataset("digits", None), private=10, auxiliary=AUXILIARY, test=TEST, seed=0
    )
    auxiliary, test = avg_pool2d(splits.auxiliary_images, 4), avg_pool2d(splits.test_images, 4)
    return AuditTarget(linear_model(auxiliary), auxiliary, test)


def judged(audited, folder, names, repeats=(10,)):
    plan = AuditPlan(
        attacks=("label-only", "static", "retrained"),
        input_transforms=("standardized",),
        widths=(8,),
        repeats=repeats,
        most_epochs=MOST_EPOCHS,
        controls=names,
        seeds=1,
        auxiliary=AUXILIARY,
    )
    answers = ask(audited, Identity())
    return ControlRun(
        plan, audited, answers, audited.auxiliary, EPOCHS, Store(folder), 0, no_progress, never_late
    ).results()


QUICK = (
    "planted-levels",
    "planted-scores",
    "smoothed-scores",
    "bagged-scores",
    "averaged-scores",
    "searched-scores",
)
"""Controls of attackers who train no decoder here."""


@pytest.fixture
def few(digits, monkeypatch):
    """A few of the digits, and decoders that nobody waits for: they read the label alone."""
    monkeypatch.setattr(sys.modules[__name__], "EPOCHS", 1)
    monkeypatch.setattr(bagged_perceptrons, "EPOCHS", 40)
    return AuditTarget(digits.target, digits.auxiliary[:300], digits.test[:100])


def test_attackers_without_decoders_read_what_is_planted_and_broken_ones_do_not(
    few, tmp_path, monkeypatch
):
    found = judged(few, tmp_path, QUICK)
    for name in QUICK:
        assert found[name].measured > 0.7, found
        assert found[name].passed is True
        assert found[name].attack == CONTROLS[name].attack
        assert found[name].input_transform is None

    def shuffled(function, place):
        """The planted fault: an argument's rows are those of other queries."""

        def faulty(*arguments):
            rows = list(arguments)
            rows[place] = rows[place].roll(7, 0)
            return function(*rows)

        return faulty

    gradient = torch.autograd.grad
    faults = {
        "planted-levels": [(cell_means, "group_sums", shuffled(cell_means.group_sums, 0))],
        "planted-scores": [(kernel_ridge, "_fit", shuffled(kernel_ridge._fit, 2))],
        "smoothed-scores": [(kernel_ridge, "_fit", shuffled(kernel_ridge._fit, 2))],
        "bagged-scores": [
            (bagged_perceptrons, "_train", shuffled(bagged_perceptrons._train, 1)),
            (bagged_perceptrons, "EPOCHS", 1),
        ],
        "averaged-scores": [(averaging, "_mean_answers", shuffled(averaging._mean_answers, 1))],
        "searched-scores": [
            (torch.autograd, "grad", lambda *given: tuple(-each for each in gradient(*given))),
            (optimising, "STEP", optimising.STEP / 10),
            (optimising, "PULLS", (1000.0,)),
            (optimising, "_descend", shuffled(optimising._descend, 3)),
        ],
    }
    for name, planted in faults.items():
        for module, attribute, fault in planted:
            with monkeypatch.context() as patch:
                patch.setattr(module, attribute, fault)
                result = judged(few, tmp_path, (name,))[name]
            assert result.passed is False, (attribute, result)
    # Averaging that asks but once.
    single = judged(few, tmp_path, ("averaged-scores",), repeats=(1,))["averaged-scores"]
    assert single.passed is False, single


def test_who_simulates_a_release_sees_its_copies_alone(few, tmp_path, monkeypatch):
    name, seen = "copied-permutation", []
    attack = ATTACKS[CONTROLS[name].attack]
    monkeypatch.setitem(ATTACKS, attack.name, spied(attack, seen.append))
    judged(few, tmp_path, (name,))
    [knowledge] = seen
    assert torch.equal(knowledge.released, knowledge.clean)
    assert len(knowledge.simulated_defenses) == COPIES
    logits = logits_from_confidences(knowledge.clean)
    for copy in knowledge.simulated_defenses:
        assert torch.equal(copy(logits), Permutation()(logits))


@pytest.mark.slow
def test_real_decoders_judge_every_other_control_as_they_must(digits, tmp_path, monkeypatch):
    names = tuple(name for name in CONTROLS if name not in QUICK)
    found = judged(digits, tmp_path, names)
    assert tuple(found) == names
    broken = ("identity", "permutation", "temperature", "class-offsets")
    for name in (*broken, "copied-permutation"):
        assert found[name].measured < 0.2, found
    assert found["noisy-tail"].measured < 0.1, found
    assert found["planted-leak"].measured > 0.6, found
    assert found["label-only"].measured > 0.85, found
    for name, result in found.items():
        assert (result.name, result.passed) == (name, True), found
        assert result.attack == CONTROLS[name].attack
        assert result.input_transform == CONTROLS[name].input_transform

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
    # And simulated defenses that change nothing.
    monkeypatch.undo()
    monkeypatch.setattr(adversarial_training, "put_through", lambda _, scores, *__, **___: scores)
    blind = judged(digits, tmp_path, ("identity", "copied-permutation"))["copied-permutation"]
    assert blind.passed is False, blind
