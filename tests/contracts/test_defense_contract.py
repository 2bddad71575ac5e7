"""What every registered defense must obey, whatever it does."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from laws import looped
from oneway.checks import FLOATING
from oneway.contracts import Defense, RepeatableDefense, TrainingData
from oneway.defenses import DEFENSES, build_defense, needs_state, needs_surrogate
from oneway.defenses.class_means import ClassMeans
from oneway.defenses.codebook import FitSettings, fit_codebook
from oneway.defenses.hamp import RandomScores
from oneway.defenses.modelguard_s import ModelGuardS
from oneway.defenses.trained.memguard import MembershipClassifier
from oneway.defenses.trained.mutual_information import BottleneckNetwork
from oneway.defenses.trained.poisoning import PoisonGenerator
from oneway.defenses.trained.purification import Purifier
from oneway.errors import InvalidTensorError
from oneway.releases import release
from rows import leads, random_rows, same_bits
from surrogates import random_images, small_inverter

CASES = {
    "none": ("none", {}),
    "label-only": ("label-only", {}),
    "sign steps": ("adversarial-noise", {"step_size": 0.4}),
    "rescaled steps": (
        "adversarial-noise",
        {"step_size": 0.4, "update": "rescale", "budget": 1.0, "steps": 3},
    ),
    "random start": ("adversarial-noise", {"step_size": 0.4, "search": "random-start", "steps": 4}),
    "momentum": ("adversarial-noise", {"step_size": 0.4, "search": "momentum"}),
    "mutual information": ("mutual-information", {}),
    "mutual information, label kept": ("mutual-information", {"keep_label": True}),
    "purification": ("purification", {}),
    "purification, label kept": ("purification", {"keep_label": True}),
    "rounding": ("rounding", {}),
    "rounding to the label": ("rounding", {"decimals": 0}),
    "top 2, rounded": ("top-rounding", {"count": 2, "decimals": 1}),
    "top 1, rounded": ("top-rounding", {"count": 1, "decimals": 2}),
    "codebook": ("codebook", {}),
    "decoy codebook": ("decoy-codebook", {}),
    "input-free noise": ("input-free-noise", {"step_size": 0.4}),
    "input-free noise, random start": (
        "input-free-noise",
        {"step_size": 0.4, "search": "random-start", "steps": 4},
    ),
    "input-free noise, label": ("input-free-noise", {"step_size": 0.4, "reference": "label"}),
    "keyed start": ("adversarial-noise", {"step_size": 0.4, "search": "keyed-start", "steps": 4}),
    "top 2, rest spread": ("top-k", {"count": 2}),
    "top 2, rest zero": ("top-k", {"count": 2, "rest": "zero"}),
    "hot": ("temperature", {"temperature": 20.0}),
    "cold": ("temperature", {"temperature": 0.05}),
    "prototypes": ("prototypes", {}),
    "confidence cut-off": ("confidence-cutoff", {"threshold": 0.5}),
    "reverse sigmoid": ("reverse-sigmoid", {"beta": 2.0, "gamma": 1.0}),
    "reverse sigmoid, label kept": (
        "reverse-sigmoid",
        {"beta": 2.0, "gamma": 1.0, "keep_label": True},
    ),
    "Gaussian noise": ("gaussian-noise", {"standard_deviation": 3.0}),
    "Gaussian noise, label kept": (
        "gaussian-noise",
        {"standard_deviation": 3.0, "keep_label": True},
    ),
    "Dirichlet noise": ("dirichlet-noise", {"concentration": 3.0}),
    "Dirichlet noise, label kept": (
        "dirichlet-noise",
        {"concentration": 3.0, "keep_label": True},
    ),
    "one parameter": ("one-parameter", {"epsilon": 4.0}),
    "SSD": ("ssd", {"epsilon": 0.8}),
    "SSD, label guarded": ("ssd", {"epsilon": 0.8, "label_guarded": True}),
    "MemGuard": ("memguard", {"steps": 10, "budget": 0.02}),
    "HAMP": ("hamp", {}),
    "ModelGuard-S, fitted": ("modelguard-s", {}),
    "ModelGuard-W": ("modelguard-w", {"epsilon": 0.3}),
    "LPA": ("lpa", {"budget": 0.3}),
    "permutation": ("permutation", {}),
    "class offsets": ("class-offsets", {"scale": 3.0}),
    "class offsets, label kept": ("class-offsets", {"scale": 3.0, "keep_label": True}),
    "planted leak": ("planted-leak", {}),
    "noisy tail": ("noisy-tail", {"count": 2}),
}
"""Registered defenses, and those of their variants that go ways of their own."""

CASES |= {
    name: (name, {}) for name in DEFENSES if name not in {known for known, _ in CASES.values()}
}
"""And those that nobody listed, with their defaults: a new one is held to its promises at once."""

KEYED = ("input-free noise", "keyed start")
"""Deterministic, but what they answer is decided by a key, which they draw once."""

TRAINING = {"mutual-information": {"beta": 0.01}}
"""Options that the registry needs, though a network that is at hand does not."""

CLASSES, COUNT = 5, 40
DTYPES = (torch.float32, torch.float64)


@functools.cache
def fitted_state(name: str, classes: int) -> nn.Module:
    """Build a state whose answers vary with the query, and at random if they may."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        if name in ("prototypes", "ssd"):
            means = ClassMeans(classes)
            means.fit(random_rows(5, 4 * classes, classes, torch.float32, 1))
            return means
        if name in ("codebook", "decoy-codebook"):
            rows = random_rows(6, 60 * min(classes, 30), classes, torch.float32, 3)
            settings = FitSettings(min_members=5, rate_weight=0.0, explicit_classes=20)
            return fit_codebook(rows, settings)
        if name == "memguard":
            guess = MembershipClassifier(classes)
            guess.key.copy_(torch.arange(4))
            # Its odds change their sign among the rows that it sees.
            nn.init.constant_(guess.layers[-1].bias, -0.15)
            return guess
        if name == "hamp":
            scores = RandomScores(classes, 50)
            scores.scores.copy_(random_rows(5, 50, classes, torch.float64, 1).sort(-1).values)
            scores.scores.copy_(scores.scores.flip(-1))
            return scores
        if name == "modelguard-s":
            rows = random_rows(6, 60, classes, torch.float32, 2)
            material = TrainingData(None, None, None, rows, rows)
            return ModelGuardS.train(
                material, generator=torch.Generator(), epsilon=0.5, grows=False
            )[0]
        if name == "lpa":
            return PoisonGenerator(classes, budget=0.3)
        if name == "purification":
            purifier = Purifier(classes)
            nn.init.normal_(purifier.layers[1].running_mean)
            nn.init.uniform_(purifier.layers[1].running_var, 0.5, 2)
            return purifier
        bottleneck = BottleneckNetwork(classes, (1, 8, 8), width=4, blocks=2)
        with torch.no_grad():
            bottleneck.encode.bias[bottleneck.code :] += 5
        return bottleneck


def build(case: str, seed: int = 0, classes: int = CLASSES) -> Defense:
    name, options = CASES[case]
    return build_defense(
        name,
        {**TRAINING.get(name, {}), **options},
        small_inverter(1, classes, dtype=torch.float64) if needs_surrogate(name) else None,
        state=copy.deepcopy(fitted_state(name, classes)) if needs_state(name) else None,
        generator=torch.Generator().manual_seed(seed),
    )


RANDOM = [case for case in CASES if not build(case).deterministic]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def answers(defense: Defense, logits: Tensor, images: Tensor, count: int) -> Tensor:
    """Return ``(count, N, K)`` answers to the same queries, by the cheapest way there is."""
    if isinstance(defense, RepeatableDefense):
        return defense.draws(logits, images, count)
    queries = images.repeat(count, *[1] * (images.ndim - 1))
    return defense(logits.repeat(count, 1), queries).view(count, *logits.shape)


def logits_of(dtype: torch.dtype) -> Tensor:
    rows = random_rows(2, COUNT, CLASSES, dtype, 3)
    rows[0] = 0
    rows[1] = rows[1].flip(0) * 100
    return rows


@pytest.fixture
def images() -> Tensor:
    return random_images(3, COUNT)


def is_identity(defense: Defense) -> bool:
    """Say whether a defense leaves ties as they are: the release parts them."""
    return type(defense).__name__ == "Identity"


def check_released(released: Tensor) -> None:
    """Refuse anything but probability vectors with one maximum each."""
    assert (released >= 0).all()
    sums = released.double().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=2e-7)
    assert leads(released, released.argmax(-1))


@looped("dtype", DTYPES)
def test_it_returns_finite_logits_of_the_same_shape_and_type_and_leaves_its_input(
    case, dtype, images
):
    defense, logits = build(case), logits_of(dtype)
    assert isinstance(defense, Defense)
    flags = (defense.requires_input, defense.keeps_label, defense.deterministic)
    assert {type(flag) for flag in flags} == {bool}
    before = logits.clone(), images.clone()
    defended = defense(logits, images)
    assert same_bits(logits, before[0])
    assert same_bits(images, before[1])
    assert defended.shape == logits.shape
    assert defended.dtype == logits.dtype
    assert torch.isfinite(defended).all()
    check_released(release(defended))
    assert defense(logits[:0], images[:0]).shape == (0, CLASSES)


@pytest.mark.parametrize("case", [case for case in CASES if case not in RANDOM])
@looped("dtype", DTYPES)
def test_no_row_depends_on_another(case, dtype, images):
    defense, logits = build(case), logits_of(dtype)
    together = defense(logits, images)
    order = torch.arange(COUNT).flip(0)
    reversed_rows = defense(logits[order], images[order])[order]
    # A network may compute in float32 what is asked and answered in float64.
    torch.testing.assert_close(reversed_rows, together, rtol=1e-5, atol=1e-5)
    for row in (*range(6), *range(6, COUNT, 5)):  # the odd ones come first
        alone = defense(logits[row : row + 1], images[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", RANDOM)
@looped("dtype", DTYPES)
def test_no_row_of_a_random_answer_depends_on_another_in_distribution(case, dtype, images):
    defense, count, some = build(case), 150, slice(4)
    logits, images = logits_of(dtype)[:12], images[:12]
    together = answers(defense, logits, images, count)[:, some].double()
    alone = answers(defense, logits[some], images[some], count).double()
    spread = ((together.var(0) + alone.var(0)) / count).sqrt()
    assert ((together.mean(0) - alone.mean(0)).abs() <= 6 * spread + 1e-3).all()
    # And each row has noise of its own: no two rows move together.
    moved = (together - together.mean(0)).flatten(2)
    unit = moved / moved.std(0).clamp_min(1e-9)
    assert (unit[:, 2] * unit[:, 3]).mean(0).abs().max() < 6 / count**0.5


@looped("classes", [2, 300])
def test_few_and_many_classes_saturated_or_tied_are_answered_in_every_type(case, classes):
    defense, images = build(case, classes=classes), random_images(8, 4)
    for dtype in FLOATING:
        rows = random_rows(7, 4, classes, dtype, 5)
        rows[0] = 0
        rows[1, :] = -2000
        rows[1, classes // 2] = 2000
        rows[2] *= 100
        defended = defense(rows, images)
        assert defended.dtype == dtype
        assert torch.isfinite(defended).all(), dtype
        released = release(defended)
        check_released(released)
        if defense.keeps_label:
            labels = rows.argmax(-1)
            assert leads(released, labels), dtype
            assert leads(defended, labels) or is_identity(defense), dtype


@looped("dtype", DTYPES)
def test_images_are_needed_if_and_only_if_it_says_so(case, dtype, images):
    defense, again, logits = build(case), build(case), logits_of(dtype)
    if defense.requires_input:
        with pytest.raises(InvalidTensorError, match="images"):
            defense(logits)
        # With the same draws, if there are any.
        assert not torch.equal(defense(logits, images), again(logits, 1 - images))
    else:
        assert same_bits(defense(logits), again(logits, images))


@looped("dtype", DTYPES)
def test_a_label_it_promises_to_keep_is_the_only_maximum_of_every_answer(case, dtype, images):
    defense, logits = build(case), logits_of(dtype)
    labels = logits.argmax(-1)
    if not defense.keeps_label:
        assert not torch.equal(defense(logits, images).argmax(-1), labels)
        return
    made = answers(defense, logits, images, 1 if defense.deterministic else 20)
    every = labels.expand(len(made), -1)
    assert leads(made, every) or is_identity(defense)
    assert leads(release(made), every)


@looped("dtype", DTYPES)
def test_it_answers_the_same_query_the_same_if_and_only_if_it_says_so(case, dtype, images):
    logits = logits_of(dtype)
    defense, again, other = (build(case, seed) for seed in (0, 0, 1))
    state = torch.get_rng_state()
    first = defense(logits, images)
    assert same_bits(first, defense(logits, images)) == defense.deterministic
    assert torch.equal(torch.get_rng_state(), state)
    # Its generator alone decides its answers.
    assert same_bits(first, again(logits, images))
    unmoved = defense.deterministic and case not in KEYED
    assert same_bits(first, other(logits, images)) == unmoved


@pytest.mark.parametrize(
    "case", [case for case in CASES if isinstance(build(case), RepeatableDefense)]
)
@looped("dtype", DTYPES)
def test_its_draws_are_of_the_shape_and_type_of_its_answers(case, dtype, images):
    defense, logits = build(case), logits_of(dtype)
    drawn = defense.draws(logits, images, 3)
    assert drawn.shape == (3, COUNT, CLASSES)
    assert drawn.dtype == logits.dtype
    assert defense.deterministic == same_bits(drawn, drawn[:1].expand(3, -1, -1).contiguous())
    assert defense.draws(logits[:0], images[:0], 3).shape == (3, 0, CLASSES)


def test_what_is_no_logits_is_refused(case, images):
    defense = build(case)
    for wrong in (
        torch.full((COUNT, CLASSES), torch.nan),
        torch.zeros(COUNT, CLASSES).long(),
        torch.zeros(COUNT, 1),
    ):
        with pytest.raises(InvalidTensorError):
            defense(wrong, images)
