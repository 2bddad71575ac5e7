"""Bad input is refused by name, with what was expected and the remedy, and without its values."""

import copy
import math
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from laws import looped
from oneway.checks import (
    FLOATING,
    LooksLikeProbabilities,
    check_above,
    check_confidences,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_same_shape,
    check_switch,
    check_weight,
    refuse_probabilities,
    sorted_scores,
)
from oneway.defenses.adversarial_noise import AdversarialNoise, noise_vector
from oneway.defenses.identity import Identity
from oneway.defenses.label_modifier import keep_label
from oneway.defenses.label_only import LabelOnly
from oneway.errors import InvalidOptionError, InvalidTensorError, OnewayError
from oneway.releases import logits_from_confidences, release
from oneway.targets import RecordedTarget
from surrogates import random_images, small_inverter

SECRET = 7777.125
"""Stands for a client's number: no message may show it."""

LABELS = torch.zeros(2, dtype=torch.int64)
IMAGES = random_images(1, 2)

TAKE_LOGITS = {
    "keep_label": lambda logits: keep_label(logits, LABELS),
    "noise_vector": lambda logits: noise_vector(logits, logits, logits, step_size=0.1),
    "release": release,
    "logits_from_confidences": logits_from_confidences,
    "Identity": Identity(),
    "LabelOnly": LabelOnly(),
    "AdversarialNoise": lambda logits: AdversarialNoise(small_inverter(), step_size=0.1)(
        logits, IMAGES
    ),
    "RecordedTarget": lambda logits: RecordedTarget(IMAGES, logits),
}

BAD_LOGITS = {
    "NaN": (
        torch.tensor([[SECRET, 0.0], [math.nan, SECRET]]),
        "finite.* 1 of 2 rows .*row 1 first",
    ),
    "infinity": (torch.tensor([[math.inf, SECRET], [0, -math.inf]]), "2 of 2 rows .*row 0 first"),
    "integers": (torch.full((2, 3), 7777), r"floating .*got int64 of shape \(2, 3\)"),
    "bools": (torch.ones(2, 3).bool(), r"floating .*got bool of shape \(2, 3\)"),
    "one class": (torch.full((2, 1), SECRET), r"K >= 2 classes, but got \(2, 1\)"),
    "NumPy": (np.full((2, 3), SECRET), r"torch\.Tensor, but got ndarray"),
    "a list": ([[SECRET, 0.0]], r"torch\.Tensor, but got list"),
}


def refusal(call, *arguments, error=InvalidTensorError, **options) -> str:
    with pytest.raises(OnewayError) as caught:
        call(*arguments, **options)
    assert type(caught.value) is error
    return str(caught.value)


@looped("take", TAKE_LOGITS.values(), ids=list(TAKE_LOGITS))
@looped(("logits", "message"), BAD_LOGITS.values(), ids=list(BAD_LOGITS))
def test_whoever_takes_scores_refuses_bad_ones_without_showing_them(take, logits, message):
    text = refusal(take, logits)
    assert re.search(message, text)
    assert "7777" not in text


@looped("dtype", FLOATING)
@looped("shape", [(2,), (3, 2), (0, 2), (2, 3, 4)])
def test_finite_floating_scores_of_two_classes_or_more_pass(dtype, shape):
    check_logits(torch.zeros(shape, dtype=dtype))


def test_a_vector_with_a_nan_is_one_row():
    assert "1 of 1 rows" in refusal(check_logits, torch.tensor([0.0, math.nan]))


def test_a_scalar_is_refused():
    assert "but got ()" in refusal(check_logits, torch.tensor(1.0))


@looped(
    "labels",
    [
        torch.zeros(2, 1, dtype=torch.int64),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(2),
        [0, 0],
        np.zeros(2, dtype=np.int64),
    ],
    ids=["a column", "too many", "int32", "floating", "a list", "NumPy"],
)
def test_labels_of_another_type_or_shape_are_refused_with_the_remedy(labels):
    text = refusal(check_labels, labels, torch.zeros(2, 5))
    assert "labels must be int64 of shape (2,), one per row of logits (2, 5)" in text
    assert "Pass `logits.argmax(-1)`" in text


@looped("outside", [-1, 5, 7777])
def test_labels_out_of_range_are_counted_and_not_shown(outside):
    text = refusal(check_labels, torch.tensor([0, outside, 4]), torch.zeros(3, 5))
    assert "labels must lie in [0, 5)" in text
    assert "1 of 3 do not" in text
    assert "7777" not in text


def test_labels_at_both_ends_of_the_range_pass():
    check_labels(torch.tensor([0, 4]), torch.zeros(2, 5))
    check_labels(torch.tensor(4), torch.zeros(5))


def test_a_tensor_of_another_shape_than_the_logits_is_refused():
    text = refusal(check_same_shape, torch.zeros(2, 4), "gradients", torch.zeros(2, 5))
    assert text.startswith("gradients must have the shape of the clean logits, (2, 5), but got (2")


@looped("row", [[0.5, 0.46], [0.5, 0.54], [1.0, 0.0], [0.25, 0.75]])
def test_confidences_that_sum_to_1_within_0_05_pass(row):
    check_confidences(torch.tensor([row]))


@looped("row", [[0.5, 0.44], [0.5, 0.56], [1.02, -0.02], [SECRET, 1 - SECRET]])
def test_other_confidences_are_refused_and_not_shown(row):
    text = refusal(check_confidences, torch.tensor([[0.5, 0.5], row]))
    assert "1 of 2 rows are not, row 1 first" in text
    assert "7777" not in text


@looped("shape", [(2, 3), (2, 1, 4, 4)])
def test_images_and_records_pass(shape):
    check_images(torch.zeros(shape), rows=2)


@looped(
    ("images", "expected"),
    [
        (torch.full((2, 1, 4, 4), 77).byte(), "Pass `images / 255`"),
        (torch.full((4,), SECRET), "Pass `images.unsqueeze(0)`"),
        (torch.full((3, 1, 4, 4), SECRET), "one per row of scores, 2, but got 3"),
        (torch.full((2, 1, 4, 4), math.nan), "2 of 2 rows"),
        (np.full((2, 1, 4, 4), SECRET), "Pass it through `torch.as_tensor`"),
    ],
    ids=["bytes", "a vector", "another count", "not finite", "NumPy"],
)
def test_bad_images_are_refused_with_the_remedy_and_not_shown(images, expected):
    text = refusal(check_images, images, rows=2)
    assert expected in text
    assert "77" not in text


@looped("value", [0, -1, 0.0])
def test_a_number_that_is_not_positive_is_refused(value):
    text = refusal(check_above, "budget", value, 0, error=InvalidOptionError)
    assert text == f"budget must be positive, but got {value}"


@looped("value", [math.nan, math.inf, "1", None, True, 1j])
def test_what_is_no_finite_number_is_refused(value):
    text = refusal(check_above, "budget", value, 0, error=InvalidOptionError)
    assert text == f"budget must be a finite number, but got {value!r}."


def test_another_bound_is_named():
    text = refusal(check_above, "gain", 0.5, 1, error=InvalidOptionError)
    assert text == "gain must be above 1, but got 0.5"


@looped("value", [0, -3, 1.0, "3", True, None])
def test_what_is_no_count_is_refused(value):
    text = refusal(check_count, "steps", value, error=InvalidOptionError)
    assert text == f"steps must be a whole number of at least 1, but got {value!r}."


def test_numbers_above_and_counts_of_at_least_the_bound_pass():
    check_above("budget", 1e-300, 0)
    check_count("steps", 1)
    check_count("classes", 2, least=2)


@looped("value", [-0.1, math.inf, math.nan, True, "1", None])
def test_a_weight_is_finite_and_not_negative(value):
    with pytest.raises(InvalidOptionError, match="beta must be finite and at least 0"):
        check_weight("beta", value)
    check_weight("beta", 0)
    check_weight("beta", 2.5)


@looped("value", ["no", 0, 1, None])
def test_a_switch_is_true_or_false_and_no_text_that_counts_as_true(value):
    with pytest.raises(InvalidOptionError, match="keep_label must be true or false"):
        check_switch("keep_label", value)
    check_switch("keep_label", True)
    check_switch("keep_label", False)


def probabilities(rows: int, classes: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    drawn = torch.randn(rows, classes, generator=torch.Generator().manual_seed(rows))
    return (3 * drawn).double().softmax(-1).to(dtype)


@pytest.mark.parametrize("dtype", FLOATING)
def test_probabilities_that_are_declared_logits_are_refused_once_eight_rows_have_come(dtype):
    for classes in (2, 3, 1000):
        for scores in (
            probabilities(9, classes, dtype),
            torch.eye(classes, dtype=dtype).repeat(9, 1)[:9],
        ):
            watch = LooksLikeProbabilities("the scores of X", "Say so.")
            for at in range(7):
                watch.check(scores[at : at + 1])
            pickled = pickle.loads(pickle.dumps(watch))  # noqa: S301  our own bytes
            for kept in (watch, pickled, copy.deepcopy(watch)):
                for _ in range(2):
                    with pytest.raises(
                        InvalidTensorError, match=r"X are .* all of 8 rows .*1\. Say so\. If they"
                    ):
                        kept.check(scores[7:8])
            with pytest.raises(InvalidTensorError, match="all of 9 rows"):
                LooksLikeProbabilities("s").check(scores)
            with pytest.raises(InvalidTensorError, match="all of 2 rows"):
                refuse_probabilities(scores[:2], "s", "")
            refuse_probabilities(scores[:1], "s", "")


def test_probabilities_with_few_decimals_are_refused():
    with pytest.raises(InvalidTensorError, match="look like confidences"):
        LooksLikeProbabilities("s").check((100 * probabilities(50, 5)).round() / 100)


def test_percentages_that_are_declared_logits_are_refused():
    percent = 100 * probabilities(9, 5)
    for scores in (percent, percent.round(), percent.half()):
        with pytest.raises(InvalidTensorError, match=r"sum to 100\. Divide them by 100\. Say so"):
            LooksLikeProbabilities("s", "Say so.").check(scores)
        with pytest.raises(InvalidTensorError, match="sum to 100"):
            refuse_probabilities(scores, "s", "")


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_logits_of_a_random_network_are_never_refused(classes):
    """Neither of one whose answers hardly differ, as before any training."""
    with torch.random.fork_rng():
        for seed in range(40):
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes))
            for scale in (0.01, 1.0, 100.0):
                logits = network(scale * torch.randn(64, 6)).detach()
                LooksLikeProbabilities("the logits").check(logits)
                LooksLikeProbabilities("the logits").check(logits.softmax(-1) + 1)
                LooksLikeProbabilities("the logits").check(logits.log_softmax(-1))
                refuse_probabilities(logits, "the logits", "")


def test_one_row_that_is_no_probability_vector_settles_the_question():
    watch = LooksLikeProbabilities("s")
    watch.check(torch.tensor([[0.5, 0.6]]))
    watch.check(probabilities(100))
    mixed = probabilities(100)
    mixed[50, 0] -= 2
    LooksLikeProbabilities("s").check(mixed)


def test_many_threads_may_watch_at_once():
    scores = probabilities(64)
    watch = LooksLikeProbabilities("s")

    def refused(row):
        try:
            watch.check(scores[row : row + 1])
        except InvalidTensorError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(refused, range(64))) >= 64 - 7


def test_scores_that_descend_in_every_row_are_seen():
    descending = probabilities(8, 4).sort(-1, descending=True).values
    assert sorted_scores(descending)
    assert sorted_scores(descending.log())
    for scores in (
        descending[:7],
        descending[:, :2],
        descending.flip(-1),
        probabilities(8, 4),
        torch.full((8, 4), 0.25),
        torch.cat([descending, descending[:1].flip(-1)]),
    ):
        assert not sorted_scores(scores)
