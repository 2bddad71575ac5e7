"""A guarded session: the same interface, and only what is guarded or listed comes out."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import oneway
from laws import looped
from oneway.adapters import Guard, GuardedSession
from oneway.defenses import build_defense
from oneway.defenses.identity import Identity
from oneway.defenses.rounding import Rounding
from oneway.errors import (
    InvalidOptionError,
    InvalidTensorError,
    TargetFailedError,
    UnknownNameError,
)
from surrogates import random_images, small_inverter

IMAGES = random_images(1, 9).numpy()


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture(scope="module")
def session():
    """Logits and probabilities, an embedding and the label, of images of 64 pixels."""
    weights = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["image"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=-1, keepdims=0),
    ]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "model",
        [value("image", floats, ["n", 1, 8, 8])],
        [
            value("embedding", floats, ["n", 64]),
            value("logits", floats, ["n", 5]),
            value("probabilities", floats, ["n", 5]),
            value("label", TensorProto.INT64, ["n"]),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = helper.make_opsetid("", 17)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def guard(session, defense=None, **options):
    chosen = {"output_name": "logits", "outputs": "logits", **options}
    return GuardedSession(session, defense or Rounding(decimals=1), **chosen)


def test_protect_takes_the_output_that_is_named_or_the_only_one_that_can_hold_scores(session):
    chosen = {"outputs": "logits", "decimals": 1}
    with pytest.raises(InvalidOptionError, match="say which output of the session holds"):
        oneway.protect(session, Rounding(decimals=1), **chosen)
    expected = guard(session, decimals=1).run(None, {"image": IMAGES})
    named = oneway.protect(session, Rounding(decimals=1), output_name="logits", **chosen)

    class LabelsAndLogits:
        """The same session, as skl2onnx and many exports have it: labels beside the scores."""

        run, get_inputs = session.run, session.get_inputs

        def get_outputs(self):
            return [each for each in session.get_outputs() if each.name in ("label", "logits")]

    alone = oneway.protect(LabelsAndLogits(), Rounding(decimals=1), **chosen)
    for guarded in (named, alone):
        np.testing.assert_array_equal(guarded.run(None, {"image": IMAGES}), expected)


def test_a_query_of_another_type_is_refused_with_what_the_session_takes(session):
    with pytest.raises(TargetFailedError, match=r"It takes image tensor\(float\) \('n', 1, 8, 8\)"):
        guard(session).run(None, {"image": IMAGES.astype(np.float64)})


def test_only_the_guarded_output_comes_out_by_default(session):
    guarded = guard(session)
    assert [one.name for one in guarded.get_outputs()] == ["logits"]
    assert [one.name for one in guarded.get_inputs()] == ["image"]
    (clean,) = session.run(["logits"], {"image": IMAGES})
    for names in (None, [], ["logits"]):
        (released,) = guarded.run(names, {"image": IMAGES})
        assert released.dtype == np.float32
        np.testing.assert_array_equal(released, Guard(Rounding(decimals=1), "logits")(clean))
    for name in ("embedding", "probabilities", "label", "nothing"):
        with pytest.raises(UnknownNameError, match="Known: logits"):
            guarded.run([name], {"image": IMAGES})


def test_listed_outputs_come_out_as_they_are_in_the_order_asked_for(session):
    guarded = guard(session, also_release=["label"])
    assert [one.name for one in guarded.get_outputs()] == ["logits", "label"]
    (clean,) = session.run(["logits"], {"image": IMAGES})
    label, released, again = guarded.run(["label", "logits", "label"], {"image": IMAGES})
    np.testing.assert_array_equal(label, clean.argmax(1))
    np.testing.assert_array_equal(again, label)
    np.testing.assert_array_equal(released.argmax(1), label)
    both = guarded.run(None, {"image": IMAGES})
    np.testing.assert_array_equal(both[0], released)
    np.testing.assert_array_equal(both[1], label)
    (alone,) = guarded.run(["label"], {"image": IMAGES})
    np.testing.assert_array_equal(alone, label)


def test_confidences_are_guarded_as_confidences(session):
    guarded = guard(session, Identity(), output_name="probabilities", outputs="confidences")
    (clean,) = session.run(["probabilities"], {"image": IMAGES})
    np.testing.assert_allclose(guarded.run(None, {"image": IMAGES})[0], clean, atol=1e-6)


def test_a_defense_that_needs_the_queries_is_given_them(session):
    defense = build_defense("adversarial-noise", {"step_size": 1.0}, small_inverter())
    (released,) = guard(session, defense).run(None, {"image": IMAGES})
    (clean,) = session.run(["logits"], {"image": IMAGES})
    expected = Guard(defense, "logits")(torch.from_numpy(clean), torch.from_numpy(IMAGES))
    np.testing.assert_array_equal(released, expected.numpy())
    with pytest.raises(UnknownNameError, match="Known: image"):
        guard(session, defense, input_name="picture")


def test_nothing_else_of_the_session_is_passed_on(session):
    public = {name for name in dir(guard(session)) if not name.startswith("_")}
    assert public == {"get_inputs", "get_outputs", "run"}


def test_a_session_that_fails_is_an_error_without_its_text(session):
    with pytest.raises(TargetFailedError, match="9 queries") as raised:
        guard(session).run(None, {"image": IMAGES[:, :, :5]})
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    with pytest.raises(TargetFailedError):
        guard(session).run(None, {})
    with pytest.raises(InvalidTensorError, match="finite"):
        guard(session).run(None, {"image": IMAGES * np.float32(np.nan)})


class TwoInputs:
    """As much of a session as is looked at before it runs."""

    def __init__(self, session):
        self.get_outputs = session.get_outputs
        self.inputs = [*session.get_inputs(), *session.get_inputs()]

    def get_inputs(self):
        return self.inputs


@looped(
    ("options", "kind", "said"),
    [
        ({"output_name": "score"}, UnknownNameError, "Known: embedding"),
        ({"also_release": ["labels"]}, UnknownNameError, "Did you mean 'label'"),
        ({"also_release": "label"}, InvalidOptionError, r"Pass \('label',\)"),
        ({"also_release": ["logits"]}, InvalidOptionError, "is guarded"),
        ({"output_name": "label"}, InvalidOptionError, "tensor of floats"),
        ({"outputs": None}, InvalidOptionError, "never guessed"),
    ],
)
def test_what_cannot_be_guarded_is_refused(session, options, kind, said):
    with pytest.raises(kind, match=said):
        guard(session, **options)


def test_which_of_two_inputs_holds_the_queries_must_be_said_if_they_are_needed(session):
    defense = build_defense("adversarial-noise", {"step_size": 1.0}, small_inverter())
    with pytest.raises(InvalidOptionError, match="input_name"):
        guard(TwoInputs(session), defense)
    guard(TwoInputs(session), defense, input_name="image")
    guard(TwoInputs(session))
