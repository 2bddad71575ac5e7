"""The inverter family: its shapes, the paper's widths, and its gradient in closed form."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from laws import looped
from oneway.defenses.adversarial_noise.iterative import frozen_copy
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.inversion import INPUT_TRANSFORMS, INVERTER_WIDTHS, Inverter, full_depth
from oneway.inversion.inverter import Crop
from rows import random_rows
from surrogates import random_images, small_inverter

VARIANTS = {
    "faithful": {},
    "truncated": {"truncation": 3},
    "standardized": {"input_transform": "standardized"},
    "one hidden layer": {"hidden_layers": 1},
    "deep, oblong": {"image_shape": (1, 16, 24), "hidden_layers": 2},
    "color": {"image_shape": (3, 8, 8)},
    "many channels": {"image_shape": (6, 8, 8)},
    "odd": {"image_shape": (1, 7, 9)},
    "odd, deep": {"image_shape": (3, 13, 6), "hidden_layers": 3},
    "odd, many channels": {"image_shape": (6, 5, 9), "hidden_layers": 2},
    "one side divides": {"image_shape": (1, 8, 11), "hidden_layers": 2},
    "tiny": {"image_shape": (1, 3, 5)},
    "one pixel": {"image_shape": (1, 1, 1)},
    "last layer by 4": {"hidden_layers": 1, "upsampling": 4},
    "last layer by 8, odd": {"image_shape": (5, 15, 22), "hidden_layers": 2, "upsampling": 8},
}


def channels(inverter: Inverter) -> list[int]:
    return [layer.num_features for layer in inverter.modules() if isinstance(layer, nn.BatchNorm2d)]


@looped(
    ("side", "classes", "widths"), [(32, 10, [512, 256, 128]), (64, 530, [1024, 512, 256, 128])]
)
def test_the_paper_s_widths(side, classes, widths):
    with torch.device("meta"):
        inverter = Inverter(classes, (1, side, side), width=INVERTER_WIDTHS["paper"])
        maps = inverter.layers[:2](torch.zeros(2, classes))
    assert channels(inverter) == widths
    assert maps.shape == (2, widths[0], 4, 4)


@looped(
    ("side", "hidden_layers", "widths"),
    [
        (32, 1, [128]),
        (32, 2, [256, 128]),
        (64, 2, [256, 128]),
        (32, 5, [2048, 1024, 512, 256, 128]),
    ],
)
def test_removed_hidden_layers_are_the_early_ones(side, hidden_layers, widths):
    with torch.device("meta"):
        inverter = Inverter(10, (1, side, side), width=128, hidden_layers=hidden_layers)
        maps = inverter.layers[:2](torch.zeros(2, 10))
    assert channels(inverter) == widths
    assert maps.shape == (2, widths[0], side // 2**hidden_layers, side // 2**hidden_layers)


def test_removed_hidden_layers_may_be_the_last_ones():
    with torch.device("meta"):
        inverter = Inverter(530, (1, 64, 64), width=512, hidden_layers=2, upsampling=8)
        sizes = [
            sum(weights.numel() for weights in network.parameters())
            for network in (
                Inverter(530, (1, 64, 64), width=128),
                Inverter(530, (1, 64, 64), width=128, hidden_layers=2),
                inverter,
            )
        ]
        maps = inverter.layers[:2](torch.zeros(2, 530))
    assert channels(inverter) == [1024, 512]
    assert maps.shape == (2, 1024, 4, 4)
    assert [round(size / 1e6) for size in sizes] == [20, 35, 17]  # what the docstring says


@looped("options", VARIANTS.values(), ids=list(VARIANTS))
def test_reconstructions_have_the_images_shape_and_lie_between_0_and_1(options):
    inverter = small_inverter(1, **options)
    confidences = random_rows(2, 6, 5, torch.float32, 3).softmax(-1)
    reconstructions = inverter(confidences)
    assert reconstructions.shape == (6, *options.get("image_shape", (1, 8, 8)))
    assert ((reconstructions >= 0) & (reconstructions <= 1)).all()
    assert reconstructions.std(0).amax() > 5e-4


def test_is_the_network_of_transposed_convolutions_of_yang_et_al():
    inverter = small_inverter(3, image_shape=(1, 16, 16), dtype=torch.float64)
    linear, _, *rest = inverter.layers
    first = nn.ConvTranspose2d(5, 8, 4).double()
    second = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1).double()
    last = nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1).double()
    with torch.no_grad():
        first.weight.copy_(linear.weight.T.reshape(5, 8, 4, 4))
        first.bias.copy_(linear.bias.reshape(8, 16)[:, 0])
        linear.bias.copy_(first.bias.repeat_interleave(16))
    second.load_state_dict(rest[2].state_dict())
    last.load_state_dict(rest[5].state_dict())
    published = nn.Sequential(
        first, rest[0], nn.Tanh(), second, rest[3], nn.Tanh(), last, nn.Sigmoid()
    )
    confidences = random_rows(4, 6, 5, torch.float64, 3).softmax(-1)
    logs = confidences.log() + 50
    torch.testing.assert_close(inverter(confidences), published(logs[:, :, None, None]))


def automatic_gradients(inverter: nn.Module, logits: Tensor, images: Tensor) -> Tensor:
    variable = logits.clone().requires_grad_()
    errors = (inverter(variable.softmax(-1)) - images).square().flatten(1).mean(-1)
    return torch.autograd.grad(errors.sum(), variable)[0]


@looped("options", VARIANTS.values(), ids=list(VARIANTS))
@looped("folded", [False, True], ids=["as trained", "folded"])
@looped("scale", [1, 30], ids=["everyday", "lifted"])
def test_closed_form_gradients_equal_automatic_ones(options, folded, scale):
    inverter = small_inverter(5, dtype=torch.float64, **options)
    logits = random_rows(6, 8, 5, torch.float64, scale)
    inverter.fit_input_transform(random_rows(7, 50, 5, torch.float64, scale).softmax(-1))
    images = random_images(8, 8, options.get("image_shape", (1, 8, 8)), torch.float64)
    expected = automatic_gradients(inverter, logits, images)
    gradients = (frozen_copy(inverter) if folded else inverter).error_gradients(logits, images)
    torch.testing.assert_close(gradients, expected, rtol=1e-8, atol=1e-12)
    assert expected.abs().amax() > 1e-6


def test_closed_form_gradients_carry_no_graph_and_leave_none_behind():
    inverter = small_inverter(5)
    gradients = inverter.error_gradients(
        random_rows(6, 8, 5, torch.float32, 1).requires_grad_(), random_images(8, 8)
    )
    assert not gradients.requires_grad
    assert all(parameter.grad is None for parameter in inverter.parameters())


def test_gradients_are_finite_where_confidences_are_zero():
    inverter = small_inverter(9)
    confidences = torch.tensor([[1.0, 0, 0, 0, 0], [0.5, 0.5, 1e-45, 1e-39, 0]])
    confidences.requires_grad_()
    (inverter(confidences) - 0.5).square().sum().backward()
    assert torch.isfinite(confidences.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in inverter.parameters())


def test_closed_form_is_refused_in_training_mode():
    inverter = small_inverter(5).train()
    with pytest.raises(InvalidOptionError, match=r"training mode.*Call `inverter\.eval\(\)`"):
        inverter.error_gradients(torch.zeros(2, 5), torch.zeros(2, 1, 8, 8))


@given(st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24)), st.data())
@settings(max_examples=60)
def test_images_of_any_size_are_the_middle_of_what_doubling_gives(shape, data):
    depth = data.draw(st.sampled_from([None, 1, max(1, (max(shape[1:]) - 1).bit_length())]))
    inverter = small_inverter(2, image_shape=shape, hidden_layers=depth, width=1)
    confidences = random_rows(2, 3, 5, torch.float32, 3).softmax(-1)
    scale = 2 ** inverter.architecture["hidden_layers"]
    first = inverter.layers[1].unflattened_size[1:]
    assert tuple(first) == tuple(math.ceil(side / scale) for side in shape[1:])
    whole = nn.Sequential(*(layer for layer in inverter.layers if not isinstance(layer, Crop)))
    doubled = whole(inverter.input_transform(confidences))
    assert doubled.shape[2:] == tuple(scale * side for side in first)
    (top, left) = (
        (wide - side) // 2 for wide, side in zip(doubled.shape[2:], shape[1:], strict=True)
    )
    middle = doubled[:, :, top : top + shape[1], left : left + shape[2]]
    assert middle.shape == (3, *shape)
    torch.testing.assert_close(inverter(confidences), middle)


@looped("shape", [(1, 8, 8), (3, 28, 28), (1, 32, 64)])
def test_sizes_that_divide_are_not_cropped_so_that_stored_weights_keep_their_names(shape):
    inverter = small_inverter(2, image_shape=shape)
    depth = inverter.architecture["hidden_layers"]
    assert not any(isinstance(layer, Crop) for layer in inverter.layers)
    weights = [name for name in inverter.state_dict() if name.endswith("weight")]
    maps = [place for k in range(depth) for place in (f"{3 * k + 2}", f"{3 * k + 4}")]
    assert weights == [f"layers.{place}.weight" for place in ("0", *maps)]


def test_full_depth_halves_the_shorter_side_to_4_and_at_least_once():
    sides = [(8, 8), (28, 28), (32, 32), (64, 64), (64, 24), (20, 40), (112, 112)]
    assert [full_depth(*pair) for pair in sides] == [1, 2, 3, 4, 2, 2, 4]
    odd = [(1, 1), (3, 5), (7, 7), (15, 99), (16, 17), (33, 35), (50, 50), (250, 250)]
    assert [full_depth(*pair) for pair in odd] == [1, 1, 1, 1, 2, 3, 3, 5]
    assert all(full_depth(*pair) == full_depth(*reversed(pair)) for pair in sides + odd)


@looped("input_transform", INPUT_TRANSFORMS)
def test_the_first_layer_takes_what_the_input_transform_gives(input_transform):
    inverter = small_inverter(2, image_shape=(1, 5, 5), input_transform=input_transform)
    assert inverter.layers[0].in_features == inverter.input_transform.features
    assert inverter(torch.full((2, 5), 0.2)).shape == (2, 1, 5, 5)


@looped(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2"),
        ({"width": 0}, "width must be a whole number of at least 1"),
        ({"hidden_layers": 0}, "hidden_layers must be a whole number of at least 1"),
        ({"hidden_layers": 4}, "hidden_layers must be at most 3 for images of 8x8"),
        ({"hidden_layers": 3, "upsampling": 4}, "hidden_layers must be at most 2"),
        ({"upsampling": 6}, "upsampling must be 2, 4, 8 or so on, but got 6"),
        ({"upsampling": 1}, "upsampling must be 2, 4, 8 or so on, but got 1"),
        ({"upsampling": 4.0}, "upsampling must be 2, 4, 8 or so on, but got 4.0"),
        ({"hidden_layers": 1, "upsampling": 512}, "hidden_layers must be at most"),
        ({"image_shape": (8, 8)}, "image_shape must be (C, H, W)"),
        ({"image_shape": (1, 0, 8)}, "image_shape must be (C, H, W)"),
        ({"input_transform": "wavelet"}, "input_transform must be one of faithful, standardized"),
        ({"input_transform": "standardized", "truncation": 2}, "truncation needs"),
    ],
)
def test_an_option_outside_its_range_is_refused(options, message):
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        Inverter(**{"num_classes": 10, "image_shape": (1, 8, 8), **options})


@looped("shape", [(5,), (2, 4), (2, 1, 5)])
def test_confidences_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidTensorError, match=r"shape \(N, 5\)"):
        small_inverter(5)(torch.full(shape, 0.2))
