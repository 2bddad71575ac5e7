"""A callable from arrays to arrays as a target: its answers as they are, and no other's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from endpoints import served_confidences, served_logits
from laws import looped
from oneway.contracts import ScoredTarget, Target
from oneway.errors import InvalidOptionError, InvalidTensorError, TargetFailedError
from oneway.releases import release
from oneway.targets import CallableTarget, ScoredCallableTarget
from oneway.targets.answers import to_float32
from rows import same_bits, score_rows
from surrogates import random_images

IMAGES = random_images(1, 7, (1, 4, 4))


def test_confidences_are_the_callable_s_in_float32():
    target = CallableTarget(served_confidences)
    assert isinstance(target, Target)
    assert not isinstance(target, ScoredTarget)
    wanted = torch.tensor(served_confidences(IMAGES.numpy())).float()
    assert same_bits(target(IMAGES), wanted)


def test_logits_are_the_callable_s_and_confidences_their_release():
    target = ScoredCallableTarget(served_logits)
    assert isinstance(target, ScoredTarget)
    wanted = torch.tensor(served_logits(IMAGES.numpy()))
    assert same_bits(target.logits(IMAGES), wanted)
    assert same_bits(target(IMAGES), release(wanted))


@looped(
    ("given", "promised"),
    [(np.float16, torch.float32), (np.float32, torch.float32), (np.float64, torch.float64)],
)
def test_logits_are_float32_or_float64(given, promised):
    target = ScoredCallableTarget(lambda queries: np.ones((len(queries), 3), given))
    assert target.logits(IMAGES).dtype == promised


@given(score_rows((torch.float64,)))
def test_the_cast_to_float32_keeps_the_label_and_touches_nothing_else(logits):
    confidences = release(logits, dtype=torch.float64)
    cast = to_float32(confidences)
    label = confidences.argmax(-1, keepdim=True)
    assert torch.equal(cast.argmax(-1, keepdim=True), label)
    plain = confidences.float()
    assert torch.equal(cast.scatter(-1, label, 0), plain.scatter(-1, label, 0))
    kept = plain.argmax(-1, keepdim=True) == label
    assert torch.equal(cast[kept.flatten()], plain[kept.flatten()])


def test_a_label_that_float32_would_lose_is_lifted_by_one_number():
    close = torch.tensor([[0.5 - 1e-12, 0.5 + 1e-12]], dtype=torch.float64)
    assert close.float().argmax(-1) == 0
    above = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    assert torch.equal(to_float32(close), torch.tensor([[0.5, above]]))


@looped(("fill", "seen"), [(False, [3, 3, 1]), (True, [3, 3, 3])])
def test_batches_are_of_the_size_asked_for_and_change_no_answer(fill, seen):
    sizes = []

    def answer(queries):
        sizes.append(len(queries))
        return served_confidences(queries)

    target = CallableTarget(answer, batch_size=3, fill_batches=fill)
    torch.testing.assert_close(target(IMAGES), CallableTarget(served_confidences)(IMAGES))
    assert sizes == seen


def test_a_callable_that_works_in_place_or_reuses_memory_changes_nothing():
    memory = np.empty((3, 3))

    def answer(queries):
        scores = memory[: len(queries)]
        scores[:] = served_confidences(queries)
        queries[:] = 0
        return scores

    images = IMAGES.clone()
    answered = CallableTarget(answer, batch_size=3)(images)
    assert torch.equal(images, IMAGES)
    torch.testing.assert_close(answered, CallableTarget(served_confidences)(IMAGES))


@looped(
    ("given", "seen"),
    [
        (torch.float16, np.float32),
        (torch.bfloat16, np.float32),
        (torch.float32, np.float32),
        (torch.float64, np.float64),
    ],
)
def test_queries_arrive_as_float32_or_float64_in_row_major_order(given, seen):
    kinds = []

    def answer(queries):
        kinds.append((queries.dtype, queries.flags.c_contiguous, queries.shape))
        return served_confidences(queries)

    images = random_images(1, 2, (4, 2, 2), given).to(memory_format=torch.channels_last)
    CallableTarget(answer)(images)
    assert kinds == [(seen, True, (2, 4, 2, 2))]


def test_records_are_passed_on_as_they_are():
    target = CallableTarget(served_confidences)
    assert torch.equal(target(IMAGES.flatten(1)), target(IMAGES))


def test_nothing_is_cached_so_that_a_random_answer_is_seen_to_be_random():
    generator = np.random.default_rng(1)
    target = CallableTarget(lambda queries: generator.dirichlet(np.ones(3), len(queries)))
    assert not torch.equal(target(IMAGES), target(IMAGES))


@looped(
    ("answer", "message"),
    [
        (lambda n: [[0.5, 0.5]] * n, "NumPy array .* but gave list.*np.asarray"),
        (lambda n: torch.full((n, 2), 0.5), "NumPy array .* but gave Tensor"),
        (lambda n: np.ones((n, 2), int), "but gave an array of int64"),
        (lambda n: np.full((n, 2), "a"), "but gave an array of <U1"),
        (lambda n: np.ones(n), r"answer 2 queries .* shape \(2, K\).* but gave \(2,\)"),
        (lambda n: np.full((n + 1, 2), 0.5), r"but gave \(3, 2\)"),
        (lambda n: np.full((n, 1, 2), 0.5), r"but gave \(2, 1, 2\)"),
        (lambda n: np.ones((n, 1)), "K >= 2"),
        (lambda n: np.full((n, 2), math.nan), "confidences of the model must be finite"),
        (lambda n: np.full((n, 2), 0.7), "confidences of the model must be prob.* 2 of 2 rows"),
        (lambda n: np.tile([1.5, -0.5], (n, 1)), "confidences of the model must be prob"),
    ],
)
def test_answers_that_cannot_be_used_are_refused_in_the_target_s_name(answer, message):
    target = CallableTarget(lambda queries: answer(len(queries)), name="the model")
    with pytest.raises(InvalidTensorError, match=f"(?s)the model.*{message}|{message}"):
        target(IMAGES[:2])


def test_the_number_of_classes_may_not_change_within_or_between_queries():
    target = CallableTarget(
        lambda queries: np.full((len(queries), 1 + len(queries)), 1 / (1 + len(queries))),
        batch_size=3,
        name="the model",
    )
    with pytest.raises(InvalidTensorError, match=r"the model .* shape \(1, 4\).*gave \(1, 2\)"):
        target(IMAGES)
    with pytest.raises(InvalidTensorError, match=r"the model .* shape \(2, 4\).*gave \(2, 3\)"):
        target(IMAGES[:2])


@looped("kind", [CallableTarget, ScoredCallableTarget])
def test_a_callable_that_raises_is_named_without_its_message_and_stays_the_cause(kind):
    def answer(queries):
        raise ValueError(f"cannot use {queries.ravel()[0]}")

    text = r"the model raised ValueError.*a NumPy array of float32, \(\d+, .*\)"
    with pytest.raises(TargetFailedError, match=text) as caught:
        kind(answer, name="the model")(IMAGES)
    assert "test_callables.py, line " in str(caught.value)
    assert "cannot use" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


@looped(
    ("images", "message"),
    [
        (IMAGES[:0], r"at least one query for the callable, but got shape \(0, 1, 4, 4\)"),
        (IMAGES.numpy(), r"torch\.Tensor, but got ndarray"),
        (torch.full((1, 16), math.inf), "images must be finite"),
    ],
)
def test_queries_that_cannot_be_used_are_refused_before_any_is_asked(images, message):
    asked = []
    with pytest.raises(InvalidTensorError, match=message):
        CallableTarget(asked.append)(images)
    assert not asked


def test_an_empty_batch_size_is_refused():
    with pytest.raises(InvalidOptionError, match="batch_size must be a whole number"):
        CallableTarget(served_confidences, batch_size=0)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_any_batch_size_gives_the_same_answers(count, batch_size, fill):
    images = random_images(2, count, (1, 4, 4))
    target = CallableTarget(served_confidences, batch_size=batch_size, fill_batches=fill)
    torch.testing.assert_close(target(images), CallableTarget(served_confidences)(images))


def test_what_is_no_function_of_arrays_is_refused_at_once():
    for answer, message in (
        (nn.Linear(2, 2), "is Linear: wrap a torch.nn.Module in TorchTarget"),
        (nn.Linear, "is the class Linear: pass a function"),
        (3, "is int: pass a function"),
    ):
        for kind in (CallableTarget, ScoredCallableTarget):
            with pytest.raises(InvalidOptionError, match=message):
                kind(answer)


def test_one_number_for_each_query_is_refused_with_what_to_stack():
    for kind, remedy in (
        (CallableTarget, r"p is the score of the second.*stack\(\[1 - p, p\], -1\)"),
        (ScoredCallableTarget, r"z is the score of the second.*stack\(\[-z / 2, z / 2\], -1\)"),
    ):
        for shape in ((5,), (5, 1)):
            target = kind(lambda _, shape=shape: np.full(shape, 0.5))
            with pytest.raises(InvalidTensorError, match=remedy + r"\.reshape\(-1, 2\)"):
                target(torch.zeros(5, 4))
