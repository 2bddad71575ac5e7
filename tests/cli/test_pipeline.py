"""Train, defend and attack as a user does, and check the files with NumPy alone."""

import json

import numpy as np
import pytest
import torch

from laws import looped
from oneway.defenses import build_defense
from oneway.releases import release


def stored(path):
    """Return the arrays of an .npz file, which is closed again."""
    with np.load(path) as arrays:
        return dict(arrays)


def strict_labels(released: np.ndarray) -> np.ndarray:
    """Return each row's arg max, after seeing that nothing ties it."""
    ordered = np.sort(released, axis=1)
    assert (ordered[:, -1] > ordered[:, -2]).all()
    return released.argmax(1)


def test_train_writes_splits_that_share_no_image(work):
    seen = []
    for name, count in (("private", 60), ("auxiliary", 80), ("test", 40)):
        arrays = stored(work / f"{name}.npz")
        assert arrays["images"].shape == (count, 1, 32, 32)
        assert arrays["images"].dtype == np.uint8
        assert arrays["logits"].shape == (count, 10)
        seen += [image.tobytes() for image in arrays["images"]]
    assert len(set(seen)) == 180


@looped("name", ["auxiliary", "test"])
def test_released_rows_are_probabilities_with_the_clean_label_strictly_on_top(work, name):
    clean, released = (
        stored(work / f"{name}.npz")["logits"],
        np.load(work / f"released-{name}.npy"),
    )
    assert released.dtype == np.float32
    assert released.shape == clean.shape
    np.testing.assert_allclose(released.sum(1, dtype=np.float64), 1, atol=1e-6)
    np.testing.assert_array_equal(strict_labels(released), clean.argmax(1))
    assert np.abs(released - np.exp(clean) / np.exp(clean).sum(1, keepdims=True)).max() > 1e-3


def test_released_rows_do_not_depend_on_who_else_is_in_the_file(oneway, work, tmp_path):
    arrays = stored(work / "test.npz")
    some = tmp_path / "some.npz"
    np.savez(some, images=arrays["images"][5:9], logits=arrays["logits"][5:9])
    out = tmp_path / "released.npy"
    options = ("--inverter", work / "s.safetensors", "--option", "step_size=0.4", "--out", out)
    assert oneway("defend", some, *options).exit_code == 0
    np.testing.assert_allclose(np.load(out), np.load(work / "released-test.npy")[5:9], atol=1e-5)


def test_confidences_alone_are_enough_for_a_third_party(oneway, work, tmp_path):
    arrays = stored(work / "test.npz")
    logits = arrays["logits"].astype(np.float64)
    confidences = np.exp(logits - logits.max(1, keepdims=True))
    confidences /= confidences.sum(1, keepdims=True)
    np.save(tmp_path / "scores.npy", confidences)
    np.save(tmp_path / "images.npy", arrays["images"])
    result = oneway(
        "defend", tmp_path / "scores.npy", "--outputs", "confidences", "--queries",
        tmp_path / "images.npy", "--inverter", work / "s.safetensors", "--option", "step_size=0.4",
        "--out", tmp_path / "released.npz",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    released = stored(tmp_path / "released.npz")["confidences"]
    np.testing.assert_allclose(released, np.load(work / "released-test.npy"), atol=1e-4)


@looped(("dtype", "decimals"), [("float16", 2), ("float64", 1), ("float32", 0)])
def test_rounded_releases_keep_the_label_strictly_and_sum_to_one(
    oneway, work, tmp_path, dtype, decimals
):
    out = tmp_path / "released.npy"
    options = ("--inverter", work / "s.safetensors", "--dtype", dtype, "--decimals", decimals)
    options += ("--option", "step_size=0.1")
    assert oneway("defend", work / "test.npz", *options, "--out", out).exit_code == 0
    released = np.load(out)
    assert released.dtype == dtype
    steps = released.astype(np.float64) * 10**decimals
    assert np.abs(steps - steps.round()).max() <= 10**decimals * np.finfo(dtype).eps
    np.testing.assert_allclose(released.astype(np.float64).sum(1), 1, atol=np.finfo(dtype).eps * 10)
    expected = stored(work / "test.npz")["logits"].argmax(1)
    np.testing.assert_array_equal(strict_labels(released), expected)


def test_a_budget_bounds_what_is_released(oneway, work, tmp_path):
    out = tmp_path / "released.npy"
    options = (
        "--inverter",
        work / "s.safetensors",
        "--option",
        "step_size=0.4",
        "--dtype",
        "float64",
    )
    budget = ("--option", "budget=0.5", "--option", "norm=inf")
    assert oneway("defend", work / "test.npz", *options, *budget, "--out", out).exit_code == 0
    clean = stored(work / "test.npz")["logits"].astype(np.float64)
    # Softmax forgets a constant per row; half the range of what is left is the least it can be.
    noise = np.log(np.load(out)) - clean
    assert (np.ptp(noise, axis=1) / 2).max() <= 0.5 * (1 + 1e-5)
    assert (np.ptp(noise, axis=1) / 2).max() > 0.3


def test_label_only_needs_no_inverter_and_tells_the_label_alone(oneway, work, tmp_path):
    out = tmp_path / "released.npy"
    result = oneway("defend", work / "test.npz", "--defense", "label-only", "--out", out)
    assert result.exit_code == 0, result.output
    released, labels = np.load(out), stored(work / "test.npz")["logits"].argmax(1)
    np.testing.assert_array_equal(strict_labels(released), labels)
    assert len(np.unique(released, axis=0)) == len(np.unique(labels))


@looped(
    ("defense", "options"),
    [
        ("top-k", {"count": 2}),
        ("rounding", {"decimals": 1}),
        ("temperature", {"temperature": 3.0}),
        ("reverse-sigmoid", {"beta": 0.5, "gamma": 0.2, "keep_label": "true"}),
    ],
)
def test_every_untrained_defense_can_be_named_with_its_options(
    oneway, work, tmp_path, defense, options
):
    """And needs neither a surrogate nor the queries, if it reads none."""
    logits, out = stored(work / "test.npz")["logits"], tmp_path / "released.npy"
    np.savez(tmp_path / "scores.npz", logits=logits)
    pairs = [part for name, value in options.items() for part in ("--option", f"{name}={value}")]
    result = oneway("defend", tmp_path / "scores.npz", "--defense", defense, *pairs, "--out", out)
    assert result.exit_code == 0, result.output
    told = {name: value == "true" or value for name, value in options.items()}
    guard = build_defense(defense, told, None)
    expected = release(guard(torch.from_numpy(logits)))
    np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-6)
    assert "0 labels changed" in result.output


def test_a_defense_that_may_change_labels_says_how_many(oneway, work, tmp_path):
    out = tmp_path / "released.npy"
    noise = ("--defense", "gaussian-noise", "--option", "standard_deviation=20")
    result = oneway("defend", work / "test.npz", *noise, "--out", out)
    assert result.exit_code == 0, result.output
    changed = (np.load(out).argmax(1) != stored(work / "test.npz")["logits"].argmax(1)).sum()
    assert f"{changed} labels changed" in result.output
    assert changed > 0


@pytest.fixture(scope="module")
def attacked(oneway, work):
    return oneway(
        "attack", work / "auxiliary.npz", work / "test.npz",
        "--released-auxiliary", work / "released-auxiliary.npy",
        "--released-test", work / "released-test.npy",
        "--out", work / "record.jsonl", "--figure", work / "figure.png",
        "--cache", work / "cache", "--epochs", 1, "--most-epochs", 1,
    )  # fmt: skip


def test_attack_reports_each_attacker_and_writes_record_and_figure(work, attacked):
    assert attacked.exit_code == 0, attacked.output
    for name in ("label-only", "static", "retrained"):
        assert name in attacked.output
    record = json.loads((work / "record.jsonl").read_text())
    assert record["label_changes"] == 0
    assert record["adaptive_error"] == min(record["errors"].values())
    assert (work / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_required_gap_that_is_missed_exits_1(oneway, work, attacked):
    assert attacked.exit_code == 0
    arguments = ("attack", work / "auxiliary.npz", work / "test.npz", "--cache", work / "cache")
    arguments += ("--epochs", 1, "--most-epochs", 1, "--require-gap", 0.5)
    assert oneway(*arguments).exit_code == 1


def test_what_loading_left_out_or_converted_is_printed(oneway, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    for name in ("ash", "birch"):
        (tmp_path / "trees" / name).mkdir(parents=True)
        for row in range(6):
            pixels = np.random.default_rng(row).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            pixels[0, 0] = len(name)
            pillow.fromarray(pixels).save(tmp_path / "trees" / name / f"{row}.png")
    (tmp_path / "trees" / "notes.txt").write_text("no image")
    data = ("--data", "folder", "--data-root", tmp_path / "trees")
    sizes = ("--private", 4, "--auxiliary", 4, "--test", 4, "--epochs", 1)
    result = oneway("train", "target", "--out", tmp_path / "work", *data, *sizes)
    assert result.exit_code == 0, result.output
    for note in (
        "note: 1 of 13 files is left out: 1 of no known image type (.txt).",
        "note: 12 of 12 images are in color, and read in gray.",
    ):
        assert note in result.stderr.splitlines()
