"""What the input transforms keep of a confidence vector, and what they survive."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from laws import looped
from oneway.errors import InvalidOptionError
from oneway.inversion.input_transforms import (
    FARTHEST,
    FEWEST,
    INPUT_TRANSFORMS,
    LEADING,
    SMALLEST_LOG,
    FaithfulTransform,
    InputTransform,
    LeadingScores,
    StandardizedLog,
    WithinLabel,
    build_input_transform,
)
from rows import random_rows


def centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1, keepdim=True)


def fitted(confidences: Tensor) -> StandardizedLog:
    transform = StandardizedLog(confidences.shape[-1]).to(confidences.dtype)
    transform.fit(confidences)
    return transform


def within(confidences: Tensor) -> WithinLabel:
    transform = WithinLabel(confidences.shape[-1])
    transform.fit(confidences)
    return transform


def leading(confidences: Tensor) -> LeadingScores:
    transform = LeadingScores(confidences.shape[-1]).to(confidences.dtype)
    transform.fit(confidences)
    return transform


def parts_of(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is standardized over all rows, what within the label, and the label."""
    return features.split(features.shape[-1] // 3, -1)


@st.composite
def logit_rows(draw: st.DrawFn) -> Tensor:
    """Draw rows whose confidences are normal float64 numbers."""
    classes = draw(st.integers(2, 8))
    row = st.lists(st.floats(-300, 300), min_size=classes, max_size=classes)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=4)), dtype=torch.float64)


@given(logit_rows())
def test_faithful_features_of_full_vectors_are_the_logits_up_to_a_constant(logits):
    features = FaithfulTransform(logits.shape[-1])(logits.softmax(-1))
    torch.testing.assert_close(centered(features), centered(logits), rtol=1e-9, atol=1e-9)


@given(logit_rows())
def test_faithful_features_are_logs_plus_50_lifted_to_be_at_least_0(logits):
    logs = logits.log_softmax(-1)
    least = (logs + 50).amin(-1, keepdim=True)
    expected = torch.where(least < 0, logs + 50 - least, logs + 50)
    features = FaithfulTransform(logits.shape[-1])(logits.softmax(-1))
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-9)
    assert (features >= 0).all()


def test_faithful_features_of_zeros_are_clamped_logs():
    features = FaithfulTransform(3)(torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(
        features, torch.tensor([[1000 + math.log(0.5), 1000 + math.log(0.5), 0.0]])
    )


def test_truncation_keeps_the_largest_entries_at_their_places_and_zeros_the_rest():
    confidences = torch.tensor([[0.05, 0.6, 0.1, 0.25], [0.4, 0.3, 0.2, 0.1]])
    features = FaithfulTransform(4, truncation=2)(confidences)
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
    full = FaithfulTransform(4)(confidences)
    kept = FaithfulTransform(4, truncation=2)(confidences)
    assert full[0, 0] > 900
    torch.testing.assert_close(
        kept, torch.tensor([[0.75, 0.25, 1, 1]]).log() + torch.tensor([50.0, 50, 0, 0])
    )


@looped("truncation", [4, 9])
def test_a_truncation_that_cuts_nothing_is_none(truncation):
    confidences = random_rows(1, 6, 4, torch.float32, 3).softmax(-1)
    cut = FaithfulTransform(4, truncation)(confidences)
    assert torch.equal(cut, FaithfulTransform(4)(confidences))


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


@looped(
    "transform",
    [FaithfulTransform(4), FaithfulTransform(4, truncation=2), StandardizedLog(4), WithinLabel(4)],
    ids=["faithful", "truncated", "standardized", "within-label"],
)
@looped("dtype", [torch.float32, torch.float64])
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


@looped("name", INPUT_TRANSFORMS)
def test_each_row_stands_for_itself(name):
    confidences = random_rows(6, 9, 5, torch.float32, 3).softmax(-1)
    transform = build_input_transform(name, 5, None)
    transform.fit(random_rows(7, 90, 5, torch.float32, 3).softmax(-1))
    together = transform(confidences)
    for row in range(9):
        assert torch.equal(transform(confidences[row : row + 1])[0], together[row])


@looped("truncation", [None, 3])
@looped("scale", [1, 40])
def test_faithful_gradients_in_logs_are_the_automatic_ones(truncation, scale):
    assert_pulled_back(FaithfulTransform(5, truncation), scale)


@looped("scale", [1, 40])
def test_standardized_gradients_in_logs_are_the_automatic_ones(scale):
    transform = fitted(random_rows(7, 50, 5, torch.float64, scale).softmax(-1))
    assert_pulled_back(transform, scale)


def assert_pulled_back(
    transform: InputTransform, scale: float, dtype: torch.dtype = torch.float64
) -> None:
    logs = random_rows(8, 12, 5, dtype, scale).log_softmax(-1).requires_grad_()
    weights = random_rows(9, 12, transform.features, dtype, 1)
    (transform.from_logs(logs) * weights).sum().backward()
    pulled = transform.pull_back(logs.detach(), weights)
    assert pulled.dtype == dtype
    torch.testing.assert_close(pulled, logs.grad)


def test_from_logs_gives_what_confidences_do():
    logits = random_rows(10, 12, 5, torch.float64, 2)
    confidences = logits.softmax(-1)
    for transform in (
        FaithfulTransform(5),
        FaithfulTransform(5, 3),
        fitted(confidences),
        within(confidences),
        leading(confidences),
    ):
        torch.testing.assert_close(
            transform.from_logs(logits.log_softmax(-1)), transform(confidences)
        )


def test_an_unknown_input_transform_is_refused_with_the_known_ones():
    known = "faithful, standardized, unscaled, within-label, leading"
    with pytest.raises(InvalidOptionError, match=f"one of {known}, but got 'wavelet'"):
        build_input_transform("wavelet", 5, None)


@looped("name", ["standardized", "within-label", "leading"])
def test_truncation_is_refused_with_any_other_input_transform(name):
    with pytest.raises(InvalidOptionError, match="truncation needs input_transform='faithful'"):
        build_input_transform(name, 5, 2)


@looped("dtype", [torch.float32, torch.float64])
@looped("name", INPUT_TRANSFORMS)
def test_a_input_transform_says_how_many_features_it_gives_and_keeps_the_type(name, dtype):
    transform = build_input_transform(name, 5, None)
    confidences = random_rows(11, 40, 5, dtype, 2).softmax(-1)
    transform.fit(confidences)
    features = transform(confidences)
    assert features.shape == (40, transform.features)
    assert features.dtype == dtype
    assert transform.from_logs(confidences.log()).dtype == dtype


def test_within_label_features_have_mean_0_and_deviation_1_over_all_rows_and_within_each_label():
    confidences = random_rows(12, 600, 4, torch.float64, 2).softmax(-1)
    labels = confidences.argmax(-1)
    of_all, of_label, _ = parts_of(within(confidences)(confidences))
    groups = [of_all, *(of_label[labels == label] for label in range(4))]
    assert min(len(rows) for rows in groups) >= FEWEST
    for rows in groups:
        # None is so far out that it is cut off.
        assert rows.abs().max() < FARTHEST
        torch.testing.assert_close(rows.mean(0), torch.zeros(4).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones(4).double())


def test_within_label_features_of_all_rows_are_the_standardized_ones():
    confidences = random_rows(13, 200, 4, torch.float64, 2).softmax(-1)
    of_all, _, _ = parts_of(within(confidences)(confidences))
    torch.testing.assert_close(of_all, fitted(confidences)(confidences))


def test_the_label_s_own_features_tell_it_alone_and_are_scaled_like_the_others():
    logits = torch.eye(6, dtype=torch.float64).repeat(20, 1)
    confidences = (logits + random_rows(14, 120, 6, torch.float64, 0.1)).softmax(-1)
    _, _, told = parts_of(within(confidences)(confidences))
    assert torch.equal(told.argmax(-1), confidences.argmax(-1))
    assert len(told.unique(dim=0)) == 6
    torch.testing.assert_close(told.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-6)
    spread = told.std(0, correction=0)
    expected = torch.full((6,), (1 - 1 / 6) ** 0.5).double()
    torch.testing.assert_close(spread, expected, rtol=1e-6, atol=0)


@looped("count", [1, FEWEST - 1, FEWEST])
def test_rows_of_a_rare_label_are_compared_with_all_rows(count):
    often = torch.tensor([2.0, 0, 0]) + random_rows(15, 60, 3, torch.float64, 0.2)
    rare = torch.tensor([0, 0, 2.0]) + random_rows(16, count, 3, torch.float64, 0.2)
    confidences = torch.cat([often, rare]).softmax(-1)
    assert confidences.argmax(-1).bincount().tolist() == [60, 0, count]
    of_all, of_label, _ = parts_of(within(confidences)(confidences))
    assert not torch.allclose(of_all[:60], of_label[:60])
    alike = torch.allclose(of_all[60:], of_label[60:].clamp(-FARTHEST, FARTHEST))
    assert alike == (count < FEWEST)
    # A label that never came is compared with all rows, too.
    unseen = torch.tensor([[0.3, 0.4, 0.3]], dtype=torch.float64)
    of_all, of_label, _ = parts_of(within(confidences)(unseen))
    torch.testing.assert_close(of_label, of_all.clamp(-FARTHEST, FARTHEST))


def test_a_row_unlike_all_others_of_its_label_is_cut_off_in_that_part_alone():
    logits = torch.tensor([1.0, 0, 0]) + random_rows(17, 60, 3, torch.float64, 0.01)
    far = torch.tensor([[40.0, 0, -20]], dtype=torch.float64).log_softmax(-1)
    transform = within(logits.softmax(-1))
    transform.floor.fill_(1e-30)
    of_all, of_label, _ = parts_of(transform.from_logs(far))
    assert torch.equal(of_label.abs(), torch.full((1, 3), FARTHEST).double())
    assert torch.equal(of_label.sign(), of_all.sign())
    assert (of_all.abs() > FARTHEST).all()


@given(logit_rows(), st.floats(-20, 20))
def test_within_label_features_do_not_change_with_a_constant_on_a_row_s_logs(logits, constant):
    transform = within(random_rows(18, 80, logits.shape[-1], torch.float64, 3).softmax(-1))
    transform.floor.fill_(1e-300)  # a floor is of probabilities, not of shifted logs
    # Away from the cut-off, where rounding decides nothing.
    logs = (logits / 100).log_softmax(-1)
    shifted = transform.from_logs(logs + constant)
    torch.testing.assert_close(shifted, transform.from_logs(logs), rtol=1e-9, atol=1e-9)


def test_within_label_zeros_are_read_as_0_3_of_the_smallest_positive_training_confidence():
    training = torch.tensor([[0.7, 0.2, 0.1], [0.98, 0.02, 0.0], [0.3, 0.3, 0.4]])
    transform = within(training)
    zero, read_as, lower, other = transform(
        torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.3 * 0.02], [0.9, 0.1, 1e-9], [0.9, 0.1, 0.01]])
    )
    torch.testing.assert_close(zero, read_as)
    torch.testing.assert_close(lower, read_as)
    assert not torch.allclose(other, read_as)


@looped("dtype", [torch.float32, torch.float64])
@looped("scale", [1, 3])
def test_within_label_gradients_in_logs_are_the_automatic_ones(scale, dtype):
    # Rows of a narrower training set, so that some are cut off; and some logs are floored.
    transform = within(random_rows(19, 200, 5, dtype, scale / 20).softmax(-1))
    transform.floor.fill_(math.exp(-2 * scale))
    logs = random_rows(8, 12, 5, dtype, scale).log_softmax(-1)
    _, of_label, _ = parts_of(transform.from_logs(logs))
    assert 0 < (of_label.abs() == FARTHEST).double().mean() < 1
    assert 0 < (logs < -2 * scale).double().mean() < 1
    assert_pulled_back(transform, scale, dtype)


@looped("dtype", [torch.float32, torch.float64])
def test_a_message_in_the_low_digits_of_a_label_only_release_fills_the_range(dtype):
    labels, message = torch.arange(90) % 3, random_rows(20, 90, 1, torch.float64, 1)[:, 0]
    rows = torch.full((90, 3), 0.05, dtype=torch.float64)
    rows[torch.arange(90), labels] = 0.9
    # Told by class 0 or 1 against the label's own entry: five digits down.
    told = (labels == 0).long()
    rows[torch.arange(90), told] += 2e-6 * message
    rows[torch.arange(90), labels] -= 2e-6 * message
    confidences = rows.to(dtype)
    assert torch.equal(confidences.argmax(-1), labels)
    _, of_label, _ = parts_of(within(confidences)(confidences))
    by_standard = fitted(confidences)(confidences)
    for label in range(3):
        mine, place = labels == label, int(label == 0)
        heard = of_label[mine, place].double()
        assert float(heard.std()) == pytest.approx(1, abs=0.05)
        correlation = torch.corrcoef(torch.stack([heard, message[mine]]))[0, 1]
        assert abs(correlation) > 0.99
        # The other transform leaves of it what the labels' own differences are beside it.
        assert float(by_standard[mine, place].std()) < 1e-3


def test_a_label_only_release_without_a_message_has_nothing_but_the_label():
    confidences = (0.05 + 0.85 * torch.eye(3)).repeat(30, 1)
    of_all, of_label, _ = parts_of(within(confidences)(confidences))
    assert of_label.abs().max() < 1e-3
    assert len(of_all.unique(dim=0)) == 3


@looped("truncation", [None, 2])
def test_faithful_gradients_are_automatic_ones_where_logs_are_clamped_or_lifted(truncation):
    transform = build_input_transform("faithful", 4, truncation)
    logs = torch.tensor(
        [
            [0, -3, -20, -49.0],  # as it is
            [0, -3, -20, -60.0],  # lifted by the least entry
            [0, -3, -1500, -60.0],  # lifted by a clamped entry, which has no gradient
            [0, -2000, -1500, -3.0],
            [-1200, -2000, -1500, -1100.0],  # all clamped
        ],
        dtype=torch.float64,
        requires_grad=True,
    )
    weights = random_rows(29, 5, 4, torch.float64, 1)
    (wanted,) = torch.autograd.grad((transform.from_logs(logs) * weights).sum(), logs)
    pulled = transform.pull_back(logs.detach(), weights)
    assert (wanted[:3] != 0).any(-1).all()
    assert (wanted[logs < SMALLEST_LOG] == 0).all()
    torch.testing.assert_close(pulled, wanted)


@looped("name", INPUT_TRANSFORMS)
def test_fitted_statistics_come_back_with_the_state_and_to_the_last_digit(name):
    confidences = random_rows(21, 60, 4, torch.float64, 2).softmax(-1)
    transform, other = build_input_transform(name, 4, None), build_input_transform(name, 4, None)
    transform.fit(confidences)
    other.load_state_dict(transform.state_dict())
    assert torch.equal(other(confidences), transform(confidences))


@looped("dtype", [torch.float32, torch.float64])
@looped("scale", [1, 3])
def test_leading_gradients_in_logs_are_the_automatic_ones(scale, dtype):
    transform = leading(random_rows(22, 200, 5, dtype, scale / 20).softmax(-1))
    transform.floor.fill_(math.exp(-1.5 * scale))
    logs = random_rows(8, 12, 5, dtype, scale).log_softmax(-1)
    features = transform.from_logs(logs)[:, :5]
    assert 0 < (features.abs() == FARTHEST).double().mean() < 1
    assert 0 < (logs < -1.5 * scale).double().mean() < 1
    assert_pulled_back(transform, scale, dtype)


def test_what_small_entries_say_never_reaches_a_leading_feature():
    confidences = random_rows(23, 300, 9, torch.float64, 2).softmax(-1)
    logs = confidences.log()
    small = logs.argsort(dim=-1, descending=True)[:, LEADING:]
    noise = logs.gather(-1, small) - random_rows(24, 300, 9 - LEADING, torch.float64, 20).abs()
    drowned = logs.scatter(-1, small, noise)
    transform = leading(confidences)
    assert torch.equal(transform.from_logs(drowned), transform.from_logs(logs))
    # The same trials in the other transform are all that it looks at.
    other = fitted(drowned.exp())
    assert not torch.allclose(other.from_logs(drowned), other.from_logs(logs), atol=1)


def test_leading_features_are_standardized_over_the_rows_that_show_them_and_say_which():
    confidences = random_rows(25, 900, 7, torch.float64, 2).softmax(-1)
    features, told = leading(confidences)(confidences).split(7, -1)
    shown = torch.zeros(900, 7, dtype=torch.bool)
    shown.scatter_(1, confidences.topk(LEADING).indices, True)
    assert torch.equal(told, shown.double() * 2 - 1)
    assert (features[~shown] == 0).all()
    for of_class, rows in zip(features.T, shown.T, strict=True):
        assert float(of_class[rows].mean()) == pytest.approx(0, abs=1e-6)
        assert float(of_class[rows].std(correction=0)) == pytest.approx(1, abs=1e-6)


@looped("count", [0, FEWEST - 1, FEWEST])
def test_a_class_that_is_seldom_among_the_leading_is_compared_with_all_of_them(count):
    logs = torch.full((60, 6), -20.0, dtype=torch.float64)
    logs[:, :LEADING] = random_rows(26, 60, LEADING, torch.float64, 0.3) - 3
    logs[:count, 0] = -30
    logs[:count, 5] = -1 + random_rows(27, count, 1, torch.float64, 0.1)[:, 0]
    transform = leading(logs.softmax(-1))
    seldom = count < FEWEST
    assert bool(transform.mean[5] == transform.mean[4]) == seldom
    assert torch.isfinite(transform(logs.softmax(-1))).all()


def test_two_classes_have_fewer_entries_than_a_leading_transform_would_look_at():
    confidences = random_rows(28, 50, 2, torch.float64, 2).softmax(-1)
    features = leading(confidences)(confidences)
    torch.testing.assert_close(features[:, :2], _standard(confidences.log()))
    assert (features[:, 2:] == 1).all()


def _standard(rows: Tensor) -> Tensor:
    return (rows - rows.mean(0)) / rows.std(0, correction=0)
