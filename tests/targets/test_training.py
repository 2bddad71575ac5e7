"""What training a target promises."""

import math

import pytest
import torch
from torch import nn

from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.targets import TargetNetwork, TargetTrainingSettings, train_target

CLASSES = 3


def bars(rows, seed):
    """Images whose bright third tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    images = 0.3 * torch.rand(rows, 1, 12, 12, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 4 * label : 4 * label + 4] += 0.6
    return images, labels


def train(images, labels, seed=1, on_epoch=None, **settings):
    torch.manual_seed(0)
    network = TargetNetwork(CLASSES, images.shape[1:], width=4, blocks=2)
    train_target(
        network,
        images,
        labels,
        settings=TargetTrainingSettings(**{"epochs": 6, "batch_size": 16} | settings),
        generator=torch.Generator().manual_seed(seed),
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


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("learning_rate", 0), ("learning_rate", math.inf), ("batch_size", 1)],
)
def test_settings_outside_their_range_are_refused_by_name(option, value):
    with pytest.raises(InvalidOptionError, match=f"^{option} must be"):
        TargetTrainingSettings(**{option: value})
