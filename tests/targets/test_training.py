"""What training a target promises."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from laws import looped
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from oneway.targets import TargetNetwork, TargetTrainingSettings, train_target
from pictures import CLASSES, bars


def train(images, labels, seed=1, on_epoch=None, penalty=None, **settings):
    torch.manual_seed(0)
    network = TargetNetwork(CLASSES, images.shape[1:], width=4, blocks=2)
    train_target(
        network,
        images,
        labels,
        settings=TargetTrainingSettings(**{"epochs": 6, "batch_size": 16} | settings),
        generator=torch.Generator().manual_seed(seed),
        penalty=penalty,
        on_epoch=on_epoch,
    )
    return network


@torch.no_grad()
def accuracy(network, images, labels):
    return float((network(images).argmax(-1) == labels).double().mean())


def test_a_separable_set_is_learned_and_the_network_left_in_eval_mode():
    network = train(*bars(96, seed=0), learning_rate=0.01)
    assert not any(module.training for module in network.modules())
    assert accuracy(network, *bars(60, seed=5)) > 0.95


def test_what_is_learned_are_the_labels_given():
    images, labels = bars(96, seed=0)
    network = train(images, (labels + 1) % CLASSES, learning_rate=0.01)
    fresh, truth = bars(60, seed=5)
    assert accuracy(network, fresh, (truth + 1) % CLASSES) > 0.95
    assert accuracy(network, fresh, truth) < 0.05


def test_seeds_decide_the_weights():
    one, again, other = (train(*bars(40, seed=0), seed=seed, epochs=2) for seed in (1, 1, 2))
    weights = [
        torch.cat([value.flatten() for value in n.parameters()]) for n in (one, again, other)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_each_epoch_is_reported_with_its_mean_loss():
    seen = []
    train(*bars(90, seed=0), learning_rate=0.01, on_epoch=lambda *facts: seen.append(facts))
    epochs, losses = zip(*seen, strict=True)
    assert epochs == (1, 2, 3, 4, 5, 6)
    assert losses[-1] < 0.5 * losses[0]


class Constant(nn.Module):
    """Answers with its bias, whatever comes."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, images):
        return self.bias.expand(len(images), -1)


def test_the_loss_is_a_mean_over_rows_however_they_fall_into_batches():
    images, _ = bars(10, seed=0)
    labels = torch.zeros(10, dtype=torch.int64)
    seen = []
    train_target(
        Constant(),
        images,
        labels,
        settings=TargetTrainingSettings(epochs=1, batch_size=4, learning_rate=1e-9),
        generator=torch.Generator().manual_seed(0),
        on_epoch=lambda _, loss: seen.append(loss),
    )
    assert seen == [pytest.approx(math.log(CLASSES), rel=1e-5)]


def first_loss(network, images, labels, smoothing=0.0, penalty=None):
    """Return the loss of the first epoch's only batch, before any step."""
    seen = []
    train_target(
        network,
        images,
        labels,
        settings=TargetTrainingSettings(
            epochs=1, batch_size=len(images), learning_rate=1e-9, label_smoothing=smoothing
        ),
        generator=torch.Generator().manual_seed(0),
        penalty=penalty,
        on_epoch=lambda _, loss: seen.append(loss),
    )
    return seen[0]


@looped("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_spreads_its_share_of_the_label_over_all_classes(smoothing):
    images, labels = bars(6, seed=0)[0], torch.tensor([0, 0, 0, 0, 2, 1])
    network, scores = Constant(), torch.tensor([2.0, 0.5, -1.0])
    with torch.no_grad():
        network.bias.copy_(scores)
    surprise = np.log(np.exp(scores.numpy()).sum()) - scores.numpy()
    wanted = np.full((6, CLASSES), smoothing / CLASSES)
    wanted[np.arange(6), labels.numpy()] += 1 - smoothing
    expected = (wanted * surprise).sum(-1).mean()
    assert first_loss(network, images, labels, smoothing) == pytest.approx(expected, rel=1e-5)


def test_a_constant_schedule_is_yang_s_adam_with_amsgrad():
    """Against the update rule of Reddi et al., ICLR 2018, on a gradient that is known."""
    images, labels = bars(4, seed=0)[0], torch.tensor([0, 0, 0, 1])
    network = Constant()
    rate, steps, shares = 0.1, 5, np.array([0.75, 0.25, 0.0])
    train_target(
        network,
        images,
        labels,
        settings=TargetTrainingSettings(
            epochs=steps, learning_rate=rate, batch_size=4, schedule="constant"
        ),
        generator=torch.Generator().manual_seed(0),
    )
    bias, first, second, most = np.zeros((4, CLASSES))
    for step in range(1, steps + 1):
        gradient = np.exp(bias) / np.exp(bias).sum() - shares
        first = 0.5 * first + 0.5 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        most = np.maximum(most, second)
        size = rate / (1 - 0.5**step)
        bias = bias - size * first / (np.sqrt(most / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(network.bias.detach().numpy(), bias, rtol=1e-4)


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"schedule 'constnt'.*mean 'constant'"):
        TargetTrainingSettings(schedule="constnt")


def test_label_smoothing_makes_scores_less_saturated():
    images, labels = bars(96, seed=0)
    sharp, smooth = (
        train(images, labels, learning_rate=0.01, label_smoothing=share) for share in (0.0, 0.3)
    )
    top = [network(images).softmax(-1).amax(-1).mean() for network in (sharp, smooth)]
    assert top[0] > 0.95
    assert top[1] < 0.9  # it is driven towards 0.8
    assert accuracy(smooth, images, labels) > 0.95


def test_a_penalty_is_added_to_each_batch_s_loss_right_after_the_network_saw_the_batch():
    images, labels = bars(10, seed=0)
    network, order = Constant(), []
    network.register_forward_hook(lambda _, inputs, __: order.append(len(inputs[0])))

    def penalty(given):
        assert given is network
        assert given.training
        order.append("penalty")
        return torch.tensor(0.25)

    plain = first_loss(Constant(), images, labels)
    seen = []
    train_target(
        network,
        images,
        labels,
        settings=TargetTrainingSettings(epochs=2, batch_size=4, learning_rate=1e-9),
        generator=torch.Generator().manual_seed(0),
        penalty=penalty,
        on_epoch=lambda _, loss: seen.append(loss),
    )
    assert order == [1, *[4, "penalty", 4, "penalty", 2, "penalty"] * 2]
    assert seen == [pytest.approx(plain + 0.25, rel=1e-5)] * 2


def test_a_penalty_is_differentiated():
    images, labels = bars(96, seed=0)
    weights = []
    for strength in (0.0, 1.0):
        network = train(
            images,
            labels,
            learning_rate=0.01,
            penalty=lambda given, s=strength: s * given.layers[-1].weight.square().sum(),
        )
        weights.append(float(network.layers[-1].weight.detach().square().sum()))
    assert weights[1] < 0.5 * weights[0]


def test_a_penalty_of_nothing_changes_nothing():
    images, labels = bars(40, seed=0)
    plain, same = (
        train(images, labels, epochs=2, penalty=penalty)
        for penalty in (None, lambda _: torch.zeros(()))
    )
    assert all(map(torch.equal, plain.parameters(), same.parameters()))


@looped(
    ("labels", "text"),
    [
        (torch.arange(12) % 4, r"in \[0, 3\).*3 of 12 do not"),
        (torch.arange(12) % 3 - 1, r"in \[0, 3\).*4 of 12 do not"),
        (torch.zeros(12), r"int64 of shape \(12,\).*got float32"),
        (torch.zeros(11, dtype=torch.int64), r"int64 of shape \(12,\).*shape \(11,\)"),
        (torch.zeros(12, 1, dtype=torch.int64), r"int64 of shape \(12,\).*shape \(12, 1\)"),
    ],
    ids=["too large", "negative", "floating", "too few", "another axis"],
)
def test_labels_that_are_none_are_refused(labels, text):
    with pytest.raises(InvalidTensorError, match=text):
        train(bars(12, seed=0)[0], labels)


def test_pixels_are_refused_as_images():
    images, labels = bars(12, seed=0)
    with pytest.raises(InvalidTensorError, match=r"images must be floating.*uint8"):
        train((images * 255).to(torch.uint8), labels)


@looped(
    ("option", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0),
        ("learning_rate", math.inf),
        ("batch_size", 1),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("label_smoothing", math.nan),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(option, value):
    with pytest.raises(InvalidOptionError, match=f"^{option} must be"):
        TargetTrainingSettings(**{option: value})
