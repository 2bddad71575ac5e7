"""What clients and guarded servers send that is no HTTP, or more or less of it than they say."""

import asyncio
import json
import socket

import pytest
import torch

from endpoints import OpenInferenceServer, Reply, served_confidences
from endpoints import running as endpoint_running
from guarded_servers import (
    CPU,
    PATH,
    PATIENCE,
    SHAPE,
    digits_in,
    request_of,
    rounding,
    running,
    served_model,
    serving,
    settings,
)
from oneway.serving import GuardedScores, ProxyOptions, check_proxy, open_upstream, proxy_app

QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))
BODY = json.dumps(request_of(QUERIES)).encode()
HEAD = f"POST {PATH}/infer HTTP/1.1\r\nHost: localhost\r\n".encode()
GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def framed(body: bytes, *headers: bytes) -> bytes:
    return HEAD + b"".join(one + b"\r\n" for one in headers) + b"\r\n" + body


def whole(query: torch.Tensor) -> bytes:
    body = json.dumps(request_of(query)).encode()
    return framed(body, b"Content-Length: %d" % len(body))


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SIZE = len(BODY)

SMUGGLED = {
    "a length with a sign": framed(BODY, b"Content-Length: +%d" % SIZE),
    "a negative length": framed(BODY, b"Content-Length: -1"),
    "a length in hexadecimal": framed(BODY, b"Content-Length: 0x%x" % SIZE),
    "two lengths in one": framed(BODY, b"Content-Length: %d, 5" % SIZE),
    "a blank before the colon": framed(BODY, b"Content-Length : %d" % SIZE),
    "a length on a line of its own": framed(BODY, b"X: 1\r\n Content-Length: 5\r\nY: 1"),
    "a byte of zero in a header": framed(BODY, b"X: \x00", b"Content-Length: %d" % SIZE),
    "another coding": framed(CHUNKED, b"Transfer-Encoding: xchunked"),
    "two codings": framed(CHUNKED, b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"),
    "two codings, the last one known": framed(
        CHUNKED, b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"
    ),
    "a chunk of no size": framed(b"x" + CHUNKED, b"Transfer-Encoding: chunked"),
    "a chunk of negative size": framed(b"-" + CHUNKED, b"Transfer-Encoding: chunked"),
    "a chunk that is longer": framed(b"1" + CHUNKED[1:], b"Transfer-Encoding: chunked"),
    "no method": GET[3:],
    "another protocol": GET.replace(b"HTTP/1.1", b"SPDY/3"),
    "a host twice": GET.replace(b"Host: localhost", b"Host: localhost\r\nHost: evil.example"),
    "no host": GET.replace(b"Host: localhost\r\n", b""),
    "no host but behind the last chunk": framed(
        CHUNKED[:-2] + b"Host: localhost\r\n\r\n", b"Transfer-Encoding: chunked"
    ).replace(b"Host: localhost\r\n", b"", 1),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
}
"""Requests whose end a gateway may see elsewhere than the server, or that are none."""


@pytest.fixture(scope="module")
def server():
    with serving(timeout_seconds=1) as one:
        yield one


def said(server, sent: bytes, *, half_open: bool = False) -> bytes:
    with socket.create_connection(server.address(), timeout=PATIENCE) as connection:
        heard = b""
        try:
            connection.sendall(sent)
            if half_open:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                heard += piece
        except ConnectionError:
            pass
        return heard


@pytest.mark.hostile(
    "requests whose end a gateway may see elsewhere (smuggling)",
    len(SMUGGLED),
    "4xx or 501, or the connection is closed; the hidden request is not answered",
)
def test_a_request_whose_end_is_in_doubt_is_refused_and_so_is_what_follows(server):
    for name, sent in SMUGGLED.items():
        heard = said(server, sent + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"HTTP/1.1 200" not in heard, name
        assert heard[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5", b""), name
    assert server.release(QUERIES).shape == (3, 3)


@pytest.mark.hostile(
    "clients that close their side of the connection early", 3, "the answer, 400, 408 or nothing"
)
def test_a_client_that_closes_its_side_gets_its_answer_or_none(server):
    for name, sent, status in (
        ("after the request", whole(QUERIES), (b"HTTP/1.1 200", b"")),
        ("in the body", whole(QUERIES)[:-5], (b"HTTP/1.1 400", b"HTTP/1.1 408", b"")),
        ("in the headers", HEAD, (b"HTTP/1.1 400", b"")),
    ):
        assert said(server, sent, half_open=True)[:12] in status, name
    assert server.release(QUERIES).shape == (3, 3)


@pytest.mark.hostile(
    "requests to switch protocols, or that wait to send a body", 3, "the connection is closed"
)
def test_a_request_ends_its_connection_if_what_follows_is_in_doubt(server):
    """Else the server and a gateway would see the next request begin in different places."""
    for headers in (
        b"Connection: upgrade\r\nUpgrade: h2c",
        b"Expect: 100-continue\r\nContent-Length: %d" % len(GET),
    ):
        heard = said(server, GET.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % headers) + 2 * GET)
        assert heard[:12] == b"HTTP/1.1 200", headers
        assert heard.count(b"HTTP/1.1") == heard.count(b"connection: close") == 1, headers
    length = b"Content-Length: %d" % SIZE
    heard = said(server, framed(BODY, length, b"Connection: upgrade", b"Upgrade: h2c") + GET)
    assert heard[:12] == b"HTTP/1.1 400"
    assert heard.count(b"HTTP/1.1") == heard.count(b"leave out Upgrade") == 1


@pytest.mark.hostile(
    "several requests sent at once on one connection", 8, "8 right answers, in order"
)
def test_requests_that_are_pipelined_are_answered_in_order(server):
    queries = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(9))
    wanted = served_model().answer([queries])[0].tolist()
    last = whole(queries[7:]).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    heard = said(server, b"".join(whole(queries[at : at + 1]) for at in range(7)) + last)
    bodies = [part.split(b"\r\n\r\n", 1)[1] for part in heard.split(b"HTTP/1.1 200")[1:]]
    assert [json.loads(body)["outputs"][0]["data"] for body in bodies] == wanted


@pytest.mark.hostile(
    "malformed requests behind valid ones on one connection",
    4,
    "the valid ones are answered, or none; no 400 before their answers",
)
def test_a_malformed_request_is_not_answered_before_those_that_came_first(server):
    """A client takes the first answer for that of its first request."""
    broken = {
        "no HTTP": (b"\x16\x03\x01\r\n\r\n", 2),
        "a chunk of a body": (framed(b"zz\r\n", b"Transfer-Encoding: chunked"), 0),
        "two lengths": (framed(b"", b"Content-Length: 5", b"Content-Length: 6"), 2),
        "a whole address": (GET.replace(b"/v2", b"http://localhost/v2"), 2),
    }
    for name, (sent, answers) in broken.items():
        heard = said(server, 2 * whole(QUERIES) + sent + GET)
        assert heard.count(b"HTTP/1.1 ") == heard.count(b"HTTP/1.1 200") == answers, name
        assert heard.count(b"connection: close") == (answers > 0), name
    assert said(server, broken["no HTTP"][0])[:12] == b"HTTP/1.1 400"
    assert server.release(QUERIES).shape == (3, 3)


CLEAN = served_confidences(QUERIES.numpy())
OUTPUT = {"name": "probabilities", "datatype": "FP32", "shape": [3, 3]}
TEXT = json.dumps({"outputs": [{**OUTPUT, "data": CLEAN.ravel().tolist()}]}).encode()


def answer(*headers: bytes, status: bytes = b"200 OK", body: bytes = TEXT) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


LENGTH = b"Content-Length: %d" % len(TEXT)
SENT = {
    "hangs up": b"",
    "speaks no HTTP": b"SSH-2.0-server\r\n" + TEXT,
    "sends half a status": b"HTTP/1.1 2",
    "sends no status": answer(LENGTH, status=b"OK"),
    "sends two lengths": answer(LENGTH, b"Content-Length: 5"),
    "sends a negative length": answer(b"Content-Length: -5"),
    "sends chunks without a size": answer(b"Transfer-Encoding: chunked"),
    "ends in a chunk": answer(b"Transfer-Encoding: chunked", body=b"%x\r\n" % 999 + TEXT),
    "sends headers without end": answer(*[b"X-%d: a" % at for at in range(20_000)]),
    "sends a header of a megabyte": answer(b"X: " + b"a" * 2**20, LENGTH),
    "switches protocols": answer(b"Upgrade: h2c", b"Connection: upgrade", status=b"101 S"),
    "has no content": answer(b"Content-Length: 0", status=b"204 No Content", body=b""),
    "nests without end": answer(b"Content-Length: 100000", body=b"[" * 100_000),
    "sends numbers without end": answer(b"Content-Length: 100004", body=b"1" * 100_000 + b"e999"),
}


ODD = {
    "hangs up on a connection that was kept": b"",
    "says first that it will answer": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    + answer(LENGTH),
    "ends its answer by the connection": answer(),
    "answers in chunks": answer(
        b"Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(TEXT), TEXT)
    ),
    "answers twice": answer(LENGTH) + answer(LENGTH, body=TEXT.replace(b"0.", b"1.")),
    "goes on after its answer": answer(LENGTH) + TEXT,
}


@pytest.mark.hostile("guarded servers that do not speak valid HTTP", len(SENT), "502 and no score")
def test_a_server_that_breaks_http_gets_nothing_through():
    guard, patient = rounding(1), settings(upstream_timeout_seconds=PATIENCE)
    with endpoint_running(OpenInferenceServer()) as endpoint:
        where = endpoint.address + PATH
        model = asyncio.run(open_upstream(where, patient, guard, ProxyOptions()))
        guarded = GuardedScores(guard, "confidences", device=CPU)
        asyncio.run(check_proxy(model, guarded, patient))
        with running(proxy_app(model, guarded, patient), patient) as proxy:
            wanted = proxy.release(QUERIES)
            for name, raw in ODD.items():
                endpoint.faults.append(Reply(raw=raw))
                assert torch.equal(proxy.release(QUERIES), wanted), name
                # What follows is no answer to the next request, whose connection may have ended.
                following = proxy.infer(QUERIES.flip(0))
                assert following.status_code in (200, 502), name
                if following.status_code == 200:
                    data = following.json()["outputs"][0]["data"]
                    assert torch.equal(torch.tensor(data).view(3, 3), wanted.flip(0)), name
            for name, raw in SENT.items():
                endpoint.faults.extend(2 * [Reply(raw=raw)])
                got = proxy.infer(QUERIES)
                assert raw == b"" or len(endpoint.faults) == 1, name  # it is not asked again
                endpoint.faults.clear()
                assert got.status_code == 502, name
                assert digits_in(proxy.everything(got), QUERIES) == [], name
                assert torch.equal(proxy.release(QUERIES), wanted), name
