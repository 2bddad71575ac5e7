"""Planted leaks: their worth against the known optimum, and the smallest that attackers find."""

import dataclasses
import math

import pytest
import torch

from laws import looped
from oneway.attacks import kernel_ridge
from oneway.evaluation import Store, detection
from oneway.evaluation.attackers import prepare_attackers
from oneway.evaluation.convergence import OutOfTimeError, never_late
from oneway.evaluation.detection import KINDS, LEVELS, Planter, detection_limit
from oneway.evaluation.settings import AttackerSpec
from oneway.inversion import TrainingSettings

CLASSES, SIDE = 3, 4
PIXELS = SIDE * SIDE
SPREADS = ((0.12, 0.05, 0.03), (0.08, 0.08, 0.03), (0.15, 0.04, 0.02))
"""Standard deviations of the first pixels, by label; the other pixels are the label's alone."""


def drawn(rows, seed):
    """Images whose pixels are independent and Gaussian given the label: the optimum is known."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    images = (0.3 + 0.2 * labels.double()).unsqueeze(-1).repeat(1, PIXELS)
    spreads = torch.tensor(SPREADS, dtype=torch.float64)[labels]
    images[:, :3] += spreads * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return images.view(-1, 1, SIDE, SIDE).float(), labels


def planter_of(rows=3000, tests=3000, seed=0):
    (images, labels), (test, test_labels) = drawn(rows, 1), drawn(tests, 2)
    return Planter(images, labels, test, test_labels, CLASSES, seed), test, test_labels


def gain_of(conditional_mean, shown, test, labels):
    """Fall of the error per pixel of whoever answers with the known conditional mean."""
    truth = test.flatten(1).double()
    means = torch.full_like(truth, 0.3) + 0.2 * labels.double().unsqueeze(-1)
    answer = means.clone()
    answer[:, :3] += conditional_mean(shown, labels)
    return float(((means - truth).square() - (answer - truth).square()).mean())


@looped("flipped", [0.0, 0.1, 0.25])
def test_a_bit_is_worth_what_the_known_conditional_mean_gains_by_it(flipped):
    planter, test, labels = planter_of()
    spreads = torch.tensor(SPREADS, dtype=torch.float64)[labels]
    # The bit tells the side of the first pixel, or of another where directions are close.
    first = (test.flatten(1)[:, 0].double() - 0.3 - 0.2 * labels) > 0
    chance = torch.rand(len(test), generator=torch.Generator().manual_seed(3))
    bits = first ^ (chance < flipped)

    def conditional_mean(shown, labels):
        answer = torch.zeros(len(labels), 3, dtype=torch.float64)
        half_normal = math.sqrt(2 / math.pi) * spreads[:, 0]
        answer[:, 0] = (1 - 2 * flipped) * half_normal * torch.where(shown, 1.0, -1.0)
        return answer

    gain = gain_of(conditional_mean, bits, test, labels)
    assert planter.worth_of_bits(flipped) == pytest.approx(gain, rel=0.15)


@looped("noise", [0.05, 0.2, 0.5])
def test_projections_are_worth_what_the_known_conditional_mean_gains_by_them(noise):
    planter, test, labels = planter_of()
    spreads = torch.tensor(SPREADS, dtype=torch.float64)[labels]
    places = planter.test_projected.shape[1]
    assert places == CLASSES - 1
    pixels = test.flatten(1)[:, :places].double() - 0.3 - 0.2 * labels.unsqueeze(-1)
    normal = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(4)).double()

    def conditional_mean(shown, labels):  # noqa: ARG001
        variances = spreads[:, :places].square()
        answer = torch.zeros(len(shown), 3, dtype=torch.float64)
        answer[:, :places] = variances / (variances + noise**2) * shown
        return answer

    gain = gain_of(conditional_mean, pixels + noise * normal, test, labels)
    assert planter.worth_of_noise(noise**2) == pytest.approx(gain, rel=0.15)


@looped("kind", KINDS)
def test_a_leak_keeps_labels_and_each_row_s_answer_and_grows_with_its_worth(kind):
    planter, _, labels = planter_of(300, 60)
    worth = 0.02 * planter.worth_of_bits(0.0)
    leak, again, larger = (KINDS[kind](planter, each) for each in (worth, worth, 20 * worth))
    assert torch.equal(leak.auxiliary, again.auxiliary)
    assert torch.equal(leak.test.argmax(-1), labels)
    assert torch.equal(leak.auxiliary.argmax(-1), planter.labels)
    ordered = leak.test.sort(-1).values
    assert (ordered[:, -1] > ordered[:, -2]).all()
    assert not torch.equal(leak.test, larger.test)
    values = {tuple(row) for row in leak.test.tolist()}
    assert len(values) == (2 * CLASSES if kind == "cells" else 60)


@looped("kind", KINDS)
def test_a_leak_that_no_row_could_tell_is_not_planted(kind):
    planter, _, _ = planter_of(300, 60)
    assert KINDS[kind](planter, 1.0) is None


def attackers_of(folder, names, *, rows, seed=0):
    images, labels = drawn(rows, 5)
    spec = AttackerSpec(
        names=names,
        input_transforms=("standardized",),
        widths=(4,),
        training=TrainingSettings(epochs=2, batch_size=64),
    )
    return prepare_attackers(spec, images, Store(folder), seed, lambda *_: None), labels


def limit_of(folder, names, *, rows, tests=2000, gap=None, seed=0, is_late=never_late):
    attackers, labels = attackers_of(folder, names, rows=rows, seed=seed)
    trainer = dataclasses.replace(attackers.trainer, is_late=is_late)
    attackers = dataclasses.replace(attackers, trainer=trainer)
    test, test_labels = drawn(tests, 6)
    one_hot = torch.eye(CLASSES)
    gap = 0.004 * 3 / PIXELS if gap is None else gap
    names, clean, clean_test = attackers.spec.names, one_hot[labels], one_hot[test_labels]
    return detection_limit(attackers, clean, test, clean_test, gap, names)


STRONG = ("label-only", "cell-means", "kernel-ridge", "stack")


def test_strong_attackers_have_a_small_limit_and_weak_ones_a_large_one_or_none(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(kernel_ridge, "LENGTHS", (2.0,))
    strong = limit_of(tmp_path / "strong", STRONG, rows=500, tests=600)
    # Three rows of each label show no covariance, so that no leak of known worth can be planted.
    few = limit_of(tmp_path / "few", STRONG, rows=9, tests=600)
    # Vectors that differ on every row tell nothing to the means of cells.
    half_blind = limit_of(tmp_path / "blind", ("label-only", "cell-means"), rows=200, tests=300)
    assert strong is not None
    assert few is None
    assert half_blind is None


def test_without_a_gap_or_without_detectors_nothing_is_known(tmp_path):
    assert limit_of(tmp_path, STRONG, rows=30, gap=0.0) is None
    assert limit_of(tmp_path, ("label-only", "retrained"), rows=30) is None
    assert not list(tmp_path.rglob("*.safetensors"))


def test_without_time_there_is_no_limit_and_the_store_keeps_none(tmp_path):
    with pytest.raises(OutOfTimeError):
        limit_of(tmp_path, ("label-only", "cell-means"), rows=60, tests=60, is_late=lambda: True)
    assert not list(tmp_path.rglob("*.safetensors"))


def found_at(monkeypatch, *levels):
    """Let attackers find leaks of the given levels alone; return the list of what is asked."""
    asked = []

    def finds(_, names, leak, *others):  # noqa: ARG001
        asked.append(leak.worth)
        return any(leak.worth == pytest.approx(level * 0.01, rel=1e-3) for level in levels)

    monkeypatch.setattr(detection, "_finds", finds)
    monkeypatch.setattr(Planter, "worth_of_bits", lambda _, share: 0.01 * (0.5 - share))
    monkeypatch.setattr(Planter, "worth_of_noise", lambda _, variance: 0.01 / (1 + variance))
    return asked


@looped(
    ("found", "limit"),
    [
        (LEVELS, 0.01),
        ((0.02, 0.05, 0.1), 0.02),
        ((0.1,), 0.1),
        ((0.01, 0.02, 0.05), None),
        ((0.01, 0.1), 0.1),
        ((), None),
    ],
)
def test_the_limit_is_the_smallest_from_which_on_all_are_found(tmp_path, monkeypatch, found, limit):
    folder = tmp_path / str(found)
    asked = found_at(monkeypatch, *found)
    assert limit_of(folder, STRONG, rows=30, tests=20, gap=0.01) == limit
    assert asked == sorted(asked, reverse=True)  # nothing below the limit is tried
    before = len(asked)
    assert limit_of(folder, STRONG, rows=30, tests=20, gap=0.01) == limit
    assert len(asked) == before  # the store has it


def test_a_stored_limit_is_of_the_same_rows_gap_seed_and_attackers(tmp_path, monkeypatch):
    asked = found_at(monkeypatch, *LEVELS)
    usual = {"names": STRONG, "rows": 30, "tests": 20, "gap": 0.01, "seed": 0}
    others = ({}, {"rows": 33}, {"tests": 23}, {"gap": 0.0100001}, {"seed": 1})
    others += ({"names": ("label-only", "kernel-ridge")},)
    for number, change in enumerate(others, start=1):
        assert limit_of(tmp_path, **(usual | change)) == 0.01
        assert len(asked) == 2 * len(LEVELS) * number
