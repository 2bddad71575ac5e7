"""An ONNX file as a target: the network's own answers, and no output taken for another."""

import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from laws import looped
from oneway.contracts import FrameTarget, ScoredTarget
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    InvalidTensorError,
    MissingExtraError,
    OnewayError,
    TargetFailedError,
    UnknownNameError,
)
from oneway.releases import release
from oneway.targets import class_names_of, open_target
from rows import same_bits
from surrogates import random_images

CPU = torch.device("cpu")

IMAGES = random_images(1, 7)

TYPES = {
    np.float16: TensorProto.FLOAT16,
    np.float32: TensorProto.FLOAT,
    np.float64: TensorProto.DOUBLE,
}


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)).eval()


def save(path, nodes, outputs, *, kind=np.float32, shape=("N", 1, 8, 8), weights=()):
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TYPES.get(kind, kind), shape)],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in weights],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def save_network(path, *, kind=np.float32, batch="N", outputs=("logits",)):
    """Write the graph of :func:`network`, with the named ones of three outputs."""
    weights = [
        (name, value.detach().numpy().astype(kind))
        for name, value in network().state_dict().items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "0.weight", "0.bias"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("Gemm", ["flat", "3.weight", "3.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=-1, keepdims=0),
        helper.make_node("Neg", ["logits"], ["vague"]),
    ]
    shapes = {"label": [batch], "vague": None}
    infos = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT64 if name == "label" else TYPES[kind],
            shapes.get(name, [batch, 5]),
        )
        for name in outputs
    ]
    save(path, nodes, infos, kind=kind, shape=(batch, 1, 8, 8), weights=weights)


def opened(path, outputs="logits", **options):
    return open_target(str(path), outputs=outputs, device=CPU, **options)


# ONNX Runtime has no convolution in float64 on the CPU; records are tested in it below.
@looped("kind", [np.float16, np.float32])
def test_answers_are_the_network_s_in_batches_of_any_size(kind, tmp_path):
    save_network(tmp_path / "m.onnx", kind=kind)
    wanted = network()(IMAGES).detach()
    tolerance = 1e-2 if kind is np.float16 else 1e-5
    for batch_size in (3, 512):
        target = opened(tmp_path / "m.onnx", batch_size=batch_size)
        assert isinstance(target, ScoredTarget)
        torch.testing.assert_close(target.logits(IMAGES), wanted, rtol=tolerance, atol=tolerance)
        assert same_bits(target(IMAGES), release(target.logits(IMAGES)))


def test_the_same_query_has_the_same_answer_whoever_else_asks(tmp_path):
    save_network(tmp_path / "m.onnx")
    target = opened(tmp_path / "m.onnx")
    assert same_bits(target(IMAGES), target(IMAGES))
    torch.testing.assert_close(target(IMAGES)[2:3], target(IMAGES[2:3]))


def test_the_only_matrix_of_floats_is_the_scores(tmp_path):
    save_network(tmp_path / "m.onnx", outputs=("label", "probabilities"))
    target = opened(tmp_path / "m.onnx", outputs="confidences")
    assert not isinstance(target, ScoredTarget)
    torch.testing.assert_close(target(IMAGES), network()(IMAGES).softmax(-1).detach())


@looped("other", ["probabilities", "vague"])
def test_one_of_several_outputs_must_be_named(other, tmp_path):
    save_network(tmp_path / "m.onnx", outputs=(other, "logits", "label"))
    with pytest.raises(
        InvalidOptionError,
        match=rf"output_name: 2 of its 3 .*{other}.*logits.*label tensor\(int64\)",
    ):
        opened(tmp_path / "m.onnx")
    target = opened(tmp_path / "m.onnx", output_name="logits")
    torch.testing.assert_close(target.logits(IMAGES), network()(IMAGES).detach())


def test_an_output_that_is_not_there_or_no_floats_is_refused(tmp_path):
    save_network(tmp_path / "m.onnx", outputs=("probabilities", "label"))
    with pytest.raises(UnknownNameError, match="Did you mean 'probabilities'"):
        opened(tmp_path / "m.onnx", output_name="probability")
    with pytest.raises(InvalidOptionError, match=r"'label' .* must be a tensor of floats, but is"):
        opened(tmp_path / "m.onnx", output_name="label")


def save_zipmap(path, classes=(0, 1, 2)):
    kind = TensorProto.INT64 if isinstance(classes[0], int) else TensorProto.STRING
    value = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("chances", helper.make_sequence_type_proto(value))
    labels = "classlabels_int64s" if isinstance(classes[0], int) else "classlabels_strings"
    node = helper.make_node(
        "ZipMap", ["image"], ["chances"], domain="ai.onnx.ml", **{labels: list(classes)}
    )
    save(path, [node], [output], shape=("N", 3))


@looped("options", [{}, {"output_name": "chances"}])
def test_dictionaries_of_probabilities_are_read_by_class(options, tmp_path):
    rows = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).softmax(-1)
    # ONNX Runtime sorts the classes of a dictionary.
    for classes, order in (((0, 1, 2), [0, 1, 2]), (("fox", "cat", "dog"), [1, 2, 0])):
        save_zipmap(tmp_path / "m.onnx", classes)
        target = opened(tmp_path / "m.onnx", outputs="confidences", **options)
        assert class_names_of(target) == tuple(str(classes[at]) for at in order)
        assert torch.equal(target(rows), rows[:, order])
    names = ("cat", "dog", "fox")
    assert opened(tmp_path / "m.onnx", outputs="confidences", class_names=names) is not None
    with pytest.raises(InvalidOptionError, match=r"has the classes cat, dog, fox.* fox, cat, dog"):
        opened(tmp_path / "m.onnx", outputs="confidences", class_names=("fox", "cat", "dog"))


def test_a_model_that_ends_in_softmax_gives_no_logits(tmp_path):
    save_network(tmp_path / "m.onnx", outputs=("probabilities",))
    target = opened(tmp_path / "m.onnx", batch_size=3)
    with pytest.raises(InvalidTensorError, match=r"declared logits.*--outputs confidences"):
        target(torch.cat([IMAGES, IMAGES]))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Two pipelines of scikit-learn as skl2onnx writes them, and what they were fitted on."""
    skl2onnx = pytest.importorskip("skl2onnx")
    pandas = pytest.importorskip("pandas")
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    generator = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "age": generator.normal(50, 10, 60).astype(np.float32),
            "ward": generator.choice(["ICU", "ER", "GP"], 60),
            "visits": generator.integers(0, 9, 60),
        }
    )
    label = np.where(frame.age + 9 * (frame.ward == "ICU") > 52, "ill", "well")
    columns = [("c", OneHotEncoder(), ["ward"]), ("n", StandardScaler(), ["age", "visits"])]
    pipeline = make_pipeline(ColumnTransformer(columns), LogisticRegression()).fit(frame, label)
    numbers = frame[["age", "visits"]].to_numpy(np.float32)
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(numbers, label)
    folder = tmp_path_factory.mktemp("hospital")
    for name, model, example, options in (
        ("columns", pipeline, frame[:1].astype({"visits": np.float32}), {"zipmap": False}),
        ("raw", plain, numbers[:1], {"raw_scores": True, "zipmap": False}),
        ("zipmap", plain, numbers[:1], None),
    ):
        written = skl2onnx.to_onnx(model, example, options=options)
        (folder / f"{name}.onnx").write_bytes(written.SerializeToString())
    return folder, frame, pipeline, numbers, plain


def test_raw_scores_of_a_pipeline_are_probabilities_and_refused_as_logits(hospital):
    folder, _, _, numbers, plain = hospital
    rows = torch.from_numpy(numbers)
    with pytest.raises(InvalidTensorError, match="declared logits, but look like confidences"):
        opened(folder / "raw.onnx").logits(rows)
    wanted = torch.tensor(plain.predict_proba(numbers)).float()
    for name in ("raw", "zipmap"):
        answer = opened(folder / f"{name}.onnx", outputs="confidences")(rows)
        torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-6)
    assert class_names_of(opened(folder / "zipmap.onnx", outputs="confidences")) == ("ill", "well")


def test_a_model_with_an_input_for_each_column_is_asked_with_a_table(hospital):
    folder, frame, pipeline, _, _ = hospital
    target = opened(folder / "columns.onnx", outputs="confidences", batch_size=16)
    assert isinstance(target, FrameTarget)
    assert target.feature_names == ("age", "ward", "visits")
    wanted = torch.tensor(pipeline.predict_proba(frame))
    before = frame.copy()
    for asked in (frame, frame[["visits", "age", "ward"]]):
        answer = target.frame_confidences(asked)
        torch.testing.assert_close(answer, wanted.float(), rtol=1e-4, atol=1e-5)
        logits = target.frame_logits(asked)
        assert logits.dtype == torch.float64
        torch.testing.assert_close(logits.softmax(-1), wanted, rtol=1e-4, atol=1e-5)
    assert frame.equals(before)
    for asked, message in (
        (frame.drop(columns="age"), "lacks 'age' and also has none"),
        (frame.rename(columns={"age": "years"}), "lacks 'age' and also has 'years'"),
        (frame.assign(age="77.125"), None),
        (frame.assign(age="77.125 years"), "'age' must hold numbers .* some values do not"),
        (frame.assign(ward=1.5), "'ward' must hold text .* 60 of its values do not"),
        (frame.assign(ward="77.125"), "raised .*Fail|raised"),
        (frame[:0], "at least one query"),
    ):
        if message is None:
            target.frame_confidences(asked)
            continue
        with pytest.raises(OnewayError, match=message) as caught:
            target.frame_confidences(asked)
        assert "77.125" not in str(caught.value)
    with pytest.raises(InvalidTensorError, match="column 'ward' must hold text"):
        target(torch.rand(2, 3))
    with pytest.raises(InvalidTensorError, match="takes the 3 columns age, ward, visits"):
        target(torch.rand(2, 4))


def test_catboost_s_own_file_is_read_by_class(tmp_path):
    catboost = pytest.importorskip("catboost")
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    labels = np.array(["b", "c", "a"])[np.digitize(rows[:, 0], [-0.5, 0.5])]
    quiet = {"verbose": False, "allow_writing_files": False}
    model = catboost.CatBoostClassifier(iterations=3, **quiet).fit(rows, labels)
    model.save_model(str(tmp_path / "m.onnx"), format="onnx")
    target = opened(tmp_path / "m.onnx", outputs="confidences")
    assert class_names_of(target) == tuple(model.classes_)
    wanted = torch.tensor(model.predict_proba(rows)).float()
    torch.testing.assert_close(target(torch.from_numpy(rows)), wanted, rtol=1e-4, atol=1e-5)


def test_a_model_of_one_batch_size_needs_that_size_and_is_filled_up(tmp_path):
    save_network(tmp_path / "m.onnx", batch=4)
    with pytest.raises(InvalidOptionError, match=r"exactly 4, but batch_size is 512.*dynamic_axes"):
        opened(tmp_path / "m.onnx")
    target = opened(tmp_path / "m.onnx", batch_size=4)
    torch.testing.assert_close(target.logits(IMAGES), network()(IMAGES).detach())


def test_images_of_another_shape_are_refused(tmp_path):
    save_network(tmp_path / "m.onnx")
    with pytest.raises(InvalidTensorError, match=r"\(N, 1, 8, 8\), but got \(2, 8, 8, 1\)"):
        opened(tmp_path / "m.onnx")(random_images(1, 2, (8, 8, 1)))


@looped("kind", [np.float32, np.float64])
@looped("features", [64, "F"])
def test_a_model_of_records_gets_images_in_row_major_order(features, kind, tmp_path):
    weight = np.random.default_rng(1).normal(size=(64, 3)).astype(kind)
    node = helper.make_node("MatMul", ["image", "weight"], ["logits"])
    output = helper.make_tensor_value_info("logits", TYPES[kind], ["N", 3])
    path = tmp_path / "m.onnx"
    save(path, [node], [output], kind=kind, shape=("N", features), weights=[("weight", weight)])
    for images in (random_images(1, 7, (2, 4, 8)), random_images(1, 7, (64,), torch.float64)):
        wanted = images.flatten(1).to(torch.tensor(weight).dtype) @ torch.tensor(weight)
        torch.testing.assert_close(opened(path).logits(images), wanted)


def test_an_output_whose_rank_the_file_leaves_open_can_be_the_scores(tmp_path):
    node = helper.make_node("Squeeze", ["image"], ["logits"])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    save(tmp_path / "m.onnx", [node], [output], shape=("N", 3))
    rows = torch.rand(2, 3)
    assert torch.equal(opened(tmp_path / "m.onnx").logits(rows), rows)


def test_a_model_of_bytes_is_refused(tmp_path):
    node = helper.make_node("Cast", ["image"], ["logits"], to=TensorProto.FLOAT)
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    save(tmp_path / "m.onnx", [node], [output], kind=TensorProto.UINT8, shape=("N", 3))
    with pytest.raises(
        CorruptDataError, match=r"takes image tensor\(uint8\) \('N', 3\).*255 \* images"
    ):
        opened(tmp_path / "m.onnx")


def test_a_failing_model_is_named(tmp_path):
    node = helper.make_node("Reshape", ["image", "sizes"], ["logits"])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])
    sizes = np.array([5, 3])
    path = tmp_path / "m.onnx"
    save(path, [node], [output], shape=("N", 3), weights=[("sizes", sizes)])
    with pytest.raises(TargetFailedError, match=r"m\.onnx' raised \w+ .*when asked 2 queries"):
        opened(path)(torch.rand(2, 3))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(CorruptDataError, match=r"cannot be loaded by ONNX Runtime .*Protobuf"):
        opened(tmp_path / "m.onnx")


def test_what_the_answers_are_must_be_said(tmp_path):
    save_network(tmp_path / "m.onnx")
    with pytest.raises(InvalidOptionError, match=r"say what target .* answers with"):
        opened(tmp_path / "m.onnx", outputs=None)


@looped("device", ["cuda", "meta"])
def test_a_device_without_a_provider_is_refused(device, tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    save_network(tmp_path / "m.onnx")
    with pytest.raises(InvalidOptionError, match=f"cannot use device '{device}'.*onnxruntime-gpu"):
        open_target(str(tmp_path / "m.onnx"), outputs="logits", device=torch.device(device))


def test_the_extra_is_named_where_the_runtime_is_not_installed(tmp_path, monkeypatch):
    save_network(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"'onnxruntime'.*pip install 'oneway\[onnx\]'"):
        opened(tmp_path / "m.onnx")
