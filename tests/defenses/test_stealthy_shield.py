"""SSD: its closed form against a slow solver, its draws, and what its guard keeps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.contracts import TrainingData
from oneway.defenses.class_means import ClassMeans
from oneway.defenses.stealthy_shield import StealthyShield, pull_towards
from oneway.errors import InvalidOptionError
from rows import leads, random_rows, same_bits

CLASSES = 5


def by_bisection(clean, goal, radius):
    """Find both levels by halving an interval: the conditions of optimality, one row at a time."""
    if np.abs(clean - goal).sum() <= radius:
        return goal

    def level(moved):
        low, high = 0.0, float((clean / goal).max()) + 1
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if moved(middle) else (low, middle)
        return low

    lower = level(lambda w: np.maximum(w * goal - clean, 0).sum() < radius / 2)
    upper = level(lambda w: np.maximum(clean - w * goal, 0).sum() > radius / 2)
    return np.minimum(np.maximum(clean, lower * goal), upper * goal)


def divergence(rows, goal):
    return torch.where(rows > 0, rows * (rows / goal).log(), 0).sum(-1)


@st.composite
def problems(draw):
    classes, rows = draw(st.integers(2, 9)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.1, 1.0, 4.0, 30.0]))
    seed = draw(st.integers(0, 10_000))
    clean = random_rows(seed, rows, classes, torch.float64, scale).softmax(-1)
    goal = random_rows(seed + 1, rows, classes, torch.float64, 2).softmax(-1)
    radius = draw(st.floats(0, 2)) * torch.ones(rows, dtype=torch.float64)
    return clean, goal, radius


@given(problems())
def test_equals_a_bisection_of_the_conditions_of_optimality(problem):
    clean, goal, radius = problem
    pulled = pull_towards(clean, goal, radius)
    rows = zip(*(part.numpy() for part in problem), strict=True)
    expected = torch.from_numpy(np.stack([by_bisection(*row) for row in rows]))
    torch.testing.assert_close(pulled, expected, rtol=1e-9, atol=1e-12)


@given(problems())
def test_the_result_is_a_distribution_within_the_ball(problem):
    clean, goal, radius = problem
    pulled = pull_towards(clean, goal, radius)
    assert (pulled >= 0).all()
    torch.testing.assert_close(pulled.sum(-1), torch.ones_like(radius))
    assert ((pulled - clean).abs().sum(-1) <= radius + 1e-12).all()


@given(problems(), st.integers(0, 10_000))
def test_no_other_distribution_within_the_ball_is_nearer_to_the_goal(problem, seed):
    clean, goal, radius = problem
    best = divergence(pull_towards(clean, goal, radius), goal)
    generator = torch.Generator().manual_seed(seed)
    shape = (300, *clean.shape)
    other = torch.rand(shape, generator=generator, dtype=torch.float64).pow(4)
    other = other / other.sum(-1, keepdim=True)
    # Half of them start from the goal's side, where rivals are near.
    other[::2] = 0.1 * other[::2] + 0.9 * goal
    length = (other - clean).abs().sum(-1, keepdim=True)
    rivals = clean + (other - clean) * (radius.unsqueeze(-1) / length).clamp_max(1)
    assert (divergence(rivals, goal) >= best - 1e-12).all()


def test_thousands_of_rows_and_classes_are_solved_at_once():
    clean = random_rows(1, 500, 1000, torch.float64, 3).softmax(-1)
    goal = random_rows(2, 500, 1000, torch.float64, 1).softmax(-1)
    radius = torch.full((500,), 0.3, dtype=torch.float64)
    pulled = pull_towards(clean, goal, radius)
    torch.testing.assert_close((pulled - clean).abs().sum(-1), radius)
    torch.testing.assert_close(pulled.sum(-1), torch.ones_like(radius))


def means(classes=CLASSES):
    network = ClassMeans(classes)
    network.fit(random_rows(5, 40 * classes, classes, torch.float32, 1))
    return network


def guarded(**options):
    return StealthyShield(means(), label_guarded=True, **options)


@looped("epsilon", [0.35, 0.8])
def test_the_guarded_form_keeps_label_and_budget(epsilon):
    logits = random_rows(1, 300, CLASSES, torch.float64, 1)
    clean = logits.softmax(-1)
    told = guarded(epsilon=epsilon)(logits)
    budget = epsilon * torch.distributions.Categorical(clean).entropy()
    distance = (told.softmax(-1) - clean).abs().sum(-1)
    assert (distance <= budget + 1e-9).all()
    assert ((distance - budget).abs() < 1e-9).any()
    assert leads(told, logits.argmax(-1))


def test_a_wide_ball_reaches_the_mean_of_the_predicted_label():
    logits, network = random_rows(1, 50, CLASSES, torch.float64, 0.5), means()
    told = StealthyShield(network, label_guarded=True, epsilon=9.0)(logits)
    torch.testing.assert_close(told.softmax(-1), network.means[logits.argmax(-1)])


def test_a_certain_row_stays():
    logits = torch.tensor([[900.0, 0, 0, 0, 0]], dtype=torch.float64)
    assert torch.equal(guarded()(logits).softmax(-1), logits.softmax(-1))


@looped("temperature", [0.1, 1.0])
def test_the_label_is_drawn_from_the_softmax_of_the_confidences(temperature):
    logits, network, count = random_rows(3, 4, CLASSES, torch.float64, 0.3), means(), 4000
    shield = StealthyShield(
        network,
        epsilon=9.0,
        temperature=temperature,
        generator=torch.Generator().manual_seed(0),
    )
    drawn = shield.draws(logits, None, count).softmax(-1)
    label = torch.cdist(drawn.flatten(0, 1), network.means).argmin(-1).view(count, -1)
    expected = (logits.softmax(-1) / temperature).softmax(-1)
    for k in range(CLASSES):
        share = (label == k).double().mean(0)
        spread = (expected[:, k] * (1 - expected[:, k]) / count).sqrt()
        assert ((share - expected[:, k]).abs() < 4.5 * spread + 1e-4).all()


def test_the_guarded_form_draws_nothing_and_needs_no_generator():
    logits = random_rows(3, 4, CLASSES, torch.float32, 1)
    shield = guarded()
    assert shield.generator is None
    assert (shield.deterministic, shield.keeps_label) == (True, True)
    assert same_bits(shield.draws(logits, None, 2)[1], shield(logits))
    free = StealthyShield(means(), generator=torch.Generator())
    assert (free.deterministic, free.keeps_label) == (False, False)


def test_means_are_of_true_classes_as_published_unless_predicted_ones_are_asked_for():
    logits, images = random_rows(5, 200, CLASSES, torch.float32, 1), torch.zeros(200, 1, 2, 2)
    labels = (logits.argmax(-1) + (torch.arange(200) % 3 == 0)) % CLASSES
    data = TrainingData(None, None, None, images, logits, auxiliary_labels=labels)
    seed = torch.Generator()
    true, _ = StealthyShield.train(data, generator=seed)
    predicted, _ = StealthyShield.train(data, generator=seed, means_of="predicted")
    torch.testing.assert_close(predicted.means, means_of(logits, logits.argmax(-1)))
    torch.testing.assert_close(true.means, means_of(logits, labels))
    assert not torch.equal(true.means, predicted.means)
    unlabelled = TrainingData(None, None, None, images, logits)
    with pytest.raises(InvalidOptionError, match="Pass their labels, or set means_of"):
        StealthyShield.train(unlabelled, generator=seed)


def means_of(logits, labels):
    rows = logits.double().softmax(-1)
    return torch.stack([rows[labels == label].mean(0) for label in range(CLASSES)])


def test_the_guarded_form_keeps_labels_though_most_of_a_class_is_taken_for_another():
    network = ClassMeans(CLASSES)
    logits = random_rows(5, 200, CLASSES, torch.float32, 1)
    network.fit(logits, (logits.argmax(-1) + 1) % CLASSES)
    assert not torch.equal(network.means.argmax(-1), torch.arange(CLASSES))
    told = StealthyShield(network, label_guarded=True, epsilon=9.0)(logits)
    assert leads(told, logits.argmax(-1))
