"""Distortion and label_changes against plain NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.errors import InvalidTensorError
from oneway.metrics import distortion, label_changes

SEEDS = st.integers(0, 10**6)
SHAPES = st.tuples(st.integers(1, 40), st.integers(2, 7))


def softmax(rows):
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def scores(seed, shape, dtype):
    generator = np.random.default_rng(seed)
    clean = generator.normal(0, 3, shape).astype(dtype)
    noisy = (clean + generator.normal(0, 1, shape)).astype(dtype)
    return clean, noisy, softmax(clean), softmax(noisy)


@given(SEEDS, SHAPES, st.sampled_from([np.float32, np.float64]))
def test_distortion_equals_numpy(seed, shape, dtype):
    clean_logits, noisy_logits, clean, released = arrays = scores(seed, shape, dtype)
    measured = distortion(*map(torch.from_numpy, arrays))
    rows = np.abs(released.astype(np.float64) - clean.astype(np.float64)).sum(-1)
    logits = np.abs(noisy_logits.astype(np.float64) - clean_logits.astype(np.float64)).mean()
    expected = (logits, rows.mean(), np.quantile(rows, 0.99), rows.max())
    got = (measured.logits, measured.l1_mean, measured.l1_p99, measured.l1_max)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


@given(SEEDS, SHAPES, st.floats(0.25, 8))
def test_a_constant_added_to_a_row_counts_in_logits_alone(seed, shape, constant):
    clean_logits = torch.from_numpy(scores(seed, shape, np.float64)[0])
    clean = clean_logits.softmax(-1)
    moved = distortion(
        clean_logits, clean_logits + constant, clean, (clean_logits + constant).softmax(-1)
    )
    assert moved.logits == pytest.approx(constant, rel=1e-9)
    assert moved.l1_max < 1e-12


def test_probabilities_that_share_nothing_are_2_apart():
    rows = torch.eye(3)
    measured = distortion(rows, rows.roll(1, 0), rows, rows.roll(1, 0))
    assert (measured.l1_mean, measured.l1_p99, measured.l1_max) == (2, 2, 2)
    assert measured.logits == pytest.approx(2 / 3)


@looped(("position", "name"), [(1, "noisy_logits"), (3, "released")])
def test_distortion_refuses_shapes_that_would_broadcast(position, name):
    arrays = [torch.full((4, 3), 1 / 3)] * 4
    arrays[position] = torch.full((1, 3), 1 / 3)
    with pytest.raises(InvalidTensorError, match=rf"^{name} .*\(4, 3\), but got \(1, 3\)"):
        distortion(*arrays)


@given(
    st.integers(2, 5).flatmap(
        lambda classes: st.lists(
            st.tuples(*[st.lists(st.integers(0, 3), min_size=classes, max_size=classes)] * 2),
            min_size=1,
            max_size=8,
        )
    )
)
def test_flips_are_rows_whose_clean_arg_max_does_not_lead_alone(rows):
    clean_logits = torch.tensor([clean for clean, _ in rows], dtype=torch.float32)
    released = torch.tensor([shown for _, shown in rows], dtype=torch.float32)
    expected = 0
    for clean, shown in rows:
        label = clean.index(max(clean))
        rivals = [entry for place, entry in enumerate(shown) if place != label]
        expected += max(rivals) >= shown[label]
    assert label_changes(clean_logits, released) == expected


def test_a_tie_is_a_flip_whichever_index_it_has():
    clean_logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    released = torch.tensor([[0.4, 0.4, 0.2], [0.4, 0.2, 0.4], [0.4, 0.3, 0.3]])
    assert label_changes(clean_logits, released) == 2


def test_flips_refuses_shapes_that_would_broadcast():
    with pytest.raises(InvalidTensorError, match=r"^released .*\(4, 3\), but got \(1, 3\)"):
        label_changes(torch.zeros(4, 3), torch.full((1, 3), 1 / 3))
