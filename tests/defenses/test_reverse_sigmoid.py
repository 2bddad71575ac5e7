"""Reverse sigmoid: the published formula, number by number."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.defenses.reverse_sigmoid import ReverseSigmoid
from rows import leads, random_rows, score_rows


def by_formula(row, beta, gamma):
    told = []
    for p in row:
        odds = math.log(p / (1 - p))
        told.append(max(0.0, p - beta * (1 / (1 + math.exp(-gamma * odds)) - 0.5)))
    return [value / sum(told) for value in told]


@looped(("beta", "gamma"), [(0.7, 0.2), (2.0, 1.0), (5.0, 0.5)])
def test_equals_the_formula(beta, gamma):
    logits = random_rows(1, 40, 6, torch.float64, 2)
    rows = [by_formula(row, beta, gamma) for row in logits.softmax(-1).tolist()]
    expected = torch.tensor(rows, dtype=torch.float64)
    told = ReverseSigmoid(beta=beta, gamma=gamma)(logits).softmax(-1)
    assert torch.equal(told == 0, expected == 0)
    torch.testing.assert_close(told, expected, rtol=1e-9, atol=1e-14)


@given(score_rows(), st.sampled_from([0.1, 2.0, 50.0]))
def test_saturated_scores_give_finite_logits_and_the_label_leads_if_it_is_kept(logits, beta):
    assert torch.isfinite(ReverseSigmoid(beta=beta)(logits)).all()
    kept = ReverseSigmoid(beta=beta, keep_label=True)(logits)
    assert leads(kept, logits.argmax(-1))


def test_small_probabilities_are_lifted_past_larger_ones():
    logits = torch.tensor([[0.0, -4.0, -12.0]], dtype=torch.float64)
    told = ReverseSigmoid(gamma=0.5)(logits)
    assert told[0, 2] > told[0, 1]
