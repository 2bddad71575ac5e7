"""The two ends of the scale: nothing is changed, and nothing but the label is told."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.checks import FLOATING
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import InvalidOptionError
from rows import leads, random_rows, same_bits, score_rows


@given(score_rows())
def test_identity_returns_the_logits_bit_for_bit(logits):
    assert same_bits(Identity()(logits), logits)


@given(score_rows())
def test_label_only_keeps_the_first_maximum_strictly(logits):
    before = logits.clone()
    told = LabelOnly()(logits)
    assert leads(told, logits.argmax(-1))
    assert told.dtype == logits.dtype
    assert same_bits(logits, before)


@given(st.integers(2, 300), st.sampled_from(FLOATING), st.data())
def test_label_leads_at_every_confidence_above_1_in_k(classes, dtype, data):
    least = 1 / classes
    while least * classes <= 1:
        least = math.nextafter(least, 1)
    confidence = data.draw(st.just(least) | st.floats(least, 1, exclude_max=True))
    logits = random_rows(1, 2, classes, dtype, 3)
    assert leads(LabelOnly(confidence=confidence)(logits), logits.argmax(-1))


@given(score_rows())
def test_label_only_tells_rows_of_one_label_the_same(logits):
    told, labels = LabelOnly()(logits), logits.argmax(-1)
    for label in labels.unique():
        assert len(told[labels == label].unique(dim=0)) == 1


@looped("classes", [2, 10, 530])
@looped("confidence", [0.6, 0.99, 1 - 1e-9])
def test_label_gets_the_given_confidence_and_the_rest_is_shared_evenly(classes, confidence):
    logits = random_rows(1, 4, classes, torch.float64, 3)
    told = LabelOnly(confidence=confidence)(logits).softmax(-1)
    label = logits.argmax(-1, keepdim=True)
    expected = torch.full_like(told, (1 - confidence) / (classes - 1)).scatter(
        -1, label, confidence
    )
    torch.testing.assert_close(told, expected, rtol=1e-6, atol=0)


def test_a_confidence_of_at_most_1_in_k_is_refused():
    with pytest.raises(InvalidOptionError, match=r"must exceed 1 / K = 0\.25 for 4 classes"):
        LabelOnly(confidence=0.25)(torch.zeros(1, 4))
