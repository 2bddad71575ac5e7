"""A defended target releases the defense's answer with the label on top, or nothing."""

import math

import pytest
import torch
from torch import Tensor

from oneway.checks import FLOATING
from oneway.confidences import logits_from_confidences, release
from oneway.contracts import Target
from oneway.defenses.adversarial_noise import AdversarialNoise
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError
from oneway.targets import DefendedTarget, RecordedTarget, TargetNetwork, TorchTarget
from rows import leads, random_rows, same_bits
from surrogates import random_images, small_inverter


def target(seed: int = 0) -> TorchTarget:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TorchTarget(TargetNetwork(5, (1, 8, 8), width=4, blocks=2))


class Scripted:
    """A defense that does as it is told."""

    requires_input = False
    deterministic = True

    def __init__(self, change, *, keeps_label: bool = True, requires_input: bool = False) -> None:
        self.change, self.keeps_label, self.requires_input = change, keeps_label, requires_input
        self.images: list[Tensor | None] = []

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        self.images.append(images)
        return self.change(logits)


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


def test_without_a_defense_it_answers_as_the_target_does():
    images = random_images(1, 9)
    assert same_bits(DefendedTarget(target(), Identity())(images), target()(images))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("decimals", [None, 0, 1, 2, 6, 12])
@pytest.mark.parametrize("seed", range(3))
def test_clean_label_is_the_only_maximum_in_every_type_and_rounding(dtype, decimals, seed):
    images = random_images(seed, 40)
    noise = AdversarialNoise(small_inverter(seed), step_size=1.0, steps=4)
    defended = DefendedTarget(target(seed), noise, dtype=dtype, decimals=decimals)
    released = defended(images)
    assert leads(released, target(seed).logits(images).argmax(-1))
    assert released.dtype == dtype


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("decimals", [None, 2])
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


def test_queries_are_answered_in_batches_and_in_order():
    images = random_images(1, 9)
    scripted = Scripted(lambda logits: logits, requires_input=True)
    released = DefendedTarget(target(), scripted, batch_size=4)(images)
    assert [len(part) for part in scripted.images] == [4, 4, 1]
    torch.testing.assert_close(released, target()(images))


@pytest.mark.parametrize("requires_input", [False, True])
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
        DefenseFailedError, match=r"nothing is released.*\(3, 5\), but got \(3, 4\)"
    ):
        DefendedTarget(target(), scripted)(random_images(1, 3))


@pytest.mark.parametrize(
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

    with pytest.raises(DefenseFailedError, match="on purpose"):
        DefendedTarget(target(), Scripted(fail))(random_images(1, 3))


def test_queries_without_a_record_are_refused():
    recorded = RecordedTarget(random_images(1, 2), torch.full((2, 5), 0.2))
    with pytest.raises(InvalidTensorError, match="no recorded answer"):
        DefendedTarget(recorded, LabelOnly())(random_images(2, 2))


def test_no_gradient_leaves():
    images = random_images(1, 3).requires_grad_()
    noise = AdversarialNoise(small_inverter(2), step_size=0.4)
    assert not DefendedTarget(target(), noise)(images).requires_grad


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"decimals": 99}, {"dtype": torch.int64}])
def test_options_that_no_release_can_have_are_refused_before_any_query(options):
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        DefendedTarget(target(), LabelOnly(), **options)
