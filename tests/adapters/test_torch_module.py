"""A guarded module answers like a module, and lets out nothing but guarded probabilities."""

import copy

import pytest
import torch
from torch import nn

from laws import looped
from oneway.adapters import Guard, GuardedModule
from oneway.defenses import build_defense
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError
from rows import leads, same_bits
from surrogates import random_images, small_inverter


def model(classes=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), nn.Flatten(),
            nn.Linear(72, classes),
        )  # fmt: skip


IMAGES = random_images(1, 12)


def test_it_gives_the_guarded_scores_of_its_model_and_no_gradient():
    made, defense = model(), build_defense("adversarial-noise", {"step_size": 1.0}, inverter())
    guarded = GuardedModule(made, defense, outputs="logits", decimals=4)
    released = guarded(IMAGES)
    clean = made.eval()(IMAGES)
    assert same_bits(released, Guard(defense, "logits", decimals=4)(clean, IMAGES))
    assert not released.requires_grad
    assert leads(released, clean.argmax(-1))
    assert (released - clean.softmax(-1)).abs().max() > 0.01


def inverter():
    return small_inverter(classes=5)


def test_said_to_give_confidences_it_is_taken_at_its_word():
    made = nn.Sequential(model(), nn.Softmax(-1))
    released = GuardedModule(made, Identity(), outputs="confidences")(IMAGES)
    torch.testing.assert_close(released, made.eval()(IMAGES), rtol=0, atol=1e-6)


@looped("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_no_answer_depends_on_the_batch_or_on_the_mode_of_the_server(mode):
    guarded = GuardedModule(model(), Rounding(decimals=3), outputs="logits")
    together = guarded(IMAGES)
    with mode():
        alone = torch.cat([guarded(image[None]) for image in IMAGES])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)


def test_it_stays_in_eval_mode_and_does_not_answer_outside_of_it():
    guarded = GuardedModule(model().train(), LabelOnly(), outputs="logits")
    assert not any(module.training for module in guarded.modules())
    assert guarded.train(False) is guarded
    assert guarded.eval() is guarded
    with pytest.raises(InvalidOptionError, match="not trained"):
        guarded.train()
    guarded.model[1].train()
    with pytest.raises(InvalidOptionError, match="training mode"):
        guarded(IMAGES)


def test_it_moves_types_and_copies_as_a_module():
    guarded = GuardedModule(model(), Rounding(decimals=2), outputs="logits").double()
    released = guarded(IMAGES.double())
    assert released.dtype == torch.float64
    assert same_bits(copy.deepcopy(guarded)(IMAGES.double()), released)
    assert set(guarded.state_dict()) == {f"model.{name}" for name in model().state_dict()}


class Heads(nn.Module):
    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, queries):
        return self.heads(torch.zeros(len(queries), 3))


@looped(
    "heads",
    [
        lambda scores: (scores, scores),
        lambda scores: {"logits": scores},
        lambda scores: scores[1:],
        lambda scores: scores[0],
        lambda scores: scores * torch.nan,
    ],
)
def test_what_is_not_one_tensor_of_scores_is_refused(heads):
    with pytest.raises(InvalidTensorError):
        GuardedModule(Heads(heads), Identity(), outputs="logits")(IMAGES)


def test_what_cannot_be_guarded_is_refused():
    with pytest.raises(InvalidOptionError, match=r"nn\.Module"):
        GuardedModule(lambda queries: queries, Identity(), outputs="logits")
    with pytest.raises(InvalidOptionError, match="never guessed"):
        GuardedModule(model(), Identity(), outputs="scores")
