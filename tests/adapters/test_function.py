"""A guarded function: queries in, what may be released out, or an error without a value."""

import numpy as np
import pytest
import torch

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
from rows import same_bits
from surrogates import random_images, small_inverter

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
    assert raised.value.__cause__ is None
    assert "cannot" not in str(raised.value)

    def ours(_):
        raise MissingDataError("there is no model")

    with pytest.raises(MissingDataError):
        GuardedFunction(ours, Guard(Identity(), "logits"))(IMAGES)


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
