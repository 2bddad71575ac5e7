"""A client of the Open Inference Protocol that is not ours, and whatever OpenAPI allows."""

import numpy as np
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck
from hypothesis import settings as search
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from guarded_servers import PATH, SHAPE, linear_model, rounding, serving
from oneway.releases import release
from oneway.serving.openapi import model_paths, openapi_document
from oneway.targets import TorchTarget, open_target

QUERIES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def server():
    with serving() as running_server:
        yield running_server


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as asker:
        yield asker


def expected():
    return release(rounding().defense(TorchTarget(linear_model()).logits(QUERIES))).numpy()


def test_tritons_client_finds_what_is_served(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "oneway"
    told = client.get_model_metadata("digits")
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    config = client.get_model_config("digits")
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [*SHAPE]}]
    assert [output["dims"] for output in config["output"]] == [[3]]
    (found,) = client.get_model_repository_index()
    assert (found["name"], found["version"], found["state"]) == ("digits", "1", "READY")
    with pytest.raises(InferenceServerException):
        client.unload_model("digits")


# This client sends FP16 in binary only.
SENT = [
    (name, kind, binary_in, binary_out)
    for name, kind, binary_in in (
        ("FP16", np.float16, True),
        ("FP32", np.float32, True),
        ("FP32", np.float32, False),
        ("FP64", np.float64, False),
    )
    for binary_out in (False, True, None)
]


def test_tritons_client_gets_the_release_in_json_and_in_binary(client):
    for case in SENT:
        name, kind, binary_in, binary_out = case
        sent = triton.InferInput("image", list(QUERIES.shape), name)
        sent.set_data_from_numpy(QUERIES.numpy().astype(kind), binary_data=binary_in)
        outputs = None
        if binary_out is not None:
            outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
        answer = client.infer("digits", [sent], outputs=outputs, request_id="42")
        got = answer.as_numpy("probabilities")
        assert got.dtype == np.float32, case
        if name == "FP16":
            assert (got.argmax(1) == expected().argmax(1)).all(), case
        else:
            assert np.array_equal(got, expected()), case
        response = answer.get_response()
        assert response["id"] == "42", case
        assert response["parameters"]["guard"] == "rounding", case


def test_a_wish_for_binary_data_holds_for_the_outputs_that_a_request_lists(server):
    """KServe's server once dropped it where outputs were listed."""
    wish, output = {"binary_data_output": True}, {"name": "probabilities"}
    for outputs, in_binary in (
        ([output], True),
        ([output | {"parameters": {"binary_data": False}}], False),
    ):
        answer = server.infer(QUERIES, parameters=wish, outputs=outputs)
        assert answer.status_code == 200
        assert ("inference-header-content-length" in answer.headers) is in_binary, outputs


def test_tritons_client_is_told_errors(client):
    asked = triton.InferInput("image", [1, 2], "FP32")
    asked.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with pytest.raises(InferenceServerException, match="must have shape"):
        client.infer("digits", [asked])


def test_our_own_client_audits_it(server):
    """`oneway audit --guarded` opens the address like any other."""
    target = open_target(
        f"{server.url}/v2/models/digits", outputs="confidences", device=torch.device("cpu")
    )
    assert torch.equal(target(QUERIES), torch.from_numpy(expected()))


@pytest.fixture(scope="module")
def document():
    return openapi_document(model_paths(PATH) | model_paths(f"{PATH}/versions/1"), token=False)


@pytest.fixture(scope="module")
def api():
    """The model without its version, whose requests the same functions answer."""
    return schemathesis.openapi.from_dict(openapi_document(model_paths(PATH), token=False))


@pytest.fixture
def _named(request):
    """Give a test the attribute that schemathesis reads, and that pytest 9.2 has no more."""
    request.node._nodeid = request.node.nodeid


def test_the_server_shows_this_document(server, document):
    assert server.client.get("/openapi.json").json() == document


@pytest.mark.usefixtures("_named")
@schemathesis.pytest.from_fixture("api").parametrize()
@search(max_examples=8, suppress_health_check=list(HealthCheck), derandomize=True)
def test_whatever_openapi_allows_is_answered_as_it_says(case, server):
    checks = (
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    )
    case.call_and_validate(base_url=server.url, checks=checks)
