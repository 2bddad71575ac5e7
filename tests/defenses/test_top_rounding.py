"""Top rounding: the largest entries in whole units, the rest even, and nothing else told."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws import looped
from oneway.checks import FLOATING
from oneway.defenses.top_rounding import TopRounding
from oneway.releases import release
from reference.top_rounding import released_row, top_rounded
from rows import leads, random_rows, same_bits, score_rows

NARROW = (torch.float32, torch.float64)
COUNTS, DECIMALS = st.integers(1, 6), st.integers(1, 6)


@st.composite
def shares(draw):
    """Rows whose probabilities lie near ties: sums of a few equal parts, half units among them."""
    classes = draw(st.integers(2, 9))
    part = st.sampled_from([1, 1, 1, 2, 3, 5, 10, 15, 25])
    rows = draw(
        st.lists(st.lists(part, min_size=classes, max_size=classes), min_size=1, max_size=4)
    )
    return torch.tensor(rows, dtype=torch.float64).log()


def near_half_a_unit(logits, decimals):
    """Say whether an entry lies so near the middle of two units that the last bit decides."""
    scaled = logits.double().softmax(-1) * 10**decimals
    return ((scaled - scaled.floor() - 0.5).abs() < 1e-9 * (1 + scaled)).any()


@given(st.one_of(shares(), score_rows(NARROW)), COUNTS, DECIMALS)
def test_what_is_released_is_what_the_reference_gives(logits, count, decimals):
    if near_half_a_unit(logits, decimals):
        return
    told = TopRounding(count=count, decimals=decimals)(logits)
    released = release(told, dtype=torch.float64)
    for row, scores in enumerate(logits.tolist()):
        wanted = released_row(scores, count, decimals)
        np.testing.assert_allclose(released[row].numpy(), wanted, rtol=4e-6, atol=1e-300)
    assert leads(told, logits.argmax(-1))


@given(st.one_of(shares(), score_rows(NARROW)), COUNTS, DECIMALS)
def test_rows_are_units_and_an_even_rest_and_sum_to_one(logits, count, decimals):
    told = TopRounding(count=count, decimals=decimals)(logits)
    classes, labels = logits.shape[-1], logits.argmax(-1)
    assert leads(told, labels)
    released = release(told, dtype=torch.float64)
    assert (released.sum(-1) - 1).abs().max() < 1e-12
    for row, label in zip(released.numpy(), labels.tolist(), strict=True):
        # Some value is shared by all but those that are told; float32 logits tell it to 4e-6.
        shared = [np.abs(row - value) <= 4e-6 * value for value in row]
        told_apart = [~some for some in shared if classes - some.sum() <= min(count, classes - 1)]
        assert told_apart
        others = np.delete(row, label)
        if (others >= row[label] * (1 - 4e-6)).any():
            continue  # it was raised to the rest, and all are scaled
        units = [row[some] * 10**decimals for some in told_apart]
        assert any((np.abs(some - some.round()) <= 4e-6 * some).all() for some in units)


@given(shares(), st.integers(2, 6), st.integers(1, 3))
def test_a_likelier_class_is_never_told_less_than_one_that_is_less_likely(logits, count, decimals):
    released = release(TopRounding(count=count, decimals=decimals)(logits), dtype=torch.float64)
    for clean, told in zip(logits, released, strict=True):
        label = int(clean.argmax())
        order = clean.argsort(descending=True, stable=True).tolist()[: min(count, len(clean) - 1)]
        kept = [k for k in order if k != label]
        rest = float(told.min())
        values = [float(told[k]) for k in kept if told[k] > rest * (1 + 1e-9)]
        assert all(one >= other * (1 - 1e-9) for one, other in itertools.pairwise(values))


def test_tied_rivals_pay_from_the_last_on():
    # A third each: 33 units, and the label takes one, from the one that is least likely.
    logits = torch.tensor([[0.3303, 0.3302, 0.3301, 0.0094]], dtype=torch.float64).log()
    released = release(TopRounding(count=3, decimals=2)(logits), dtype=torch.float64)
    np.testing.assert_allclose(released[0].numpy(), [0.34, 0.33, 0.32, 0.01], rtol=1e-12)
    # Six times 1.51 tenths would be 2 each, which is too many: the last two give back.
    logits = torch.tensor([[0.151] * 6 + [0.047, 0.047]], dtype=torch.float64).log()
    released = release(TopRounding(count=6, decimals=1)(logits), dtype=torch.float64)
    np.testing.assert_allclose(
        released[0].numpy(), [0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.0, 0.0], atol=1e-12
    )


def test_what_is_rounded_to_nothing_is_not_set_apart():
    rows = torch.tensor(
        [[0.95, 0.004, 0.003, 0.04 - 0.001, 0.004], [0.95, 0.02, 0.01, 0.011, 0.009]]
    )
    released = release(TopRounding(count=2, decimals=1)(rows.log()), dtype=torch.float64)
    # 0.95 is 1.0 or 0.9 of ten units; the runner-up is none of them.
    for row in released:
        assert len(row[1:].unique()) == 1
    even = torch.zeros(1, 60, dtype=torch.float64)
    released = release(TopRounding(count=3, decimals=1)(even), dtype=torch.float64)
    np.testing.assert_allclose(released[0].numpy(), np.full(60, 1 / 60), rtol=1e-12)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 3))
def test_rows_with_the_same_top_units_are_told_the_same_bits(seed, count, decimals):
    logits = random_rows(seed, 150, 6, torch.float64, 1.5)
    told = TopRounding(count=count, decimals=decimals)(logits)
    seen = {}
    for row, scores in enumerate(logits.tolist()):
        kept, _ = top_rounded(scores, count, decimals)
        key = (scores.index(max(scores)), *sorted(kept.items()))
        if key in seen:
            assert same_bits(told[row].clone(), told[seen[key]].clone())
        seen[key] = row
    # Where the even rest is whole units, one vector may be told for two reasons.
    assert 0.9 * len(seen) <= len(told.unique(dim=0)) <= len(seen)


@looped("dtype", FLOATING)
@looped("classes", [2, 40])
def test_label_leads_in_every_type(dtype, classes):
    logits = random_rows(0, 200, classes, dtype, 0.002)
    for count, decimals in ((1, 1), (3, 2), (50, 9)):
        told = TopRounding(count=count, decimals=decimals)(logits)
        assert told.dtype == dtype
        assert leads(told, logits.argmax(-1))


def test_more_is_told_with_more_entries_and_more_decimals():
    logits = random_rows(0, 2000, 8, torch.float64, 2)

    def distortion(**options):
        released = TopRounding(**options)(logits).softmax(-1)
        return float((released - logits.softmax(-1)).abs().sum(-1).mean())

    counts = [distortion(count=count, decimals=3) for count in (1, 2, 4, 7)]
    assert counts == sorted(counts, reverse=True)
    decimals = [distortion(count=7, decimals=places) for places in (1, 2, 3, 5)]
    assert decimals == sorted(decimals, reverse=True)
    assert decimals[-1] < 1e-4
    # All classes but one are all that there is to tell.
    assert same_bits(TopRounding(count=7)(logits), TopRounding(count=70)(logits))
