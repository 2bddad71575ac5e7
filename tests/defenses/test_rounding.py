"""Rounding: what is released are multiples, and zeros that are zeros."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.checks import FLOATING
from oneway.defenses.rounding import Rounding
from oneway.releases import release
from rows import leads, random_rows, score_rows

NARROW = (torch.float32, torch.float64)


@given(score_rows(NARROW), st.integers(0, 6))
def test_what_is_released_is_what_a_rounding_release_gives(logits, decimals):
    wanted = release(logits, dtype=torch.float64, decimals=decimals)
    told = Rounding(decimals=decimals)(logits)
    for dtype in NARROW:
        released = release(told, dtype=dtype)
        assert torch.equal(released == 0, wanted == 0)
        torch.testing.assert_close(released.double(), wanted, rtol=4e-6, atol=0)
    assert leads(told, logits.argmax(-1))


@looped("dtype", FLOATING)
@looped("classes", [2, 40])
def test_label_leads_in_every_type_where_many_decimals_are_kept(dtype, classes):
    logits = random_rows(0, 200, classes, dtype, 0.002)
    assert leads(Rounding(decimals=9)(logits), logits.argmax(-1))


def test_rounding_twice_changes_nothing_more():
    rounding, logits = Rounding(decimals=3), random_rows(0, 200, 9, torch.float64, 2)
    once = rounding(logits)
    torch.testing.assert_close(rounding(once), once, rtol=1e-12, atol=1e-12)


def test_many_scores_become_one():
    logits = random_rows(0, 500, 10, torch.float32, 6)
    told = Rounding(decimals=0)(logits)
    assert len(told.unique(dim=0)) == len(logits.argmax(-1).unique()) == 10
