"""A codebook as ONNX operators answers as oneway does, to the bit, and lets nothing else out."""

from functools import cache

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


@cache
def guard(classes: int, explicit: int, rows: int = 900) -> CodebookRelease:
    logits = random_rows(1, rows, classes, torch.float32, 3)
    logits[:, :4] += 3
    settings = FitSettings(min_members=5, rate_weight=0.001, explicit_classes=explicit)
    return CodebookRelease(fit_codebook(logits, settings))


def run(model: object, **inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def test_the_graph_answers_as_the_codebook_does_to_the_bit():
    for classes, explicit in ((2, 32), (7, 32), (60, 8), (60, 1)):
        book = guard(classes, explicit)
        model = codebook_to_onnx(book)
        onnx.checker.check_model(model)
        asked = random_rows(2, 400, classes, torch.float32, 3)
        asked[0], asked[1], asked[2, :] = 0, asked[1] * 1000, -3e38
        asked[2, classes // 2] = 3e38
        (answers,) = run(model, logits=asked)
        case = f"{explicit} of {classes} classes"
        assert answers.dtype == np.float32
        assert np.array_equal(answers, book.probabilities(asked).numpy()), case
        assert np.array_equal(answers, release(book(asked)).numpy()), case
        assert len(np.unique(answers, axis=0)) > (2 if classes > 2 else 1), case


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


def test_behind_a_model_nothing_but_guarded_probabilities_comes_out():
    book, features = guard(7, 32), random_rows(5, 50, 5, torch.float32, 1)
    for opset in (13, 18):
        model = classifier(7, opset)
        guarded = guard_onnx_model(model, book, "scores")
        onnx.checker.check_model(guarded)
        clean = torch.from_numpy(run(model, features=features)[0])
        outputs = run(guarded, features=features)
        assert len(outputs) == 1
        assert np.array_equal(outputs[0], book.probabilities(clean).numpy()), f"opset {opset}"


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


def test_an_output_of_probabilities_or_of_another_type_is_refused_with_the_remedy():
    book = guard(7, 32)
    for kinds in (
        ("Softmax",),
        ("Softmax", "Identity"),
        ("Softmax", "Cast"),
        ("LogSoftmax", "Exp", "Identity"),
    ):
        model = ending_in(*kinds, to=onnx.TensorProto.FLOAT)
        with pytest.raises(InvalidOptionError, match="before the softmax"):
            guard_onnx_model(model, book, model.graph.output[0].name)
    for name in ("DOUBLE", "FLOAT16", "INT64"):
        model = ending_in("Cast", to=getattr(onnx.TensorProto, name))
        with pytest.raises(InvalidOptionError, match=rf"must be FLOAT \(float32\), but is {name}"):
            guard_onnx_model(model, book, model.graph.output[0].name)


def test_what_a_softmax_is_somewhere_within_is_guarded():
    book = guard(7, 32)
    for kinds in (("LogSoftmax",), ("Softmax", "Log"), ("Softmax", "Exp")):
        model = ending_in(*kinds)
        onnx.checker.check_model(guard_onnx_model(model, book, model.graph.output[0].name))
