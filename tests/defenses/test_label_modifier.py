"""Laws of the label modifier, on logits of every size and type."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.checks import FLOATING
from oneway.defenses.label_modifier import keep_label
from oneway.errors import InvalidOptionError, InvalidTensorError
from reference import wen2021
from rows import leads, random_rows, same_bits, score_rows, score_rows_and_labels

MARGINS = st.sampled_from([1e-3, 2.0**-10, 1e-12, 0.5, 3.0])


@given(score_rows_and_labels(), MARGINS)
def test_label_is_the_only_maximum(case, margin):
    logits, labels = case
    assert leads(keep_label(logits, labels, margin=margin), labels)


@given(score_rows_and_labels((torch.float16, torch.bfloat16, torch.float32)))
def test_label_is_still_the_only_maximum_after_a_float32_softmax(case):
    logits, labels = case
    assert leads(keep_label(logits, labels).float().softmax(-1), labels)


@given(score_rows_and_labels((torch.float64,)))
def test_label_is_still_the_only_maximum_after_a_softmax_cast_to_float32(case):
    logits, labels = case
    assert leads(keep_label(logits, labels).softmax(-1).float(), labels)


@given(score_rows_and_labels(), MARGINS)
def test_only_the_label_entry_moves_only_up_and_only_once(case, margin):
    logits, labels = case
    before, index = logits.clone(), labels.unsqueeze(-1)
    once = keep_label(logits, labels, margin=margin)
    assert same_bits(logits, before)
    assert once.dtype == logits.dtype
    assert same_bits(once.scatter(-1, index, 0), logits.scatter(-1, index, 0))
    assert (once >= logits).all()
    assert same_bits(keep_label(once, labels, margin=margin), once)


@given(score_rows(), MARGINS)
def test_rows_whose_label_leads_by_the_margin_come_back_bit_for_bit(logits, margin):
    ahead = logits.argmax(-1)
    top, runner_up = logits.double().topk(2, dim=-1).values.unbind(-1)
    as_float32 = torch.tensor(margin, dtype=torch.float32).item()
    in_front = (top > runner_up) & (top >= runner_up + max(margin, as_float32))
    kept = keep_label(logits, ahead, margin=margin)
    assert same_bits(kept[in_front], logits[in_front])


@given(score_rows_and_labels())
def test_label_is_lifted_no_further_than_margin_or_one_float(case):
    logits, labels = case
    index = labels.unsqueeze(-1)
    kept = keep_label(logits, labels).gather(-1, index)
    rival = logits.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    up = torch.full_like(rival, torch.inf)
    by_margin = (rival.double() + 1e-3).to(rival.dtype).nextafter(up)
    highest = torch.maximum(logits.gather(-1, index), torch.maximum(by_margin, rival.nextafter(up)))
    assert (kept <= highest).all()


@given(score_rows_and_labels((torch.float64,)), MARGINS)
def test_equals_the_reference_in_float64(case, margin):
    logits, labels = case
    expected = wen2021.keep_label(logits.numpy(), labels.numpy(), margin)
    assert torch.equal(keep_label(logits, labels, margin=margin), torch.from_numpy(expected))


@given(score_rows_and_labels())
def test_each_row_stands_for_itself(case):
    logits, labels = case
    together = keep_label(logits, labels)
    for row in range(len(logits)):
        alone = keep_label(logits[row : row + 1], labels[row : row + 1])
        assert same_bits(alone[0], together[row])
        assert same_bits(keep_label(logits[row], labels[row]), together[row])


@looped("dtype", FLOATING)
def test_ten_thousand_classes(dtype):
    logits = random_rows(0, 3, 10_000, dtype, 5)
    labels = torch.tensor([0, 9_999, 5_000])
    assert leads(keep_label(logits, labels), labels)


def test_any_number_of_leading_axes_is_taken():
    logits = random_rows(1, 24, 5, torch.float32, 3)
    labels = torch.arange(24) % 5
    expected = keep_label(logits, labels)
    folded = keep_label(logits.reshape(2, 3, 4, 5), labels.reshape(2, 3, 4))
    assert same_bits(folded.reshape(24, 5), expected)


def test_no_rows_give_no_rows():
    kept = keep_label(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert kept.shape == (0, 3)


def test_a_lifted_label_passes_its_gradient_to_the_rival():
    logits = torch.tensor([[1.0, 5.0, 2.0], [9.0, 5.0, 2.0]], requires_grad=True)
    keep_label(logits, torch.tensor([0, 0]))[:, 0].sum().backward()
    assert torch.equal(logits.grad, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))


@looped("dtype", FLOATING)
def test_a_rival_that_nothing_can_lead_is_refused(dtype):
    logits = torch.tensor([[0.0, torch.finfo(dtype).max]], dtype=dtype)
    with pytest.raises(InvalidTensorError, match="largest number of their type"):
        keep_label(logits, torch.tensor([0]))


def test_labels_of_the_wrong_shape_are_refused_with_the_remedy():
    with pytest.raises(InvalidTensorError, match=r"shape \(3,\).*Pass `logits\.argmax"):
        keep_label(torch.zeros(3, 10), torch.zeros(3, 1, dtype=torch.int64))


@looped("margin", [0, -1.0, math.nan, math.inf, "1", True])
def test_a_margin_that_is_no_positive_number_is_refused(margin):
    with pytest.raises(InvalidOptionError, match="margin must be"):
        keep_label(torch.zeros(1, 2), torch.tensor([0]), margin=margin)
