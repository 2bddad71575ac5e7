"""A guarded module answers like a module, and lets out nothing but guarded probabilities."""

import copy
import pickle
import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from faulty_defenses import Faulty
from laws import looped
from oneway.adapters import Guard, GuardedModule
from oneway.defenses import build_defense
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError, TargetFailedError
from oneway.targets import TorchTarget
from rows import leads, random_rows, same_bits
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
    ("heads", "said"),
    [
        (lambda scores: (scores, scores), "tuple of 2"),
        (lambda scores: {"first": scores, "second": scores}, "first: float32.*second: float32"),
        (lambda scores: Pair(scores, scores), "Pair of 2.*one: float32.*other: float32"),
        (lambda scores: scores.numpy(), "ndarray"),
        (lambda scores: scores[1:], "must answer 12 queries"),
        (lambda scores: scores[0], "must answer 12 queries"),
        (lambda scores: scores[:, 0], r"stack\(\[1 - p, p\], -1\)\.reshape\(-1, 2\)"),
        (lambda scores: scores[:, :1], r"stack\(\[1 - p, p\], -1\)\.reshape\(-1, 2\)"),
        (lambda _: ("text",), "tuple of 1"),
        (lambda scores: scores * torch.nan, "finite"),
        (lambda scores: scores.to("meta"), "meta device"),
    ],
)
def test_what_is_not_one_tensor_of_scores_is_refused_by_its_type_and_names(heads, said):
    with pytest.raises(InvalidTensorError, match=said):
        GuardedModule(Heads(heads), Identity(), outputs="logits")(IMAGES)


Pair = namedtuple("Pair", ["one", "other"])


@dataclass
class Output:
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple = ()


@looped(
    "heads",
    [
        lambda scores: (scores,),
        lambda scores: [scores],
        lambda scores: {"scores": scores},
        lambda scores: {"states": scores, "logits": scores},
        lambda scores: (scores, scores[:, 0], scores.sum()),
        lambda scores: Single(scores),
    ],
)
def test_the_only_entry_of_an_answer_that_can_be_the_scores_is_guarded(heads):
    clean = torch.tensor([3.0, 1.0, 2.0])
    model = Heads(lambda scores: heads(scores + clean))
    released = GuardedModule(model, Rounding(decimals=1), outputs="logits")(IMAGES)
    assert same_bits(released, Guard(Rounding(decimals=1), "logits")(clean.expand(12, 3)))


Single = namedtuple("Single", ["scores"])


def test_an_output_object_comes_back_without_loss_and_hidden_states():
    model = Heads(lambda scores: Output(scores.sum(), scores, (scores, scores)))
    answer = GuardedModule(model, Identity(), outputs="logits")(IMAGES)
    assert isinstance(answer, Output)
    assert answer.loss is None
    assert answer.hidden_states == ()
    torch.testing.assert_close(answer.logits.softmax(-1), torch.full((12, 3), 1 / 3))
    with pytest.raises(InvalidTensorError, match="Declare logits"):
        GuardedModule(model, Identity(), outputs="confidences")(IMAGES)


@looped("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_in_an_object_stay_logits_whose_softmax_is_the_release(kind):
    scores = random_rows(5, 64, 40, torch.float32, 0.01).to(kind)
    model = Heads(lambda _: Output(logits=scores))
    guarded = GuardedModule(model, Rounding(decimals=2), outputs="logits")
    logits = guarded(torch.zeros(64, 1)).logits
    released = Guard(Rounding(decimals=2), "logits")(scores)
    assert logits.dtype == kind
    assert logits.isfinite().all()
    assert leads(logits, scores.argmax(-1))
    near = 8 * torch.finfo(kind).eps
    torch.testing.assert_close(logits.softmax(-1), released, rtol=near, atol=near)
    # Logarithms of probabilities next to each other may round to one number.
    close = torch.zeros(1, 1000, dtype=kind)
    close[0, 7] = torch.finfo(kind).eps
    model = Heads(lambda _: Output(logits=close))
    logits = GuardedModule(model, Identity(), outputs="logits")(torch.zeros(1, 1)).logits
    assert leads(logits, torch.tensor([7]))


class TwoInputs(nn.Module):
    """Takes ids and a mask, as language models do, and an unrelated option."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)

    def forward(self, ids=None, mask=None, scale=1.0):
        ids[:, 0] = 0
        return (self.embedding(ids) * mask[..., None]).sum(1) * scale


def test_all_inputs_reach_the_model_by_position_and_by_name_as_copies():
    made = TwoInputs()
    ids, mask = torch.arange(12).reshape(4, 3) % 7, torch.tensor([[1, 1, 0]] * 4)
    before = ids.clone()
    guarded = GuardedModule(made, Identity(), outputs="logits")
    expected = Guard(Identity(), "logits")(made(ids.clone(), mask, scale=2.0))
    assert same_bits(guarded(ids, mask, scale=2.0), expected)
    assert same_bits(guarded(ids=ids, mask=mask, scale=2.0), expected)
    assert same_bits(guarded(mask=mask, ids=ids, scale=2.0), expected)
    assert torch.equal(ids, before)
    noisy = GuardedModule(made, Faulty(requires_input=True), outputs="logits")
    with pytest.raises(InvalidTensorError, match=r"queries must be a floating.*int64"):
        noisy(ids, mask)
    with pytest.raises(InvalidTensorError, match="NoneType"):
        guarded()


@looped("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_are_cast_to_the_type_of_the_weights_where_the_model_takes_no_other(kind):
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).to(kind)
    guarded = GuardedModule(made, Identity(), outputs="logits")
    released = guarded(IMAGES)
    assert released.dtype == kind
    assert same_bits(released, guarded(IMAGES.to(kind)))


def test_a_module_that_casts_by_itself_gets_the_queries_as_they_are():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(64, 5).half()

        def forward(self, images):
            return self.inner((images.flatten(1) / 300_000).half())

    made, images = Scaled(), IMAGES * 100_000  # beyond the range of float16
    released = GuardedModule(made, Identity(), outputs="logits")(images)
    assert same_bits(released, Guard(Identity(), "logits")(made(images).detach()))


def test_a_module_that_raises_is_an_error_that_names_types_and_devices_and_no_value():
    class Shouts(nn.Module):
        def __init__(self, device="cpu"):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1, device=device))

        def forward(self, images):
            raise ValueError(f"cannot score {images}")

    cases = (
        (Shouts(), r"the model raised ValueError.*12 queries.*float32 \(12, 1, 8, 8\) on cpu"),
        (nn.Linear(5, 3), "its weights are float32 on cpu"),
        (Shouts("meta"), "load the weights first"),
    )
    for made, said in cases:
        with pytest.raises(TargetFailedError, match=said) as raised:
            GuardedModule(made, Identity(), outputs="logits")(IMAGES)
        assert "cannot" not in str(raised.value)
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None


def test_it_works_pickled_quantised_and_on_several_devices():
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    guarded = GuardedModule(made, Rounding(decimals=2), outputs="logits")
    released = guarded(IMAGES)
    assert same_bits(pickle.loads(pickle.dumps(guarded))(IMAGES), released)  # noqa: S301  ours
    assert same_bits(nn.DataParallel(guarded)(IMAGES), released)
    weights = dict(guarded.named_parameters())
    assert same_bits(torch.func.functional_call(guarded, weights, (IMAGES,)), released)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of another package
        quantise = torch.ao.quantization.quantize_dynamic
        small = GuardedModule(quantise(made, {nn.Linear}), Rounding(decimals=2), outputs="logits")
        again = quantise(guarded, {nn.Linear}).eval()
    assert same_bits(small(IMAGES), again(IMAGES))
    torch.testing.assert_close(small(IMAGES), released, rtol=0, atol=0.03)


def test_what_cannot_be_guarded_is_refused():
    with pytest.raises(InvalidOptionError, match=r"nn\.Module"):
        GuardedModule(lambda queries: queries, Identity(), outputs="logits")
    with pytest.raises(InvalidOptionError, match="never guessed"):
        GuardedModule(model(), Identity(), outputs="scores")


class Exported(nn.Linear):
    """What torch.export.load(...).module() does; to export a module takes seconds."""

    def train(self, mode=True):
        raise NotImplementedError("Calling train() is not supported yet.")


def test_the_module_of_an_exported_program_is_refused_with_the_file_to_pass():
    for refuse in (
        lambda: GuardedModule(Exported(4, 3), Identity(), outputs="logits"),
        lambda: TorchTarget(Exported(4, 3), outputs="logits"),
    ):
        with pytest.raises(InvalidOptionError, match=r"exported program.*\.pt2"):
            refuse()
