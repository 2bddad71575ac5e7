"""What the input transforms keep of a confidence vector, and what they survive."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from oneway.errors import InvalidOptionError
from oneway.inversion.front_ends import FaithfulTransform, StandardizedLog, build_front_end
from rows import random_rows


def centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def fitted(confidences: Tensor) -> StandardizedLog:
    transform = StandardizedLog(confidences.shape[-1]).to(confidences.dtype)
    transform.fit(confidences)
    return transform


@st.composite
def logit_rows(draw: st.DrawFn) -> Tensor:
    """Draw rows whose confidences are normal float64 numbers."""
    classes = draw(st.integers(2, 8))
    row = st.lists(st.floats(-300, 300), min_size=classes, max_size=classes)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=4)), dtype=torch.float64)


@given(logit_rows())
def test_faithful_features_of_full_vectors_are_the_logits_up_to_a_constant(logits):
    features = FaithfulTransform()(logits.softmax(-1))
    torch.testing.assert_close(centered(features), centered(logits), rtol=1e-9, atol=1e-9)


@given(logit_rows())
def test_faithful_features_are_logs_plus_50_lifted_to_be_at_least_0(logits):
    logs = logits.log_softmax(-1)
    least = (logs + 50).amin(-1, keepdim=True)
    expected = torch.where(least < 0, logs + 50 - least, logs + 50)
    features = FaithfulTransform()(logits.softmax(-1))
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)
    assert (features >= 0).all()


def test_faithful_features_of_zeros_are_clamped_logs():
    features = FaithfulTransform()(torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(
        features, torch.tensor([[1000 + math.log(0.5), 1000 + math.log(0.5), 0.0]])
    )


def test_truncation_keeps_the_largest_entries_at_their_places_and_zeros_the_rest():
    confidences = torch.tensor([[0.05, 0.6, 0.1, 0.25], [0.4, 0.3, 0.2, 0.1]])
    features = FaithfulTransform(truncation=2)(confidences)
    logs = confidences.log() + 50
    expected = torch.stack(
        [
            torch.tensor([0.0, logs[0, 1], 0.0, logs[0, 3]]),
            torch.tensor([logs[1, 0], logs[1, 1], 0.0, 0.0]),
        ]
    )
    assert torch.equal(features, expected)


def test_kept_entries_alone_decide_how_far_a_truncated_row_is_lifted():
    confidences = torch.tensor([[0.75, 0.25, 1e-30, 0.0]])
    full, kept = FaithfulTransform()(confidences), FaithfulTransform(truncation=2)(confidences)
    assert full[0, 0] > 900
    torch.testing.assert_close(
        kept, torch.tensor([[0.75, 0.25, 1, 1]]).log() + torch.tensor([50.0, 50, 0, 0])
    )


@pytest.mark.parametrize("truncation", [4, 9])
def test_a_truncation_that_cuts_nothing_is_none(truncation):
    confidences = random_rows(1, 6, 4, torch.float32, 3).softmax(-1)
    assert torch.equal(FaithfulTransform(truncation)(confidences), FaithfulTransform()(confidences))


def test_standardized_features_have_mean_0_and_deviation_1_over_the_training_rows():
    confidences = random_rows(2, 500, 6, torch.float64, 3).softmax(-1)
    features = fitted(confidences)(confidences)
    torch.testing.assert_close(features.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(6).double())


def test_standardized_features_are_an_invertible_affine_map_of_the_logits():
    logits = random_rows(3, 200, 6, torch.float64, 3)
    transform = fitted(logits.softmax(-1))
    restored = transform(logits.softmax(-1)) * transform.deviation + transform.mean
    torch.testing.assert_close(restored, centered(logits))


def test_standardized_features_do_not_change_with_the_scale_of_the_training_logits():
    logits = random_rows(4, 200, 6, torch.float64, 1)
    small, large = (fitted(rows.softmax(-1))(rows.softmax(-1)) for rows in (logits, 7 * logits))
    torch.testing.assert_close(small, large, rtol=1e-6, atol=1e-6)


def test_standardized_zeros_are_read_as_0_3_of_the_smallest_positive_training_confidence():
    training = torch.tensor([[0.7, 0.2, 0.1], [0.98, 0.02, 0.0], [0.3, 0.3, 0.4]])
    transform = fitted(training)
    zero, read_as = transform(torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.3 * 0.02]]))
    torch.testing.assert_close(zero, read_as)


def test_rounded_answers_stay_within_a_few_deviations():
    confidences = random_rows(5, 500, 6, torch.float32, 8).softmax(-1)
    rounded = (confidences * 100).round() / 100
    assert (rounded == 0).any()
    assert fitted(rounded)(rounded).abs().amax() < 20


@pytest.mark.parametrize(
    "transform",
    [FaithfulTransform(), FaithfulTransform(truncation=2), StandardizedLog(4)],
    ids=["faithful", "truncated", "standardized"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_for_every_confidence_from_0_to_1(transform, dtype):
    limits = torch.finfo(dtype)
    smallest = limits.tiny * limits.eps
    confidences = torch.tensor(
        [[1.0, 0, 0, 0], [0.5, 0.5, smallest, limits.tiny], [0.25] * 4, [1 - 1e-6, 1e-6, 0, 0]],
        dtype=dtype,
    ).requires_grad_()
    features = transform.to(dtype)(confidences)
    assert torch.isfinite(features).all()
    features.sum().backward()
    assert torch.isfinite(confidences.grad).all()


@pytest.mark.parametrize("name", ["faithful", "standardized"])
def test_each_row_stands_for_itself(name):
    confidences = random_rows(6, 9, 5, torch.float32, 3).softmax(-1)
    transform = build_front_end(name, 5, None)
    together = transform(confidences)
    for row in range(9):
        assert torch.equal(transform(confidences[row : row + 1])[0], together[row])


@pytest.mark.parametrize("truncation", [None, 3])
@pytest.mark.parametrize("scale", [1, 40])
def test_faithful_gradients_in_logs_are_the_automatic_ones(truncation, scale):
    assert_pulled_back(FaithfulTransform(truncation), scale)


@pytest.mark.parametrize("scale", [1, 40])
def test_standardized_gradients_in_logs_are_the_automatic_ones(scale):
    transform = fitted(random_rows(7, 50, 5, torch.float64, scale).softmax(-1))
    assert_pulled_back(transform, scale)


def assert_pulled_back(transform: FaithfulTransform | StandardizedLog, scale: float) -> None:
    logs = random_rows(8, 12, 5, torch.float64, scale).log_softmax(-1).requires_grad_()
    weights = random_rows(9, 12, 5, torch.float64, 1)
    (transform.from_logs(logs) * weights).sum().backward()
    torch.testing.assert_close(transform.pull_back(logs.detach(), weights), logs.grad)


def test_from_logs_gives_what_confidences_do():
    logits = random_rows(10, 12, 5, torch.float64, 2)
    for transform in (FaithfulTransform(), FaithfulTransform(3), fitted(logits.softmax(-1))):
        torch.testing.assert_close(
            transform.from_logs(logits.log_softmax(-1)), transform(logits.softmax(-1))
        )


def test_an_unknown_front_end_is_refused_with_the_known_ones():
    with pytest.raises(InvalidOptionError, match="faithful, standardized, but got 'wavelet'"):
        build_front_end("wavelet", 5, None)


def test_truncation_is_refused_with_the_standardized_front_end():
    with pytest.raises(InvalidOptionError, match="truncation goes with front_end='faithful' only"):
        build_front_end("standardized", 5, 2)
