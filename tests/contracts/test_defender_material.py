"""What a release is fitted to: the operator's own queries, or else auxiliary ones."""

import itertools

import pytest
import torch

from oneway.contracts import TrainingData
from rows import random_rows
from surrogates import random_images

AUXILIARY = random_images(1, 9), random_rows(2, 9, 4, torch.float32, 1), torch.arange(9) % 4
KEPT = random_images(3, 5), random_rows(4, 5, 4, torch.float32, 1), torch.arange(5) % 4


@pytest.mark.parametrize("given", list(itertools.product([True, False], repeat=2)), ids=str)
def test_queries_that_were_kept_count_if_both_they_and_their_scores_are_there(given):
    images, logits = (one if there else None for one, there in zip(KEPT[:2], given, strict=True))
    training_data = TrainingData(
        None, None, None, *AUXILIARY[:2], images, logits, AUXILIARY[2], KEPT[2]
    )
    wanted = KEPT if all(given) else AUXILIARY
    for told, one in zip(training_data.calibration, wanted, strict=True):
        assert told is one


def test_none_are_kept_unless_it_is_said():
    assert TrainingData(None, None, None, *AUXILIARY[:2]).calibration[0] is AUXILIARY[0]
