"""The inverter of records: its shapes, its gradient in closed form, and what it learns."""

import re

import pytest
import torch
from torch import Tensor, nn

from laws import looped
from oneway.defenses.adversarial_noise import AdversarialNoise
from oneway.defenses.adversarial_noise.iterative import frozen_copy
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError
from oneway.inversion import (
    INPUT_TRANSFORMS,
    Inverter,
    RecordInverter,
    TrainingSettings,
    build_inverter,
    train_inverter,
)
from rows import random_rows
from surrogates import Undifferentiated, random_images

VARIANTS = {
    **{
        input_transform: {"input_transform": input_transform}
        for input_transform in INPUT_TRANSFORMS
    },
    "truncated": {"truncation": 3},
    "one hidden layer": {"hidden_layers": 1},
    "three hidden layers": {"hidden_layers": 3},
}


def record_inverter(
    seed: int = 0, *, dtype: torch.dtype = torch.float32, **options: object
) -> RecordInverter:
    """Build one whose BatchNorms have seen rows, so that they neither are 0 and 1 nor saturate."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inverter = RecordInverter(5, 7, **{"width": 1, **options}).to(dtype)
        for norm in inverter.modules():
            if isinstance(norm, nn.BatchNorm1d):
                nn.init.uniform_(norm.weight, 0.5, 2)
                nn.init.normal_(norm.bias)
    seen = random_rows(1, 500, 5, dtype, 3).softmax(-1)
    inverter.fit_input_transform(seen)
    for some in seen.split(25):
        inverter.train()(some)
    return inverter.eval()


@looped("options", VARIANTS.values(), ids=list(VARIANTS))
def test_reconstructions_are_records_between_0_and_1_that_follow_the_scores(options):
    inverter = record_inverter(1, **options)
    records = inverter(random_rows(2, 6, 5, torch.float32, 3).softmax(-1))
    assert records.shape == (6, 7)
    assert ((records >= 0) & (records <= 1)).all()
    assert (records.std(0) > 1e-3).all()


@looped("hidden_layers", [1, 2, 4])
def test_width_and_depth_are_those_asked_for_and_an_architecture_builds_another(hidden_layers):
    inverter = RecordInverter(5, 7, width=3, hidden_layers=hidden_layers, truncation=2)
    linears = [layer for layer in inverter.modules() if isinstance(layer, nn.Linear)]
    units = [5] + [48] * hidden_layers + [7]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [
        (units[place], units[place + 1]) for place in range(hidden_layers + 1)
    ]
    other = RecordInverter(**inverter.architecture)
    other.load_state_dict(inverter.state_dict())
    confidences = random_rows(2, 6, 5, torch.float32, 3).softmax(-1)
    assert torch.equal(other.eval()(confidences), inverter.eval()(confidences))


def automatic_gradients(inverter: nn.Module, logits: Tensor, records: Tensor) -> Tensor:
    variable = logits.clone().requires_grad_()
    errors = (inverter(variable.softmax(-1)) - records).square().mean(-1)
    return torch.autograd.grad(errors.sum(), variable)[0]


@looped("options", VARIANTS.values(), ids=list(VARIANTS))
@looped("copied", [False, True], ids=["as trained", "frozen"])
@looped("scale", [1, 30], ids=["everyday", "lifted"])
def test_closed_form_gradients_equal_automatic_ones(options, copied, scale):
    inverter = record_inverter(5, dtype=torch.float64, **options)
    inverter.fit_input_transform(random_rows(7, 50, 5, torch.float64, scale).softmax(-1))
    logits = random_rows(6, 8, 5, torch.float64, scale)
    records = random_images(8, 8, (7,), torch.float64)
    expected = automatic_gradients(inverter, logits, records)
    gradients = (frozen_copy(inverter) if copied else inverter).error_gradients(logits, records)
    torch.testing.assert_close(gradients, expected, rtol=1e-8, atol=1e-12)
    assert expected.abs().amax() > 1e-6
    assert not gradients.requires_grad


def test_the_paper_s_noise_on_records_raises_the_error_and_needs_no_closed_form():
    inverter = record_inverter(3, dtype=torch.float64)
    logits = random_rows(4, 40, 5, torch.float64, 3)
    records = random_images(5, 40, (7,), torch.float64)
    noise = {"step_size": 0.1, "steps": 5}
    noisy = AdversarialNoise(inverter, **noise)(logits, records)
    automatic = AdversarialNoise(Undifferentiated(inverter), **noise)(logits, records)
    torch.testing.assert_close(noisy, automatic)
    assert torch.equal(noisy.argmax(-1), logits.argmax(-1))
    before, after = (
        (inverter(scores.softmax(-1)) - records).square().mean() for scores in (logits, noisy)
    )
    assert after > 1.02 * before


def test_categorical_columns_come_out_as_posterior_probabilities():
    # The scores tell a row's group; the category is drawn within it with known odds.
    generator = torch.Generator().manual_seed(0)
    odds = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    groups = torch.arange(1000) % 2
    categories = odds[groups].multinomial(1, generator=generator).squeeze(1)
    records = nn.functional.one_hot(categories, 3).float()
    confidences = nn.functional.one_hot(groups, 2) * 0.6 + 0.2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inverter = RecordInverter(2, 3, width=1, input_transform="standardized")
    train_inverter(
        inverter,
        confidences,
        records,
        settings=TrainingSettings(epochs=8, learning_rate=1e-2, averaging=0.9),
        generator=generator,
    )
    told = inverter(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    torch.testing.assert_close(told, odds, atol=0.07, rtol=0)


@looped(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2"),
        ({"record_length": 0}, "record_length must be a whole number of at least 1"),
        ({"width": 0}, "width must be a whole number of at least 1"),
        ({"hidden_layers": 0}, "hidden_layers must be a whole number of at least 1"),
        ({"input_transform": "wavelet"}, "input_transform must be one of faithful"),
    ],
)
def test_an_option_outside_its_range_is_refused(options, message):
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        RecordInverter(**{"num_classes": 5, "record_length": 7, **options})


@looped("shape", [(5,), (2, 4), (2, 1, 5)])
def test_confidences_of_another_shape_are_refused(shape):
    for ask in (record_inverter(), lambda c: record_inverter().error_gradients(c, c)):
        with pytest.raises(InvalidTensorError, match=r"scores of shape \(N, 5\)"):
            ask(torch.full(shape, 0.2))


def test_records_of_another_length_are_refused_and_nothing_is_released():
    logits = torch.zeros(2, 5)
    with pytest.raises(InvalidTensorError, match=r"records of shape \[7\].*got \(2, 6\)"):
        record_inverter().error_gradients(logits, torch.zeros(2, 6))
    with pytest.raises(DefenseFailedError, match="records of the target's shape"):
        AdversarialNoise(record_inverter(), step_size=0.1)(logits, torch.zeros(2, 6))


def test_closed_form_is_refused_in_training_mode():
    with pytest.raises(InvalidOptionError, match=r"training mode.*Call `inverter\.eval\(\)`"):
        record_inverter().train().error_gradients(torch.zeros(2, 5), torch.zeros(2, 7))


def test_the_shape_of_an_input_decides_which_inverter_is_built():
    images = build_inverter(5, torch.zeros(2, 3, 7, 9).shape[1:], width=2, hidden_layers=1)
    records = build_inverter(5, torch.zeros(2, 7).shape[1:], width=2, hidden_layers=1)
    assert type(images) is Inverter
    assert images.architecture["image_shape"] == [3, 7, 9]
    assert type(records) is RecordInverter
    assert records.architecture["record_length"] == 7
    assert all(made.architecture["width"] == 2 for made in (images, records))


@looped("shape", [(), (7, 9), (2, 3, 7, 9)])
def test_other_shapes_are_neither_images_nor_records(shape):
    with pytest.raises(InvalidOptionError, match=r"\(C, H, W\) for images or \(D,\) for records"):
        build_inverter(5, shape)
