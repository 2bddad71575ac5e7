"""MID: what its codes tell, how its answers are drawn, and what its training weighs."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence

from laws import looped
from oneway.contracts import RepeatableDefense, TrainingData
from oneway.defenses.trained import MutualInformation
from oneway.defenses.trained.mutual_information import BottleneckNetwork, divergence
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets import TargetNetwork
from pictures import CLASSES, bars
from rows import lead_of, leads, random_rows
from surrogates import random_images


def training_data(rows=96, shift=0):
    """Bars as private images, labelled as they are or otherwise; noise as auxiliary ones."""
    images, labels = bars(rows, seed=0)
    torch.manual_seed(0)
    target = TargetNetwork(CLASSES, (1, 12, 12), width=4, blocks=2, dropout=0.25)
    auxiliary, _ = bars(30, seed=3)
    return TrainingData(
        target, images, (labels + shift) % CLASSES, auxiliary, torch.zeros(30, CLASSES)
    )


def train(beta, order=0, seed=0, shift=0, rows=96, **options):
    given = {"epochs": 6, "batch_size": 16, "learning_rate": 0.01} | options
    with torch.random.fork_rng():
        known = training_data(rows, shift)
        torch.manual_seed(seed)
        return MutualInformation.train(
            known, beta=beta, generator=torch.Generator().manual_seed(order), **given
        )


def network(seed=0, classes=CLASSES, image_shape=(1, 12, 12)):
    """Build an untrained network whose codes spread about as far as their means do."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = BottleneckNetwork(classes, image_shape, width=4, blocks=2).eval()
        with torch.no_grad():
            built.encode.bias[built.code :] += 5
    return built


def defense(seed=0, classes=CLASSES, **options):
    return MutualInformation(
        network(classes=classes).train(),  # put back in eval mode
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


def numbers(low, high):
    return st.floats(low, high, width=32)


@given(st.data(), st.integers(1, 4), st.integers(1, 6))
def test_divergence_is_that_of_a_gaussian_from_a_standard_one(data, rows, code):
    def draw(entry):
        row = st.lists(entry, min_size=code, max_size=code)
        return torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows)))

    mean, spread = draw(numbers(-10, 10)), draw(numbers(2.0**-10, 10))
    told = kl_divergence(Normal(mean.double(), spread.double()), Normal(0.0, 1.0))
    expected = told.sum(-1).mean()
    torch.testing.assert_close(divergence(mean, spread).double(), expected, rtol=1e-4, atol=1e-4)
    one, other = mean.numpy().astype(np.float64), spread.numpy().astype(np.float64)
    plain = 0.5 * (one**2 + other**2 - 1 - np.log(other**2))
    assert float(expected) == pytest.approx(plain.sum() / rows, abs=1e-9)


def test_divergence_is_0_of_a_standard_gaussian_and_finite_where_the_spread_vanishes():
    assert float(divergence(torch.zeros(3, 4), torch.ones(3, 4))) == 0
    assert math.isfinite(divergence(torch.zeros(3, 4), torch.zeros(3, 4)))


@looped(("classes", "code"), [(3, 7), (4, 10)])
@torch.no_grad()
def test_the_code_is_half_as_long_as_the_features(classes, code):
    built = network(classes=classes)
    features = built.features(random_images(1, 6, (1, 12, 12)))
    assert features.shape == (6, 5 * classes)
    mean, spread = built.encoded(random_images(1, 6, (1, 12, 12)))
    assert mean.shape == spread.shape == (6, code)
    both = built.encode(features[:, : 2 * code]).numpy()
    np.testing.assert_allclose(mean, both[:, :code], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spread, np.log1p(np.exp(both[:, code:] - 5)), rtol=1e-4, atol=1e-6)


def test_the_last_training_batch_s_divergence_is_told_and_differentiated():
    built = network()
    with pytest.raises(InvalidOptionError, match="before a batch in training mode"):
        built.divergence()
    images = random_images(1, 8, (1, 12, 12))
    for module in built.features:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    built.train()
    built(images[:4])
    built(images[4:])
    expected = divergence(*built.encoded(images[4:]))
    torch.testing.assert_close(built.divergence(), expected)
    built.divergence().backward()
    assert built.encode.weight.grad.abs().sum() > 0
    built.eval()(images[:4])  # an answer is no training batch
    torch.testing.assert_close(built.divergence(), expected)


def moments(built, images):
    """Return the exact mean ``(N, K)`` and covariance ``(N, K, K)`` of the random logits."""
    mean, spread = (side.double() for side in built.encoded(images))
    weight, bias = (side.double() for side in (built.classify.weight, built.classify.bias))
    factor = weight * spread.unsqueeze(1)
    return mean @ weight.T + bias, factor @ factor.mT


ASKED = {
    "draws": lambda made, logits, images, count: made.draws(logits, images, count),
    "calls": lambda made, logits, images, count: torch.stack(
        [made(logits, images) for _ in range(count)]
    ),
    "network": lambda made, _, images, count: torch.stack(
        [made.state(images) for _ in range(count)]
    ),
}


@looped("asked", ASKED)
@torch.no_grad()
def test_answers_have_the_mean_and_the_covariance_of_a_linear_map_of_the_code(asked):
    made, count = defense(), 1200
    images, logits = random_images(1, 2, (1, 12, 12)), torch.zeros(2, CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        answers = ASKED[asked](made, logits, images, count).double()
    mean, covariance = moments(made.state, images)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert (answers.mean(0) - mean).abs().le(5 * (variance / count).sqrt()).all()
    apart = answers - mean
    found = torch.einsum("rnj,rnk->njk", apart, apart) / count
    scale = (variance.unsqueeze(-1) * variance.unsqueeze(-2)).sqrt()
    assert ((found - covariance).abs() / scale).max() < 5 * (2 / count) ** 0.5
    # Neither two askings nor two queries share their noise.
    unit = apart / variance.sqrt()
    assert (unit[1:] * unit[:-1]).mean(0).abs().max() < 5 / count**0.5
    assert (unit[:, 0] * unit[:, 1]).mean(0).abs().max() < 5 / count**0.5


def test_answers_are_random_yet_the_same_with_the_same_seed():
    images, logits = random_images(1, 6, (1, 12, 12)), torch.zeros(6, CLASSES)
    one, again, other = (defense(seed) for seed in (4, 4, 5))
    state = torch.get_rng_state()
    first = one(logits, images)
    assert torch.equal(first, again(logits, images))
    second = one(logits, images)
    assert torch.equal(second, again(logits, images))
    assert (first != second).all()
    assert (first != other(logits, images)).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(one, RepeatableDefense)
    assert (one.requires_input, one.keeps_label, one.deterministic) == (True, False, False)


def test_one_draw_is_a_call():
    images, logits = random_images(1, 6, (1, 12, 12)), torch.zeros(6, CLASSES)
    [draw] = defense(4).draws(logits, images, 1)
    assert torch.equal(draw, defense(4)(logits, images))
    assert defense().draws(logits, images, 7).shape == (7, 6, CLASSES)
    assert defense().draws(logits[:0], images[:0], 7).shape == (7, 0, CLASSES)


def test_clean_scores_are_not_in_the_answers():
    images, logits = random_images(1, 6, (1, 12, 12)), random_rows(2, 6, CLASSES, torch.float32, 3)
    assert torch.equal(defense(4)(logits, images), defense(4)(-logits, images))


@looped("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@looped("seed", range(3))
def test_the_label_is_lifted_in_every_draw_and_nothing_else_where_it_is_to_be_kept(dtype, seed):
    images, logits = random_images(seed, 9, (1, 12, 12)), random_rows(seed, 9, CLASSES, dtype, 3)
    logits[0] = 0
    labels = logits.argmax(-1)
    made = defense(seed, keep_label=True, margin=0.25)
    assert made.keeps_label
    assert leads(made(logits, images), labels)
    kept = defense(seed, keep_label=True, margin=0.25).draws(logits, images, 50)
    free = defense(seed).draws(logits, images, 50)
    every = labels.expand(50, -1)
    assert kept.dtype == free.dtype == dtype
    assert not torch.equal(free.argmax(-1), every)
    assert leads(kept, every)
    index = every.unsqueeze(-1)
    assert torch.equal(kept.scatter(-1, index, 0), free.scatter(-1, index, 0))
    assert (lead_of(kept, every) > 0.25 - 4 * torch.finfo(dtype).eps * kept.abs().max()).all()


def test_images_of_another_type_than_the_network_are_answered():
    images, logits = random_images(1, 6, (1, 12, 12)), torch.zeros(6, CLASSES)
    torch.testing.assert_close(defense(4)(logits, images.double()), defense(4)(logits, images))


@torch.no_grad()
def accuracy(built, shift=0):
    images, labels = bars(60, seed=5)
    made = MutualInformation(built, generator=torch.Generator().manual_seed(0))
    answers = made.draws(torch.zeros(60, CLASSES), images, 20)
    return float((answers.argmax(-1) == (labels + shift) % CLASSES).double().mean())


def test_what_is_learned_are_the_private_labels():
    built, _ = train(beta=1e-3)
    assert accuracy(built) > 0.95
    assert not any(module.training for module in built.modules())
    shifted, _ = train(beta=1e-3, shift=1)
    assert accuracy(shifted, shift=1) > 0.95


def test_a_higher_weight_tells_less_and_a_very_high_one_ruins_the_accuracy():
    made = {beta: train(beta) for beta in (0.0, 0.02, 0.1, 10.0)}
    nats = [facts["divergence_nats"] for _, facts in made.values()]
    assert nats[0] > 2 * nats[1] > 2 * nats[2] > 2 * nats[3]
    assert accuracy(made[0.0][0]) > 0.95
    assert accuracy(made[10.0][0]) < 0.6


def test_the_divergence_recorded_is_over_the_auxiliary_images():
    built, facts = train(beta=0.01, epochs=2)
    expected, elsewhere = (divergence(*built.encoded(bars(30, seed)[0])).item() for seed in (3, 4))
    assert facts == {"divergence_nats": pytest.approx(expected, rel=1e-5)}
    assert elsewhere != pytest.approx(expected, rel=1e-5)


def test_the_target_s_architecture_is_retrained_and_the_target_left_alone():
    known = training_data()
    before = copy.deepcopy(known.target.state_dict())
    shares = []
    built, _ = MutualInformation.train(
        known,
        beta=0.01,
        generator=torch.Generator().manual_seed(0),
        epochs=2,
        on_epoch=shares.append,
    )
    assert isinstance(built, MutualInformation.state_type)
    assert built.architecture == known.target.architecture
    assert shares == [0.5, 1.0]
    after = known.target.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    again = BottleneckNetwork(**built.architecture).eval()
    again.load_state_dict(built.state_dict())
    images = random_images(1, 4, (1, 12, 12))
    torch.testing.assert_close(again.encoded(images), built.encoded(images))


def test_seeds_decide_the_network():
    one, again, other, reordered = (
        torch.cat([value.flatten() for value in train(0.01, epochs=1, **seeds)[0].parameters()])
        for seeds in ({}, {}, {"seed": 1}, {"order": 1})
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, reordered)


def test_a_target_of_another_kind_is_refused_with_the_remedy():
    images, labels = bars(6, seed=0)
    strange = TrainingData(nn.Identity(), images, labels, images, torch.zeros(6, CLASSES))
    with pytest.raises(InvalidOptionError, match=r"target is a Identity\. Retrain your own"):
        MutualInformation.train(strange, beta=0.01, generator=torch.Generator())


@looped("absent", ["private_images", "private_labels"])
def test_what_is_not_at_hand_is_said_before_any_work(absent):
    known = dataclasses.replace(training_data(), **{absent: None})
    with pytest.raises(InvalidOptionError, match=r"not at hand\. Use a defense that needs no retr"):
        MutualInformation.train(known, beta=0.01, generator=torch.Generator())


def test_a_target_that_only_answers_is_refused_with_the_remedy():
    known = dataclasses.replace(training_data(), target=None)
    with pytest.raises(InvalidOptionError, match=r"target is a NoneType\. Retrain your own"):
        MutualInformation.train(known, beta=0.01, generator=torch.Generator())


def test_images_are_needed_and_one_per_row_of_scores():
    with pytest.raises(InvalidTensorError, match="images must be given"):
        defense()(torch.zeros(6, CLASSES))
    with pytest.raises(InvalidTensorError, match="one per row of scores, 6, but got 5"):
        defense()(torch.zeros(6, CLASSES), random_images(1, 5, (1, 12, 12)))
    with pytest.raises(InvalidTensorError, match="logits must be floating"):
        defense().draws(torch.zeros(6, CLASSES).long(), random_images(1, 6, (1, 12, 12)), 2)


@looped("generator", [None, 0, "cpu"])
def test_a_generator_is_needed_so_that_no_global_stream_is_drawn_from(generator):
    with pytest.raises(InvalidOptionError, match=r"generator must be a torch\.Generator"):
        MutualInformation(network(), generator=generator)
