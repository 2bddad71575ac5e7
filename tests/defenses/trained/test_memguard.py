"""MemGuard: what its classifier learns, what noise does to it, and whose choice is whose."""

import pytest
import torch
from torch import nn

from oneway.contracts import TrainingData
from oneway.defenses.trained import MemGuard
from oneway.defenses.trained.memguard import MembershipClassifier
from oneway.errors import InvalidOptionError, InvalidTensorError
from rows import leads, random_rows, same_bits
from surrogates import random_images

CLASSES = 5


class Scores(nn.Module):
    """A target whose logits are the first pixels, scaled: surer of brighter images."""

    def forward(self, images):
        return 12 * images.flatten(1)[:, :CLASSES]


def training_data(private=120, others=60):
    """Members have scores of many sizes, others have even ones."""
    images = random_images(1, private)
    logits = random_rows(2, others, CLASSES, torch.float32, 0.2)
    return TrainingData(Scores(), images, None, images[:0], logits)


def train(seed=0, order=0, given=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MemGuard.train(
            given or training_data(),
            generator=torch.Generator().manual_seed(order),
            **{"epochs": 12, "hidden": 32, "learning_rate": 1e-2} | options,
        )


@pytest.fixture(scope="module")
def trained():
    return train()


@pytest.fixture(scope="module")
def network(trained):
    return trained[0]


def odds(network, logits):
    with torch.no_grad():
        return network(logits.to(network.layers[0].weight.dtype).softmax(-1))


def test_the_classifier_tells_members_from_others_whatever_their_counts(trained):
    network, facts = trained
    given = training_data()
    own = odds(network, given.target(given.private_images))
    others = odds(network, given.auxiliary_logits)
    right = ((own > 0).double().mean() + (others <= 0).double().mean()) / 2
    assert float(right) > 0.9
    assert facts == {"balanced_accuracy": pytest.approx(float(right), abs=1e-6)}
    # With few others, these are not given up.
    few, facts = train(given=training_data(private=200, others=8))
    assert (odds(few, training_data(others=8).auxiliary_logits) <= 0).double().mean() > 0.7


def test_the_classifier_sees_sorted_confidences(network):
    rows = random_rows(3, 9, CLASSES, torch.float32, 2).softmax(-1)
    torch.testing.assert_close(network(rows), network(rows.flip(-1)))


def test_noise_makes_the_odds_even_and_keeps_the_label(network):
    logits = random_rows(4, 80, CLASSES, torch.float64, 2)
    told = MemGuard(network, budget=10.0, steps=100)(logits)
    before, after = odds(network, logits), odds(network, told)
    moved = (told.softmax(-1) - logits.softmax(-1)).abs().sum(-1) > 1e-9
    assert moved.double().mean() > 0.5
    assert (before.sign() != after.sign())[moved].all()
    assert after[moved].abs().mean() < 0.5 * before[moved].abs().mean()
    assert leads(told, logits.argmax(-1))


def test_raising_the_weight_of_the_distortion_lowers_it(network, monkeypatch):
    logits = random_rows(4, 60, CLASSES, torch.float64, 2)
    told = MemGuard(network, budget=10.0, steps=100)(logits)
    monkeypatch.setattr("oneway.defenses.trained.memguard.DISTORTION_WEIGHTS", (0.1,))
    once = MemGuard(network, budget=10.0, steps=100)(logits)
    clean = logits.softmax(-1)
    least, first = ((rows.softmax(-1) - clean).abs().sum(-1) for rows in (told, once))
    assert least.mean() < 0.995 * first.mean()


def test_the_budget_is_kept_on_average_over_the_choice(network):
    logits = random_rows(5, 300, CLASSES, torch.float64, 2)
    clean, budget = logits.softmax(-1), 0.1
    whole = (MemGuard(network, budget=10.0, steps=60)(logits).softmax(-1) - clean).abs().sum(-1)
    told = (MemGuard(network, budget=budget, steps=60)(logits).softmax(-1) - clean).abs().sum(-1)
    # Rows keep all of their noise or none of it.
    kept = told > 1e-12
    torch.testing.assert_close(told[kept], whole[kept])
    chance = (budget / whole.clamp_min(1e-12)).clamp_max(1)
    spread = (chance * (1 - chance)).sum().sqrt()
    assert abs(float((whole > 1e-12)[kept].sum() - chance[whole > 1e-12].sum())) < 4.5 * spread
    assert 0 < kept.double().mean() < (whole > 1e-12).double().mean()


def test_the_choice_is_the_query_s_and_the_key_s(network):
    logits = random_rows(5, 40, CLASSES, torch.float64, 2)
    options = {"budget": 0.1, "steps": 25}
    guard = MemGuard(network, **options)
    told = guard(logits)
    assert same_bits(told, guard(logits))
    assert same_bits(told, MemGuard(network, **options)(logits))
    alone = torch.cat([guard(row) for row in logits[:5].split(1)])
    torch.testing.assert_close(alone, told[:5])
    # Last bits, and a constant per row, change nothing; another key chooses otherwise.
    torch.testing.assert_close(guard(logits + 3), told, rtol=0, atol=1e-9)
    other = MembershipClassifier(**network.architecture)
    other.load_state_dict(network.state_dict())
    other.key += 1
    assert not torch.equal(MemGuard(other, **options)(logits), told)


def test_choices_are_uniform(network):
    guard = MemGuard(network)
    numbers = guard._uniform(random_rows(6, 3000, CLASSES, torch.float64, 2)).sort().values
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert (numbers - torch.arange(1, 3001) / 3000).abs().max() < 2.3 / 3000**0.5


def test_it_answers_in_inference_mode_and_changes_neither_query_nor_network(network):
    logits = random_rows(7, 20, CLASSES, torch.float32, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    guard = MemGuard(network, steps=40)
    wanted = guard(logits)
    with torch.inference_mode():
        told = guard(logits.clone())
    assert same_bits(told.clone(), wanted)
    assert not wanted.requires_grad
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype


def test_seeds_decide_classifier_and_key():
    def state(**seeds):
        values = train(epochs=1, **seeds)[0].state_dict()
        return values.pop("key"), torch.cat([value.flatten() for value in values.values()])

    key, weights = state()
    assert torch.equal(key, state()[0])
    assert torch.equal(weights, state()[1])
    assert torch.equal(key, state(seed=1)[0])
    assert not torch.equal(weights, state(seed=1)[1])
    assert not torch.equal(key, state(order=1)[0])
    assert (key != 0).all()


def test_progress_is_reported():
    shares = []
    train(epochs=4, on_epoch=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_what_is_not_at_hand_is_said(network):
    given = training_data()
    for target, images in ((None, given.private_images), (given.target, None)):
        apart = TrainingData(target, images, None, given.auxiliary_images, given.auxiliary_logits)
        with pytest.raises(InvalidOptionError, match="they are not at hand"):
            train(given=apart)
    with pytest.raises(InvalidTensorError, match=r"over the 5 classes.*\(2, 4\)"):
        MemGuard(network)(torch.zeros(2, 4))
