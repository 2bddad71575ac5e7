"""From logits to probabilities and back inside a defense: nothing overflows, zeros stay zeros."""

import torch
from hypothesis import given

from laws import looped
from oneway.checks import FLOATING
from oneway.defenses.label_modifier import keep_label
from oneway.defenses.scores import log_probabilities, logits_of, narrowed
from oneway.releases import release
from rows import score_rows


@given(score_rows())
def test_log_probabilities_are_finite_and_those_of_a_softmax(logits):
    logs = log_probabilities(logits)
    assert logs.dtype == torch.float64
    assert torch.isfinite(logs).all()
    torch.testing.assert_close(logs.exp(), logits.double().softmax(-1), rtol=1e-12, atol=0)


def test_scores_further_apart_than_the_largest_number_have_finite_logs():
    logs = log_probabilities(torch.tensor([[1.7e308, -1.7e308, 0]], dtype=torch.float64))
    assert torch.isfinite(logs).all()
    assert torch.equal(logs.exp(), torch.tensor([[1.0, 0, 0]], dtype=torch.float64))


@looped("dtype", FLOATING)
def test_zeros_are_released_as_zeros_and_nothing_else_is(dtype):
    rows = torch.tensor([[0.5, 0, 0.25, 0.25], [1, 0, 0, 0], [1e-3, 0, 1e-5, 1e-4]])
    logits = logits_of(rows.double(), dtype)
    for kind in (torch.float32, torch.float64):
        released = release(logits, dtype=kind)
        assert torch.equal(released == 0, rows == 0)


def test_probabilities_need_not_sum_to_1():
    rows = torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9
    expected = rows / rows.sum(-1, keepdim=True)
    torch.testing.assert_close(logits_of(rows, torch.float64).softmax(-1), expected)


@looped("dtype", FLOATING)
def test_what_is_too_large_for_a_type_is_put_at_its_end_where_a_label_can_still_lead(dtype):
    ends = narrowed(torch.tensor([[-1.7e308, 1.7e308, 3.0]], dtype=torch.float64), dtype)
    assert ends.dtype == dtype
    assert torch.isfinite(ends).all()
    assert ends[0, 0] < -1e4
    assert ends[0, 1] > 1e4
    assert ends[0, 2] == 3
    keep_label(ends, torch.tensor([0]))
