"""A guarded function: queries in, what may be released out, or an error without a value."""

import numpy as np
import pytest
import torch

from faulty_defenses import Faulty
from laws import looped
from oneway.adapters import Guard, GuardedFunction
from oneway.defenses import build_defense
from oneway.defenses.identity import Identity
from oneway.defenses.rounding import Rounding
from oneway.errors import (
    InvalidTensorError,
    MissingDataError,
    TargetFailedError,
)
from oneway.targets.failure import failed
from optional import later
from rows import same_bits
from surrogates import random_images, small_inverter

pd = later("pandas")
IMAGES = random_images(1, 9)
WEIGHTS = torch.linspace(-1, 1, 320).reshape(64, 5)


def score(queries):
    return queries.reshape(len(queries), -1) @ (
        WEIGHTS.numpy() if isinstance(queries, np.ndarray) else WEIGHTS
    )


def test_it_gives_the_guarded_scores_of_its_function_in_their_kind():
    for defense in (Rounding(decimals=1), noise()):
        guard = Guard(defense, "logits")
        answer = GuardedFunction(score, guard)
        expected = guard(score(IMAGES), IMAGES)
        assert same_bits(answer(IMAGES), expected)
        assert np.abs(answer(IMAGES.numpy()) - expected.numpy()).max() < 1e-5


def noise():
    return build_defense("adversarial-noise", {"step_size": 1.0}, small_inverter())


def test_a_function_that_raises_is_an_error_without_its_text():
    def shout(queries):
        raise ValueError(f"cannot score {queries}")

    with pytest.raises(TargetFailedError, match="9 queries") as raised:
        GuardedFunction(shout, Guard(Identity(), "logits"))(IMAGES)
    assert_redacted(raised.value)
    assert "cannot" not in str(raised.value)


def assert_redacted(error):
    assert error.__cause__ is None
    assert error.__context__ is None


def test_an_error_of_ours_passes_without_its_cause():
    def ours(queries):
        try:
            shout(queries)
        except ValueError as error:
            raise failed("the inner model", 9, error) from error

    def shout(queries):
        raise ValueError(f"cannot score {queries}")

    with pytest.raises(TargetFailedError, match="the inner model raised ValueError") as raised:
        GuardedFunction(ours, Guard(Identity(), "logits"))(IMAGES)
    assert_redacted(raised.value)
    assert "__cause__" not in str(raised.value)
    assert raised.value.raised[0] == "ValueError"

    def missing(_):
        raise MissingDataError("there is no model")

    with pytest.raises(MissingDataError, match="there is no model"):
        GuardedFunction(missing, Guard(Identity(), "logits"))(IMAGES)


@looped("rows", [[0, 3, 8], [4]])
def test_queries_of_other_kinds_are_counted_and_reach_the_function(rows):
    chosen, seen = IMAGES[rows].numpy().reshape(len(rows), 64), []

    def kept(queries):
        seen.append(queries)
        return score(chosen)

    answer = GuardedFunction(kept, Guard(Identity(), "logits"))
    frame, sparse = pd.DataFrame(chosen), later("scipy.sparse:csr_matrix")(chosen)
    for queries in (frame, sparse, list(chosen), {"image": chosen, "mask": frame}, View(chosen)):
        assert answer(queries).shape == (len(rows), 5)
        assert type(seen[-1]) is type(queries)
        assert seen[-1] is not queries


class View:
    """What NumPy can read, and Python cannot count."""

    def __init__(self, rows):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return self.rows


def test_what_cannot_be_counted_is_refused_before_the_model_is_asked():
    def never(_):
        raise AssertionError

    answer = GuardedFunction(never, Guard(Identity(), "logits"))
    uneven = {"image": IMAGES, "mask": IMAGES[1:]}
    for queries, said in (
        (iter(IMAGES), "got tuple_iterator"),
        (object(), "got object"),
        (torch.tensor(1.0), "got Tensor"),
        (uneven, "image: 9, mask: 8"),
        ({}, "got none"),
    ):
        with pytest.raises(InvalidTensorError, match=said) as raised:
            answer(queries)
        assert_redacted(raised.value)


def test_a_defense_gets_the_numbers_of_a_frame_and_no_text():
    rows = IMAGES.reshape(9, 64).numpy()
    defense = Faulty(requires_input=True)
    answer = GuardedFunction(lambda queries: score(np.asarray(queries)), Guard(defense, "logits"))
    np.testing.assert_allclose(answer(pd.DataFrame(rows)), answer(rows), rtol=1e-5)
    frame = pd.DataFrame({"age": [1.0, 2.0], "ward": ["ICU-7777", "ER"]})
    with pytest.raises(InvalidTensorError, match="something else in the columns ward") as raised:
        answer(frame)
    assert_redacted(raised.value)
    assert "7777" not in str(raised.value)


@looped(
    "wrong",
    [
        lambda _: None,
        lambda _: [[0.5, 0.5]] * 9,
        lambda queries: score(queries)[1:],
        lambda queries: score(queries)[0],
        lambda queries: (score(queries),) * 9,
        lambda queries: score(queries) * torch.nan,
    ],
)
def test_what_is_not_one_row_per_query_is_refused(wrong):
    with pytest.raises(InvalidTensorError):
        GuardedFunction(wrong, Guard(Identity(), "logits"))(IMAGES)
