"""The search on the image itself: what it makes small, from where, and how far it may go."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from laws import looped
from oneway.attacks import Optimising
from oneway.attacks.optimising import DRAWS, PULLS, ROWS_ON_CPU, STEPS
from oneway.contracts import AttackerKnowledge
from oneway.defenses.identity import Identity
from oneway.inversion.input_transforms import StandardizedLog
from oneway.targets import DefendedTarget, TorchTarget
from surrogates import random_images

SHAPE = (1, 2, 4)
PIXELS = 8
NAMES = {(steps, pull): f"{steps} steps, pull {pull}" for steps in STEPS for pull in PULLS}


def linear_target(seed: int = 0, classes: int = 12) -> TorchTarget:
    """A softmax of a linear map: with more classes than pixels, the scores tell the image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, classes))
        nn.init.normal_(module[1].weight, std=1.5)
    return TorchTarget(module)


class Gray(nn.Module):
    """A decoder that answers everything with the same gray; it counts what it is asked at once."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.asked: list[int] = []
        self.differentiated = False

    def forward(self, confidences: Tensor) -> Tensor:
        self.asked.append(len(confidences))
        self.differentiated |= torch.is_grad_enabled()
        return self.level.expand(len(confidences), *SHAPE)


def observe(
    target: TorchTarget, *, differentiable_logits=None, random=False, rows=60
) -> AttackerKnowledge:
    images = random_images(1, rows, SHAPE)
    return AttackerKnowledge(
        images=images,
        clean=None,
        released=target(images),
        held_out=torch.arange(rows) % 5 == 0,
        random=random,
        differentiable_logits=differentiable_logits
        or DefendedTarget(target, Identity()).differentiable_logits,
    )


def prepared(target, decoder=None, **options):
    decoder = decoder or Gray()
    return Optimising()(observe(target, **options), lambda *_: decoder)


def misfit(target: TorchTarget, found: Tensor, released: Tensor) -> Tensor:
    """Return how far each image's answer is from what was released, as the attack measures it."""
    features = StandardizedLog(released.shape[-1])
    seen = observe(target)
    features.fit(seen.released[~seen.held_out])
    return (features(target(found)) - features(released)).square().mean(-1)


def moved(found: Tensor) -> Tensor:
    return (found - 0.5).square().flatten(1).sum(-1)


def test_it_does_not_apply_where_the_model_is_not_at_hand():
    images = random_images(1, 6, SHAPE)
    seen = AttackerKnowledge(images, None, torch.full((6, 3), 1 / 3), torch.arange(6) < 2)

    def train(*_):
        raise AssertionError("nothing is to be trained")

    assert Optimising()(seen, train) == {}


def test_candidates_are_all_lengths_with_all_pulls_on_one_decoder_of_released_scores():
    seen, got = observe(linear_target()), []
    reconstructors = Optimising()(seen, lambda *tensors: got.append(tensors) or Gray())
    assert set(reconstructors) == set(NAMES.values())
    assert {reconstructor.repeats for reconstructor in reconstructors.values()} == {1}
    [(released, images, held_out)] = got
    assert torch.equal(released, seen.released)
    assert torch.equal(images, seen.images)
    assert torch.equal(held_out, seen.held_out)


@looped("name", NAMES.values())
def test_the_search_lowers_the_misfit_of_released_scores_and_stays_an_image(name):
    target, asked = linear_target(), random_images(2, 9, SHAPE)
    released = target(asked)
    found = prepared(target)[name].reconstruct(released[None])
    assert found.shape == asked.shape
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    before = misfit(target, torch.full_like(asked, 0.5), released)
    assert (misfit(target, found, released) < before).all()


@looped("level", [0.02, 0.98])
def test_a_search_that_starts_at_the_edge_of_the_range_does_not_leave_it(level):
    target = linear_target()
    # Scores of what is no image draw it outwards.
    outside = target(random_images(3, 9, SHAPE) + (1 if level > 0.5 else -1))
    for reconstructor in prepared(target, Gray(level)).values():
        found = reconstructor.reconstruct(outside[None])
        assert found.min() >= 0
        assert found.max() <= 1
        assert ((found == 0) | (found == 1)).any()


def test_a_longer_search_finds_what_is_answered_more_alike():
    target, asked = linear_target(), random_images(2, 30, SHAPE)
    released, made = target(asked), prepared(target)
    short, long = (
        misfit(target, made[NAMES[steps, min(PULLS)]].reconstruct(released[None]), released)
        for steps in STEPS
    )
    assert long.mean() < 0.5 * short.mean()


def test_a_stronger_pull_stays_nearer_the_decoder():
    target, asked = linear_target(), random_images(2, 30, SHAPE)
    made = prepared(target)
    weak, strong = (
        moved(made[NAMES[max(STEPS), pull]].reconstruct(target(asked)[None])) for pull in PULLS
    )
    assert strong.mean() < 0.9 * weak.mean()
    assert (strong > 0).all()


def test_with_nothing_to_gain_it_is_the_decoder_s_answer():
    # This target does not look at the image.
    module = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 3))
    nn.init.zeros_(module[1].weight)
    target = TorchTarget(module)
    for reconstructor in prepared(target).values():
        found = reconstructor.reconstruct(random_images(2, 4, (3,)).softmax(-1)[None])
        torch.testing.assert_close(found, torch.full_like(found, 0.5))


@looped("name", NAMES.values())
def test_an_invertible_target_is_inverted_better_than_a_weak_decoder_does(name):
    target, asked = linear_target(), random_images(2, 30, SHAPE)
    found = prepared(target)[name].reconstruct(target(asked)[None])
    weak, searched = (
        (made - asked).square().flatten(1).mean(-1) for made in (torch.tensor(0.5), found)
    )
    factor = 0.5 if name == NAMES[max(STEPS), min(PULLS)] else 1
    assert searched.mean() < factor * weak.mean()


def test_each_row_is_searched_for_by_itself():
    target, asked = linear_target(), random_images(2, 7, SHAPE)
    reconstructor = prepared(target)[NAMES[max(STEPS), min(PULLS)]]
    released = target(asked)
    together = reconstructor.reconstruct(released[None])
    for row in range(7):
        alone = reconstructor.reconstruct(released[None, row : row + 1])[0]
        torch.testing.assert_close(alone, together[row], rtol=0, atol=1e-5)


def test_many_queries_are_searched_for_in_parts_and_in_order():
    target, decoder = linear_target(), Gray()
    asked = random_images(2, ROWS_ON_CPU + 3, SHAPE)
    reconstructor = prepared(target, decoder)[NAMES[min(STEPS), min(PULLS)]]
    found = reconstructor.reconstruct(target(asked)[None])
    assert decoder.asked == [ROWS_ON_CPU, 3]
    last = reconstructor.reconstruct(target(asked[ROWS_ON_CPU:])[None])
    torch.testing.assert_close(found[ROWS_ON_CPU:], last, rtol=0, atol=1e-5)


@looped(("random", "draws"), [(False, 1), (True, DRAWS)])
def test_gradients_past_a_random_defense_are_of_the_mean_over_draws(random, draws):
    target = linear_target()
    calls = []

    def differentiable_logits(images):
        calls.append(len(images))
        return target.differentiable_logits(images)

    made = prepared(target, differentiable_logits=differentiable_logits, random=random)
    asked = random_images(2, 4, SHAPE)
    for (steps, _), name in NAMES.items():
        calls.clear()
        made[name].reconstruct(target(asked)[None])
        assert calls == [4] * (steps * draws)


def test_averaging_draws_lets_noise_hide_less():
    target, asked = linear_target(), random_images(2, 40, SHAPE)
    errors = []
    for random in (False, True):
        noise = torch.Generator().manual_seed(0)

        def differentiable_logits(images, noise):
            logits = target.differentiable_logits(images)
            return logits + 2 * torch.randn(logits.shape, generator=noise)

        made = prepared(
            target, differentiable_logits=partial(differentiable_logits, noise=noise), random=random
        )
        found = made[NAMES[max(STEPS), min(PULLS)]].reconstruct(target(asked)[None])
        errors.append(float((found - asked).square().mean()))
    assert errors[1] < 0.9 * errors[0]


@looped("mode", [torch.no_grad, torch.enable_grad])
def test_neither_gradient_mode_matters_and_model_and_decoder_are_left_as_they_are(mode):
    target, decoder = linear_target(), Gray()
    reconstructor = prepared(target, decoder)[NAMES[min(STEPS), min(PULLS)]]
    released = target(random_images(2, 4, SHAPE))
    with mode():
        found = reconstructor.reconstruct(released[None])
    assert not found.requires_grad
    assert decoder.level.grad is None
    assert not decoder.differentiated  # its graph would fill memory for nothing
    assert all(parameter.grad is None for parameter in target.module.parameters())


def test_scores_of_the_held_out_rows_do_not_set_the_scale():
    target, asked = linear_target(), random_images(2, 4, SHAPE)
    seen = observe(target)
    changed = seen.released.clone()
    changed[seen.held_out] = torch.eye(12)[: int(seen.held_out.sum())].roll(1, -1)
    other = AttackerKnowledge(
        seen.images, None, changed, seen.held_out, differentiable_logits=seen.differentiable_logits
    )
    name = NAMES[min(STEPS), min(PULLS)]
    answers = [
        Optimising()(given, lambda *_: Gray())[name].reconstruct(target(asked)[None])
        for given in (seen, other)
    ]
    assert torch.equal(*answers)


def test_zeros_in_what_is_released_are_searched_for_too():
    target, asked = linear_target(), random_images(2, 9, SHAPE)
    rounded = (target(asked) * 100).round() / 100
    assert (rounded == 0).any()
    for reconstructor in prepared(target).values():
        found = reconstructor.reconstruct(rounded[None])
        assert math.isfinite(float(found.sum()))


class Coarse(nn.Module):
    """Sees the mean of each block of an enlarged image, and so what the small one was."""

    def __init__(self, inner: nn.Module, factor: int) -> None:
        super().__init__()
        self.inner, self.blocks = inner, nn.AvgPool2d(factor)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(self.blocks(images))


def enlarged(images: Tensor, factor: int) -> Tensor:
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


@looped("factor", [2, 32])  # to 64x128
def test_a_large_image_moves_as_far_as_the_same_one_when_it_is_small(factor):
    small = linear_target()
    large = TorchTarget(Coarse(small.module, factor))
    images, asked = random_images(1, 60, SHAPE), random_images(2, 5, SHAPE)
    held_out = torch.arange(60) % 5 == 0

    def search(target: TorchTarget, own: Tensor, name: str) -> Tensor:
        differentiable_logits = DefendedTarget(target, Identity()).differentiable_logits
        seen = AttackerKnowledge(
            own, None, small(images), held_out, differentiable_logits=differentiable_logits
        )
        gray = torch.full_like(own[:1], 0.5)
        made = Optimising()(seen, lambda *_: lambda some: gray.expand(len(some), -1, -1, -1))
        return made[name].reconstruct(small(asked)[None])

    for name in NAMES.values():
        found = search(small, images, name)
        assert (found - 0.5).abs().max() > 0.01
        torch.testing.assert_close(
            search(large, enlarged(images, factor), name),
            enlarged(found, factor),
            rtol=0,
            atol=5e-3,
        )
