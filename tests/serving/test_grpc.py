"""gRPC of the protocol: Triton's client in default settings, and what hostile clients get."""

import asyncio
import contextlib
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import trustme
from hypothesis import given
from hypothesis import strategies as st

from endpoints import OpenInferenceServer, served_logits
from grpc_client import SERVICE, GrpcClient, infer_message
from guarded_servers import (
    PATH,
    PATIENCE,
    SHAPE,
    Held,
    digits_in,
    eventually,
    linear_model,
    request_of,
    rounding,
    running,
    served_model,
    serving,
    settings,
)
from oneway.errors import InvalidOptionError
from oneway.openinference.grpc_messages import MOST_FIELDS, check_fields, packed_output
from oneway.openinference.tensors import LAYOUTS, MessageError
from oneway.releases import release
from oneway.serving import serving_app
from oneway.targets import TorchTarget
from optional import later
from serving.test_proxy import LABEL, PLAIN, beside, plain, proxied
from serving.test_proxy import expected as proxy_expected

grpc = later("grpc")
triton = later("tritonclient.grpc")
messages = later("tritonclient.grpc.service_pb2")

TOKEN = "correct-horse-battery"
QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def server():
    with serving(grpc_port=0) as running_server:
        yield running_server


def triton_input(queries=QUERIES, name="image", datatype="FP32", kind=np.float32):
    sent = triton.InferInput(name, list(queries.shape), datatype)
    return sent.set_data_from_numpy(queries.numpy().astype(kind))


def test_tritons_client_gets_the_same_release_as_over_http(server):
    logits = torch.tensor(served_logits(QUERIES.numpy())).float()
    expected = release(rounding().defense(logits))
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits", "1")
        assert not client.is_model_ready("other")
        assert client.get_server_metadata().name == "oneway"
        told = client.get_model_metadata("digits", as_json=True)
        assert told["inputs"] == [
            {"name": "image", "datatype": "FP32", "shape": ["-1", "1", "4", "4"]}
        ]
        config = client.get_model_config("digits").config
        assert (config.max_batch_size, list(config.input[0].dims)) == (64, [*SHAPE])
        assert config.parameters["guard_version"].string_value == "7"
        (model,) = client.get_model_repository_index().models
        assert (model.name, model.version, model.state) == ("digits", "1", "READY")
        for datatype, kind in (("FP32", np.float32), ("FP64", np.float64), ("FP16", np.float16)):
            answer = client.infer("digits", [triton_input(datatype=datatype, kind=kind)], "1")
            got = torch.from_numpy(answer.as_numpy("probabilities").copy())
            sent = torch.from_numpy(QUERIES.numpy().astype(kind).astype(np.float32))
            assert torch.equal(got, expected if kind != np.float16 else server_release(sent)), kind
        response = client.infer("digits", [triton_input()], request_id="42").get_response()
        assert (response.id, response.parameters["guard"].string_param) == ("42", "rounding")
        with pytest.raises(triton.InferenceServerException, match="UNIMPLEMENTED"):
            client.unload_model("digits")


def server_release(queries):
    return release(rounding().defense(TorchTarget(linear_model()).logits(queries)))


def test_tritons_client_asks_an_upstream_through_the_guard():
    with proxied(
        OpenInferenceServer(change=beside(LABEL)), passed=("label",), how={"grpc_port": 0}
    ) as (server, endpoint):
        with triton.InferenceServerClient(f"127.0.0.1:{server.grpc.port}") as client:
            answer = client.infer("digits", [triton_input()])
        assert torch.equal(torch.tensor(answer.as_numpy("probabilities")), proxy_expected())
        assert answer.as_numpy("label").tolist() == LABEL["data"]
        assert "parameters" not in endpoint.posts[-1].body.decode()
        endpoint.answer.change = beside({**LABEL, "data": [1.5, 0.25, 7]})
        assert server.infer(QUERIES).status_code == 503
        endpoint.answer.change = lambda _: {"error": "the scores were 0.8765"}
        answer = server.infer(QUERIES)
        assert (answer.status_code, answer.value["error"]) == (
            503,
            "the guarded server did not answer as expected",
        )
        assert digits_in(server.everything(answer), QUERIES) == []


def change(**changes):
    asked = request_of(torch.full((2, *SHAPE), 0.625))
    asked["inputs"][0] |= changes
    return infer_message(asked)


def contents(**fields):
    message = change()
    del message.raw_input_contents[:]
    for name, values in fields.items():
        getattr(message.inputs[0].contents, name).extend(values)
    return message


def cleared(*names):
    message = change()
    for name in names:
        message.ClearField(name)
    return message


def with_classification():
    message = change()
    message.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    return message


BAD = {
    "another name": lambda: change(name="x"),
    "another datatype": lambda: change(datatype="UINT8"),
    "an unknown datatype": lambda: change(datatype="BF16"),
    "another shape": lambda: change(shape=[2, 4, 4, 1]),
    "a negative size": lambda: change(shape=[-2, *SHAPE]),
    "a huge shape": lambda: change(shape=[2**62, *SHAPE]),
    "no rows": lambda: change(shape=[0, *SHAPE]),
    "too few numbers": lambda: change(data=[0.625] * 31),
    "not a number": lambda: change(data=[float("nan")] + [0.625] * 31),
    "no inputs": lambda: cleared("inputs", "raw_input_contents"),
    "no data": lambda: cleared("raw_input_contents"),
    "data without inputs": lambda: cleared("inputs"),
    "too few values": lambda: contents(fp32_contents=[0.625] * 31),
    "values of another type": lambda: contents(fp64_contents=[0.625] * 32),
    "values of two types": lambda: contents(fp32_contents=[0.625] * 32, int_contents=[1]),
    "classes in place of scores": with_classification,
}


@pytest.mark.hostile(
    "gRPC: malformed requests and messages",
    len(BAD) + 7,
    "INVALID_ARGUMENT, with no number from the request",
)
def test_bad_requests_are_refused_without_their_numbers(server):
    for fault, made in BAD.items():
        answer = server.grpc.call("ModelInfer", made().SerializeToString())
        assert answer.status_code == 400, fault
        assert answer.headers["oneway-refused"] == "true", fault
        assert "625" not in answer.text, fault
    for body in (b"", b"\xff", b"\x0a\x7f", b"\x2a\x01", b"\x2b\x2c"):
        assert server.grpc.call("ModelInfer", body).status_code in (400, 404), body
    grown = server.grpc.call("ModelInfer", b"\x2a\x00" * (MOST_FIELDS + 1))
    assert (grown.status_code, "16384 fields" in grown.text) == (400, True)
    raw = change()
    raw.inputs[0].contents.fp32_contents.extend([0.625] * 32)
    assert server.grpc.call("ModelInfer", raw.SerializeToString()).status_code == 400
    assert server.grpc.infer(request_of(QUERIES)).status_code == 200


def test_typed_contents_are_read_like_raw_ones(server):
    plain = contents(fp32_contents=[0.625] * 32)
    typed = server.grpc.call("ModelInfer", plain.SerializeToString())
    assert typed.json()["outputs"] == server.infer(torch.full((2, *SHAPE), 0.625)).json()["outputs"]


def test_names_versions_and_guards_are_checked(server):
    message = infer_message(request_of(QUERIES))
    for name, version, status in (
        ("other", "", 404), ("digits", "2", 404), ("digits", "1", 200), ("digits", "", 200),
    ):  # fmt: skip
        message.model_name, message.model_version = name, version
        answer = server.grpc.call("ModelInfer", message.SerializeToString())
        assert answer.status_code == status, (name, version)
    for version, status in (("7", 200), ("8", 412)):
        answer = server.grpc.infer(request_of(QUERIES), oneway_require_guard=version)
        assert answer.status_code == status
    many = request_of(torch.full((65, *SHAPE), 0.625))
    assert server.grpc.infer(many).headers["oneway-max-request-rows"] == "64"
    assert server.grpc.infer(request_of(torch.zeros(400, *SHAPE) + 0.1)).status_code == 400
    assert server.grpc.infer(request_of(torch.zeros(4000, *SHAPE) + 0.1)).status_code == 429


@pytest.mark.hostile("gRPC: missing or wrong token", 20, "UNAUTHENTICATED")
def test_without_the_token_nothing_but_health_is_answered():
    with serving(token=TOKEN, grpc_port=0) as server:
        for sent in (None, TOKEN, f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
            metadata = {} if sent is None else {"authorization": sent}
            for method in ("ModelReady", "ServerMetadata", "ModelConfig", "RepositoryIndex"):
                assert server.grpc.call(method, b"", **metadata).status_code == 401, (sent, method)
            assert server.grpc.infer(request_of(QUERIES), **metadata).status_code == 401, sent
            for method in ("ServerLive", "ServerReady"):
                assert server.grpc.call(method, b"", **metadata).status_code == 200
        for scheme in ("Bearer", "bearer"):
            answer = server.grpc.infer(request_of(QUERIES), authorization=f"{scheme} {TOKEN}")
            assert answer.status_code == 200
        assert TOKEN not in server.log.getvalue()
        eventually(lambda: '"route": "grpc_ModelInfer", "status": 401' in server.log.getvalue())
        headers = {"Authorization": f"Bearer {TOKEN}"}
        metrics = server.client.get("/metrics", headers=headers).text
        assert 'oneway_requests_total{route="grpc_ModelInfer",status="200"} 2.0' in metrics
        assert "oneway_released_queries_total 6.0" in metrics


@pytest.mark.hostile(
    "gRPC: more requests in progress than allowed, over both ports",
    2,
    "UNAVAILABLE; health is answered",
)
def test_limits_of_requests_under_way_hold_over_both_ports_together():
    model, how = Held(), settings(grpc_port=0, max_connections=2)
    app = serving_app(served_model(target=TorchTarget(model)), how)
    with running(app, how) as server, ThreadPoolExecutor(2) as pool:
        model.held = True
        first = pool.submit(server.client.post, f"{PATH}/infer", json=request_of(QUERIES))
        assert model.entered.wait(PATIENCE)
        second = pool.submit(server.infer, QUERIES)
        eventually(lambda: app.server.batcher.waiting_rows == 3)
        busy = server.grpc.infer(request_of(QUERIES))
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert server.client.get("/v2").status_code == 503
        assert server.grpc.call("ServerLive", b"").status_code == 200
        model.go.set()
        assert [answer.result().status_code for answer in (first, second)] == [200, 200]


@pytest.mark.hostile(
    "gRPC: requests that never arrive", 2, "DEADLINE_EXCEEDED, or UNAUTHENTICATED immediately"
)
def test_a_request_that_does_not_arrive_is_given_up_and_one_that_is_not_allowed_is_not_read():
    never = threading.Event()

    def nothing():
        never.wait(PATIENCE)
        yield b""

    with serving(timeout_seconds=0.2, token=TOKEN, grpc_port=0) as server:
        for metadata, said in (
            ([("authorization", f"Bearer {TOKEN}")], "did not arrive in time"),
            ([], "token"),
        ):
            ask = server.grpc.channel.stream_unary(f"{SERVICE}ModelInfer")
            with pytest.raises(grpc.RpcError, match=said):
                ask(nothing(), metadata=metadata)
        never.set()


@pytest.mark.hostile(
    "gRPC: a client that leaves while it waits", 1, "their queries are not computed"
)
def test_a_client_that_goes_takes_its_query_with_it():
    model = Held()
    with (
        serving(target=TorchTarget(model), grpc_port=0) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        model.held = True
        first = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(PATIENCE)
        ask = server.grpc.channel.unary_unary(f"{SERVICE}ModelInfer")
        gone = ask.future(infer_message(request_of(QUERIES)).SerializeToString())
        eventually(lambda: server.metric("oneway_waiting_queries 3.0"))
        gone.cancel()
        eventually(lambda: server.metric("oneway_waiting_queries 0.0"))
        model.go.set()
        assert first.result().status_code == 200
        eventually(lambda: '"refused": "disconnected"' in server.log.getvalue())


@pytest.mark.hostile("gRPC: compressed requests", 1, "UNIMPLEMENTED")
def test_packed_requests_are_refused(server):
    ask = server.grpc.channel.unary_unary(f"{SERVICE}ModelInfer")
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        ask(
            infer_message(request_of(QUERIES)).SerializeToString(),
            compression=grpc.Compression.Gzip,
        )


@pytest.mark.hostile(
    "gRPC: an exception whose text quotes the request", 1, "INTERNAL, without that text"
)
def test_a_fault_of_the_server_is_an_error_without_its_text(server, monkeypatch):
    def broken(request, *_):
        raise ValueError(f"the request was {request} 0.8765")

    monkeypatch.setattr("oneway.serving.grpc_endpoint.read_request", broken)
    answer = server.grpc.infer(request_of(QUERIES))
    assert (answer.status_code, answer.value) == (500, {"error": "the server failed"})
    eventually(lambda: '"error": "ValueError", "raised": "' in server.log.getvalue())
    assert "0.8765" not in server.everything(answer)


def test_requests_under_way_may_end_when_the_server_stops_and_no_more_are_taken():
    model = Held()
    limits = {"shutdown_seconds": PATIENCE, "grpc_port": 0}
    with serving(target=TorchTarget(model), **limits) as server, ThreadPoolExecutor(4) as pool:
        model.held = True
        answer = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(PATIENCE)
        stopping = pool.submit(server.stop)

        def takes_no_more():
            with GrpcClient.to(server.grpc.port) as other:
                return other.call("ServerLive", b"").status_code == 503

        eventually(takes_no_more)
        model.go.set()
        assert answer.result().status_code == 200
        stopping.result()


def test_tls_is_spoken_and_nothing_else(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    files = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    with serving(grpc_port=0, **files) as server:
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        where = f"localhost:{server.grpc.port}"
        with grpc.secure_channel(where, trusted) as channel:
            safe = GrpcClient(server.grpc.port, channel)
            assert safe.infer(request_of(QUERIES)).status_code == 200
        assert server.grpc.infer(request_of(QUERIES)).status_code == 503


def test_a_port_in_use_and_plain_json_are_refused_at_the_start(server):
    how = settings(grpc_port=server.grpc.port)
    with pytest.raises(InvalidOptionError, match="grpc_port"):
        start(how)
    options = PLAIN | {"how": {"grpc_port": 0}}
    with pytest.raises(InvalidOptionError, match="plain JSON"), proxied(plain, **options):
        pass


def start(how):
    async def bind():
        serving_app(served_model(), how).grpc.bind()

    asyncio.run(bind())


def test_outputs_beside_the_guarded_one_are_packed_as_they_are_or_refused():
    for datatype, values, shape in (
        ("FP32", [0.5, 1, -2.25], [3]),
        ("FP64", [[0.1], [1e300]], [2, 1]),
        ("BOOL", [True, False], [2]),
        ("INT64", [2**62, -1], [1, 2]),
        ("UINT8", [255], [1]),
    ):
        output = {"datatype": datatype, "shape": shape, "data": values}
        packed = np.array(values, LAYOUTS[datatype]).tobytes()
        assert packed_output(output) == packed, datatype
    texts = {"datatype": "BYTES", "shape": [2], "data": ["", "müde"]}
    assert packed_output(texts) == b"\0\0\0\0" + b"\5\0\0\0" + "müde".encode()
    for datatype, values in (
        ("INT64", [1.5]), ("INT64", [True]), ("INT64", [2**70]), ("UINT8", [256]), ("BOOL", [1]),
        ("FP32", ["0.5"]), ("FP32", [None]), ("FP32", None), ("FP32", [1, 2]),
        ("FP32", [[1, 2], 3]), ("BYTES", [1]), ("BYTES", ["\ud800"]),
    ):  # fmt: skip
        with pytest.raises(MessageError, match="declares them"):
            packed_output({"datatype": datatype, "shape": [1], "data": values})


@given(st.binary(max_size=300))
def test_the_fields_of_any_bytes_are_counted_or_refused(data):
    """A message that can be parsed and is small passes; nothing else is raised than a refusal."""
    try:
        messages.ModelInferRequest.FromString(data)
    except Exception:  # noqa: BLE001  protobuf has several kinds
        return
    try:
        check_fields(data)
    except MessageError as error:
        assert "groups" in str(error)  # noqa: PT017


@pytest.mark.hostile(
    "gRPC: small messages with so many fields that they grow in memory",
    5,
    "INVALID_ARGUMENT; the message is not parsed",
)
def test_messages_that_would_grow_in_memory_are_refused():
    for one in (b"\x2a\x00", b"\x2a\x02\x22\x00", b"\x22\x00", b"\x32\x02\x12\x00"):
        check_fields(one * (MOST_FIELDS // 2))
        with pytest.raises(MessageError, match="fields"):
            check_fields(one * (MOST_FIELDS + 1))
    texts = b"\x42\x00" * (MOST_FIELDS + 1)
    size = len(texts).to_bytes(2, "little")
    assert len(size) == 2
    inner = b"\x2a" + _varint(len(texts)) + texts
    with pytest.raises(MessageError, match="fields"):
        check_fields(b"\x2a" + _varint(len(inner)) + inner)


def _varint(number):
    return bytes([number & 127 | 128, number >> 7 & 127 | 128, number >> 14])


def frame(kind, flags, stream, body):
    """Return a frame of HTTP/2."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def asked_without_a_window():
    """Return what a client sends that asks a query, and allows no byte of the answer."""
    fields = {
        b":method": b"POST", b":scheme": b"http", b":path": f"{SERVICE}ModelInfer".encode(),
        b":authority": b"x", b"te": b"trailers", b"content-type": b"application/grpc",
    }  # fmt: skip
    head = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )
    body = infer_message(request_of(QUERIES)).SerializeToString()
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, 0))
    sent += frame(1, 4, 1, head)
    return sent + frame(0, 1, 1, b"\0" + struct.pack(">I", len(body)) + body)


@pytest.mark.hostile(
    "gRPC: a client that does not take its answer",
    1,
    "their connections are closed; other clients are answered",
)
def test_a_client_that_takes_no_answer_loses_its_place_and_then_its_connection():
    how = settings(grpc_port=0, timeout_seconds=0.05, max_connections=1)
    app = serving_app(served_model(), how)
    with running(app, how) as server:
        with connected(server) as connection:
            connection.sendall(asked_without_a_window())
            eventually(lambda: '"refused": "timeout"' in server.log.getvalue())
            assert server.client.get("/v2").status_code == 200
            with contextlib.suppress(ConnectionError):
                while connection.recv(1000):
                    pass
        eventually(lambda: server.infer(QUERIES).status_code != 503)


def flood_of_resets():
    """Requests that are taken back at once: they cost the server, and count for no limit."""
    head = asked_without_a_window().partition(frame(4, 0, 0, struct.pack(">HI", 4, 0)))[2]
    length = int.from_bytes(head[:3], "big")
    fields = head[9 : 9 + length]
    return b"".join(
        frame(1, 4, stream, fields) + frame(3, 0, stream, struct.pack(">I", 8))
        for stream in range(1, 4001, 2)
    )


FLOODS = {
    "requests that are taken back": flood_of_resets,
    "headers that never end": lambda: (
        frame(1, 0, 1, b"\0\x01a\x01b") + frame(9, 0, 1, b"\0\x01a\x01b" * 100) * 2000
    ),
    "pings": lambda: frame(6, 0, 0, bytes(8)) * 20_000,
    "settings": lambda: frame(4, 0, 0, struct.pack(">HI", 4, 0)) * 20_000,
    "empty frames": lambda: frame(0, 0, 1, b"") * 20_000,
    "priorities": lambda: frame(2, 0, 1, bytes(5)) * 20_000,
}


@pytest.mark.hostile(
    "gRPC: floods of frames",
    len(FLOODS),
    "closed or read; other clients are answered, some at a second try",
)
def test_floods_of_frames_stop_nobody():
    with serving(grpc_port=0, timeout_seconds=2) as server:
        for name, made in FLOODS.items():
            with connected(server) as connection:
                with contextlib.suppress(OSError):
                    connection.settimeout(1)
                    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
                    connection.sendall(made())
                # Where the flood takes all of a slow processor, a deadline may pass first.
                eventually(lambda: server.infer(QUERIES).status_code == 200)
                assert server.client.get("/v2/health/ready").status_code == 200, name


def connected(server):
    return socket.create_connection(("127.0.0.1", server.grpc.port), timeout=PATIENCE)


@pytest.mark.hostile("gRPC: more connections than allowed", 1, "closed; other clients are answered")
def test_there_are_so_many_connections_and_no_more():
    with serving(grpc_port=0, max_connections=1) as server:
        assert server.infer(QUERIES).status_code == 200
        with connected(server) as other, contextlib.suppress(ConnectionError):
            assert other.recv(1) == b""
        assert server.infer(QUERIES).status_code == 200
