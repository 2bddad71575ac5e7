"""Attacks on recorded scores: whatever model and defense they came from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from auditing.audits import search_little
from laws import looped
from oneway.defenses.label_only import LabelOnly
from oneway.evaluation import Recording, Store, attack_recorded, attackers, write_records
from oneway.evaluation.store import read_json_lines
from oneway.inversion import TrainingSettings

CLASSES, SHOWN = 3, 10
NAMES = ["label-only", "cell-means", "kernel-ridge", "smooth-kernel-ridge", "bagged-perceptrons"]
NAMES += ["static", "retrained", "stack"]
SETTINGS = TrainingSettings(epochs=10, batch_size=32, learning_rate=0.02, averaging=0.8)


def recording(rows, seed, channels=1, sharpness=1.0):
    """Stripes whose place is the class and whose brightness is in the scores alone."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    brightness = 0.1 + 0.9 * torch.rand(rows, generator=generator)
    images = 0.05 * torch.rand(rows, channels, 8, 8, generator=generator)
    for image, label, level in zip(images, labels.tolist(), brightness, strict=True):
        image[:, :, 2 * label : 2 * label + 3] += 0.9 * level
    logits = torch.eye(CLASSES)[labels] * (1 + 4 * brightness.unsqueeze(-1))
    logits += 0.01 * torch.randn(rows, CLASSES, generator=generator)
    clean = logits.softmax(-1)
    return Recording(images, logits, clean, (sharpness * logits).softmax(-1))


def attack(folder, auxiliary, test, settings=SETTINGS, **options):
    return attack_recorded(
        auxiliary,
        test,
        store=Store(folder),
        settings=settings,
        most_epochs=settings.epochs,
        seed=0,
        **options,
    )


@pytest.fixture(scope="module", autouse=True)
def _little_search():
    with pytest.MonkeyPatch.context() as patch:
        search_little(patch)
        yield


def only_labels(side):
    return replace(side, released=LabelOnly()(side.logits).softmax(-1))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all tests of this file, so that what they share is trained once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def sides():
    return recording(120, seed=0), recording(50, seed=1)


def test_scores_released_as_they_are_leave_the_gap_open(store, sides):
    record = attack(store, *sides)[0].record
    assert record.closed_gap == 0
    assert record.label_changes == 0
    assert record.errors["static"] == record.errors["retrained"] >= record.baselines.clean
    # The gap is there: without this the line above would say nothing.
    assert record.baselines.clean < 0.5 * record.baselines.label
    assert record.baselines.label < record.baselines.prior


def test_scores_that_were_only_sharpened_are_broken_by_retraining(store, sides):
    auxiliary, test = recording(120, seed=0, sharpness=0.5), recording(50, seed=1, sharpness=0.5)
    assert torch.equal(auxiliary.images, sides[0].images)
    record = attack(store, auxiliary, test)[0].record
    assert record.closed_gap < 0.3
    assert record.strongest not in ("label-only", "static")
    assert record.errors["static"] > record.errors["retrained"]


def test_labels_alone_close_the_gap(store, sides):
    record = attack(store, *map(only_labels, sides))[0].record
    # Attackers who mix means of few images may err a little less than either mean alone.
    assert 0.8 <= record.closed_gap <= 1.1
    assert record.label_changes == 0


def test_label_changes_are_counted_against_the_clean_logits(store, sides):
    auxiliary, test = sides
    released = test.released.clone()
    released[:7] = released[:7].roll(1, -1)
    record = attack(store, auxiliary, replace(test, released=released))[0].record
    assert record.label_changes == 7
    [flag] = [flag for flag in record.flags if flag.name == "labels-changed"]
    assert flag.detail == "7 labels changed or tied in what was released"


def test_the_record_says_what_was_done_and_is_json(store, sides, tmp_path):
    outcome, _ = attack(store, *sides)
    write_records(tmp_path / "record.jsonl", [outcome.record])
    [record] = read_json_lines(tmp_path / "record.jsonl")
    assert record == outcome.record.to_json()
    assert (record["experiment"], record["seed"]) == ("attack", 0)
    assert (record["auxiliary"], record["queries"]) == (120, 50)
    assert set(record["errors"]) == set(NAMES)
    assert record["provenance"]["model"] is None  # there are scores alone


def test_the_hash_of_the_data_is_of_images_and_clean_scores(store):
    auxiliary, test = recording(32, seed=0), recording(32, seed=1)
    changed = replace(test, clean=test.clean.roll(1, 0)), replace(test, images=test.images.roll(1))
    short = TrainingSettings(epochs=1, batch_size=32)
    hashes = [
        attack(store, auxiliary, side, short)[0].record.provenance.data
        for side in (test, test, *changed)
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@looped("channels", [1, 3])
def test_rows_of_images_are_returned_to_draw(store, channels):
    auxiliary = recording(120, 0, channels, sharpness=0.5)
    test = recording(50, 1, channels, sharpness=0.5)
    settings = TrainingSettings(epochs=1, batch_size=64) if channels == 3 else SETTINGS
    outcome, rows = attack(store, auxiliary, test, settings)
    assert list(rows) == ["original", "clean scores", *(f"released\n{name}" for name in NAMES)]
    shape = (SHOWN, 8, 8) if channels == 1 else (SHOWN, 8, 8, 3)
    assert all(images.shape == shape for images in rows.values())
    truth = test.images[:SHOWN].movedim(1, -1).reshape(shape).numpy()
    np.testing.assert_array_equal(rows["original"], truth)
    for name in NAMES:
        drawn = np.square(rows[f"released\n{name}"].astype(np.float64) - truth)
        errors = outcome.results[name].errors[:SHOWN]
        np.testing.assert_allclose(drawn.reshape(SHOWN, -1).mean(-1), errors, rtol=1e-5)
    if channels == 1:  # trained for long enough to tell them apart
        of_clean = np.square(rows["clean scores"] - truth).mean()
        assert of_clean < 0.5 * np.square(rows["released\nstatic"] - truth).mean()


def test_a_rerun_trains_nothing_and_gives_the_same_numbers(store, sides, monkeypatch):
    first, _ = attack(store, *sides)

    def train_inverter(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(attackers, "train_inverter", train_inverter)
    stages = {}
    again, _ = attack(store, *sides, report=stages.__setitem__)
    assert replace(again.record, provenance=first.record.provenance) == first.record
    assert set(stages.values()) == {1.0}
