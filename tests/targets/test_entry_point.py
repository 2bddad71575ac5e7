"""A function of the user's that builds the model: found as servers find it, faults told apart."""

import sys
import textwrap

import pytest
import torch

from laws import looped
from oneway.contracts import ScoredTarget
from oneway.errors import (
    DataError,
    InvalidOptionError,
    InvalidTensorError,
    MissingDataError,
    TargetFailedError,
    UnknownNameError,
)
from oneway.targets import (
    CallableTarget,
    RecordedTarget,
    TorchTarget,
    open_target,
)
from surrogates import random_images

IMAGES = random_images(1, 7, (1, 4, 4))

MODULE = """
import numpy as np
import torch
from oneway.contracts import Target
from oneway.targets import RecordedTarget, TorchTarget
from sklearn.linear_model import LogisticRegression
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 3))

def pair():
    class Pair(nn.Module):
        def forward(self, images):
            return images, images
    return Pair()

def classifier():
    rows = np.random.default_rng(1).random((40, 16))
    return LogisticRegression().fit(rows, np.arange(40) % 3)

def arrays():
    return lambda images: images.reshape(len(images), -1)[:, :3]

def target():
    return TorchTarget(network())

def recorded():
    return RecordedTarget(torch.zeros(1, 1, 4, 4), torch.tensor([[0.25, 0.75]]))

class Own(Target):
    def __call__(self, images):
        assert isinstance(images, torch.Tensor)
        return torch.full((len(images), 2), 0.5)

class Nested:
    @staticmethod
    def build():
        return network()

model = network()

def number(): return 3
def net_type(): return nn.Linear
def none(): return None

def late():
    def answer(images):
        import late_module
        return late_module.answer(images)
    return answer

def fails():
    try:
        {}["weights"]
    except KeyError as error:
        raise OSError("no weights here") from error

def leaves():
    raise SystemExit(3)

def needs(path):
    return path
"""


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The current directory, with modules of its own; the path and modules are put back."""
    (tmp_path / "pack_of_user").mkdir()
    (tmp_path / "pack_of_user" / "models.py").write_text(MODULE)
    (tmp_path / "late_module.py").write_text(
        "def answer(images): return images.reshape(len(images), -1)[:, :2]"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("pack_of_user", "late_module", "broken_module"):
            del sys.modules[name]


def opened(attribute, outputs="logits", **options):
    where = f"pack_of_user.models:{attribute}"
    return open_target(where, outputs=outputs, device=torch.device("cpu"), **options)


def user():
    return sys.modules["pack_of_user.models"]


@looped("attribute", ["network", "Nested.build"])
def test_a_network_is_asked_in_eval_mode_and_stays_differentiable(attribute):
    target = opened(attribute, batch_size=3)
    assert isinstance(target, TorchTarget)
    wanted = user().network().eval()(IMAGES)
    torch.testing.assert_close(target.logits(IMAGES), wanted.detach())
    images = IMAGES.clone().requires_grad_()
    target.module(images).sum().backward()
    assert images.grad.abs().max() > 0


def test_a_network_goes_to_the_device():
    target = open_target(
        "pack_of_user.models:network", outputs="logits", device=torch.device("meta")
    )
    assert target.device.type == "meta"


def test_a_classifier_answers_with_its_probabilities():
    target = opened("classifier", outputs=None)
    wanted = user().classifier().predict_proba(IMAGES.flatten(1).numpy())
    torch.testing.assert_close(target(IMAGES), torch.tensor(wanted).float())


def test_a_callable_takes_and_gives_arrays():
    target = opened("arrays", batch_size=3)
    assert torch.equal(target.logits(IMAGES), IMAGES.flatten(1)[:, :3])
    assert isinstance(target, ScoredTarget)
    rows = torch.tensor([[0.25, 0.25, 0.5, 1.0]])
    assert torch.equal(opened("arrays", "confidences")(rows), rows[:, :3])


@looped(("attribute", "kind"), [("target", TorchTarget), ("recorded", RecordedTarget)])
@looped("outputs", [None, "confidences"])
def test_a_target_of_oneway_is_one_already(attribute, kind, outputs):
    assert type(opened(attribute, outputs)) is kind


def test_a_class_that_derives_from_target_is_asked_with_tensors():
    target = opened("Own", None)
    assert not isinstance(target, CallableTarget)
    assert target(IMAGES).shape == (7, 2)


@looped("attribute", ["target", "recorded", "Own", "classifier"])
def test_logits_are_not_what_a_target_or_classifier_answers_with(attribute):
    with pytest.raises(InvalidOptionError, match="answers with confidences, since it"):
        opened(attribute, "logits")


@looped("attribute", ["network", "arrays"])
def test_what_a_network_or_callable_answers_with_must_be_said(attribute):
    with pytest.raises(InvalidOptionError, match=r"say what target .pack_of_user\.models:"):
        opened(attribute, None)


def test_what_the_model_imports_at_its_first_query_is_found():
    assert opened("late")(IMAGES).shape == (7, 2)


@looped(
    ("where", "missing"),
    [
        ("no_such_module:build", "no_such_module"),
        ("pack_of_user.no_such:build", "pack_of_user.no_such"),
        ("no_such.models:build", "no_such"),
    ],
)
def test_a_module_that_is_not_there_is_said_to_be_missing(where, missing, project):
    with pytest.raises(MissingDataError, match=f"no module '{missing}' for") as caught:
        open_target(where, outputs="logits", device=torch.device("cpu"))
    assert str(project) in str(caught.value)


@looped(
    ("text", "message"),
    [
        ("import no_such_dependency", r"raised ModuleNotFoundError: .*no_such_dependency"),
        ("1 / 0", r"raised ZeroDivisionError: .*broken_module\.py, line 1"),
        ("def f(:", "raised SyntaxError"),
        ("raise SystemExit(1)", "raised SystemExit: 1"),
    ],
)
def test_a_module_that_is_broken_is_not_said_to_be_missing(text, message, project):
    (project / "broken_module.py").write_text(textwrap.dedent(text))
    with pytest.raises(DataError, match=f"importing 'broken_module' {message}") as caught:
        open_target("broken_module:build", outputs="logits", device=torch.device("cpu"))
    assert not isinstance(caught.value, MissingDataError)


@looped("attribute", ["netwrok", "Nested.biuld"])
def test_a_misspelt_factory_is_answered_with_the_nearest(attribute):
    nearest = {"netwrok": "network", "Nested.biuld": "build"}[attribute]
    with pytest.raises(UnknownNameError, match=f"unknown factory .*Known: .*{nearest}") as caught:
        opened(attribute)
    assert "LogisticRegression" not in str(caught.value)


@looped(
    ("attribute", "message"),
    [
        ("fails", r"raised OSError: no weights here .*models\.py, line \d+\). Its cause: KeyError"),
        ("leaves", "raised SystemExit: 3"),
        ("needs", "called without arguments, raised TypeError: needs"),
    ],
)
def test_a_factory_that_raises_is_quoted_with_its_cause(attribute, message):
    with pytest.raises(DataError, match=message):
        opened(attribute)


def test_the_line_that_is_named_is_the_user_s_and_not_that_of_a_library(project):
    (project / "broken_module.py").write_text("import torch\ndef build():\n    torch.load('no')\n")
    with pytest.raises(DataError, match=r"FileNotFoundError.*broken_module\.py, line 3"):
        open_target("broken_module:build", outputs="logits", device=torch.device("cpu"))


@looped(
    ("attribute", "message"),
    [
        ("number", "predict_proba, .* a target, or a callable .* but returned int"),
        ("none", "but returned NoneType"),
        ("net_type", "but returned the class Linear. Pass an instance"),
        ("model", "must be a function that takes nothing .* but is a Sequential"),
        ("model.training", "must be a function that takes nothing .* but is a bool"),
    ],
)
def test_what_is_no_model_is_refused(attribute, message):
    with pytest.raises(InvalidOptionError, match=message):
        opened(attribute)


def test_several_answers_of_a_network_are_refused_in_its_name():
    with pytest.raises(InvalidTensorError, match=r"target .pack_of_user\.models:pair. must answer"):
        opened("pair")(IMAGES)


def test_a_network_that_raises_is_named_without_its_message():
    with pytest.raises(TargetFailedError, match="models:network' raised RuntimeError") as caught:
        opened("network")(torch.rand(2, 5))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert str(caught.value.__cause__) not in str(caught.value)
