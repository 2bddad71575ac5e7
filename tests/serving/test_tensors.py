"""ONNX models of tokens, flags and texts behind a guard, over HTTP and gRPC, by Triton's client."""

import numpy as np
import pytest
import torch

from guarded_servers import CPU, rounding, running
from oneway.defenses import ServableDefense
from oneway.defenses.identity import Identity
from oneway.errors import CorruptDataError, InvalidOptionError
from oneway.releases import release
from oneway.serving import GuardedTensors, ServingSettings, TensorBatch, serving_app
from oneway.serving.http_errors import RefusedError
from oneway.targets import open_target
from oneway.targets.opening import open_served
from optional import later

helper = later("onnx.helper")
numpy_helper = later("onnx.numpy_helper")
onnx = later("onnx")
triton_http = later("tritonclient.http")
triton_grpc = later("tritonclient.grpc")

GENERATOR = np.random.default_rng(5)
EMBEDDING = GENERATOR.normal(size=(50, 4)).astype(np.float32)
OPEN = {"outputs": "logits", "device": CPU, "batch_size": 64}


def saved(path, nodes, inputs, outputs, constants=()):
    """Write an ONNX model; inputs and outputs are names, types and shapes."""
    sides = [
        [helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)
         for name, kind, shape in side]
        for side in (inputs, outputs)
    ]  # fmt: skip
    initial = [numpy_helper.from_array(value, name) for name, value in dict(constants).items()]
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "model", *sides, initial)
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=9), path)
    return str(path)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A model of tokens and their mask, of any length: the masked sum of embeddings."""
    make = helper.make_node
    return saved(
        tmp_path_factory.mktemp("tokens") / "bag of words.onnx",
        [
            make("Gather", ["embedding", "input_ids"], ["words"]),
            make("Cast", ["mask"], ["ones"], to=onnx.TensorProto.FLOAT),
            make("Unsqueeze", ["ones", "last"], ["wide"]),
            make("Mul", ["words", "wide"], ["kept"]),
            make("ReduceSum", ["kept", "first"], ["scores"], keepdims=0),
        ],
        [("input_ids", "INT64", ["N", "length"]), ("mask", "BOOL", ["N", "length"])],
        [("scores", "FLOAT", ["N", 4])],
        {"embedding": EMBEDDING, "last": np.array([2]), "first": np.array([1])},
    )


def drawn(rows, length):
    ids = GENERATOR.integers(0, 50, (rows, length))
    return TensorBatch({"input_ids": ids, "mask": GENERATOR.random((rows, length)) < 0.7})


def oracle(batch):
    ids, mask = batch.tensors["input_ids"], batch.tensors["mask"]
    scores = (EMBEDDING[ids] * mask[:, :, None]).sum(1)
    return release(rounding().defense(torch.tensor(scores).double())).numpy()


def guarded(path, guard=None, **options):
    target = open_served(path, **OPEN)
    model = GuardedTensors(
        target, guard or rounding(), device=CPU, decimals=None, batch_multiple=4, batch_size=64,
        **options,
    )  # fmt: skip
    model.check()
    return model


def served(model, **given):
    how = ServingSettings(port=0, grpc_port=0, **given)
    return running(serving_app(model, how), how)


def sent(client, batch):
    kinds = {"input_ids": ("INT64", np.int64), "mask": ("BOOL", bool)}
    return [
        client.InferInput(name, list(values.shape), kinds[name][0]).set_data_from_numpy(values)
        for name, values in batch.tensors.items()
    ]


def test_tritons_clients_ask_with_tokens_by_the_names_of_the_model(tokens):
    with served(guarded(tokens), model_name="words") as server:
        told = server.client.get("/v2/models/words").json()
        assert told["inputs"] == [
            {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1, -1]},
        ]
        assert told["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 4]}
        for client, where in (
            (triton_http, server.url.removeprefix("http://")),
            (triton_grpc, f"127.0.0.1:{server.grpc.port}"),
        ):
            with client.InferenceServerClient(where) as asker:
                for length in (1, 7):
                    batch = drawn(3, length)
                    answer = asker.infer("words", sent(client, batch)).as_numpy("scores")
                    assert np.allclose(answer, oracle(batch), atol=1e-6), (client, length)


def test_queries_of_different_lengths_are_answered_in_one_batch_as_they_are_alone(tokens):
    model = guarded(tokens)
    batches = [drawn(rows, length) for rows, length in ((1, 3), (2, 5), (3, 3), (1, 5))]
    together = model.answer(batches)
    for batch, answer in zip(batches, together, strict=True):
        (alone,) = model.answer([batch])
        assert np.array_equal(alone, answer)
        assert np.allclose(answer, oracle(batch), atol=1e-6)


def test_answers_are_counted_once_though_another_length_of_their_batch_fails(tokens, monkeypatch):
    model, counted = guarded(tokens), []
    good, bad, ask = drawn(2, 3), drawn(1, 7), model._clean_logits

    def fail_for_seven(queries):
        if queries.sizes[0] == (7,):
            raise MemoryError
        return ask(queries)

    monkeypatch.setattr(model, "_clean_logits", fail_for_seven)
    model.count = counted.append
    with pytest.raises(RefusedError):
        model.answer([good, bad])
    assert counted == []
    model.answer([good])
    assert [len(rows) for rows in counted] == [2]


def test_requests_that_are_not_the_model_s_are_refused_without_their_values(tokens):
    ids = {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "data": [12345, 1]}
    mask = {"name": "mask", "shape": [1, 2], "datatype": "BOOL", "data": [True, True]}
    with served(guarded(tokens), max_request_rows=3) as server:
        for inputs, status in (
            ([ids], 400),
            ([ids, ids], 400),
            ([ids, mask, mask], 400),
            ([{**ids, "datatype": "INT32"}, mask], 400),
            ([{**ids, "shape": [2]}, mask], 400),
            ([{**ids, "data": [2**70, 1]}, mask], 400),
            ([{**ids, "data": [12345.5, 1]}, mask], 400),
            ([ids, {**mask, "shape": [2, 1]}], 400),
            ([ids, {**mask, "data": [1, 1]}], 400),
            ([{**ids, "shape": [0, 2], "data": []}, {**mask, "shape": [0, 2], "data": []}], 400),
            ([{**ids, "shape": [4, 2], "data": [1] * 8}, mask], 400),
            ([ids, mask], 503),  # no such token
        ):
            answer = server.client.post("/v2/models/model/infer", json={"inputs": inputs})
            assert answer.status_code == status, inputs
            assert "12345" not in server.everything(answer), inputs
        good = [{**ids, "data": [49, 1]}, mask]
        answer = server.client.post("/v2/models/model/infer", json={"inputs": good})
        assert answer.status_code == 200


def test_texts_are_taken_as_bytes(tmp_path):
    path = saved(
        tmp_path / "texts.onnx",
        [helper.make_node(
            "LabelEncoder", ["text"], ["scores"], domain="ai.onnx.ml",
            keys_strings=["a", "b", "müde"], values_floats=[0.0, 1.0, 3.0], default_float=0.5,
        )],
        [("text", "STRING", ["N", 3])], [("scores", "FLOAT", ["N", 3])],
    )  # fmt: skip
    words = np.array([["a", "müde", "?"]], object)
    expected = release(rounding().defense(torch.tensor([[0.0, 3.0, 0.5]]).double())).numpy()
    with served(guarded(path)) as server:
        for client, where in (
            (triton_http, server.url.removeprefix("http://")),
            (triton_grpc, f"127.0.0.1:{server.grpc.port}"),
        ):
            asked = client.InferInput("text", [1, 3], "BYTES").set_data_from_numpy(words)
            with client.InferenceServerClient(where) as asker:
                answer = asker.infer("model", [asked]).as_numpy("scores")
            assert np.allclose(answer, expected, atol=1e-6)


def test_such_models_are_refused_where_they_cannot_be_used(tokens, tmp_path):
    with pytest.raises(CorruptDataError, match="`oneway serve` takes the model as it is"):
        open_target(tokens, **OPEN)
    noise = ServableDefense("noise", "1", Needy())
    with pytest.raises(InvalidOptionError, match="has 0 inputs of floats"):
        guarded(tokens, noise)
    fixed = saved(
        tmp_path / "fixed.onnx", [helper.make_node("Cast", ["x"], ["scores"], to=1)],
        [("x", "INT64", [2, 3])], [("scores", "FLOAT", [2, 3])],
    )  # fmt: skip
    with pytest.raises(InvalidOptionError, match="dynamic batch dimension"):
        open_served(fixed, **OPEN)
    with pytest.raises(InvalidOptionError, match="input_name is for a model of one tensor"):
        serving_app(guarded(tokens), ServingSettings(input_name="x"))


class Needy(Identity):
    requires_input = True
