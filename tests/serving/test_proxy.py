"""A proxy before a real server: what passes, what is dropped, and what happens when it breaks."""

import asyncio
import functools
import gzip
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tritonclient import http as triton

from endpoints import (
    Asked,
    Endpoint,
    OpenInferenceServer,
    Reply,
    as_json,
    served_confidences,
    served_logits,
)
from endpoints import running as upstream_running
from guarded_servers import (
    CPU,
    PATH,
    PATIENCE,
    SHAPE,
    Running,
    digits_in,
    eventually,
    request_of,
    rounding,
    running,
    settings,
)
from oneway.defenses import ServableDefense, open_guard
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError, OnewayError, TargetFailedError, UnknownNameError
from oneway.releases import logits_from_confidences, release
from oneway.serving import GuardedScores, ProxyOptions, check_proxy, open_upstream, proxy_app
from oneway.serving import upstream as upstream_module
from rows import leads

QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))

LABEL = {"name": "label", "datatype": "INT64", "shape": [3], "data": [1, 2, 0]}
EMBEDDING = {"name": "embedding", "datatype": "FP32", "shape": [3, 1], "data": [0.5, 0.25, 0.125]}


def beside(*outputs):
    """Let a server answer with more outputs, whoever asks for what."""

    def change(answer):
        answer["outputs"] += outputs
        answer["parameters"] = {"top": "0.9876543"}
        return answer

    return change


@contextmanager
def proxied(
    upstream: Any,
    *,
    guard: ServableDefense | None = None,
    outputs: Any = "confidences",
    **options: Any,
) -> Iterator[tuple[Running, Endpoint]]:
    """Run a proxy before a server that answers like ``upstream``."""
    # The self test has time enough, however short the times of a test are.
    how, patient = settings(**options.pop("how", {})), settings(upstream_timeout_seconds=PATIENCE)
    guard = guard or rounding(1)
    with upstream_running(upstream) as endpoint:
        where = endpoint.address + options.pop("path", PATH)
        model = asyncio.run(open_upstream(where, patient, guard, ProxyOptions(**options)))
        guarded = GuardedScores(guard, outputs, device=CPU)
        asyncio.run(check_proxy(model, guarded, patient))
        with running(proxy_app(model, guarded, how), how) as server:
            yield server, endpoint


def expected(queries=QUERIES, guard=None, confidences=served_confidences):
    clean = logits_from_confidences(torch.tensor(confidences(queries.numpy())))
    return release((guard or rounding(1)).defense(clean))


@pytest.fixture(scope="module")
def pair():
    server = OpenInferenceServer(change=beside(LABEL, EMBEDDING))
    with proxied(server, passed=("label",)) as running_pair:
        yield running_pair


def test_the_guarded_output_is_released_and_what_is_not_listed_is_dropped(pair):
    server, endpoint = pair
    answer = server.infer(QUERIES, id="7")
    assert answer.status_code == 200
    body = answer.json()
    (probabilities, label) = body.pop("outputs")
    assert body == {
        "model_name": "digits",
        "id": "7",
        "parameters": {"guard": "rounding", "guard_version": "7"},
    }
    assert label == LABEL
    assert probabilities["name"] == "probabilities"
    got = torch.tensor(probabilities["data"]).reshape(probabilities["shape"])
    assert torch.equal(got, expected())
    assert leads(got, torch.tensor(served_logits(QUERIES)).argmax(1))
    said = server.everything(answer)
    assert "embedding" not in answer.text
    assert "9876543" not in said
    assert digits_in(said, QUERIES) == []
    asked = endpoint.posts[-1].json
    assert [one["name"] for one in asked["outputs"]] == ["label", "probabilities"]


def test_metadata_show_only_what_passes(pair):
    server, _ = pair
    told = server.client.get(PATH).json()
    assert [output["name"] for output in told["outputs"]] == ["probabilities", "label"]
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    assert server.client.get(f"{PATH}/ready").json() == {"name": "digits", "ready": True}
    assert server.client.get("/v2/health/ready").status_code == 200
    assert server.client.get(f"{PATH}/versions/1").status_code == 404


def test_the_only_version_of_a_server_is_kept_and_no_other_one_is_guarded():
    upstream = OpenInferenceServer(versions=("3",))
    with proxied(upstream) as (server, _):
        assert server.client.get(PATH).json()["versions"] == ["3"]
        for path in (PATH, f"{PATH}/versions/3"):
            answer = server.client.post(f"{path}/infer", json=request_of(QUERIES))
            assert answer.json()["model_version"] == "3", path
        assert server.client.get(f"{PATH}/versions/2").status_code == 404
        upstream.change = lambda answer: answer | {"model_version": "4"}
        assert server.infer(QUERIES).status_code == 502


def test_a_model_whose_name_has_a_blank_is_asked_by_the_same_path():
    path = "/v2/models/my%20digits"
    with proxied(OpenInferenceServer(path=path), path=path) as (server, _):
        answer = server.client.post(f"{path}/infer", json=request_of(QUERIES))
        assert (answer.status_code, answer.json()["model_name"]) == (200, "my digits")


@pytest.mark.hostile("requests for outputs of the guarded server that are not passed", 1, "400")
def test_a_client_may_ask_for_a_part_but_for_nothing_that_is_not_listed(pair):
    server, endpoint = pair
    only = server.infer(QUERIES, outputs=[{"name": "label"}]).json()
    assert [output["name"] for output in only["outputs"]] == ["label"]
    before = len(endpoint.posts)
    refused = server.infer(QUERIES, outputs=[{"name": "embedding"}])
    assert refused.status_code == 400
    assert len(endpoint.posts) == before


@pytest.mark.hostile("parameters for the guarded server", 3, "dropped")
def test_parameters_do_not_pass(pair):
    """One of them could ask the server for another form of its scores."""
    server, endpoint = pair
    asked = request_of(QUERIES, parameters={"classification": 3})
    asked["inputs"][0]["parameters"] = {"x": 1}
    asked["outputs"] = [{"name": "probabilities", "parameters": {"top": 3}}]
    assert server.client.post(f"{PATH}/infer", json=asked).status_code == 200
    assert "parameters" not in endpoint.posts[-1].body.decode()


@pytest.mark.hostile(
    "inputs that the guarded server does not declare", 4, "400; the guarded server is not asked"
)
def test_inputs_that_the_server_does_not_name_do_not_pass(pair):
    """One of them could be a switch that its makers left in."""
    server, endpoint = pair
    before = len(endpoint.posts)
    (image,) = request_of(QUERIES)["inputs"]
    switch = {"name": "raw", "shape": [1], "datatype": "BOOL", "data": [True]}
    for inputs in ([image, switch], [switch], [{**image, "name": "other"}], [image, image]):
        answer = server.client.post(f"{PATH}/infer", json={"inputs": inputs})
        assert answer.status_code == 400
        assert "image" in answer.json()["error"]
    assert len(endpoint.posts) == before


@pytest.mark.hostile(
    "inputs with another datatype or another number of rows",
    5,
    "400; the guarded server is not asked",
)
def test_rows_are_counted_and_types_are_the_model_s_whatever_a_client_says(pair):
    server, endpoint = pair
    asked = len(endpoint.posts)
    request = request_of(QUERIES)
    (tensor,) = request["inputs"]
    for change, said in (
        ({"datatype": "UINT8", "data": [0] * 48}, "FP32, as the model declares"),
        ({"datatype": "FP64"}, "FP32, as the model declares"),
        ({"datatype": "BYTES", "data": ["a"] * 48}, "FP32, as the model declares"),
        ({"shape": [65, 16], "data": [0.5] * 65 * 16}, "from 1 to 64 queries, but holds 65"),
        ({"shape": [2, 16]}, "must be 32 numbers"),
    ):
        answer = server.client.post(f"{PATH}/infer", json={"inputs": [{**tensor, **change}]})
        assert answer.status_code == 400, change
        assert said in answer.json()["error"]
    assert len(endpoint.posts) == asked


@pytest.mark.hostile(
    "too many integer or text rows, or rows missing in the answer", 6, "400 or 502"
)
@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
def test_rows_of_any_type_are_limited_and_answered_one_by_one(datatype, tmp_path):
    value = {"UINT8": 1, "BYTES": "a, b"}[datatype]

    def model(queries):
        return served_confidences(np.full((len(queries) - missing, 16), 0.5))

    def asked(rows):
        tensor = {"name": "image", "datatype": datatype, "shape": [rows, 1], "data": [value] * rows}
        return {"inputs": [tensor]}

    missing = 0
    inputs = [{"name": "image", "datatype": datatype, "shape": [-1, 1]}]
    upstream = OpenInferenceServer(inputs=inputs, model=model)
    probe = tmp_path / "probe.json"
    probe.write_text(json.dumps(asked(2)))
    with proxied(upstream, probe=probe) as (server, endpoint):
        ask = functools.partial(server.client.post, f"{PATH}/infer")
        assert len(ask(json=asked(64)).json()["outputs"][0]["data"]) == 64 * 3
        before = len(endpoint.posts)
        answer = ask(json=asked(65))
        assert answer.status_code == 400
        assert "from 1 to 64" in answer.json()["error"]
        lying = asked(65)
        lying["inputs"][0]["shape"] = [2, 1]
        assert ask(json=lying).status_code == 400
        assert len(endpoint.posts) == before
        missing = 1  # no row belongs to a query for sure
        answer = ask(json=asked(4))
        assert answer.status_code == 502
        eventually(lambda: '"upstream_rows"' in server.log.getvalue())  # written after the answer


@pytest.mark.hostile("guarded servers that answer another request", 1, "502 and no score")
def test_an_answer_to_another_request_is_released_to_nobody():
    """A server may send a second answer behind the first, or a cache mix two up."""
    upstream = OpenInferenceServer()
    asked = []

    def echo(answer):
        return answer | {"id": asked[-1]}

    with proxied(upstream) as (server, endpoint):
        upstream.change = lambda answer: echo(answer) if asked else answer | {"id": None}
        assert server.infer(QUERIES).status_code == 200  # null, as some servers write no id
        asked.append(endpoint.posts[-1].json["id"])
        answer = server.infer(QUERIES)  # bears the id of the request before
        assert answer.status_code == 502
        assert digits_in(answer.text, QUERIES) == []
        eventually(lambda: '"upstream_id"' in server.log.getvalue())
        ids = [post.json["id"] for post in endpoint.posts[-2:]]
        assert len(set(ids)) == 2


@pytest.mark.hostile("binary data of the wrong size", 4, "400")
def test_tritons_client_asks_through_it_in_its_default_settings(pair):
    """It sends and wants binary data, whatever the server behind speaks."""
    server, _ = pair
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.get_model_config("digits")["input"][0]["name"] == "image"
        for binary in (True, False):
            sent = triton.InferInput("image", list(QUERIES.shape), "FP32")
            sent.set_data_from_numpy(QUERIES.numpy(), binary_data=binary)
            answer = client.infer("digits", [sent])
            assert np.array_equal(answer.as_numpy("probabilities"), expected().numpy())
            assert answer.as_numpy("label").tolist() == LABEL["data"]
    body = request_of(QUERIES)
    del body["inputs"][0]["data"]
    for size, sent in ((192, 191), (191, 191), (-1, 0), (True, 1)):
        body["inputs"][0]["parameters"] = {"binary_data_size": size}
        head = json.dumps(body).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = server.client.post(f"{PATH}/infer", content=head + bytes(sent), headers=headers)
        assert answer.status_code == 400, size
        assert "binary data" in answer.json()["error"]


def its_own_id(answer):
    """Return an answer as KServe 0.10 did: with an id that the server draws."""
    return answer | {"id": "9b1d"}


def renamed(answer):
    answer["outputs"][0]["name"] = "scores"
    return answer


def with_output(**changes):
    def change(answer):
        answer["outputs"][0] |= changes
        return answer

    return change


DRAWS = np.random.default_rng(0)


def drawn_anew(queries):
    return DRAWS.dirichlet(np.ones(3), len(queries))


CLEAN = served_confidences(QUERIES.numpy())
# A good answer: what is wrong with each of those below is said by its name.
OUTPUT = {"name": "probabilities", "datatype": "FP32", "shape": [3, 3]}
TEXT = json.dumps({"outputs": [{**OUTPUT, "data": CLEAN.ravel().tolist()}]}).encode()

BROKEN = {
    "renames its output": renamed,
    "sends it twice": lambda answer: {**answer, "outputs": 2 * answer["outputs"]},
    "sends no outputs": lambda _: {"model_name": "digits", "scores": CLEAN.tolist()},
    "sends a list": lambda _: CLEAN.tolist(),
    "sends another type": with_output(datatype="BYTES"),
    "sends texts": with_output(data=[str(number) for number in CLEAN.ravel()]),
    "sends fewer numbers": with_output(data=CLEAN.ravel().tolist()[:-1]),
    "sends one class fewer": with_output(data=CLEAN[:, :2].ravel().tolist(), shape=[3, 2]),
    "sends no rows": with_output(data=[], shape=[0, 3]),
    "sends fewer rows than queries": with_output(data=CLEAN[:2].ravel().tolist(), shape=[2, 3]),
    "sends somebody's rows, too": with_output(data=2 * CLEAN.ravel().tolist(), shape=[6, 3]),
    "sends one row": with_output(data=CLEAN.ravel().tolist(), shape=[9]),
    "sends logits": with_output(data=served_logits(QUERIES.numpy()).ravel().tolist()),
    "sends no probabilities": with_output(data=(2 * CLEAN).ravel().tolist()),
    "sends nothing": with_output(data=None),
}

DYING = {
    "answers with an error": Reply(500, TEXT),
    "says it is the client": Reply(400, TEXT),
    "is busy": Reply(503, TEXT, {"Retry-After": "9"}),
    "redirects": Reply(307, TEXT, {"Location": f"{PATH}/infer"}),
    "dies in mid-answer": Reply(200, TEXT, promised=len(TEXT) + 100),
    "sends half an answer": Reply(200, TEXT[: len(TEXT) // 2]),
    "sends NaN": Reply(200, TEXT.replace(b"[", b"[NaN, ", 2)),
    "sends text": Reply(200, b"scores: " + TEXT),
    "sends another charset": Reply(200, TEXT.decode().encode("utf-16")),
    "packs its answer": Reply(200, gzip.compress(TEXT), {"Content-Encoding": "gzip"}),
}


STATUSES = {"says it is the client": 400, "is busy": 503}


@pytest.mark.hostile(
    "guarded servers that answer something else, an error, or half an answer",
    len(BROKEN) + len(DYING),
    "502 (400 or 503 for some of its errors) and no score",
)
def test_a_server_that_breaks_gets_nothing_through():
    upstream = OpenInferenceServer()
    with proxied(upstream) as (server, endpoint):
        endpoint.faults.append(Reply(200, TEXT))  # a good answer gets through
        assert torch.equal(server.release(QUERIES), expected())
        for fault in (*BROKEN, *DYING):
            if fault in BROKEN:
                upstream.change = BROKEN[fault]
            else:
                endpoint.faults.append(DYING[fault])
            answer = server.infer(QUERIES)
            assert answer.status_code == STATUSES.get(fault, 502), fault
            assert set(answer.json()) == {"error"}, fault
            assert digits_in(server.everything(answer), QUERIES) == [], fault
            assert answer.headers.get("Retry-After", "1") == "1", fault
            upstream.change = lambda whole: whole
            assert torch.equal(server.release(QUERIES), expected()), fault


@pytest.mark.hostile("guarded servers that answer too much", 1, "502")
def test_a_server_that_is_too_large_is_given_up():
    with proxied(OpenInferenceServer(), how={"max_upstream_bytes": 1024}) as (server, endpoint):
        endpoint.faults.append(Reply(200, b" " * 2048 + TEXT))
        assert server.infer(QUERIES).status_code == 502
        assert server.infer(QUERIES).status_code == 200


@pytest.mark.hostile("guarded servers that answer byte by byte", 1, "504")
def test_a_server_that_is_too_slow_is_given_up():
    ended, how = threading.Event(), {"upstream_timeout_seconds": 0.4}
    with proxied(OpenInferenceServer(), how=how) as (server, endpoint):
        endpoint.faults.append(Reply(200, TEXT, drip=lambda: ended.wait(0.05)))
        assert server.infer(QUERIES).status_code == 504
        ended.set()
        eventually(lambda: server.infer(QUERIES).status_code == 200)


@pytest.mark.hostile("a guard that fails in front of a server", 1, "503 and no score")
def test_a_guard_that_fails_lets_nothing_through():
    from oneway.defenses.rounding import Rounding

    class Faulty:
        requires_input, keeps_label, deterministic, fault = False, True, True, False

        def __call__(self, logits, images=None):  # noqa: ARG002
            if self.fault:
                raise MemoryError(str(logits.tolist()))
            return Rounding(decimals=1)(logits)

    faulty = Faulty()
    guard = ServableDefense("faulty", "1", faulty)
    with proxied(OpenInferenceServer(), guard=guard) as (server, _):
        faulty.fault = True
        answer = server.infer(QUERIES)
        assert answer.status_code == 503
        assert digits_in(server.everything(answer), QUERIES) == []


@pytest.mark.hostile(
    "so many probes that queries might wait",
    8,
    "one probe of the guarded server; queries are answered",
)
def test_whoever_asks_whether_it_is_ready_takes_no_query_its_place(monkeypatch):
    """Probes need no token: many at once ask the server once, and never wait for it in queries."""
    monkeypatch.setattr(upstream_module, "READY_SECONDS", PATIENCE)
    entered, go = threading.Event(), threading.Event()

    class Slow(OpenInferenceServer):
        slow = False

        def __call__(self, asked):
            if self.slow and asked.path.endswith("/ready"):
                entered.set()
                assert go.wait(PATIENCE)
            return super().__call__(asked)

    upstream = Slow()
    how = {"max_upstream_requests": 2}
    with proxied(upstream, how=how) as (server, endpoint), ThreadPoolExecutor(8) as pool:
        before = len(endpoint.asked)
        upstream.slow = True
        path = f"{server.url}/v2/health/ready"
        patient = {"trust_env": False, "timeout": PATIENCE}
        probes = [pool.submit(httpx.get, path, **patient) for _ in range(8)]
        assert entered.wait(PATIENCE)
        assert torch.equal(server.release(QUERIES), expected())
        go.set()
        assert [one.result().status_code for one in probes] == 8 * [200]
        assert len(endpoint.asked) - before - 1 < 8


@pytest.mark.hostile(
    "guarded servers whose readiness answer never ends", 1, "the answer is not read"
)
def test_a_server_that_never_ends_to_say_that_it_is_ready_is_not_read():
    class Endless(OpenInferenceServer):
        def __call__(self, asked):
            if asked.path.endswith("/ready"):
                return Reply(200, b" " * 2**20, promised=2**40)
            return super().__call__(asked)

    with proxied(Endless()) as (server, _):
        assert server.client.get("/v2/health/ready").status_code == 200


@pytest.mark.hostile("HTTP proxies named in the environment", 3, "they are not used")
def test_no_proxy_of_the_environment_gets_to_see_clean_scores(monkeypatch):
    with upstream_running(OpenInferenceServer()) as eavesdropper:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, eavesdropper.address)
        with proxied(OpenInferenceServer()) as (server, _):
            assert torch.equal(server.release(QUERIES), expected())
        assert eavesdropper.asked == []


def test_the_same_query_in_another_writing_has_the_same_draws():
    """Else a server that takes many writings of one query gives many draws, to be averaged."""
    options, key = {"keep_label": True}, b"0123456789abcdef"
    guard = open_guard("gaussian-noise", options, key=key, device=CPU)

    class Lenient(OpenInferenceServer):
        def __call__(self, asked):
            if asked.method == "POST":
                value = asked.json
                (sent,) = value["inputs"]
                sent["shape"] = [len(sent["data"]) // 16, *SHAPE]
                asked = Asked(asked.method, asked.path, {}, json.dumps(value).encode())
            return super().__call__(asked)

    query = QUERIES[:1].half().float()
    for datatype in ("FP16", "FP32"):
        inputs = [{"name": "image", "datatype": datatype, "shape": [-1, *SHAPE]}]
        with proxied(Lenient(inputs=inputs), guard=guard) as (server, _):
            request = request_of(query)
            (sent,) = request["inputs"]
            sent["datatype"] = datatype
            answers = []
            for sent["shape"] in ([1, *SHAPE], [1, 16], [1, 4, 1, 4], [1, 1, 1, 1, 16]):
                answers.append(server.client.post(f"{PATH}/infer", json=request).json())
            if datatype == "FP16":  # what is beyond it, the server does not see
                sent["data"] = (query * (1 + 1e-5)).flatten().tolist()
                answers.append(server.client.post(f"{PATH}/infer", json=request).json())
            released = [answer["outputs"][0]["data"] for answer in answers]
            assert all(data == released[0] for data in released), datatype


def test_a_server_that_is_gone_makes_the_proxy_unready():
    with proxied(OpenInferenceServer()) as (server, endpoint):
        endpoint.answer.ready = 503
        for path in ("/v2/health/ready", f"{PATH}/ready"):
            assert server.client.get(path).status_code == 503
        assert server.client.get("/v2/health/live").status_code == 200


def test_a_guard_that_needs_the_queries_gets_those_of_the_request():
    seen = []

    class Asking:
        requires_input = keeps_label = deterministic = True

        def __call__(self, logits, images=None):
            seen.append(images)
            return rounding(1).defense(logits)

    guard = ServableDefense("asking", "1", Asking())
    with proxied(OpenInferenceServer(), guard=guard) as (server, _):
        server.release(QUERIES)
        assert torch.equal(seen[-1], QUERIES)
        asked = request_of(QUERIES)
        asked["inputs"][0]["datatype"] = "INT64"
        asked["inputs"][0]["data"] = [1] * 48
        assert server.client.post(f"{PATH}/infer", json=asked).status_code == 400


def test_logits_of_a_server_are_guarded_as_such():
    upstream = OpenInferenceServer(model=served_logits)
    with proxied(upstream, outputs="logits") as (server, _):
        clean = torch.tensor(served_logits(QUERIES.numpy()))
        assert torch.equal(server.release(QUERIES), release(rounding(1).defense(clean)))


def test_a_server_that_declares_nothing_is_guarded_by_name(tmp_path):
    """KServe's and MLServer's metadata are empty unless somebody fills them in."""
    probe = tmp_path / "probe.json"
    probe.write_text(json.dumps(request_of(QUERIES)))
    upstream = OpenInferenceServer(inputs=[], outputs=[])
    with proxied(upstream, output_name="probabilities", probe=probe) as (server, _):
        assert torch.equal(server.release(QUERIES), expected())
        assert [each["name"] for each in server.client.get(PATH).json()["outputs"]] == [
            "probabilities"
        ]


def test_it_does_not_start_where_the_guarded_output_is_not_there():
    nothing = OpenInferenceServer(inputs=[], outputs=[])
    for upstream, options, error, said in (
        (OpenInferenceServer(), {"output_name": "logits"}, UnknownNameError, "logits"),
        (OpenInferenceServer(), {"passed": ("hidden",)}, UnknownNameError, "hidden"),
        (OpenInferenceServer(), {"passed": ("probabilities",)}, InvalidOptionError, "guarded"),
        (OpenInferenceServer(), {"input_name": "x"}, UnknownNameError, "input"),
        (OpenInferenceServer(outputs=[]), {}, InvalidOptionError, "output_name"),
        (nothing, {"output_name": "probabilities"}, InvalidOptionError, "--probe"),
        (OpenInferenceServer(ready=503), {}, TargetFailedError, "not ready"),
        (OpenInferenceServer(change=renamed), {}, TargetFailedError, "named 'probabilities'"),
        (OpenInferenceServer(change=its_own_id), {}, TargetFailedError, "id of the request"),
        (OpenInferenceServer(model=drawn_anew), {}, TargetFailedError, "differently the second"),
        (OpenInferenceServer(model=served_logits), {}, TargetFailedError, "scores"),
        (OpenInferenceServer(), {"path": "/predict"}, InvalidOptionError, "request_key"),
        (
            OpenInferenceServer(inputs=[{"name": "t", "datatype": "BYTES", "shape": [-1]}]),
            {},
            InvalidOptionError,
            "--probe",
        ),
    ):
        with pytest.raises(error, match=said), proxied(upstream, **options):
            pytest.fail(said)


def test_logits_that_are_probabilities_are_refused_at_the_start_or_with_the_first_answers(tmp_path):
    said = "declared logits, but look like confidences: all of 8 rows.*--outputs confidences"
    probe = tmp_path / "probe.json"
    probe.write_text(json.dumps({"instances": QUERIES[:1].tolist()}))
    for upstream, options in ((OpenInferenceServer(), {}), (plain, PLAIN)):
        with (
            pytest.raises(TargetFailedError, match=said),
            proxied(upstream, outputs="logits", **options),
        ):
            pytest.fail("it serves")
    one = PLAIN | {"input_shape": None, "probe": probe}
    with proxied(plain, outputs="logits", **one) as (server, _):
        asked = {"instances": QUERIES[:1].tolist()}
        answers = [server.client.post("/predict", json=asked).status_code for _ in range(12)]
        # The probe was asked once, and answered once more as a client would get it.
        assert answers[-4:] == [502] * 4
        assert set(answers) == {200, 502}


def test_a_server_that_names_the_class_of_each_score_is_guarded():
    def answer(asked):
        rows = served_confidences(np.array(asked.json["instances"]))
        return as_json(
            [
                [{"label": str(at), "score": float(row[at])} for at in (-row).argsort()]
                for row in rows
            ]
        )

    options = PLAIN | {"response_key": "*.*.score"}
    with proxied(answer, passed=("*.*.label",), **options) as (server, _):
        got = server.client.post("/predict", json={"instances": QUERIES.tolist()})
        assert got.status_code == 200, got.text
        labels = [row[0]["label"] for row in got.json()]
        assert labels == [str(at) for at in CLEAN.argmax(1).tolist()]
        scores = np.array([[each["score"] for each in row] for row in got.json()])
        assert (scores[:, :1] > scores[:, 1:]).all()
        assert digits_in(server.everything(got), QUERIES) == []


def test_it_does_not_start_with_a_guard_that_does_not_work():
    class Broken:
        requires_input, keeps_label, deterministic = False, True, True

        def __call__(self, logits, images=None):  # noqa: ARG002
            return logits

    broken = ServableDefense("broken", "1", Broken())
    with (
        pytest.raises(OnewayError, match="changes nothing"),
        proxied(OpenInferenceServer(), guard=broken),
    ):
        pass
    none = ServableDefense("none", "1", Identity())
    with proxied(OpenInferenceServer(), guard=none) as (server, _):
        assert server.infer(QUERIES).status_code == 200


def plain(asked):
    """Answer plain JSON with scores and much beside them."""
    if asked.path.partition("?")[0] != "/predict":
        return as_json({"detail": "no"}, 404)
    scores = served_confidences(np.array(asked.json["instances"]))
    return as_json(
        {
            "predictions": [
                {"scores": row.tolist(), "label": int(row.argmax()), "hidden": row.tolist()}
                for row in scores
            ],
            "model": {"name": "m", "logits": scores.tolist()},
        }
    )


PLAIN = {
    "path": "/predict?key=5",
    "request_key": "instances",
    "response_key": "predictions.*.scores",
    "input_shape": SHAPE,
}


def test_plain_json_keeps_its_form_without_what_is_not_listed():
    with proxied(plain, passed=("predictions.*.label", "model.name"), **PLAIN) as (
        server,
        endpoint,
    ):
        answer = server.client.post("/predict", json={"instances": QUERIES.tolist()})
        rows = expected().tolist()
        labels = CLEAN.argmax(1).tolist()
        assert answer.json() == {
            "predictions": [
                {"scores": row, "label": label} for row, label in zip(rows, labels, strict=True)
            ],
            "model": {"name": "m"},
        }
        assert answer.headers["oneway-guard"] == "rounding"
        assert digits_in(server.everything(answer), QUERIES) == []
        assert endpoint.posts[-1].path == "/predict?key=5"
        assert server.client.post("/predict", json={"x": 1}).status_code == 400
        assert server.client.post("/predict", content=b"{").status_code == 400
        assert server.client.post("/other", json={}).status_code == 404


@pytest.mark.hostile("plain JSON with other keys beside the queries", 2, "dropped")
def test_of_a_plain_request_nothing_but_the_queries_passes(tmp_path):
    """Beside them a client could ask the server for another form of its scores."""
    with proxied(plain, **PLAIN) as (server, endpoint):
        asked = {"parameters": {"temperature": 9}, "instances": QUERIES.tolist(), "raw": True}
        assert server.client.post("/predict", json=asked).status_code == 200
        assert endpoint.posts[-1].json == {"instances": QUERIES.tolist()}

    def by_row(asked):
        assert asked.json["signature"] == "serve"
        assert all(one["scale"] == 1 for one in asked.json["rows"])
        scores = served_confidences([one["image"] for one in asked.json["rows"]])
        return as_json({"predictions": [{"scores": row.tolist()} for row in scores]})

    # What else a request needs stands in the operator's own.
    probe = tmp_path / "probe.json"
    row = {"image": QUERIES[0].tolist(), "scale": 1}
    probe.write_text(json.dumps({"rows": [row], "signature": "serve"}))
    options = PLAIN | {"request_key": "rows.*.image", "input_shape": None, "probe": probe}
    with proxied(by_row, **options) as (server, endpoint):
        ask = functools.partial(server.client.post, "/predict")
        rows = [{"image": query.tolist(), "size": 9} for query in QUERIES]
        answer = ask(json={"rows": rows, "raw": True})
        assert answer.json() == {"predictions": [{"scores": row} for row in expected().tolist()]}
        # A client who wants other values must not take this answer for the one to them.
        rows[2]["scale"] = 9
        answer = ask(json={"rows": rows})
        assert (answer.status_code, "'rows.2.scale' must be" in answer.text) == (400, True)
        rows[2]["scale"] = 1
        assert ask(json={"rows": rows, "signature": "raw"}).status_code == 400
        assert ask(json={"rows": rows, "signature": "serve"}).status_code == 200


def test_plain_rows_in_one_list_are_guarded():
    def answer(asked):
        return as_json(
            {"out": [{"data": served_confidences(asked.json).tolist()}, {"x": CLEAN[0].tolist()}]}
        )

    options = PLAIN | {"request_key": "", "response_key": "out.0.data"}
    with proxied(answer, **options) as (server, _):
        got = server.client.post("/predict", json=QUERIES.tolist()).json()
        assert got == {"out": [{"data": expected().tolist()}, None]}


def test_plain_json_that_cannot_be_guarded_does_not_start():
    for options in (
        {"request_key": None},
        {"input_shape": None},
        {"passed": ("predictions",)},
        {"passed": ("predictions.*.scores.0",)},
        {"passed": ("predictions.0.scores",)},
        {"response_key": "predictions.0.scores", "passed": ("predictions.*.scores",)},
        {"output_name": "x"},
        {"response_key": "predictions.*.other"},
        {"response_key": "predictions.*.label"},
    ):
        with pytest.raises(OnewayError), proxied(plain, **(PLAIN | options)):
            pytest.fail(str(options))


def test_a_probe_can_be_given_where_none_can_be_made_up(tmp_path):
    probe = tmp_path / "probe.json"
    probe.write_text(json.dumps({"instances": QUERIES.tolist()}))
    with proxied(plain, probe=probe, **(PLAIN | {"input_shape": None})) as (server, _):
        assert server.client.post("/predict", content=probe.read_bytes()).status_code == 200


@pytest.mark.hostile(
    "many requests that clients give up", 24 * 5, "queries are answered afterwards"
)
def test_a_storm_of_requests_that_are_given_up_leaves_the_proxy_well(monkeypatch):
    """Whoever gives up takes no connection with him: in the end there would be none."""
    ended, opened = threading.Event(), []

    class Slow(OpenInferenceServer):
        slow = False

        def __call__(self, asked):
            if self.slow and asked.method == "POST":
                ended.wait(0.3)
            return super().__call__(asked)

    class Known(upstream_module.Upstream):
        def __init__(self, *given):
            super().__init__(*given)
            opened.append(self)

    monkeypatch.setattr("oneway.serving.proxy.Upstream", Known)
    upstream = Slow()
    limits = {"upstream_timeout_seconds": 0.2, "max_upstream_requests": 8}
    with proxied(upstream, how=limits) as (server, _):
        upstream.slow = True

        def give_up(at):
            with httpx.Client(base_url=server.url, trust_env=False) as client:
                for _ in range(5):
                    try:
                        client.post(f"{PATH}/infer", json=request_of(QUERIES), timeout=0.01 * at)
                    except httpx.TimeoutException:
                        client.get("/v2/health/live", timeout=PATIENCE)

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(give_up, range(1, 25)))
        ended.set()
        upstream.slow = False
        # From here on, a machine may be as slow as it likes.
        opened[-1].timeout_seconds = PATIENCE
        eventually(lambda: server.infer(QUERIES).status_code != 429)  # the last has been answered
        for _ in range(20):
            assert torch.equal(server.release(QUERIES), expected())
        assert server.client.get("/v2/health/ready").status_code == 200


@pytest.mark.hostile("more requests to the guarded server than allowed", 1, "429 and Retry-After")
def test_more_requests_than_the_server_may_get_are_turned_away():
    entered, go = threading.Event(), threading.Event()

    class Slow(OpenInferenceServer):
        slow = False

        def __call__(self, asked):
            if self.slow and asked.method == "POST":
                entered.set()
                assert go.wait(PATIENCE)
            return super().__call__(asked)

    upstream = Slow()
    with proxied(upstream, how={"max_upstream_requests": 1}) as (server, _):
        upstream.slow = True
        answers = []
        first = threading.Thread(target=lambda: answers.append(server.infer(QUERIES)))
        first.start()
        assert entered.wait(PATIENCE)
        busy = server.infer(QUERIES)
        go.set()
        first.join()
        assert busy.status_code == 429
        assert busy.headers["Retry-After"] == "1"
        assert answers[0].status_code == 200
