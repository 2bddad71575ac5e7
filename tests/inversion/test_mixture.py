"""Laws of mixtures: what non-negative least squares promises, against an independent solver."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneway.errors import InvalidTensorError
from oneway.inversion import Mixture, mix_decoders, non_negative_weights
from optional import later

nnls = later("scipy.optimize:nnls")

SEEDS, COUNTS = st.integers(0, 10**6), st.integers(1, 6)


def drawn(seed, count, shape=(7, 2, 3)):
    """Return candidates that know something of the truth, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=generator)
    noise = torch.randn(count, *shape, generator=generator)
    share = torch.rand(count, generator=generator).view(-1, *[1] * len(shape))
    return share * truth + 0.3 * noise, truth


@given(SEEDS, COUNTS)
def test_weights_are_those_of_an_independent_solver(seed, count):
    candidates, truth = drawn(seed, count)
    weights = non_negative_weights(candidates, truth)
    expected, _ = nnls(candidates.flatten(1).T.double().numpy(), truth.flatten().double().numpy())
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-6)


@given(SEEDS, COUNTS)
def test_no_candidate_errs_less_than_the_mixture_on_the_rows_it_is_fitted_to(seed, count):
    candidates, truth = drawn(seed, count)
    weights = non_negative_weights(candidates, truth).float()
    mixed = torch.einsum("c,c...->...", weights, candidates)
    least = min(float((each - truth).square().mean()) for each in candidates)
    assert float((mixed - truth).square().mean()) <= least + 1e-6


def test_the_order_of_candidates_changes_nothing_and_equal_candidates_share_a_weight():
    candidates, truth = drawn(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    weights = non_negative_weights(candidates, truth)
    torch.testing.assert_close(non_negative_weights(candidates[order], truth), weights[order])
    twice = non_negative_weights(torch.cat([candidates, candidates[:1]]), truth)
    torch.testing.assert_close(twice[0] + twice[-1], weights[0])


@pytest.mark.parametrize("shape", [(0, 7, 2, 3), (2, 7, 2, 4), (2, 6, 2, 3)])
def test_candidates_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidTensorError, match="candidates must be of shape"):
        non_negative_weights(torch.zeros(shape), torch.zeros(7, 2, 3))


def decoder(weight):
    network = torch.nn.Linear(2, 3, bias=False)
    network.weight.data = torch.tensor(weight)
    return network


def test_mixed_decoders_answer_with_the_weighted_sum_and_useless_ones_are_left_out():
    generator = torch.Generator().manual_seed(0)
    confidences = torch.rand(20, 2, generator=generator)
    first = decoder([[0.4, 0.0], [0.0, 0.2], [0.1, 0.1]])
    second = decoder([[0.0, 0.5], [0.3, 0.0], [0.2, 0.0]])
    wrong = decoder([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    with torch.no_grad():
        truth = 0.75 * first(confidences) + 0.5 * second(confidences)
    mixed = mix_decoders([first, wrong, second], confidences, truth)
    assert isinstance(mixed, Mixture)
    assert len(mixed.decoders) == 2
    torch.testing.assert_close(mixed.weights, torch.tensor([0.75, 0.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed(confidences), truth, atol=1e-4, rtol=0)


def test_a_single_decoder_and_decoders_without_any_use_stay_as_they_are():
    confidences, truth = torch.rand(5, 2), torch.rand(5, 3)
    wrong, other = decoder([[-1.0, -1.0]] * 3), decoder([[-2.0, -1.0]] * 3)
    assert mix_decoders([wrong], confidences, truth) is wrong
    assert mix_decoders([wrong, other], confidences, truth) is wrong


def test_a_candidate_that_is_not_finite_has_no_weight():
    candidates, truth = drawn(5, 3)
    candidates[1, 0, 0, 0] = torch.nan
    weights = non_negative_weights(candidates, truth)
    assert float(weights[1]) == 0
    alone = non_negative_weights(candidates[[0, 2]], truth)
    torch.testing.assert_close(weights[[0, 2]], alone)
    nothing = non_negative_weights(candidates[1:2], truth)
    assert nothing.tolist() == [0]
