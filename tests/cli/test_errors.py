"""Wrong usage: exit code 2, one line that a person can act on, and nothing written."""

import numpy as np
import pytest

from laws import looped
from oneway.defenses import TEST_SIGNALS


def refused(result, *parts: str) -> None:
    """Assert that a command said no, in one line on standard error that holds ``parts``."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr, result.stderr


@pytest.fixture
def out(tmp_path):
    """Where a command would write; it must not."""
    path = tmp_path / "released.npy"
    yield path
    assert not path.exists()
    assert not list(path.parent.glob(".partial-*"))


def test_a_missing_file_is_named_with_what_lies_beside_it(oneway, work, out):
    result = oneway("defend", work / "tset.npz", "--defense", "label-only", "--out", out)
    refused(result, "tset.npz", "test.npz")


STEP = ("--option", "step_size=0.1")


def test_a_missing_inverter_says_how_to_get_one(oneway, work, out):
    refused(oneway("defend", work / "test.npz", *STEP, "--out", out), "oneway train inverter")
    result = oneway("defend", work / "test.npz", "--inverter", work / "none", *STEP, "--out", out)
    refused(result, "none", "oneway train inverter")


@looped(
    ("arguments", "hint"),
    [
        (("--defense", "adverserial-noise"), "Did you mean 'adversarial-noise'?"),
        (("--option", "norm=3"), "norm must be"),
        (("--option", "update=projekt"), "Did you mean 'project'?"),
        (("--option", "step_size=-1"), "step_size must be positive"),
        (("--option", "budget=0"), "budget must be positive"),
        (("--option", "update=rescale"), "budget is None"),
        (("--option", "step_sise=1"), "Did you mean 'step_size'?"),
        (("--option", "step_size"), "--option must be NAME=VALUE"),
        (("--defense", "mutual-information"), "needs a fitted state"),
        (("--defense", "codebook"), "by --guard FILE"),
        *[(("--defense", name), f"{name} is a test signal") for name in TEST_SIGNALS],
        (("--decimals", 99), "decimals must be a whole number from 0 to 12"),
        (("--device", "tpu9"), "Use 'cpu'"),
    ],
)
def test_a_wrong_option_is_refused_with_the_remedy(oneway, work, out, arguments, hint):
    options = ("--inverter", work / "s.safetensors", "--out", out, *STEP)
    refused(oneway("defend", work / "test.npz", *options, *arguments), hint)


def test_a_defense_without_an_option_that_it_needs_is_refused(oneway, work, out):
    result = oneway("defend", work / "test.npz", "--inverter", work / "s.safetensors", "--out", out)
    refused(result, "needs the option 'step_size'")


def test_a_network_of_another_kind_is_refused(oneway, work, out):
    result = oneway(
        "defend", work / "test.npz", "--inverter", work / "target.safetensors", *STEP, "--out", out
    )
    refused(result, "holds a network of kind 'target', not 'inverter'")


def test_a_file_that_is_no_network_is_refused(oneway, work, out):
    result = oneway(
        "defend", work / "test.npz", "--inverter", work / "test.npz", *STEP, "--out", out
    )
    refused(result, "is not a network that oneway wrote")


def test_scores_must_say_what_they_are(oneway, work, out, tmp_path):
    np.save(tmp_path / "scores.npy", np.load(work / "test.npz")["logits"])
    options = ("--defense", "label-only", "--out", out)
    refused(oneway("defend", tmp_path / "scores.npy", *options), "--outputs logits")
    result = oneway("defend", tmp_path / "scores.npy", "--outputs", "confidences", *options)
    refused(result, "confidences must be probabilities")


@looped(
    ("scores", "hint"),
    [
        (np.zeros((4, 10), np.int64), "must be float16, float32 or float64"),
        (np.zeros((0, 10)), "must have at least one row, but have none"),
        (np.zeros((4, 1), np.float32), "K >= 2"),
        (np.zeros(10, np.float32), "shape (N, K)"),
        (np.full((4, 10), np.nan, np.float32), "must be finite"),
    ],
)
def test_scores_that_cannot_be_defended_are_refused(oneway, out, tmp_path, scores, hint):
    np.savez(tmp_path / "scores.npz", logits=scores)
    options = ("--defense", "label-only", "--out", out)
    refused(oneway("defend", tmp_path / "scores.npz", *options), hint)


def test_images_must_be_one_per_row_and_of_the_inverters_shape(oneway, work, out, tmp_path):
    arrays = np.load(work / "test.npz")
    options = ("--inverter", work / "s.safetensors", "--out", out, *STEP)
    np.savez(tmp_path / "few.npz", images=arrays["images"][:3], logits=arrays["logits"])
    refused(oneway("defend", tmp_path / "few.npz", *options), "there are 3 queries and 40 rows")
    small = arrays["images"][:, :, :28, :28]
    np.savez(tmp_path / "small.npz", images=small, logits=arrays["logits"])
    refused(oneway("defend", tmp_path / "small.npz", *options), "images of shape", "28")
    np.savez(tmp_path / "none.npz", logits=arrays["logits"])
    refused(oneway("defend", tmp_path / "none.npz", *options), "Pass --queries DATA")
    wild = arrays["images"].astype(np.float32)
    np.savez(tmp_path / "wild.npz", images=wild, logits=arrays["logits"])
    refused(oneway("defend", tmp_path / "wild.npz", *options), "must lie in [0, 1]")


def test_a_message_holds_no_value_of_a_query(oneway, work, out, tmp_path):
    logits = np.load(work / "test.npz")["logits"].copy()
    logits[7, 3] = np.inf
    logits[7, 4] = 123.4567
    np.savez(tmp_path / "scores.npz", logits=logits)
    result = oneway("defend", tmp_path / "scores.npz", "--defense", "label-only", "--out", out)
    refused(result, "row 7 first")
    assert "123.4" not in result.output


def test_an_unknown_data_set_or_preset_is_refused_before_any_training(oneway, tmp_path):
    options = ("--out", tmp_path / "work")
    for wrong, known in (("--data", "digits"), ("--preset", "paper-mnist")):
        result = oneway("train", "target", *options, wrong, known[1:])
        assert (result.exit_code, f"'{known}'" in result.stderr) == (2, True)
    refused(oneway("demo", "--data", "minst"), "Did you mean 'mnist'?")
    assert not (tmp_path / "work").exists()


def test_mnist_without_its_files_says_where_they_come_from(oneway, tmp_path):
    result = oneway("demo", "--data", "mnist", "--data-root", tmp_path)
    refused(result, "holds neither mnist.npz nor train-images-idx3-ubyte", "https://")


def test_an_attack_graded_on_its_own_training_images_is_refused(oneway, work):
    result = oneway("attack", work / "auxiliary.npz", work / "auxiliary.npz")
    refused(result, "share 80 images")


def test_released_scores_must_come_for_both_sides(oneway, work):
    result = oneway(
        "attack", work / "auxiliary.npz", work / "test.npz",
        "--released-test", work / "released-test.npy",
    )  # fmt: skip
    refused(result, "go together")


def test_an_unknown_command_exits_2(oneway):
    result = oneway("defned")
    assert result.exit_code == 2
    assert "defend" in result.stderr
