"""A defended target releases the defense's answer with the label on top, or nothing."""

import math

import pytest
import torch
from torch import Tensor

from laws import looped
from oneway.checks import FLOATING
from oneway.contracts import RepeatableDefense, Target
from oneway.defenses.adversarial_noise import AdversarialNoise
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError
from oneway.releases import logits_from_confidences, release
from oneway.targets import DefendedTarget, RecordedTarget, TargetNetwork, TorchTarget
from rows import leads, random_rows, same_bits
from surrogates import random_images, small_inverter


def target(seed: int = 0) -> TorchTarget:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TorchTarget(TargetNetwork(5, (1, 8, 8), width=4, blocks=2))


class Scripted:
    """A defense that does as it is told."""

    def __init__(
        self,
        change,
        *,
        keeps_label: bool = True,
        requires_input: bool = False,
        deterministic: bool = True,
    ) -> None:
        self.change, self.keeps_label, self.requires_input = change, keeps_label, requires_input
        self.deterministic = deterministic
        self.images: list[Tensor | None] = []

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        self.images.append(images)
        return self.change(logits)


class Noisy:
    """A random defense: noise of its own on every score; it counts how often it is asked."""

    requires_input = False
    keeps_label = False
    deterministic = False

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        self.calls += 1
        return logits + torch.randn(logits.shape, generator=self.generator)


class Drawing(Noisy):
    """A random defense that tells many answers at once; what it was asked is kept."""

    def __init__(self, change=lambda drawn: drawn, **flags) -> None:
        super().__init__()
        self.change = change
        self.asked: list[tuple[Tensor, Tensor | None, int]] = []
        self.scale = 1.0
        vars(self).update(flags)

    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:
        self.asked.append((logits, images, count))
        noise = torch.randn(count, *logits.shape, generator=self.generator)
        return self.change(logits + self.scale * noise)


def lift_class_0_in_row_2(logits: Tensor) -> Tensor:
    changed = logits.clone()
    changed[2, 0] = changed[2].max() + 1
    return changed


def test_it_releases_what_the_defense_makes_of_the_logits():
    images = random_images(1, 9)
    noise = AdversarialNoise(small_inverter(2), step_size=0.4)
    released = DefendedTarget(target(), noise)(images)
    assert same_bits(released, release(noise(target().logits(images), images)))
    assert isinstance(DefendedTarget(target(), noise), Target)


def test_what_is_no_defense_is_refused_with_what_it_lacks():
    noise = Noisy()
    with pytest.raises(InvalidOptionError, match="got function, which lacks requires_input, keeps"):
        DefendedTarget(target(), lambda logits, _: logits)
    unfinished = type("Unfinished", (), {"requires_input": False, "keeps_label": True})
    unfinished.__call__ = noise.__call__
    with pytest.raises(InvalidOptionError, match=r"Unfinished, which lacks deterministic\."):
        DefendedTarget(target(), unfinished())


def test_without_a_defense_it_answers_as_the_target_does():
    images = random_images(1, 9)
    assert same_bits(DefendedTarget(target(), Identity())(images), target()(images))


@looped("dtype", FLOATING)
@looped("decimals", [None, 0, 1, 2, 6, 12])
@looped("seed", range(3))
def test_clean_label_is_the_only_maximum_in_every_type_and_rounding(dtype, decimals, seed):
    images = random_images(seed, 40)
    noise = AdversarialNoise(small_inverter(seed), step_size=1.0, steps=4)
    defended = DefendedTarget(target(seed), noise, dtype=dtype, decimals=decimals)
    released = defended(images)
    assert leads(released, target(seed).logits(images).argmax(-1))
    assert released.dtype == dtype


@looped("dtype", FLOATING)
@looped("decimals", [None, 2])
def test_a_third_party_defends_recorded_confidences(dtype, decimals):
    images = random_images(1, 20)
    logits = random_rows(3, 20, 5, torch.float64, 3)
    logits[0] = 0
    confidences = release(logits, dtype=dtype, decimals=decimals)
    noise = AdversarialNoise(small_inverter(2), step_size=0.4)
    recorded = RecordedTarget(images, confidences)
    released = DefendedTarget(recorded, noise, dtype=dtype, decimals=decimals)(images)
    assert leads(released, logits.argmax(-1))
    expected = noise(logits_from_confidences(confidences), images)
    assert same_bits(released, release(expected, dtype=dtype, decimals=decimals))
    assert not torch.equal(released, confidences)


def gradient_of(logits: Tensor, images: Tensor) -> Tensor:
    weights = random_rows(9, *logits.shape, logits.dtype, 1)
    return torch.autograd.grad((logits * weights).sum(), images)[0]


def test_what_is_followed_without_a_defense_is_the_target_with_its_own_gradient():
    plain, images = target(), random_images(1, 6).requires_grad_()
    followed = DefendedTarget(plain, Identity()).differentiable_logits(images)
    assert same_bits(followed.detach(), plain.logits(images))
    expected = gradient_of(plain.differentiable_logits(images), images)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(gradient_of(followed, images), expected)


@looped(
    "change",
    [lambda logits: (1e6 * logits).round(), lambda logits: logits / 1000, torch.sign, torch.neg],
    ids=["rounds", "shrinks", "sign", "label_changes"],
)
def test_a_defense_is_followed_to_its_own_values_with_the_target_s_gradient(change):
    plain, images = target(), random_images(1, 6).requires_grad_()
    followed = DefendedTarget(plain, Scripted(change, keeps_label=False)).differentiable_logits(
        images
    )
    # To the last digit, where a message may be.
    assert torch.equal(followed, change(plain.logits(images)))
    expected = gradient_of(plain.differentiable_logits(images), images)
    torch.testing.assert_close(gradient_of(followed, images), expected)


@looped("requires_input", [False, True])
def test_a_defense_that_is_followed_gets_the_images_it_needs_and_nothing_to_differentiate(
    requires_input,
):
    seen = []

    def change(logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits + 1

    scripted, images = (
        Scripted(change, requires_input=requires_input),
        random_images(1, 6).requires_grad_(),
    )
    DefendedTarget(target(), scripted).differentiable_logits(images)
    assert not seen[0].requires_grad
    assert (scripted.images[0] is not None) == requires_input
    if requires_input:
        assert torch.equal(scripted.images[0], images)
        assert not scripted.images[0].requires_grad


def test_a_defense_of_gradients_is_followed_past_them():
    images = random_images(1, 6).requires_grad_()
    plain, noise = target(), AdversarialNoise(small_inverter(2), step_size=0.4)
    followed = DefendedTarget(plain, noise).differentiable_logits(images)
    assert torch.equal(followed, noise(plain.logits(images), images.detach()))
    expected = gradient_of(plain.differentiable_logits(images), images)
    torch.testing.assert_close(gradient_of(followed, images), expected)


def test_a_target_without_gradients_cannot_be_followed_and_the_remedy_is_said():
    images = random_images(1, 2)
    recorded = RecordedTarget(images, torch.full((2, 5), 0.2))
    with pytest.raises(
        InvalidOptionError, match=r"type RecordedTarget has no gradients.*as a PyTorch module"
    ):
        DefendedTarget(recorded, Identity()).differentiable_logits(images)


def test_queries_are_answered_in_batches_and_in_order():
    images = random_images(1, 9)
    scripted = Scripted(lambda logits: logits, requires_input=True)
    released = DefendedTarget(target(), scripted, batch_size=4)(images)
    assert [len(part) for part in scripted.images] == [4, 4, 1]
    torch.testing.assert_close(released, target()(images))


@looped("requires_input", [False, True])
def test_images_go_to_a_defense_that_needs_them_alone(requires_input):
    scripted = Scripted(lambda logits: logits, requires_input=requires_input)
    DefendedTarget(target(), scripted)(random_images(1, 3))
    assert (scripted.images[0] is not None) == requires_input


def test_a_changed_label_that_was_promised_to_stay_releases_nothing():
    images = random_images(1, 9)
    images[2] = 1 - images[2]
    logits = target().logits(images)
    logits[:, 0] -= 100
    recorded = RecordedTarget(images, logits.softmax(-1))
    scripted = Scripted(lift_class_0_in_row_2)
    with pytest.raises(DefenseFailedError, match=r"Scripted promises .* changed 1 of 9; nothing"):
        DefendedTarget(recorded, scripted)(images)


def test_no_batch_is_released_if_a_later_one_fails():
    images = random_images(1, 9)
    answers = iter([lambda logits: logits, lambda logits: -logits])
    scripted = Scripted(lambda logits: next(answers)(logits))
    with pytest.raises(DefenseFailedError, match="nothing is released"):
        DefendedTarget(target(), scripted, batch_size=5)(images)


def test_a_defense_that_promises_no_label_may_change_it():
    images = random_images(1, 9)
    released = DefendedTarget(target(), Scripted(torch.neg, keeps_label=False))(images)
    assert torch.equal(released.argmax(-1), target().logits(images).argmin(-1))


def test_logits_of_another_shape_release_nothing():
    scripted = Scripted(lambda logits: logits[:, :-1])
    with pytest.raises(
        DefenseFailedError,
        match=r"nothing is released.*\(3, 5\) on cpu, but gave float32 of shape \(3, 4\)",
    ):
        DefendedTarget(target(), scripted)(random_images(1, 3))


@looped(
    "change",
    [lambda logits: logits * math.nan, lambda logits: logits.long(), lambda _: None],
    ids=["not finite", "integers", "nothing"],
)
def test_what_is_no_logits_releases_nothing(change):
    with pytest.raises(DefenseFailedError):
        DefendedTarget(target(), Scripted(change))(random_images(1, 3))


def test_an_error_of_the_defense_releases_nothing():
    def fail(_: Tensor) -> Tensor:
        raise DefenseFailedError("on purpose")

    with pytest.raises(DefenseFailedError, match=r"raised DefenseFailedError .* nothing is"):
        DefendedTarget(target(), Scripted(fail))(random_images(1, 3))


def test_queries_without_a_record_are_refused():
    recorded = RecordedTarget(random_images(1, 2), torch.full((2, 5), 0.2))
    with pytest.raises(InvalidTensorError, match="no recorded answer"):
        DefendedTarget(recorded, LabelOnly())(random_images(2, 2))


def test_no_gradient_leaves():
    images = random_images(1, 3).requires_grad_()
    noise = AdversarialNoise(small_inverter(2), step_size=0.4)
    assert not DefendedTarget(target(), noise)(images).requires_grad


@looped("options", [{"batch_size": 0}, {"decimals": 99}, {"dtype": torch.int64}])
def test_options_that_no_release_can_have_are_refused_before_any_query(options):
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        DefendedTarget(target(), LabelOnly(), **options)


@looped("batch_size", [4, 512])
def test_a_trace_tells_the_scores_on_the_way_to_what_is_released(batch_size):
    images = random_images(1, 9)
    noise = AdversarialNoise(small_inverter(2), step_size=0.4)
    defended = DefendedTarget(target(), noise, decimals=3, batch_size=batch_size)
    trace = defended.trace(images)
    torch.testing.assert_close(trace.clean_logits, target().logits(images))
    torch.testing.assert_close(trace.defended_logits, noise(trace.clean_logits, images))
    assert not torch.equal(trace.clean_logits, trace.defended_logits)
    assert same_bits(trace.released, release(trace.defended_logits, decimals=3))
    assert same_bits(trace.released, defended(images))


def test_a_trace_of_a_random_defense_is_of_the_one_answer_that_was_released():
    noisy, images = Noisy(), random_images(1, 9)
    defended = DefendedTarget(target(), noisy, batch_size=4)
    trace = defended.trace(images)
    assert noisy.calls == 3  # one per batch
    assert same_bits(trace.released, release(trace.defended_logits))
    assert not torch.equal(defended.trace(images).released, trace.released)


def test_a_trace_fails_closed():
    scripted = Scripted(lambda logits: -logits)
    with pytest.raises(DefenseFailedError, match="nothing is released"):
        DefendedTarget(target(), scripted).trace(random_images(1, 3))
    with pytest.raises(InvalidTensorError, match="images must be floating"):
        DefendedTarget(target(), LabelOnly()).trace(torch.zeros(2, 1, 8, 8).byte())
    with pytest.raises(InvalidTensorError, match=r"torch\.Tensor, but got list"):
        DefendedTarget(target(), LabelOnly()).trace([0.5])


def test_a_deterministic_defense_answers_the_same_however_often_it_is_asked():
    images = random_images(1, 9)
    scripted = Scripted(lambda logits: logits * 2)
    defended = DefendedTarget(target(), scripted)
    answers = defended.repeated(images, 5)
    assert answers.shape == (5, 9, 5)
    assert len(scripted.images) == 1  # what is known is not computed again
    for answer in answers:
        assert same_bits(answer.contiguous(), defended(images))


@looped("noisy", [Noisy, Drawing])
def test_answers_of_a_random_defense_are_independent_draws_of_one_kind(noisy):
    images, count = random_images(1, 3), 1500
    defended = DefendedTarget(target(), noisy(), dtype=torch.float64)
    logs = defended.repeated(images, count).log()
    # A difference of two logits has noise of variance 2 around the clean one.
    gaps = logs[..., 1:] - logs[..., :1]
    clean = target().logits(images)
    expected = (clean[:, 1:] - clean[:, :1]).double()
    assert (gaps.mean(0) - expected).abs().max() < 5 * (2 / count) ** 0.5
    assert (gaps.var(0) - 2).abs().max() < 5 * 2 * (2 / count) ** 0.5
    # Neither neighbours in time nor two queries share their noise.
    noise = (gaps - gaps.mean(0)) / 2**0.5
    assert (noise[1:] * noise[:-1]).mean(0).abs().max() < 5 / count**0.5
    assert (noise[:, 0] * noise[:, 1]).mean(0).abs().max() < 5 / count**0.5


def test_a_random_defense_without_draws_is_asked_once_per_answer():
    noisy = Noisy()
    assert DefendedTarget(target(), noisy).repeated(random_images(1, 9), 5).shape == (5, 9, 5)
    assert noisy.calls == 5


@looped("requires_input", [False, True])
def test_a_random_defense_s_own_draws_are_used_in_batches_and_in_order(requires_input):
    drawing, images = (
        Drawing(lambda drawn: drawn, requires_input=requires_input),
        random_images(1, 9),
    )
    assert isinstance(drawing, RepeatableDefense)
    assert not isinstance(Noisy(), RepeatableDefense)
    answers = DefendedTarget(target(), drawing, batch_size=4, decimals=2).repeated(images, 300)
    assert drawing.calls == 0
    assert [(len(logits), count) for logits, _, count in drawing.asked] == [
        (4, 300),
        (4, 300),
        (1, 300),
    ]
    asked = torch.cat([logits for logits, _, _ in drawing.asked])
    torch.testing.assert_close(asked, target().logits(images))
    if requires_input:
        assert torch.equal(torch.cat([some for _, some, _ in drawing.asked]), images)
    else:
        assert {some for _, some, _ in drawing.asked} == {None}
    assert answers.shape == (300, 9, 5)
    torch.testing.assert_close((answers * 100).round() / 100, answers)


def test_draws_of_all_batches_come_in_the_order_of_the_queries():
    images = random_images(1, 9)
    defended = DefendedTarget(target(), Drawing(scale=0.0), batch_size=4)
    answers = defended.repeated(images, 2)
    torch.testing.assert_close(answers, target()(images).expand(2, -1, -1))
    assert not torch.allclose(answers, answers.flip(1), atol=1e-3)


def test_repeated_answers_have_the_released_type():
    for noisy in (Noisy(), Drawing(), LabelOnly()):
        defended = DefendedTarget(target(), noisy, dtype=torch.float16)
        assert defended.repeated(random_images(1, 2), 3).dtype == torch.float16


def negate_one_draw(drawn: Tensor) -> Tensor:
    changed = 30 * drawn  # no draw is told the label by chance
    changed[1, 2] *= -1
    return changed


@looped(
    ("change", "message"),
    [
        (lambda drawn: drawn[0], r"\(3, 9, 5\) on cpu, but gave float32 of shape \(9, 5\)"),
        (lambda drawn: drawn[1:], r"\(3, 9, 5\) on cpu, but gave float32 of shape \(2, 9, 5\)"),
        (
            lambda drawn: drawn.transpose(0, 1),
            r"\(3, 9, 5\) on cpu, but gave float32 of shape \(9, 3, 5\)",
        ),
        (lambda drawn: drawn * math.nan, "finite"),
    ],
    ids=["one draw", "too few", "another order", "not finite"],
)
def test_draws_that_are_no_logits_release_nothing(change, message):
    with pytest.raises(DefenseFailedError, match=rf"nothing is released.*{message}"):
        DefendedTarget(target(), Drawing(change)).repeated(random_images(1, 9), 3)


def test_a_label_changed_in_one_draw_of_one_query_releases_nothing():
    images = random_images(1, 9)
    logits = 1000 * random_rows(4, 9, 5, torch.float32, 1)
    recorded = RecordedTarget(images, release(logits))
    kept = Drawing(keeps_label=True)
    assert DefendedTarget(recorded, kept).repeated(images, 3).shape == (3, 9, 5)
    broken = Drawing(negate_one_draw, keeps_label=True)
    with pytest.raises(DefenseFailedError, match=r"Drawing promises .* changed 1 of 27; nothing"):
        DefendedTarget(recorded, broken).repeated(images, 3)
    free = Drawing(negate_one_draw)
    assert DefendedTarget(recorded, free).repeated(images, 3).shape == (3, 9, 5)


def test_a_label_changed_at_one_of_many_askings_releases_nothing():
    turns = iter([1, 1, -1])
    scripted = Scripted(lambda logits: next(turns) * logits, deterministic=False)
    with pytest.raises(DefenseFailedError, match="nothing is released"):
        DefendedTarget(target(), scripted).repeated(random_images(1, 9), 3)


@looped("count", [0, -1, 2.5, True])
@looped("defense", [LabelOnly(), Noisy(), Drawing()], ids=["same", "any", "draws"])
def test_answers_are_counted_in_whole_numbers_from_one(defense, count):
    with pytest.raises(InvalidOptionError, match=r"^count must be"):
        DefendedTarget(target(), defense).repeated(random_images(1, 2), count)


@looped("defense", [LabelOnly(), Noisy(), Drawing()], ids=["same", "any", "draws"])
def test_what_is_no_images_is_not_answered_repeatedly(defense):
    with pytest.raises(InvalidTensorError, match="images must be floating"):
        DefendedTarget(target(), defense).repeated(torch.zeros(2, 1, 8, 8).byte(), 3)
    with pytest.raises(InvalidTensorError, match=r"torch\.Tensor, but got list"):
        DefendedTarget(target(), defense).repeated([0.5], 3)
    assert DefendedTarget(target(), defense).repeated(random_images(1, 0), 3).shape == (3, 0, 5)
