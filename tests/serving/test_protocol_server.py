"""The Open Inference Protocol, spoken over a real socket."""

import math

import numpy as np
import pytest
import torch

from endpoints import no_environment, served_logits
from guarded_servers import CPU, PATH, SHAPE, request_of, rounding, serving
from oneway.errors import TargetFailedError
from oneway.releases import release
from oneway.targets import open_target
from oneway.targets.http_client import HttpClient


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(3))


def test_answers_have_the_exact_shape_of_the_protocol(server, images):
    answer = server.infer(images[:1], id="42", outputs=[{"name": "probabilities"}])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    data = body["outputs"][0].pop("data")
    assert body == {
        "model_name": "digits",
        "model_version": "1",
        "id": "42",
        "parameters": {"guard": "rounding", "guard_version": "7"},
        "outputs": [{"name": "probabilities", "shape": [1, 3], "datatype": "FP32"}],
    }
    assert len(data) == 3


def test_releases_are_those_of_the_library_to_the_bit(server, images):
    logits = torch.tensor(served_logits(images.numpy())).float()
    expected = release(rounding().defense(logits))
    assert torch.equal(server.release(images), expected)


def test_an_id_is_echoed_only_if_given(server, images):
    assert "id" not in server.infer(images).json()
    assert server.infer(images, id="").json()["id"] == ""


def test_metadata_and_health_say_what_is_served(server):
    get = server.client.get
    assert get("/v2").json()["name"] == "oneway"
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    for path in (PATH, f"{PATH}/versions/1"):
        assert get(f"{path}/ready").json() == {"name": "digits", "ready": True}
        told = get(path).json()
        assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]}]
        assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]


def test_a_version_can_be_named(server, images):
    answer = server.client.post(f"{PATH}/versions/1/infer", json=request_of(images))
    assert answer.json()["outputs"][0]["shape"] == [5, 3]


def test_queries_may_be_flat_or_nested_in_any_float(server, images):
    for datatype, kind in (("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64)):
        sent = images.numpy().astype(kind)
        expected = server.release(torch.from_numpy(sent.astype(np.float32)))
        for data in (sent.tolist(), sent.ravel().tolist()):
            request = request_of(images)
            request["inputs"][0] |= {"datatype": datatype, "data": data}
            answer = server.client.post(f"{PATH}/infer", json=request)
            got = torch.tensor(answer.json()["outputs"][0]["data"]).reshape(5, 3)
            assert torch.equal(got, expected), datatype


@pytest.mark.hostile("more queries in a request than allowed", 1, "400")
def test_a_request_may_hold_so_many_queries_and_no_more():
    with serving(max_request_rows=4) as server:
        for rows, status in ((1, 200), (4, 200), (5, 400)):
            answer = server.infer(torch.full((rows, *SHAPE), 0.625))
            assert answer.status_code == status, rows
        assert "N from 1 to 4" in answer.json()["error"]
        assert answer.headers["oneway-max-request-rows"] == "4"
        assert answer.headers["oneway-refused"] == "true"
        other = server.infer(torch.full((2, 1, 2, 2), 0.625))
        assert other.headers["oneway-refused"] == "true"
        assert "oneway-max-request-rows" not in other.headers
        assert server.client.get(PATH).json()["parameters"]["max_request_rows"] == 4


def test_a_target_that_asks_this_server_keeps_to_its_limits(monkeypatch):
    no_environment(monkeypatch)
    queries = torch.rand(11, *SHAPE, generator=torch.Generator().manual_seed(1))
    for limits in ({"max_request_rows": 4}, {"max_request_bytes": 1024}):
        with serving(**limits) as server:
            wanted = torch.cat([server.release(part) for part in queries.split(2)])
            target = open_target(f"{server.url}{PATH}", outputs="confidences", device=CPU)
            assert torch.equal(target(queries), wanted), limits
            with pytest.raises(
                TargetFailedError, match="status 400: the request's inputs: Expected"
            ):
                HttpClient("the server").post_json(f"{server.url}{PATH}/infer", {"inputs": []})


def _changed(key, value):
    asked = request_of(torch.full((2, *SHAPE), 0.625))
    asked["inputs"][0][key] = value
    return asked


FULL = [0.625] * 32

BAD = {
    "no object": [1, 2],
    "no inputs": {"inputs": []},
    "two inputs": {"inputs": 2 * request_of(torch.zeros(1, *SHAPE))["inputs"]},
    "another name": _changed("name", "x"),
    "another datatype": _changed("datatype", "UINT8"),
    "an unknown datatype": _changed("datatype", "BF16"),
    "bytes": _changed("datatype", "BYTES"),
    "no data": _changed("data", None),
    "texts": _changed("data", ["0.625"] * 32),
    "truths": _changed("data", [True, *FULL[1:]]),
    "a hole": _changed("data", [None, *FULL[1:]]),
    "too few numbers": _changed("data", FULL[:-1]),
    "too large for FP32": _changed("data", [1e39, *FULL[1:]]),
    "too large for a float": _changed("data", [10**400, *FULL[1:]]),
    "ragged rows": _changed("data", [FULL[:15], FULL[:17]]),
    "another nesting": _changed("data", [FULL[:16], FULL[:16]]),
    "mixed nesting": _changed("data", [FULL[:16], *FULL[:16]]),
    "no rows": _changed("shape", [0, *SHAPE]),
    "no shape": _changed("shape", []),
    "too many rows": _changed("shape", [65, *SHAPE]),
    "a negative size": _changed("shape", [-2, *SHAPE]),
    "a huge shape": _changed("shape", [2**62, *SHAPE]),
    "another shape": _changed("shape", [2, 4, 4, 1]),
    "another output": {**_changed("name", "image"), "outputs": [{"name": "logits"}]},
    "an id that is no text": {**_changed("name", "image"), "id": 7},
    "a nested parameter": {**_changed("name", "image"), "parameters": {"0.625": [0.625]}},
}


def test_a_client_gets_answers_of_the_version_that_it_requires_alone(server, images):
    for version, status in (("7", 200), ("8", 412), ("", 412)):
        headers = {"Oneway-Require-Guard": version}
        answer = server.client.post(f"{PATH}/infer", json=request_of(images), headers=headers)
        assert answer.status_code == status
    assert answer.json() == {"error": "the guard is of version 7, and another one is required"}
    assert answer.headers["oneway-refused"] == "true"


@pytest.mark.hostile("malformed requests", len(BAD), "400, with no number from the request")
def test_bad_requests_are_refused_without_their_numbers(server):
    for fault, request in BAD.items():
        answer = server.client.post(f"{PATH}/infer", json=request)
        assert answer.status_code == 400, fault
        assert set(answer.json()) == {"error"}, fault
        assert "625" not in answer.text, fault


@pytest.mark.hostile("bodies that are not JSON, or nested too deeply", 5, "400")
def test_what_is_no_json_is_refused(server):
    for body in (b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"inputs": [NaN]}'):
        answer = server.client.post(f"{PATH}/infer", content=body)
        assert answer.status_code == 400, body[:20]
        assert set(answer.json()) == {"error"}, body[:20]


@pytest.mark.hostile("infinite numbers and NaN", 3, "400")
def test_numbers_that_are_not_finite_are_refused(server):
    text = (
        '{"inputs": [{"name": "image", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": [%s]}]}'
    )
    for bad in ("NaN", "Infinity", "1e999"):
        body = text % ", ".join([bad, *["0"] * 15])
        assert server.client.post(f"{PATH}/infer", content=body).status_code == 400


@pytest.mark.hostile("other paths and methods", 10, "400, 404 or 405")
def test_other_paths_and_methods_are_errors_of_the_protocol(server):
    for method, path, status in (
        ("GET", "/v2/models/other", 404),
        ("GET", f"{PATH}/versions/2", 404),
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("POST", f"{PATH}/infer/", 404),
        ("GET", "/v2/models/..%2fdigits", 400),
        ("TRACE", "/v2", 405),
        ("OPTIONS", f"{PATH}/infer", 405),
        ("GET", f"{PATH}/infer", 405),
        ("POST", "/v2", 405),
    ):
        answer = server.client.request(method, path)
        assert answer.status_code == status, (method, path)
        assert set(answer.json()) == {"error"}, (method, path)


def test_the_label_is_on_top_after_json_even_where_float32_ties():
    """Logits so close that a float32 softmax ties them, in every class's place."""
    from oneway.defenses import ServableDefense
    from oneway.defenses.identity import Identity
    from rows import leads

    class Close:
        def logits(self, images):
            at = images.flatten(1)[:, 0].round().long() % 3
            rows = torch.zeros(len(images), 3, dtype=torch.float64)
            return rows.scatter(1, at[:, None], 1e-12)

        def __call__(self, images):
            return release(self.logits(images))

    labels = torch.arange(12) % 3
    queries = labels.float()[:, None].expand(-1, 16).reshape(12, *SHAPE)
    assert math.exp(1e-12) / 3 != 1 / 3
    with serving(ServableDefense("none", "0", Identity()), target=Close()) as server:
        answer = server.infer(queries).json()["outputs"][0]["data"]
    for dtype in (torch.float32, torch.float64):
        assert leads(torch.tensor(answer, dtype=dtype).reshape(12, 3), labels)
