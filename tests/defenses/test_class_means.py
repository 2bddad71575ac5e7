"""Class means and prototypes: what is averaged, and what stands where nothing was seen."""

import pytest
import torch
from torch import nn

from laws import looped
from oneway.contracts import TrainingData
from oneway.defenses.class_means import ClassMeans
from oneway.defenses.prototypes import Prototypes
from oneway.errors import InvalidOptionError, InvalidTensorError
from rows import leads, random_rows

CLASSES = 5


def training_data(logits):
    """What is averaged; no image, label or target is at hand, so none can be used."""
    return TrainingData(None, None, None, None, logits)  # type: ignore[arg-type]


def fitted(logits):
    network, facts = Prototypes.train(training_data(logits), generator=torch.Generator())
    return network, facts


def test_means_are_those_of_the_rows_that_predict_a_label():
    logits = random_rows(1, 300, CLASSES, torch.float32, 2)
    network, facts = fitted(logits)
    assert facts == {"labels_without_samples": 0}
    rows, labels = logits.double().softmax(-1), logits.argmax(-1)
    for label in range(CLASSES):
        torch.testing.assert_close(network.means[label], rows[labels == label].mean(0))


def test_means_are_those_of_the_rows_of_a_class_where_classes_are_given():
    logits = random_rows(1, 300, CLASSES, torch.float32, 2)
    labels = torch.randint(CLASSES - 1, (300,), generator=torch.Generator().manual_seed(3))
    network, rows = ClassMeans(CLASSES), logits.double().softmax(-1)
    assert network.fit(logits, labels) == 1
    for label in range(CLASSES - 1):
        torch.testing.assert_close(network.means[label], rows[labels == label].mean(0))
    with pytest.raises(InvalidTensorError, match=r"labels must lie in \[0, 5\)"):
        network.fit(logits, labels + 2)


def test_a_label_without_samples_gets_the_mean_top_confidence_and_the_rest_evenly():
    logits = random_rows(1, 300, CLASSES, torch.float64, 2)
    logits[:, 3] = -9
    network, facts = fitted(logits)
    top = logits.softmax(-1).amax(-1).mean()
    expected = torch.full((CLASSES,), float((1 - top) / (CLASSES - 1)), dtype=torch.float64)
    expected[3] = top
    assert facts == {"labels_without_samples": 1}
    torch.testing.assert_close(network.means[3], expected)


def test_no_mean_holds_a_zero_and_its_label_is_its_largest():
    logits = torch.full((6, CLASSES), -3000.0)
    logits[torch.arange(6), torch.arange(6) % 3] = 3000
    network, _ = fitted(logits)
    assert (network.means > 0).all()
    assert torch.equal(network.means.argmax(-1), torch.arange(CLASSES))


def test_means_are_rebuilt_from_their_architecture_and_state():
    network, _ = fitted(random_rows(1, 30, CLASSES, torch.float32, 2))
    again = ClassMeans(**network.architecture)
    assert not torch.equal(again.means, network.means)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.means, network.means)


def test_progress_is_reported_and_the_logits_are_left_alone():
    logits, shares = random_rows(1, 30, CLASSES, torch.float32, 2), []
    before = logits.clone()
    network, _ = Prototypes.train(
        training_data(logits), generator=torch.Generator(), on_epoch=shares.append
    )
    assert shares == [1.0]
    assert torch.equal(logits, before)
    assert not network.training


@looped("dtype", [torch.float32, torch.float64])
def test_a_prototype_is_released_whatever_the_query(dtype):
    network, _ = fitted(random_rows(1, 300, CLASSES, torch.float64, 2))
    logits = random_rows(2, 100, CLASSES, dtype, 4)
    told, labels = Prototypes(network)(logits), logits.argmax(-1)
    expected = network.means[labels]
    torch.testing.assert_close(told.double().softmax(-1), expected, rtol=1e-5, atol=1e-9)
    assert leads(told, labels)
    assert len(told.unique(dim=0)) == len(labels.unique())


def test_tied_means_still_leave_the_label_on_top():
    logits = random_rows(2, 100, CLASSES, torch.float32, 4)
    assert leads(Prototypes(ClassMeans(CLASSES))(logits), logits.argmax(-1))


def test_what_does_not_fit_is_refused():
    network, _ = fitted(random_rows(1, 30, CLASSES, torch.float32, 2))
    with pytest.raises(InvalidTensorError, match=r"over the 5 classes.*\(2, 4\)"):
        Prototypes(network)(torch.zeros(2, 4))
    with pytest.raises(InvalidTensorError, match="over the None classes"):
        Prototypes(nn.Identity())(torch.zeros(2, 4))
    with pytest.raises(InvalidTensorError, match=r"shape \(N, 5\) with N >= 1"):
        network.fit(torch.zeros(0, CLASSES))
    with pytest.raises(InvalidTensorError, match="must be finite"):
        fitted(torch.full((3, CLASSES), torch.nan))
    with pytest.raises(InvalidOptionError, match="num_classes must be"):
        ClassMeans(1)
