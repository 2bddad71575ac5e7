"""Laws of Algorithm 2 and Equation 3 with every search, and agreement with plain NumPy."""

import copy
import functools
import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from laws import looped, paired
from oneway.checks import FLOATING
from oneway.defenses.adversarial_noise import AdversarialNoise, noise_vector
from oneway.defenses.adversarial_noise.iterative import frozen_copy
from oneway.defenses.adversarial_noise.search import Search
from oneway.errors import (
    DefenseFailedError,
    InvalidOptionError,
    InvalidTensorError,
)
from oneway.inversion import Inverter
from oneway.inversion.input_transforms import FaithfulTransform
from reference import wen2021
from rows import leads, random_rows, same_bits, score_rows
from surrogates import Undifferentiated, random_images, small_inverter

CLASSES, HIDDEN, PIXELS = 6, 9, 12
NORMS = (1, 2, math.inf)
UPDATES = ("project", "rescale")
PATHS = {"closed form": lambda inverter: inverter, "autograd": Undifferentiated}
each_path = looped("path", PATHS.values(), ids=list(PATHS))
SETTINGS = {
    "sign": {},
    "random-start": {"start_radius": 0.9},
    "keyed-start": {"start_radius": 0.9},
    "momentum": {"decay": 0.7},
}
STARTING = ("random-start", "keyed-start")
each_search = looped("search", get_args(Search))
each_deterministic_search = looped("search", ["sign", "keyed-start", "momentum"])
each_undrawn_search = looped("search", ["sign", "momentum"])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def searching(inverter: nn.Module, search: str, seed: int = 0, **options) -> AdversarialNoise:
    return AdversarialNoise(
        inverter, search=search, generator=seeded(seed), **SETTINGS[search], **options
    )


@functools.cache
def reference_inverter() -> wen2021.SmallInverter:
    numbers = np.random.default_rng(7)
    first = 0.5 * numbers.standard_normal((HIDDEN, CLASSES))
    return wen2021.SmallInverter(
        first_weight=first,
        first_bias=numbers.standard_normal(HIDDEN),
        running_mean=45 * first.sum(1) + numbers.standard_normal(HIDDEN),
        running_variance=numbers.uniform(0.5, 3, HIDDEN),
        scale=numbers.uniform(0.5, 2, HIDDEN),
        shift=numbers.standard_normal(HIDDEN),
        last_weight=numbers.standard_normal((PIXELS, HIDDEN)),
        last_bias=numbers.standard_normal(PIXELS),
    )


def torch_inverter(reference: wen2021.SmallInverter) -> nn.Sequential:
    first, norm = nn.Linear(CLASSES, HIDDEN), nn.BatchNorm1d(HIDDEN, eps=reference.epsilon)
    last = nn.Linear(HIDDEN, PIXELS)
    network = nn.Sequential(FaithfulTransform(CLASSES), first, norm, nn.Tanh(), last, nn.Sigmoid())
    network.double()
    values = {
        first.weight: reference.first_weight,
        first.bias: reference.first_bias,
        norm.running_mean: reference.running_mean,
        norm.running_var: reference.running_variance,
        norm.weight: reference.scale,
        norm.bias: reference.shift,
        last.weight: reference.last_weight,
        last.bias: reference.last_bias,
    }
    with torch.no_grad():
        for tensor, value in values.items():
            tensor.copy_(torch.from_numpy(value))
    return network


ROWS = 10
"""Rows that are searched by the slow reference; every other one is lifted."""


def everyday_and_lifted_rows() -> Tensor:
    """Half of the rows spread so far that the transform has to lift them above 0."""
    logits = random_rows(11, 24, CLASSES, torch.float64, 2)
    logits[::2] *= 20
    return logits


def test_hand_written_gradient_equals_finite_differences():
    inverter = reference_inverter()
    pixels = random_images(12, 24, (PIXELS,), torch.float64).numpy()
    lifted = 0
    for logits, image in zip(everyday_and_lifted_rows().numpy(), pixels, strict=True):
        lifted += np.log(wen2021.softmax(logits)).min() < -50
        differences = [
            (inverter.error(logits + nudge, image) - inverter.error(logits - nudge, image)) / 2e-6
            for nudge in 1e-6 * np.eye(CLASSES)
        ]
        np.testing.assert_allclose(
            inverter.gradient(logits, image), differences, rtol=1e-5, atol=1e-9
        )
    assert 3 <= lifted <= 12


def test_gradients_equal_the_hand_written_ones():
    inverter, logits = reference_inverter(), everyday_and_lifted_rows()
    images = random_images(12, 24, (PIXELS,), torch.float64)
    defense = AdversarialNoise(torch_inverter(inverter), step_size=0.1)
    expected = np.stack(list(map(inverter.gradient, logits.numpy(), images.numpy())))
    torch.testing.assert_close(
        defense.gradients(logits, images), torch.from_numpy(expected), rtol=1e-9, atol=1e-12
    )


@paired(
    steps=[1, 7],
    step_size=[0.1, 1.5],
    bound=[
        ("project", None, 1),
        *itertools.product(["project"], [0.5, 8.0], NORMS),
        *itertools.product(["rescale"], [0.05, 1.0], NORMS),
    ],
    search=get_args(Search),
)
def test_equals_the_reference(steps, step_size, bound, search):
    update, budget, norm = bound
    logits = everyday_and_lifted_rows()[:ROWS]
    images = random_images(12, ROWS, (PIXELS,), torch.float64)
    options = {
        "steps": steps,
        "step_size": step_size,
        "update": update,
        "budget": budget,
        "norm": norm,
    }
    starts = None
    if search == "random-start":
        draws = torch.rand(ROWS, CLASSES, generator=seeded(5), dtype=torch.float64).numpy()
        starts = 0.9 * (2 * draws - 1)
    if search == "keyed-start":
        key = np.array(torch.randint(2**62, (4,), generator=seeded(5)).tolist(), dtype="<i8")
        starts = wen2021.keyed_starts(logits.numpy(), key.tobytes(), 0.9)
    decay = SETTINGS[search].get("decay")
    defense = searching(torch_inverter(reference_inverter()), search, 5, **options)
    released = defense(logits, images)
    expected = wen2021.defend(
        logits.numpy(), images.numpy(), reference_inverter(), starts, decay=decay, **options
    )
    torch.testing.assert_close(released, torch.from_numpy(expected), rtol=0, atol=1e-9)


@looped("budget", [None, 0.5])
def test_plain_steps_are_the_default_and_bit_for_bit_algorithm_1_repeated(budget):
    options = {"step_size": 0.4, "budget": budget}
    logits, images = random_rows(5, 16, 5, torch.float32, 3), random_images(6, 16)
    defense = AdversarialNoise(small_inverter(4), steps=6, **options)
    current = logits
    for _ in range(6):
        gradients = defense.gradients(current, images)
        current = logits + noise_vector(logits, current, gradients, **options)
    assert same_bits(defense(logits, images), current)
    plain = searching(small_inverter(4), "sign", steps=6, **options)
    assert same_bits(plain(logits, images), current)


@functools.cache
def cached_defense(
    classes: int, search: str, update: str, budget: float | None
) -> AdversarialNoise:
    return searching(
        small_inverter(3, classes), search, step_size=0.4, steps=3, update=update, budget=budget
    )


EVERYDAY = st.sampled_from([("project", None), ("project", 0.3), ("rescale", 0.2)])


@given(
    score_rows((torch.float16, torch.bfloat16, torch.float32)),
    st.sampled_from(get_args(Search)),
    EVERYDAY,
    st.integers(0, 2**63 - 1),
)
def test_label_is_the_only_maximum_whatever_the_size_of_the_logits(logits, search, options, seed):
    defense = cached_defense(logits.shape[-1], search, *options)
    if search == "random-start":
        defense._search.generator.manual_seed(seed)
    before = logits.clone()
    released = defense(logits, random_images(1, len(logits)))
    assert leads(released, logits.argmax(-1))
    assert released.dtype == logits.dtype
    assert same_bits(logits, before)


@paired(dtype=FLOATING, update=UPDATES, norm=NORMS, path=PATHS.values(), search=get_args(Search))
def test_noise_stays_within_the_budget_and_label_leads(dtype, update, norm, path, search):
    options = {"step_size": 0.4, "steps": 4, "update": update, "budget": 0.7, "norm": norm}
    defense = searching(path(small_inverter(4)), search, **options)
    logits = random_rows(5, 16, 5, dtype, 3)
    logits[::4] = logits[::4, :1]
    released = defense(logits, random_images(6, 16))
    assert leads(released, logits.argmax(-1))
    assert released.dtype == dtype
    noise = released.double() - logits.double()
    allowed = 0.7 * (4 if update == "rescale" else 1)
    rounding = 16 * torch.finfo(dtype).eps * logits.double().abs().amax(-1)
    assert (torch.linalg.vector_norm(noise, ord=norm, dim=-1) <= allowed + rounding).all()


def points_on_the_way(defense: AdversarialNoise, logits: Tensor, monkeypatch) -> list[Tensor]:
    """Return the scores that the inverter was asked about, and the released ones after them."""
    points, gradients = [], defense.gradients

    def recorded(current: Tensor, images: Tensor) -> Tensor:
        points.append(current)
        return gradients(current, images)

    monkeypatch.setattr(defense, "gradients", recorded)
    released = defense(logits, random_images(6, len(logits)))
    return [*points, released]


@paired(search=get_args(Search), update=UPDATES, norm=NORMS)
def test_every_point_on_the_way_keeps_label_and_budget(search, update, norm, monkeypatch):
    options = {"step_size": 0.4, "steps": 4, "update": update, "budget": 0.7, "norm": norm}
    defense = searching(small_inverter(4), search, 3, **options)
    logits = random_rows(5, 50, 5, torch.float64, 1)
    points = points_on_the_way(defense, logits, monkeypatch)
    assert len(points) == 5
    assert same_bits(points[0], logits) == (search not in STARTING)
    for step, point in enumerate(points):
        assert leads(point, logits.argmax(-1))
        allowed = 0.7 * (max(1, step) if update == "rescale" else 1)
        sizes = torch.linalg.vector_norm(point - logits, ord=norm, dim=-1)
        assert (sizes <= allowed + 1e-12).all()


@each_search
def test_without_a_budget_the_label_leads_by_the_margin_wherever_noise_is_added(
    search, monkeypatch
):
    defense = searching(small_inverter(4), search, 3, step_size=0.4, steps=4, margin=0.25)
    logits = random_rows(5, 50, 5, torch.float64, 1)
    first, *later = points_on_the_way(defense, logits, monkeypatch)
    for point in [first, *later] if search in STARTING else later:
        top, runner_up = point.topk(2, dim=-1).values.unbind(-1)
        assert (top - runner_up >= 0.25 - 1e-12).all()
        assert (top - runner_up <= 0.25 + 1e-12).any()


def test_without_a_budget_every_entry_but_the_label_moves_by_at_most_the_sum_of_steps():
    logits = random_rows(7, 16, 5, torch.float64, 3)
    defense = AdversarialNoise(small_inverter(4), step_size=0.1, steps=10)
    noise = defense(logits, random_images(6, 16)) - logits
    others = noise.scatter(-1, logits.argmax(-1, keepdim=True), 0).abs()
    assert (others <= 1 + 1e-12).all()
    assert others.amax() > 0.5


@paired(path=PATHS.values(), search=get_args(Search), update=UPDATES)
def test_rows_of_a_batch_equal_rows_in_smaller_ones(path, search, update):
    inverter = path(small_inverter(8, dtype=torch.float64))
    options = {"step_size": 0.4, "steps": 3, "budget": 1.0, "update": update}
    logits, images = random_rows(9, 70, 5, torch.float64, 2), random_images(10, 70)
    together = searching(inverter, search, **options)(logits, images)
    # A row's start is the next draw, whichever batch the row comes in.
    defense = searching(inverter, search, **options)
    sizes = (1, 1, 1, 2, 30, 1, 34)
    parts = (defense(*part) for part in zip(logits.split(sizes), images.split(sizes), strict=True))
    torch.testing.assert_close(torch.cat([*parts]), together, rtol=0, atol=1e-9)


@each_path
def test_float32_gradients_agree_between_batches_to_a_relative_1e_4(path):
    defense = AdversarialNoise(path(small_inverter(8, width=16)), step_size=0.4)
    logits, images = random_rows(9, 40, 5, torch.float32, 2), random_images(10, 40)
    together = defense.gradients(logits, images)
    for row in range(40):
        alone = defense.gradients(logits[row : row + 1], images[row : row + 1])[0]
        assert ((alone - together[row]).abs() <= 1e-4 * together[row].abs().amax()).all()


@each_path
def test_float32_rows_alone_differ_only_where_the_gradient_is_next_to_zero(path):
    defense = AdversarialNoise(path(small_inverter(8, width=16)), step_size=0.4, steps=1)
    logits, images = random_rows(9, 40, 5, torch.float32, 2), random_images(10, 40)
    together, gradients = defense(logits, images), defense.gradients(logits, images).abs()
    clear = gradients > 1e-4 * gradients.amax(-1, keepdim=True)
    for row in range(40):
        alone = defense(logits[row : row + 1], images[row : row + 1])[0]
        assert torch.equal(alone[clear[row]], together[row][clear[row]])


@each_deterministic_search
@looped("update", UPDATES)
def test_what_other_rows_hold_changes_no_bit_of_a_row(search, update):
    options = {"step_size": 0.4, "steps": 5, "budget": 1.0, "update": update}
    defense = searching(Undifferentiated(small_inverter(8)), search, **options)
    logits, images = random_rows(9, 40, 5, torch.float32, 2), random_images(10, 40)
    others, queries = logits.clone(), images.clone()
    others[1::2] *= -9
    queries[1::2] = 0
    assert same_bits(defense(others, queries)[::2], defense(logits, images)[::2])


@each_path
@each_undrawn_search
def test_the_same_call_gives_the_same_bits_and_takes_no_randomness(path, search):
    inverter = path(small_inverter(8))
    logits, images = random_rows(9, 40, 5, torch.float32, 2), random_images(10, 40)
    state, generator = torch.get_rng_state(), seeded(0)
    first, second = (
        AdversarialNoise(inverter, step_size=0.4, search=search, generator=given)
        for given in (generator, None)
    )
    released = first(logits, images)
    assert first.deterministic
    assert same_bits(first(logits, images), released)
    assert same_bits(second(logits, images), released)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generator.get_state(), seeded(0).get_state())


@each_path
def test_a_keyed_start_repeats_from_call_to_call_and_differs_with_its_seed(path):
    inverter = path(small_inverter(8))
    logits, images = random_rows(9, 40, 5, torch.float32, 2), random_images(10, 40)
    state = torch.get_rng_state()
    first, again, other = (
        searching(inverter, "keyed-start", seed, step_size=0.4) for seed in (1, 1, 2)
    )
    released = first(logits, images)
    assert first.deterministic
    assert same_bits(first(logits, images), released)
    assert same_bits(again(logits, images), released)
    assert not (other(logits, images) == released).all(-1).any()
    assert torch.equal(torch.get_rng_state(), state)


@each_path
def test_a_random_start_differs_between_calls_and_repeats_with_its_seed(path):
    inverter = path(small_inverter(8))
    logits, images = random_rows(9, 40, 5, torch.float32, 2), random_images(10, 40)
    state = torch.get_rng_state()
    first, again, other = (
        searching(inverter, "random-start", seed, step_size=0.4) for seed in (1, 1, 2)
    )
    calls = [first(logits, images), first(logits, images)]
    assert not first.deterministic
    assert not (calls[0] == calls[1]).all(-1).any()
    assert all(same_bits(again(logits, images), call) for call in calls)
    assert not (other(logits, images) == calls[0]).all(-1).any()
    assert torch.equal(torch.get_rng_state(), state)


def test_momentum_without_memory_is_plain_sign_steps_and_remembers_one_call_only():
    options = {"step_size": 0.4, "steps": 6, "budget": 2.0}
    logits, images = random_rows(9, 40, 5, torch.float32, 2), random_images(10, 40)
    plain, forgetful, momentum = (
        AdversarialNoise(small_inverter(8), **chosen, **options)
        for chosen in ({}, {"search": "momentum", "decay": 0.0}, {"search": "momentum"})
    )
    expected = plain(logits, images)
    assert same_bits(forgetful(logits, images), expected)
    first = momentum(logits, images)
    assert not torch.equal(first, expected)
    momentum(-logits, images)
    assert same_bits(momentum(logits, images), first)


@each_search
def test_an_inverter_that_has_no_slope_leaves_noise_within_the_start(search):
    options = {"step_size": 0.4, "steps": 3}
    defense = searching(nn.Sequential(nn.Linear(5, 4), nn.Threshold(1e6, 0)), search, **options)
    logits = random_rows(9, 40, 5, torch.float32, 2)
    logits.scatter_(-1, logits.argmax(-1, keepdim=True), 20)
    noise = defense(logits, random_images(10, 40, (4,))) - logits
    assert (noise.abs() <= 0.9 + 1e-6).all()
    assert noise.any() == (search in STARTING)


@paired(
    path=PATHS.values(),
    search=get_args(Search),
    mode=[torch.no_grad, torch.inference_mode],
)
def test_runs_without_a_gradient_or_in_inference_mode(path, search, mode):
    inverter = path(small_inverter(8))
    logits, images = random_rows(9, 6, 5, torch.float32, 2), random_images(10, 6)
    expected = searching(inverter, search, step_size=0.4)(logits, images)
    defense = searching(inverter, search, step_size=0.4)
    with mode():
        released = defense(logits.clone(), images.clone())
    assert same_bits(released, expected)
    assert not released.is_inference()
    assert not released.requires_grad


@each_path
@each_search
def test_neither_queries_nor_their_gradients_are_touched(path, search):
    defense = searching(path(small_inverter(8)), search, step_size=0.4)
    logits = random_rows(9, 6, 5, torch.float32, 2).requires_grad_()
    images = random_images(10, 6).requires_grad_()
    before = logits.detach().clone(), images.detach().clone()
    released = defense(logits, images)
    assert torch.equal(logits, before[0])
    assert torch.equal(images, before[1])
    assert logits.grad is None
    assert images.grad is None
    assert not released.requires_grad


@each_path
def test_the_original_inverter_is_left_as_it_was_and_has_no_later_effect(path):
    inverter = path(small_inverter(8)).train()
    before = copy.deepcopy(inverter.state_dict())
    defense = AdversarialNoise(inverter, step_size=0.4)
    logits, images = random_rows(9, 6, 5, torch.float32, 2), random_images(10, 6)
    released = defense(logits, images)
    assert all(torch.equal(value, before[name]) for name, value in inverter.state_dict().items())
    assert all(parameter.requires_grad for parameter in inverter.parameters())
    assert all(parameter.grad is None for parameter in inverter.parameters())
    assert all(module.training for module in inverter.modules())
    with torch.no_grad():
        for parameter in inverter.parameters():
            parameter.zero_()
    assert same_bits(defense(logits, images), released)


@each_path
def test_an_inverter_left_in_training_mode_is_used_with_its_running_statistics(path):
    logits, images = random_rows(9, 6, 5, torch.float64, 2), random_images(10, 6)
    inverter = path(small_inverter(8, dtype=torch.float64))
    evaluated = AdversarialNoise(inverter.eval(), step_size=0.4)
    trained = AdversarialNoise(inverter.train(), step_size=0.4)
    assert same_bits(trained(logits, images), evaluated(logits, images))
    plain = inverter.eval().requires_grad_(False)
    variable = logits.clone().requires_grad_()
    (plain(variable.softmax(-1)) - images).square().flatten(1).mean(-1).sum().backward()
    torch.testing.assert_close(trained.gradients(logits, images.double()), variable.grad)


def test_dropout_is_off():
    network = nn.Sequential(nn.Linear(5, 30), nn.Dropout(0.5), nn.Linear(30, 4))
    defense = AdversarialNoise(network.train(), step_size=0.4)
    logits, images = random_rows(9, 6, 5, torch.float32, 2), random_images(10, 6, (4,))
    assert torch.equal(defense.gradients(logits, images), defense.gradients(logits, images))


def randomized(norm: nn.Module) -> nn.Module:
    for buffer in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        if buffer is not None:
            nn.init.uniform_(buffer, 0.5, 2)
    return norm


FOLDED = {
    "no bias": (
        lambda: [
            nn.Linear(4, 24, bias=False),
            nn.Unflatten(1, (6, 2, 2)),
            randomized(nn.BatchNorm2d(6)),
        ],
        (4,),
    ),
    "unflatten": (
        lambda: [nn.Linear(4, 24), nn.Unflatten(1, (6, 2, 2)), randomized(nn.BatchNorm2d(6))],
        (4,),
    ),
    "unflatten to rows": (
        lambda: [nn.Linear(4, 24), nn.Unflatten(1, (6, 4)), randomized(nn.BatchNorm1d(6))],
        (4,),
    ),
    "conv": (lambda: [nn.Conv2d(4, 6, 3), randomized(nn.BatchNorm2d(6))], (4, 5, 5)),
    "grouped conv": (
        lambda: [nn.Conv2d(4, 6, 3, groups=2), randomized(nn.BatchNorm2d(6))],
        (4, 5, 5),
    ),
    "transposed": (
        lambda: [nn.ConvTranspose2d(4, 6, 4, 2), randomized(nn.BatchNorm2d(6))],
        (4, 5, 5),
    ),
}
UNFOLDED = {
    # A linear layer may also map sequences, whose channels are another axis.
    "linear": (lambda: [nn.Linear(4, 6), randomized(nn.BatchNorm1d(6)), nn.Tanh()], (4,)),
    "first": (lambda: [randomized(nn.BatchNorm1d(4)), nn.Linear(4, 6)], (4,)),
    "after an activation": (
        lambda: [nn.Linear(4, 6), nn.Tanh(), randomized(nn.BatchNorm1d(6))],
        (4,),
    ),
    "after another layer": (lambda: [nn.Flatten(), randomized(nn.BatchNorm1d(4))], (4,)),
}
RARE = {
    "not affine": (
        lambda: [nn.Linear(4, 6), randomized(nn.BatchNorm1d(6, affine=False))],
        (4,),
    ),
    "unflatten of an open size": (
        lambda: [nn.Linear(4, 24), nn.Unflatten(1, (6, -1, 2)), randomized(nn.BatchNorm2d(6))],
        (4,),
    ),
    "grouped transposed": (
        lambda: [nn.ConvTranspose2d(4, 6, 4, 2, groups=2), randomized(nn.BatchNorm2d(6))],
        (4, 5, 5),
    ),
    "linear on sequences": (lambda: [nn.Linear(4, 6), randomized(nn.BatchNorm1d(6))], (6, 4)),
}


def assert_computes_the_same(folded: nn.Module, network: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = random_images(1, 3, shape, torch.float64)
    torch.testing.assert_close(folded(inputs), network.eval()(inputs))


@looped(("layers", "shape"), FOLDED.values(), ids=list(FOLDED))
def test_folding_a_batch_norm_changes_nothing_but_rounding(layers, shape):
    network = nn.Sequential(*layers()).double()
    folded = frozen_copy(network)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert_computes_the_same(folded, network, shape)


@looped(("layers", "shape"), UNFOLDED.values(), ids=list(UNFOLDED))
def test_a_batch_norm_with_no_neighbour_to_fold_into_stays(layers, shape):
    network = nn.Sequential(*layers()).double()
    folded = frozen_copy(network)
    assert any(isinstance(layer, nn.BatchNorm1d) for layer in folded.modules())
    assert_computes_the_same(folded, network, shape)


@looped(("layers", "shape"), RARE.values(), ids=list(RARE))
def test_rarer_batch_norms_compute_the_same_folded_or_not(layers, shape):
    network = nn.Sequential(*layers()).double()
    assert_computes_the_same(frozen_copy(network), network, shape)


def errors_of(inverter: nn.Module, logits: Tensor, images: Tensor) -> Tensor:
    with torch.no_grad():
        return (inverter(logits.softmax(-1)) - images).square().flatten(1).mean(-1)


@paired(path=PATHS.values(), search=get_args(Search), update=UPDATES)
def test_the_defense_raises_the_surrogate_s_mean_error(path, search, update):
    inverter = path(small_inverter(13, dtype=torch.float64))
    logits, images = random_rows(14, 50, 5, torch.float64, 2), random_images(15, 50).double()
    options = {"step_size": 0.2, "steps": 10, "budget": 2.0, "update": update}
    defense = searching(inverter, search, **options)
    before, after = (
        errors_of(inverter, rows, images) for rows in (logits, defense(logits, images))
    )
    assert after.mean() > before.mean()


@each_path
def test_a_small_step_raises_the_error_of_every_row_whose_label_is_not_lifted(path):
    inverter = path(small_inverter(13, dtype=torch.float64))
    logits, images = random_rows(14, 50, 5, torch.float64, 2), random_images(15, 50).double()
    top, runner_up = logits.topk(2, dim=-1).values.unbind(-1)
    free = top - runner_up > 0.01
    released = AdversarialNoise(inverter, step_size=1e-4, steps=1)(logits, images)
    assert free.sum() > 30
    rise = errors_of(inverter, released, images) - errors_of(inverter, logits, images)
    assert (rise[free] > 0).all()


def test_the_closed_form_releases_what_autograd_does():
    inverter = small_inverter(16, dtype=torch.float64)
    logits, images = random_rows(17, 20, 5, torch.float64, 2), random_images(18, 20)
    closed, automatic = (AdversarialNoise(path(inverter), step_size=0.4) for path in PATHS.values())
    torch.testing.assert_close(closed(logits, images), automatic(logits, images))


@each_path
def test_a_constant_added_to_float64_logits_changes_nothing(path):
    defense = AdversarialNoise(path(small_inverter(16)), step_size=0.5, steps=3)
    logits = (random_rows(17, 20, 5, torch.float64, 2) * 2**8).round() / 2**8
    images = random_images(18, 20)
    moved = defense(logits + 2.0**30, images) - 2.0**30
    torch.testing.assert_close(moved, defense(logits, images), rtol=0, atol=1e-6)


@each_path
def test_confidences_that_underflow_to_zero_give_finite_gradients(path):
    defense = AdversarialNoise(path(small_inverter(16)), step_size=0.4)
    logits = torch.tensor([[0.0, -200.0, -1e4, -50.0, 1.0], [0.0, -1e30, 0.0, 0.0, 0.0]])
    assert torch.isfinite(defense.gradients(logits, random_images(18, 2))).all()
    assert leads(defense(logits, random_images(18, 2)), logits.argmax(-1))


@each_path
@each_search
def test_no_rows_give_no_rows(path, search):
    defense = searching(path(small_inverter(16)), search, step_size=0.4)
    assert defense(torch.zeros(0, 5), random_images(18, 0)).shape == (0, 5)


class Negative(Inverter):
    """Inherits the closed form of a forward that it overrides."""

    def forward(self, confidences: Tensor) -> Tensor:
        return 1 - super().forward(confidences)


def test_an_inverter_that_overrides_forward_is_attacked_as_it_reconstructs():
    inverter = Negative(5, (1, 8, 8), width=4).double().eval()
    inverter.load_state_dict(small_inverter(13).state_dict())
    logits, images = random_rows(14, 50, 5, torch.float64, 2), random_images(15, 50)
    released = AdversarialNoise(inverter, step_size=1e-3, steps=1)(logits, images)
    before, after = (errors_of(inverter, rows, images) for rows in (logits, released))
    assert after.mean() > before.mean()


class Root(nn.Module):
    """Its slope is infinite at a confidence of 0."""

    def forward(self, confidences: Tensor) -> Tensor:
        return confidences.sqrt()


@each_search
def test_a_gradient_that_is_not_finite_releases_nothing(search):
    defense = searching(Root(), search, step_size=0.4)
    with pytest.raises(DefenseFailedError, match=r"gradient is not finite.*nothing is released"):
        defense(torch.tensor([[0.0, -1e3], [0.0, 0.0]]), torch.zeros(2, 2))


def test_noise_beyond_half_precision_releases_nothing():
    defense = AdversarialNoise(small_inverter(16), step_size=1e5, steps=1)
    with pytest.raises(DefenseFailedError, match=r"do not fit .*float16"):
        defense(random_rows(17, 2, 5, torch.float16, 2), random_images(18, 2))


@each_path
def test_an_inverter_of_another_image_shape_releases_nothing(path):
    defense = AdversarialNoise(path(small_inverter(16)), step_size=0.4)
    with pytest.raises(DefenseFailedError, match=r"\(2, 1, 4, 16\).*Train it on images"):
        defense(torch.zeros(2, 5), torch.zeros(2, 1, 4, 16))


@looped(
    ("logits", "images", "message"),
    [
        (torch.zeros(5), torch.zeros(1, 1, 8, 8), r"shape \(N, K\), but got \(5,\).*unsqueeze"),
        (torch.zeros(2, 5), None, "images must be given"),
        (torch.zeros(2, 5), torch.zeros(3, 1, 8, 8), "one per row of scores, 2, but got 3"),
        (torch.zeros(2, 5), torch.zeros(2), r"images must have shape .*but got \(2,\)"),
        (torch.zeros(2, 5), torch.zeros(2, 1, 8, 8).byte(), "images must be floating"),
        (torch.zeros(2, 5), torch.full((2, 1, 8, 8), math.nan), "images must be finite"),
        (torch.zeros(2, 5), np.zeros((2, 1, 8, 8)), r"torch\.Tensor, but got ndarray"),
        (torch.full((2, 5), math.inf), torch.zeros(2, 1, 8, 8), "logits must be finite"),
        (torch.zeros(2, 5).long(), torch.zeros(2, 1, 8, 8), "logits must be floating"),
        (torch.zeros(2, 1), torch.zeros(2, 1, 8, 8), "K >= 2"),
    ],
    ids=str,
)
def test_wrong_tensors_are_refused(logits, images, message):
    defense = AdversarialNoise(small_inverter(16), step_size=0.4)
    with pytest.raises(InvalidTensorError, match=message):
        defense(logits, images)


@looped(
    ("options", "message"),
    [
        ({"update": "rescale"}, r"budget is None\. Pass one"),
        ({"search": "random-start"}, r"torch\.Generator on the CPU; search='random"),
        ({"decay": 1.0}, "decay is an option of search='momentum'"),
        ({"inverter": print}, r"inverter must be a torch\.nn\.Module, but got builtin"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        AdversarialNoise(**{"inverter": small_inverter(16), "step_size": 0.1, **options})


@looped(("given", "radius"), [(None, 0.3), (0.05, 0.05)])
def test_a_start_is_as_far_away_as_a_step_unless_told(given, radius):
    defense = AdversarialNoise(
        nn.Identity(),
        step_size=0.3,
        search="random-start",
        start_radius=given,
        generator=seeded(0),
    )
    assert defense._search.start(torch.zeros(500, 3)).abs().amax() == pytest.approx(radius, 0.01)


def test_an_inverter_whose_rows_depend_on_each_other_is_refused():
    inverter = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    with pytest.raises(InvalidOptionError, match="depend on the batch"):
        AdversarialNoise(inverter, step_size=0.1)


def test_an_inverter_that_ignores_the_scores_releases_nothing():
    class Constant(nn.Module):
        def forward(self, confidences: Tensor) -> Tensor:
            return torch.zeros(len(confidences), 1, 8, 8)

    defense = AdversarialNoise(Constant(), step_size=0.1)
    with pytest.raises(DefenseFailedError, match="does not depend on the scores"):
        defense(random_rows(1, 3, 5, torch.float32, 2), random_images(2, 3))
