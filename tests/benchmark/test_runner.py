"""Whole experiments on generated images: the controls in small, and nothing done twice."""

import dataclasses
import json
import types
from collections import Counter

import numpy as np
import pytest
import torch

from oneway.benchmark import (
    ATTACKS,
    DEFENSES,
    Experiment,
    ExperimentSpec,
    Store,
    attackers,
    count_stages,
    runner,
    write_records,
)
from oneway.benchmark.spec import (
    AttackerSpec,
    DataSpec,
    ReleaseSpec,
    SurrogateSpec,
    TargetSpec,
)
from oneway.data import Dataset, check_disjoint
from oneway.errors import InvalidOptionError
from oneway.inversion import TrainingSettings
from oneway.targets import TargetTrainingSettings

CLASSES = 3
NOISE = {"step_size": 0.5, "steps": 2, "budget": 4, "norm": float("inf")}
NONE = ReleaseSpec("none", "none")
AGAIN = ReleaseSpec("again", "none")
NOISY = ReleaseSpec("noise", "adversarial-noise", NOISE)
LABEL = ReleaseSpec("label", "label-only")
MOVED = ReleaseSpec("moved", "moved")

MEASURED = {"milliseconds_single_query", "milliseconds_per_query_batched", "environment"}
KEYS = MEASURED | {
    "experiment",
    "release",
    "defense",
    "options",
    "seed",
    "seeds",
    "auxiliary",
    "queries",
    "accuracy",
    "flips",
    "logit_distortion",
    "l1_mean",
    "l1_p99",
    "l1_max",
    "spec",
    "errors",
    "candidates",
    "floors",
    "adaptive_error",
    "strongest",
    "closed_gap",
    "closed_gap_tail",
    "flags",
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


class Moved:
    """Hides nothing: classes permuted, scaled and shifted. Anyone who retrains undoes it."""

    requires_input = False
    keeps_label = False
    deterministic = True

    def __call__(self, logits, images=None):  # noqa: ARG002
        return 0.5 * logits.roll(1, -1) + torch.arange(CLASSES, dtype=logits.dtype)


def spec_of(*releases, epochs=1, width=4, seed=0, images=(60, 60, 45), target_epochs=1):
    training = TrainingSettings(
        epochs=epochs, patience=5, batch_size=32, learning_rate=0.02, averaging=0.8
    )
    return ExperimentSpec(
        "small",
        DataSpec("blobs", *images),
        releases,
        seed=seed,
        target=TargetSpec(4, 2, TargetTrainingSettings(target_epochs, 0.01, batch_size=16)),
        surrogate=SurrogateSpec(width, hidden_layers_removed=1, training=training),
        attackers=AttackerSpec(front_ends=("standardized",), widths=(width,), training=training),
    )


SMALL = (NONE, NOISY, LABEL)


def experiment(folder, spec, report=attackers.silent, dataset=None):
    return Experiment(
        spec, dataset or blobs(), Store(folder), device=torch.device("cpu"), report=report
    )


def records_of(folder, spec, **options):
    return [outcome.record for outcome in experiment(folder, spec, **options).run()]


def lasting(record):
    """What must be the same in every run."""
    return {key: value for key, value in record.items() if key not in MEASURED}


@pytest.fixture
def trainings(monkeypatch):
    """Count what is trained to the end."""
    counts = Counter()

    def count(module, name):
        original = getattr(module, name)

        def counted(*args, **options):
            result = original(*args, **options)
            counts[name] += 1
            return result

        monkeypatch.setattr(module, name, counted)

    count(attackers, "train_inverter")
    count(runner, "train_target")
    return counts


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    """One experiment that is long enough to tell a release that leaks from one that does not."""
    stages = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFENSES, "moved", Moved)
        spec = spec_of(
            *(NONE, AGAIN, MOVED, NOISY, LABEL),
            epochs=20,
            width=8,
            images=(120, 200, 100),
            target_epochs=6,
        )
        folder = tmp_path_factory.mktemp("controls")
        done = experiment(folder, spec, report=stages.__setitem__)
        outcomes = done.run()
    records = {outcome.record["release"]: outcome.record for outcome in outcomes}
    return types.SimpleNamespace(
        spec=spec, done=done, outcomes=outcomes, stages=stages, records=records
    )


def test_clean_scores_tell_much_that_the_label_does_not(controls):
    """Else the controls below would hold for any defense."""
    floors = controls.records["none"]["floors"]
    assert floors["clean"] < 0.5 * floors["label"] < 0.5 * floors["prior"]


def test_control_no_defense_leaves_the_gap_open(controls):
    for name in ("none", "again"):
        assert controls.records[name]["closed_gap"] == 0
        assert controls.records[name]["closed_gap_tail"] == 0


def test_control_label_only_closes_the_gap_and_that_of_the_tail(controls):
    assert 0.9 <= controls.records["label"]["closed_gap"] <= 1.1
    assert 0.9 <= controls.records["label"]["closed_gap_tail"] <= 1.1


def test_a_surrogate_without_hidden_layers_is_refused_before_any_training(tmp_path):
    spec = spec_of(NONE, NOISY)
    surrogate = dataclasses.replace(spec.surrogate, hidden_layers_removed=2)
    with pytest.raises(InvalidOptionError, match=r"must be below 2.*16x16 images, but is 2"):
        experiment(tmp_path, dataclasses.replace(spec, surrogate=surrogate))
    # Where no defense takes a surrogate, none is refused.
    experiment(tmp_path, dataclasses.replace(spec_of(NONE), surrogate=surrogate))


def test_control_scores_that_were_only_moved_are_broken_by_retraining(controls):
    record = controls.records["moved"]
    assert record["closed_gap"] < 0.3  # of a release that hid everything it would be 1
    assert record["strongest"] == "retrained"
    # Who never saw the new scores is misled: so it is the retraining that breaks them.
    assert record["errors"]["static"] > record["floors"]["label"]


def test_only_the_defense_that_does_not_promise_to_keep_labels_changes_them(controls):
    flips = {name: record["flips"] for name, record in controls.records.items()}
    assert flips.pop("moved") > 0
    assert set(flips.values()) == {0}


def test_defenses_that_keep_labels_keep_the_accuracy(controls):
    accuracies = {name: record["accuracy"] for name, record in controls.records.items()}
    assert accuracies.pop("moved") < 0.9 < accuracies["none"]
    assert len(set(accuracies.values())) == 1


def test_only_what_changes_scores_distorts_them(controls):
    for name, record in controls.records.items():
        moved = [record[key] for key in ("logit_distortion", "l1_mean", "l1_p99", "l1_max")]
        assert all(value == 0 for value in moved) == (name in ("none", "again"))
    # A budget of 4 nats at the most distorted class of three.
    assert 0 < controls.records["noise"]["logit_distortion"] <= 4


def test_floors_are_those_of_the_undefended_release_for_every_release(controls):
    undefended = controls.records["none"]
    for record in controls.records.values():
        assert record["floors"] == undefended["floors"]
    assert undefended["floors"]["clean"] == min(undefended["errors"].values())
    assert undefended["floors"]["label"] == undefended["errors"]["label-only"]
    splits = controls.done.splits
    mean = splits.auxiliary_images.double().mean(0)
    prior = (splits.test_images.double() - mean).square().mean()
    assert undefended["floors"]["prior"] == pytest.approx(float(prior), rel=1e-5)


def test_every_stage_that_was_announced_is_reported_to_its_end(controls):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFENSES, "moved", Moved)
        assert len(controls.stages) == count_stages(controls.spec)
    assert set(controls.stages.values()) == {1.0}


def test_records_are_json_with_the_documented_keys(controls, tmp_path):
    records = list(controls.records.values())
    write_records(tmp_path / "records.jsonl", records)
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    for record, line, release in zip(records, lines, controls.spec.releases, strict=True):
        assert set(record) == KEYS
        read = json.loads(line)
        assert read["release"] == release.name
        assert set(read["errors"]) == set(read["candidates"]) == set(ATTACKS)
        assert (read["auxiliary"], read["queries"]) == (200, 100)
        assert read["spec"]["data"] == vars(controls.spec.data)
        assert (read["seed"], read["seeds"]) == (0, 1)
    assert json.loads(lines[3])["options"] == NOISE | {"norm": "inf"}  # JSON has no infinity


def test_the_gallery_shows_one_query_of_each_class_and_what_attackers_made_of_it(controls):
    rows = controls.done.gallery(controls.outcomes)
    first, *others = controls.records
    shown = [("no defense", first, "static")]
    shown += [
        (f"{name}\n{attack}", name, attack) for name in others for attack in ("static", "retrained")
    ]
    original, *attacked = rows
    assert original == "original"
    for label, (title, name, attack) in zip(attacked, shown, strict=True):
        assert label.startswith(title)
        assert label.endswith(f"{controls.records[name]['errors'][attack]:.4f}")
    for images in rows.values():
        assert images.shape == (CLASSES, 16, 16)
        assert images.min() >= 0
        assert images.max() <= 1
    splits = controls.done.splits
    chosen = [
        int((splits.test_images[:, 0] == torch.from_numpy(image)).flatten(1).all(-1).nonzero())
        for image in rows["original"]
    ]
    assert splits.test_labels[chosen].tolist() == list(range(CLASSES))
    moved = controls.outcomes[2]
    with torch.no_grad():
        expected = moved.results["retrained"].reconstruct(moved.released[chosen])[:, 0].numpy()
    [label] = [label for label in attacked if label.startswith("moved\nretrained")]
    np.testing.assert_array_equal(rows[label], expected)


def test_a_rerun_trains_nothing_and_gives_the_same_numbers(tmp_path, trainings):
    first = records_of(tmp_path, spec_of(*SMALL))
    assert trainings["train_target"] == 1
    assert trainings["train_inverter"] > 3
    trainings.clear()
    again = records_of(tmp_path, spec_of(*SMALL))
    assert trainings == Counter()
    assert list(map(lasting, again)) == list(map(lasting, first))


def test_a_fresh_run_with_the_same_seed_gives_the_same_numbers(tmp_path):
    torch.manual_seed(0)
    first = records_of(tmp_path / "one", spec_of(*SMALL))
    torch.manual_seed(1)  # what the caller did before must not matter
    again = records_of(tmp_path / "other", spec_of(*SMALL))
    assert list(map(lasting, again)) == list(map(lasting, first))


def test_another_seed_gives_other_splits_and_other_networks(tmp_path, trainings):
    first = records_of(tmp_path, spec_of(NONE))
    once = trainings.copy()
    other = records_of(tmp_path, spec_of(NONE, seed=1))
    assert {name: 2 * count for name, count in once.items()} == trainings
    assert first[0]["errors"] != other[0]["errors"]


def test_a_release_that_is_added_moves_no_other_and_trains_only_what_is_new(tmp_path, trainings):
    few = records_of(tmp_path, spec_of(NONE, NOISY))
    trainings.clear()
    more = records_of(tmp_path, spec_of(NONE, LABEL, AGAIN, NOISY))
    # The label's retrained attacker; its label-only one has the labels that none's has.
    assert trainings == Counter(train_inverter=1)
    for before, after in zip(few, (more[0], more[3]), strict=True):
        assert {**lasting(before), "spec": None} == {**lasting(after), "spec": None}


class PlannedError(Exception):
    """Raised from the report, as Ctrl-C would be."""


@pytest.mark.parametrize(
    ("stage", "share"),
    [
        ("train the target", 0.5),
        ("defend: noise", 0.0),
        ("noise: retrained, standardized 4", 0.5),
    ],
    ids=["while the target is trained", "between", "while an attacker is trained"],
)
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, trainings, stage, share):
    def interrupt(now, done):
        if (now, done) == (stage, share):
            raise PlannedError

    spec = spec_of(*SMALL, epochs=2, target_epochs=2)
    expected = records_of(tmp_path / "in one go", spec)
    needed = trainings.copy()
    trainings.clear()
    with pytest.raises(PlannedError):
        records_of(tmp_path / "interrupted", spec, report=interrupt)
    before = trainings.total()
    records = records_of(tmp_path / "interrupted", spec)
    assert trainings == needed
    assert (before > 0) == (stage != "train the target")
    assert list(map(lasting, records)) == list(map(lasting, expected))


def test_nobody_but_the_target_trains_on_private_images_and_nobody_on_test_images(
    tmp_path, monkeypatch
):
    seen = {"target": [], "inverter": [], "attack": []}

    def spy(module, name, role, place):
        original = getattr(module, name)

        def spied(*args, **options):
            seen[role].append(args[place])
            return original(*args, **options)

        monkeypatch.setattr(module, name, spied)

    spy(runner, "train_target", "target", 1)
    spy(attackers, "train_inverter", "inverter", 2)
    for name, attack in list(ATTACKS.items()):

        def spied(observations, train, attack=attack):
            seen["attack"].append(observations.images)
            return attack(observations, train)

        monkeypatch.setitem(ATTACKS, name, spied)
    run = experiment(tmp_path, spec_of(*SMALL))
    run.run()
    assert torch.equal(torch.cat(seen["target"]), run.splits.private_images)
    assert len(seen["attack"]) == len(SMALL) * len(ATTACKS)
    for images in seen["inverter"] + seen["attack"]:
        assert torch.equal(images, run.splits.auxiliary_images)
    check_disjoint(
        {
            "private": run.splits.private_images,
            "auxiliary": run.splits.auxiliary_images,
            "test": run.splits.test_images,
        }
    )


def test_attackers_see_what_was_released_and_what_it_was_before(tmp_path, monkeypatch):
    seen = []

    def spied(observations, train, attack=ATTACKS["retrained"]):
        seen.append(observations)
        return attack(observations, train)

    monkeypatch.setitem(ATTACKS, "retrained", spied)
    outcomes = experiment(tmp_path, spec_of(NONE, LABEL)).run()
    undefended, label = seen
    assert torch.equal(undefended.clean, undefended.released)
    assert torch.equal(label.clean, undefended.clean)
    assert torch.equal(label.released.argmax(-1), undefended.clean.argmax(-1))
    assert len(label.released.unique(dim=0)) <= CLASSES
    assert len(outcomes[0].released.unique(dim=0)) > CLASSES
    assert len(outcomes[1].released.unique(dim=0)) <= CLASSES


def test_times_are_per_query(tmp_path, monkeypatch):
    """With a clock that moves one second at each look, a batch takes one second."""
    ticks = iter(range(10**6))
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(runner, "time", clock)
    [record] = records_of(tmp_path, spec_of(NONE))
    assert record["milliseconds_single_query"] == 1000
    assert record["milliseconds_per_query_batched"] == pytest.approx(1000 / 45)
