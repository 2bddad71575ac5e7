"""A PyTorch module as a target: its scores, and nothing that depends on who else asks."""

import copy
import importlib.util
import math
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laws import looped
from oneway.contracts import ScoredTarget
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import release
from oneway.targets import TargetNetwork, TorchTarget, class_names_of
from optional import later
from rows import same_bits
from surrogates import random_images

ImageClassifierOutput = later("transformers.modeling_outputs:ImageClassifierOutput")


def network(seed: int = 0) -> TargetNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TargetNetwork(5, (1, 8, 8), width=4, blocks=2)


class Answers(nn.Module):
    """Answers whatever it is asked with the same function of the images' count."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(len(images))


def test_logits_are_the_module_s_in_eval_mode_and_confidences_their_release():
    module, images = network().train(), random_images(1, 7)
    target = TorchTarget(module)
    assert isinstance(target, ScoredTarget)
    assert torch.equal(target.logits(images), module.eval()(images))
    assert same_bits(target(images), release(target.logits(images)))


def test_asking_changes_nothing_in_the_module():
    module = network()
    before = copy.deepcopy(module.state_dict())
    TorchTarget(module)(random_images(1, 7))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_batch_size_bounds_what_the_module_sees_and_changes_no_answer():
    seen = []
    module = network()
    module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    images = random_images(1, 7)
    torch.testing.assert_close(
        TorchTarget(module, batch_size=3)(images), TorchTarget(module)(images)
    )
    assert seen == [3, 3, 1, 7]


def test_confidences_become_their_logs_when_said_to_be_confidences():
    module, images = nn.Sequential(network(), nn.Softmax(-1)), random_images(1, 7)
    plain = module[0].eval()(images)
    logits = TorchTarget(module, outputs="confidences").logits(images)
    torch.testing.assert_close(logits, plain.double().log_softmax(-1), rtol=1e-5, atol=1e-5)


@looped(
    ("given", "promised"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_logits_are_float32_or_float64(given, promised):
    target = TorchTarget(Answers(lambda count: torch.ones(count, 3, dtype=given)))
    assert target.logits(random_images(1, 2)).dtype == promised
    assert target(random_images(1, 2)).dtype == torch.float32


def test_no_gradient_leaves():
    images = random_images(1, 7).requires_grad_()
    target = TorchTarget(network())
    assert not target.logits(images).requires_grad
    assert not target(images).requires_grad


def test_for_whoever_has_the_model_logits_have_their_gradient_in_the_images():
    module, images = network(), random_images(1, 7).requires_grad_()
    target = TorchTarget(module)
    logits = target.differentiable_logits(images)
    torch.testing.assert_close(logits, target.logits(images))
    (found,) = torch.autograd.grad(logits[:, 0].sum(), images)
    # A slow oracle: one pixel a little to either side.
    wide, plain = copy.deepcopy(module).double(), images.detach().double()
    for pixel in range(0, 64, 7):
        step = torch.zeros(1, 64, dtype=torch.float64)
        step[0, pixel] = 1e-6
        step = step.reshape(1, 1, 8, 8)
        with torch.no_grad():
            rise = (wide(plain + step) - wide(plain - step))[:, 0] / 2e-6
        torch.testing.assert_close(found.flatten(1)[:, pixel].double(), rise, rtol=1e-3, atol=1e-4)


def test_confidences_are_differentiated_as_their_logs():
    module, images = nn.Sequential(network(), nn.Softmax(-1)), random_images(1, 7).requires_grad_()
    logits = TorchTarget(module, outputs="confidences").differentiable_logits(images)
    (found,) = torch.autograd.grad(logits[:, 0].sum(), images)
    plain = module[0](images).log_softmax(-1)
    (expected,) = torch.autograd.grad(plain[:, 0].sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@looped("asked", ["__call__", "logits", "differentiable_logits"])
def test_a_module_put_back_in_training_mode_is_refused(asked):
    module = network()
    target = TorchTarget(module)
    module.train()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(InvalidOptionError, match=r"training mode.*Call `module\.eval\(\)`"):
        getattr(target, asked)(random_images(1, 7))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@looped(
    ("answer", "message"),
    [
        (lambda count: torch.zeros(count), r"shape \(2, K\).*but gave \(2,\)"),
        (lambda count: torch.zeros(count, 1, 3), r"but gave \(2, 1, 3\)"),
        (lambda count: torch.zeros(count + 1, 3), r"2 queries .*but gave \(3, 3\)"),
        (lambda count: torch.zeros(count, 1), "K >= 2"),
        (
            lambda count: torch.full((count, 3), math.nan),
            "the logits of the module must be finite",
        ),
        (lambda count: torch.zeros(count, 3).long(), "the logits of the module must be floating"),
    ],
    ids=["no classes", "another axis", "another count", "one class", "not finite", "integers"],
)
def test_scores_that_cannot_be_used_are_refused(answer, message):
    target = TorchTarget(Answers(answer))
    for asked in (target, target.differentiable_logits):
        with pytest.raises(InvalidTensorError, match=message):
            asked(random_images(1, 2))


def test_logits_said_to_be_confidences_are_refused():
    target = TorchTarget(Answers(lambda count: torch.full((count, 3), 2.0)), outputs="confidences")
    with pytest.raises(InvalidTensorError, match="2 of 2 rows are not"):
        target(random_images(1, 2))


@looped(
    ("images", "message"),
    [
        (np.zeros((2, 1, 8, 8)), r"torch\.Tensor, but got ndarray"),
        (torch.zeros(2, 1, 8, 8).byte(), "images must be floating"),
        (torch.full((2, 1, 8, 8), math.inf), "images must be finite"),
        (torch.zeros(8), r"unsqueeze\(0\)"),
    ],
    ids=["numpy", "bytes", "not finite", "a vector"],
)
def test_images_that_cannot_be_used_are_refused(images, message):
    target = TorchTarget(network())
    for asked in (target, target.differentiable_logits):
        with pytest.raises(InvalidTensorError, match=message):
            asked(images)


@looped("outputs", ["probabilities", None])
def test_outputs_of_another_name_are_refused(outputs):
    with pytest.raises(InvalidOptionError, match="outputs must be 'logits' or 'confidences'"):
        TorchTarget(network(), outputs=outputs)


def test_an_empty_batch_size_is_refused():
    with pytest.raises(InvalidOptionError, match="batch_size must be a whole number"):
        TorchTarget(network(), batch_size=0)


class Answering(nn.Module):
    """A linear classifier whose answer is wrapped by a function of scores and images."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.wrap = wrap
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        weights = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
        self.inner[1].weight.data = weights

    def forward(self, images: Tensor) -> object:
        return self.wrap(self.inner(images), images)


Several = namedtuple("Several", "probabilities, features")

OUTPUTS = {
    "a tuple of one": lambda scores, _: (scores,),
    "a tuple with images": lambda scores, images: (scores, images),
    "a list with nothing": lambda scores, _: [None, scores],
    "a dictionary of one": lambda scores, _: {"out": scores},
    "a dictionary with logits": lambda scores, _: {"features": -scores, "logits": scores},
    "an object": lambda scores, _: SimpleNamespace(logits=scores, loss=None),
    "an object of transformers": lambda scores, _: ImageClassifierOutput(logits=scores),
}


def test_scores_are_found_in_any_answer_that_has_them_for_sure():
    images = random_images(1, 7)
    for name, wrap in OUTPUTS.items():
        module = Answering(wrap)
        if name == "an object of transformers" and importlib.util.find_spec("transformers") is None:
            continue
        target, wanted = TorchTarget(module, batch_size=3), module.inner(images).detach()
        torch.testing.assert_close(target.logits(images), wanted, msg=name)
        assert target.differentiable_logits(images.requires_grad_()).requires_grad, name
        images = images.detach()


@looped(
    ("wrap", "message"),
    [
        (
            lambda scores, _: (scores, scores),
            r"tuple of 2 \(0: float32 \(2, 3\), 1: float32 .*2 of",
        ),
        (
            lambda scores, _: {"a": scores, "b": scores},
            r"gave dict of 2 \(a: float32 .* b: float32",
        ),
        (
            lambda scores, _: {"a": scores.long(), "b": None},
            r"a: int64 \(2, 3\), b: NoneType.*0 of",
        ),
        (
            lambda scores, _: Several(scores, scores),
            r"Several of 2 \(probabilities: .*, features: ",
        ),
        (
            lambda scores, _: scores.detach().numpy(),
            r"gave ndarray\. Convert it, as by `torch\.from",
        ),
        (lambda _, __: None, "gave NoneType"),
        (lambda _, __: "0.125", "gave str"),
    ],
)
def test_answers_without_scores_for_sure_are_refused_by_type_and_keys(wrap, message):
    with pytest.raises(InvalidTensorError, match=message) as caught:
        TorchTarget(Answering(wrap))(random_images(1, 2))
    assert "0.125" not in str(caught.value)


def test_what_says_logits_is_no_confidences():
    module = Answering(lambda scores, _: {"logits": scores.softmax(-1)})
    with pytest.raises(InvalidTensorError, match="answers with logits, as its dict says"):
        TorchTarget(module, outputs="confidences")(random_images(1, 2))


@looped("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_queries_are_cast_to_the_type_of_the_weights(dtype):
    module, images = Answering(lambda scores, _: scores).to(dtype), random_images(1, 7)
    before = images.clone()
    wanted = module(images.to(dtype)).detach()
    for queries in (images, images.double()):
        logits = TorchTarget(module).logits(queries)
        assert torch.equal(logits, wanted.to(logits.dtype))
    assert torch.equal(images, before)


class Masked(nn.Module):
    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        return images * mask


class Keyword(nn.Module):
    def forward(self, images: Tensor, *, mask: Tensor) -> Tensor:
        return images * mask


class Words(nn.Module):
    main_input_name = "input_ids"


def of_several_labels():
    module = Answering(lambda scores, _: scores)
    module.config = SimpleNamespace(problem_type="multi_label_classification")
    return module


@looped(
    ("build", "message"),
    [
        (of_several_labels, "one class, but its configuration says 'multi_label_classification'"),
        (lambda: lambda images: images, "instance of torch.nn.Module, but is function.*Callable"),
        (lambda: nn.Flatten, "but is the class Flatten"),
        (Masked, r"forward needs 2 inputs \(images, mask\)\. .*package\.module:factory"),
        (Keyword, r"forward needs 2 inputs \(images, mask\)"),
        (lambda: torch.jit.script(Masked()), r"forward needs 2 inputs \(images, mask\)"),
        (Words, "takes token ids"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "lazy layers"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript is retired
def test_modules_that_cannot_be_asked_with_images_alone_are_refused(build, message):
    with pytest.raises(InvalidOptionError, match=message):
        TorchTarget(build())


def test_weights_without_values_are_refused():
    target = TorchTarget(Answering(lambda scores, _: scores).to("meta"))
    with pytest.raises(InvalidOptionError, match="on the device meta"):
        target(random_images(1, 2))


def test_logits_that_are_probabilities_are_refused():
    module, images = Answering(lambda scores, _: scores.softmax(-1)), random_images(1, 8)
    with pytest.raises(InvalidTensorError, match=r"declared logits.*--outputs confidences"):
        TorchTarget(module).logits(images)
    target = TorchTarget(module, batch_size=3)
    with pytest.raises(InvalidTensorError, match="all of 8 rows"):
        target.differentiable_logits(images)
    torch.testing.assert_close(
        TorchTarget(module, outputs="confidences")(images), module(images).detach()
    )


def test_class_names_are_those_of_the_config_or_the_user_s():
    module = Answering(lambda scores, _: scores)
    assert class_names_of(TorchTarget(module)) is None
    assert class_names_of(TorchTarget(module, class_names=["a", "b", "c"])) == ("a", "b", "c")
    module.config = SimpleNamespace(id2label={1: "dog", 0: "cat", 2: "fox"})
    assert class_names_of(TorchTarget(module)) == ("cat", "dog", "fox")
    for no_names in (
        {0: "LABEL_0", 1: "LABEL_1"},
        {"0": "cat", "1": "dog"},
        {0: "a", 1: "a"},
        None,
    ):
        module.config = SimpleNamespace(id2label=no_names)
        assert class_names_of(TorchTarget(module)) is None, no_names
    with pytest.raises(InvalidTensorError, match=r"3 scores, but 2 class names .* \(a, b\)"):
        TorchTarget(module, class_names=("a", "b"))(random_images(1, 2))
    for names in ("ab", ("a", "a"), ("a",), (1, 2)):
        with pytest.raises(InvalidOptionError, match="class_names must be"):
            TorchTarget(module, class_names=names)
