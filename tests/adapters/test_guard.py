"""Laws of the plain guard: same kind back, label on top, and nothing clean where it fails."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.adapters.guard import Guard
from oneway.checks import FLOATING
from oneway.defenses import KeyedRandomness, SecretKey, build_defense
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.identity import Identity
from oneway.defenses.reverse_sigmoid import ReverseSigmoid
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import logits_from_confidences, release
from rows import leads, random_rows, same_bits, score_rows
from surrogates import random_images, small_inverter

CLASSES = 5


def noise():
    return build_defense("adversarial-noise", {"step_size": 0.4, "steps": 3}, small_inverter())


@given(score_rows(), st.sampled_from([None, 1, 3]))
def test_the_label_is_the_only_maximum_in_the_type_and_rounding_that_leaves(logits, decimals):
    labels = logits.argmax(-1)
    for defense in (Identity(), Rounding(decimals=2)):
        released = Guard(defense, "logits", decimals=decimals)(logits)
        assert released.dtype == logits.dtype
        assert leads(released, labels)


@looped("dtype", [np.float16, np.float32, np.float64])
@looped("outputs", ["logits", "confidences"])
def test_arrays_give_arrays_and_tensors_tensors_of_the_same_type_and_values(dtype, outputs):
    logits = random_rows(1, 30, CLASSES, torch.float64, 3)
    scores = (logits if outputs == "logits" else logits.softmax(-1)).numpy().astype(dtype)
    before = scores.copy()
    guard = Guard(Rounding(decimals=2), outputs)
    array, tensor = guard(scores), guard(torch.from_numpy(scores))
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    assert array.dtype == dtype
    assert same_bits(torch.from_numpy(array), tensor)
    np.testing.assert_array_equal(scores, before)
    # Whatever the array's memory looks like.
    swapped = scores.astype(scores.dtype.newbyteorder(">"))
    for one in (np.asfortranarray(scores), swapped, np.repeat(scores, 2, 1)[:, ::2]):
        one.flags.writeable = False
        np.testing.assert_array_equal(guard(one), array)


@looped("dtype", FLOATING, ids=str)
def test_what_comes_out_is_the_release_of_what_the_defense_makes(dtype):
    logits = random_rows(2, 30, CLASSES, dtype, 3)
    wide = logits if dtype == torch.float64 else logits.float()
    images, defense = random_images(3, 30), noise()
    released = Guard(defense, "logits", decimals=4)(logits, images)
    assert same_bits(released, release(defense(wide, images), dtype=dtype, decimals=4))
    confidences = logits.double().softmax(-1)
    third = Guard(defense, "confidences")(confidences, images)
    told = release(defense(logits_from_confidences(confidences), images), dtype=torch.float64)
    assert same_bits(third, told)


def pickled(guard):
    return pickle.loads(pickle.dumps(guard))  # noqa: S301  our own bytes


@looped("copied", [lambda guard: guard, copy.deepcopy, pickled])
def test_probabilities_that_are_declared_logits_are_refused_once_eight_rows_have_come(copied):
    confidences = random_rows(2, 30, CLASSES, torch.float32, 3).softmax(-1)
    guard = Guard(Identity(), "logits")
    guard(confidences[:7])
    guard = copied(guard)
    for _ in range(2):
        with pytest.raises(InvalidTensorError, match="Declare them as confidences"):
            guard(confidences[7:8])
    with pytest.raises(InvalidTensorError, match="Declare them as confidences"):
        Guard(Identity(), "logits")(confidences.numpy())
    guard = copied(Guard(Identity(), "logits"))
    guard(random_rows(2, 1, CLASSES, torch.float32, 3))
    guard(confidences)
    shifted = Guard(Identity(), "logits")(confidences + 1)
    assert same_bits(shifted, Guard(Identity(), "logits")(confidences + 1))


def test_threads_share_a_guard_that_watches_its_scores():
    logits = random_rows(2, 64, CLASSES, torch.float32, 3)
    guard = Guard(Rounding(decimals=2), "logits")
    expected = Guard(Rounding(decimals=2), "logits")(logits)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(guard, [logits] * 16):
            assert same_bits(answer, expected)


def test_logits_and_confidences_are_not_taken_for_each_other():
    confidences = random_rows(2, 4, CLASSES, torch.float64, 3).softmax(-1)
    as_said = Guard(Identity(), "confidences")(confidences)
    torch.testing.assert_close(as_said, confidences)
    assert (Guard(Identity(), "logits")(confidences) - confidences).abs().max() > 0.1
    with pytest.raises(InvalidTensorError, match="scores must be probabilities"):
        Guard(Identity(), "confidences")(confidences * 3)
    for wrong in (None, "probabilities", "logit"):
        with pytest.raises(InvalidOptionError, match="never guessed"):
            Guard(Identity(), wrong)


def test_a_server_may_call_in_inference_mode_and_rows_do_not_depend_on_others():
    logits, images = random_rows(2, 20, CLASSES, torch.float32, 3), random_images(3, 20)
    for defense in (noise(), autograd_noise()):
        guard = Guard(defense, "logits")
        plain = guard(logits, images)
        with torch.inference_mode():
            inside = guard(logits * 1, images * 1)
        torch.testing.assert_close(inside, plain, rtol=0, atol=1e-6)
        assert not inside.is_inference()
        batches = Guard(defense, "logits", batch_size=3)(logits, images)
        torch.testing.assert_close(batches, plain, rtol=0, atol=1e-4)


def autograd_noise():
    flat = torch.nn.Sequential(torch.nn.Linear(CLASSES, 64), torch.nn.Unflatten(1, (1, 8, 8)))
    return build_defense("adversarial-noise", {"step_size": 0.4, "steps": 2}, flat)


@looped(
    ("scores", "said"),
    [
        (torch.zeros(CLASSES), r"shape \(N, K\)"),
        (torch.zeros(2, 3, CLASSES), r"shape \(N, K\)"),
        (torch.zeros(2, 1), "K >= 2"),
        (torch.full((2, 3), torch.nan), "finite"),
        (torch.zeros(2, 3, device="meta"), "meta device"),
        (torch.zeros(2, 3).long(), "floating"),
        (np.zeros((2, 3), np.int64), "floating"),
        (np.zeros((2, 3), object), "floating"),
        ([[0.1, 0.9]], "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_batch_of_scores_is_refused(scores, said):
    with pytest.raises(InvalidTensorError, match=said):
        Guard(Identity(), "logits")(scores)


def test_queries_are_asked_for_if_and_only_if_the_defense_needs_them():
    logits, images = random_rows(2, 4, CLASSES, torch.float32, 3), random_images(3, 4)
    guard = Guard(noise(), "logits")
    assert guard.requires_input
    for wrong, said in ((None, "queries must be given"), (images[:2], "one per row")):
        with pytest.raises(InvalidTensorError, match=said):
            guard(logits, wrong)
    assert same_bits(guard(logits, images.numpy()), guard(logits, images))
    assert not Guard(Identity(), "logits").requires_input
    assert same_bits(Guard(Identity(), "logits")(logits, "anything"), release(logits))


def test_a_defense_that_draws_anew_is_refused_and_keyed_it_is_not():
    def made(generator):
        return GaussianNoise(keep_label=True, generator=generator)

    with pytest.raises(InvalidOptionError, match="KeyedRandomness"):
        Guard(made(torch.Generator()), "logits")
    guard = Guard(KeyedRandomness(made, SecretKey(b"0123456789abcdef")), "logits")
    logits = random_rows(2, 20, CLASSES, torch.float32, 3)
    together = guard(logits)
    alone = torch.cat([guard(row[None]) for row in logits])
    assert same_bits(together, alone)


@looped(
    ("arguments", "said"),
    [
        ({"defense": "rounding"}, "must be a defense, but got str"),
        ({"defense": Identity}, "must be a defense, but got the class Identity"),
        ({"defense": ReverseSigmoid()}, "may change labels"),
        ({"decimals": 13}, "decimals"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_options_out_of_range_are_refused(arguments, said):
    with pytest.raises(InvalidOptionError, match=said):
        Guard(**{"defense": Identity(), "outputs": "logits", **arguments})


@looped("kind", [torch.zeros, np.zeros])
def test_no_rows_give_no_rows(kind):
    assert Guard(Identity(), "logits")(kind((0, 3))).shape == (0, 3)
