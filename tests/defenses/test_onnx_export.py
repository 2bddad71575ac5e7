"""A codebook as ONNX operators answers as oneway does, to the bit, and lets nothing else out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from oneway.defenses import codebook_to_onnx, guard_onnx_model
from oneway.defenses.codebook import CodebookRelease, FitSettings, fit_codebook
from oneway.errors import InvalidOptionError
from oneway.releases import release
from rows import random_rows

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def guard(classes: int, listed: int, rows: int = 900) -> CodebookRelease:
    logits = random_rows(1, rows, classes, torch.float32, 3)
    logits[:, :4] += 3
    settings = FitSettings(min_members=5, rate_weight=0.001, explicit_classes=listed)
    return CodebookRelease(fit_codebook(logits, settings))


def run(model: object, **inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


@pytest.mark.parametrize(("classes", "listed"), [(2, 32), (7, 32), (60, 8), (60, 1)])
def test_the_graph_answers_as_the_codebook_does_to_the_bit(classes, listed):
    book = guard(classes, listed)
    model = codebook_to_onnx(book)
    onnx.checker.check_model(model)
    asked = random_rows(2, 400, classes, torch.float32, 3)
    asked[0], asked[1], asked[2, :] = 0, asked[1] * 1000, -3e38
    asked[2, classes // 2] = 3e38
    (told,) = run(model, logits=asked)
    assert told.dtype == np.float32
    assert np.array_equal(told, book.probabilities(asked).numpy())
    assert np.array_equal(told, release(book(asked)).numpy())
    assert len(np.unique(told, axis=0)) > (2 if classes > 2 else 1)


def test_any_number_of_rows_is_answered_each_for_itself():
    book = guard(7, 32)
    model = codebook_to_onnx(book)
    asked = random_rows(3, 9, 7, torch.float32, 3)
    (together,) = run(model, logits=asked)
    for row in range(9):
        (alone,) = run(model, logits=asked[row : row + 1])
        assert np.array_equal(alone[0], together[row])


def test_the_guard_s_own_table_stays_where_it_is(monkeypatch):
    book = guard(7, 32)

    def moved(*_: object, **__: object) -> None:
        raise AssertionError("the guard's table was moved")

    monkeypatch.setattr(type(book.state), "_apply", moved)
    codebook_to_onnx(book)


def classifier(classes: int, opset: int) -> object:
    """Build a linear model with two outputs, the second of which would bypass a guard."""
    helper, numpy_helper, types = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    weights = random_rows(4, 5, classes, torch.float32, 2).numpy()
    nodes = [
        helper.make_node("MatMul", ["features", "weights"], ["scores"]),
        helper.make_node("Identity", ["scores"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("features", types.FLOAT, ["N", 5])],
        [
            helper.make_tensor_value_info(name, types.FLOAT, ["N", classes])
            for name in ("scores", "embedding")
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [13, 18])
def test_behind_a_model_nothing_but_guarded_probabilities_comes_out(opset):
    book, model = guard(7, 32), classifier(7, opset)
    guarded = guard_onnx_model(model, book, "scores")
    onnx.checker.check_model(guarded)
    features = random_rows(5, 50, 5, torch.float32, 1)
    clean = torch.from_numpy(run(model, features=features)[0])
    outputs = run(guarded, features=features)
    assert len(outputs) == 1
    assert np.array_equal(outputs[0], book.probabilities(clean).numpy())


def test_an_output_that_is_not_there_or_of_other_classes_is_refused():
    with pytest.raises(InvalidOptionError, match="no output 'logits'; it has scores, embedding"):
        guard_onnx_model(classifier(7, 18), guard(7, 32), "logits")
    with pytest.raises(InvalidOptionError, match=r"shape \(N, 7\).*has \(None, 6\)"):
        guard_onnx_model(classifier(6, 18), guard(7, 32), "scores")


def ending_in(*kinds: str, **attributes: object) -> object:
    """Build a model whose one output goes through some operators at its end."""
    helper, types = onnx.helper, onnx.TensorProto
    model = classifier(7, 18)
    names = ["scores", *(f"after_{number}" for number in range(len(kinds)))]
    for kind, given, told in zip(kinds, names, names[1:], strict=False):
        options = attributes if kind == "Cast" else {}
        model.graph.node.append(helper.make_node(kind, [given], [told], **options))
    del model.graph.output[:]
    kind = attributes.get("to", types.FLOAT)
    model.graph.output.append(helper.make_tensor_value_info(names[-1], kind, ["N", 7]))
    return model


@pytest.mark.parametrize(
    "kinds",
    [("Softmax",), ("Softmax", "Identity"), ("Softmax", "Cast"), ("LogSoftmax", "Exp", "Identity")],
)
def test_an_output_of_probabilities_is_refused_with_the_remedy(kinds):
    model = ending_in(*kinds, to=onnx.TensorProto.FLOAT)
    with pytest.raises(InvalidOptionError, match="before the softmax"):
        guard_onnx_model(model, guard(7, 32), model.graph.output[0].name)


@pytest.mark.parametrize("kinds", [("LogSoftmax",), ("Softmax", "Log"), ("Softmax", "Exp")])
def test_what_a_softmax_is_somewhere_within_is_guarded(kinds):
    model = ending_in(*kinds)
    onnx.checker.check_model(guard_onnx_model(model, guard(7, 32), model.graph.output[0].name))


@pytest.mark.parametrize("name", ["DOUBLE", "FLOAT16", "INT64"])
def test_an_output_that_is_not_float32_is_refused_by_its_type(name):
    model = ending_in("Cast", to=getattr(onnx.TensorProto, name))
    with pytest.raises(InvalidOptionError, match=rf"must be FLOAT \(float32\), but is {name}"):
        guard_onnx_model(model, guard(7, 32), model.graph.output[0].name)
