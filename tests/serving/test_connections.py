"""Connections held for nothing, or in numbers: they keep nobody else out, nor take what is left."""

import functools
import gc
import json
import re
import resource
import socket
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch
import trustme

from guarded_servers import (
    PATH,
    PATIENCE,
    SHAPE,
    Held,
    Running,
    eventually,
    request_of,
    served_model,
    serving,
    settings,
)
from oneway.defenses import ServableDefense
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError
from oneway.serving.connections import MOST_PIPELINED, _Connection
from oneway.serving.running import make_room
from oneway.targets import TorchTarget

QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))

BODY = json.dumps(request_of(QUERIES)).encode()


HOST = "localhost"

SOON = 20
"""Seconds within which a connection is closed or answered; a fault would keep it far longer."""

soon = functools.partial(eventually, seconds=SOON)


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    with socket.create_connection(server.address(), timeout=SOON) as connection:
        yield connection


def head(*headers: str, method: str = "POST", path: str = f"{PATH}/infer") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def told(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection, by whatever means."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionError:
        pass
    return said


GET = head(method="GET", path="/v2")


def used(connection: socket.socket) -> bool:
    """Ask something over a connection; say whether it was answered."""
    try:
        connection.sendall(GET)
        return connection.recv(65536).endswith(b"}")
    except ConnectionError:  # it was cut before: this process was too slow
        return False


def in_use(server: Running, stack: ExitStack) -> socket.socket:
    """Return a connection over which something was asked in time."""
    while not used(connection := stack.enter_context(connected(server))):
        pass
    return connection


@pytest.mark.hostile("half a request, on new and used connections", 5, "the connection is closed")
def test_a_request_that_does_not_come_is_not_waited_for():
    halves = {"half a line": b"GET /v2 HTT", "half the headers": GET[:-2] + b"X-More: 1\r\n"}
    with serving(timeout_seconds=0.3) as server, ExitStack() as stack:

        def connection_of(is_used):
            return in_use(server, stack) if is_used else stack.enter_context(connected(server))

        waiting = {"nothing, new": connection_of(False)}
        for name, sent in halves.items():
            for is_used in (False, True):
                connection = connection_of(is_used)
                try:
                    for at in range(len(sent)):
                        connection.sendall(sent[at : at + 1])
                except ConnectionError:  # it has been cut in the middle
                    pass
                waiting[f"{name}, {'used' if is_used else 'new'}"] = connection
        for name, connection in waiting.items():
            assert told(connection) == b"", name
        assert server.log.getvalue().count("connection_cut") >= len(waiting)


def test_an_idle_connection_stays_open_as_long_as_the_setting_says():
    with (
        serving(timeout_seconds=1) as patient,
        serving(keep_alive_seconds=1) as hasty,
        ExitStack() as stack,
    ):
        kept, closed = in_use(patient, stack), in_use(hasty, stack)
        assert told(closed) == b""
        assert used(kept)


@pytest.mark.hostile("bytes that keep arriving after the answer", 1, "the connection is closed")
def test_dripping_after_the_answer_does_not_keep_a_connection():
    """What has been refused unread may go on arriving, but not for ever."""
    limits = {"timeout_seconds": 0.3, "max_request_bytes": 1024}
    with serving(**limits) as server, connected(server) as connection:
        connection.sendall(head("Content-Length: 999999999"))
        with pytest.raises(ConnectionError):  # noqa: PT012  until it is cut
            while True:
                connection.sendall(b" ")


@pytest.mark.hostile(
    "headers, paths or chunks' frames of a megabyte", 6, "4xx, or the connection is closed"
)
def test_headers_without_end_are_refused():
    """They are read before any token is, and count nowhere."""
    many, chunked = (f"X-{at}: a" for at in range(50_000)), head("Transfer-Encoding: chunked")
    endless = {
        "a long header": head("X: " + "a" * 2**20, method="GET", path="/v2/health/live"),
        "many headers": head(*many, method="GET", path="/v2/health/live"),
        "a long path": head(method="GET", path="/" + "a" * 2**20),
        "a header that does not end": head("X: " + "a" * 2**20)[:-4],
        "a header behind the last chunk": chunked + b"0\r\nX: " + b"a" * 2**20,
        "a chunk's extension": chunked + b"1;" + b"a" * 2**20,
    }
    with serving(timeout_seconds=10 * PATIENCE) as server:
        for name, sent in endless.items():
            with connected(server) as connection:
                try:
                    connection.sendall(sent)
                except ConnectionError:  # it has had enough
                    continue
                assert told(connection)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431"), name


@pytest.mark.hostile("headers over 64 KiB in one piece", 2, "400 or 431")
def test_headers_that_come_in_one_piece_have_the_same_limit():
    with serving() as server:
        for path, filler in (("/v2", "a" * 65_600), ("/v2/" + "a" * 64_000, "a" * 1600)):
            with connected(server) as connection:
                connection.sendall(head(f"X: {filler}", method="GET", path=path))
                assert told(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")


@pytest.mark.hostile(
    "three times as many idle connections as allowed",
    12,
    "the oldest are closed; other clients are answered",
)
def test_idle_connections_keep_nobody_out():
    with serving(max_connections=4) as server, ExitStack() as stack:
        idle = [stack.enter_context(connected(server)) for _ in range(12)]
        assert server.release(QUERIES).shape == (3, 3)
        assert server.client.get("/v2/health/ready").status_code == 200
        for connection in idle[:8]:
            assert told(connection) == b""


@pytest.mark.hostile(
    "more requests in progress than allowed", 1, "503 and Retry-After; health is answered"
)
def test_beyond_so_many_requests_a_server_is_busy_and_still_well():
    model = Held()
    with (
        serving(target=TorchTarget(model), max_connections=1) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        model.held = True
        first = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(PATIENCE)
        busy = server.infer(QUERIES)
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert set(busy.json()) == {"error"}
        for path in ("live", "ready"):  # else its keeper would start it anew in the worst moment
            assert server.client.get(f"/v2/health/{path}").status_code == 200
        model.go.set()
        assert first.result().status_code == 200
        soon(lambda: server.infer(QUERIES).status_code == 200)


@pytest.mark.hostile(
    "requests that state two lengths (smuggling)", 4, "4xx or 501, and the connection is closed"
)
def test_a_request_of_two_lengths_is_refused_and_its_connection_closed():
    """A gateway before the server may see the request's end elsewhere, and the rest as another."""
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    with serving() as server:
        for lengths in (
            (f"Content-Length: {len(chunked)}", "Transfer-Encoding: chunked"),
            ("Transfer-Encoding: chunked", "Content-Length: 5"),
            ("Content-Length: 5", f"Content-Length: {len(BODY)}"),
            ("Transfer-Encoding: identity, chunked",),
        ):
            with connected(server) as connection:
                connection.sendall(head(*lengths) + chunked + GET)
                said = told(connection)
                assert said[:10] == b"HTTP/1.1 4" or said[:12] == b"HTTP/1.1 501", lengths
                assert said.count(b"HTTP/1.1") == 1, lengths


class Many(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1).repeat(1, 2000)


@contextmanager
def asking_for_much(
    seconds: float, times: int, keys: Path | None = None
) -> Iterator[tuple[Running, socket.socket]]:
    """Ask for an answer that no buffers hold; give the server and the connection."""
    # No guard, and no text of numbers: both would take longer than the answer may.
    guard = ServableDefense("none", "1", Identity())
    queries = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(1))
    body = json.dumps(request_of(queries, parameters={"binary_data_output": True})).encode()
    tls = (
        {} if keys is None else {"tls_certificate": keys / "cert.pem", "tls_key": keys / "key.pem"}
    )
    with (
        serving(guard, target=TorchTarget(Many()), timeout_seconds=seconds, **tls) as server,
        ExitStack() as stack,
    ):
        connection = stack.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect(server.address())
        if keys is not None:
            trusting = ssl.create_default_context(cafile=keys / "authority.pem")
            connection = stack.enter_context(trusting.wrap_socket(connection, server_hostname=HOST))
        connection.sendall(times * (head(f"Content-Length: {len(body)}") + body))
        yield server, connection


def not_taken(seconds: float) -> bytes:
    """Do not read a large answer; return what comes once it has been given up."""
    # Twice: while an answer waits behind another one, only what is not taken counts.
    with asking_for_much(seconds, 2) as (server, connection):
        # It is cut, or has been refused since this machine is too slow for so short a time.
        eventually(
            lambda: re.search('connection_cut|"refused"', server.log.getvalue()), seconds + SOON
        )
        if '"refused"' in server.log.getvalue():
            return b""
        assert server.client.get("/v2/health/live").status_code == 200
        return told(connection)


@pytest.mark.hostile("a client that does not read its answer", 1, "the connection is closed")
def test_an_answer_that_is_not_taken_is_given_up():
    said = next(filter(None, map(not_taken, (1, 4, 16, 64))))
    whole, _, begun = said.partition(b"\r\n\r\n")
    assert b"200 OK" in whole
    assert 0 < len(begun) < int(re.search(rb"\ncontent-length: (\d+)", whole)[1])


def given_up_under_tls(seconds: float, keys: Path) -> bool:
    with asking_for_much(seconds, 1, keys) as (server, _):
        eventually(
            lambda: re.search('connection_cut|"refused"', server.log.getvalue()), seconds + SOON
        )
        return '"refused"' not in server.log.getvalue()


@pytest.mark.hostile(
    "a client that does not read its answer, over TLS", 1, "the connection is closed"
)
def test_an_answer_that_is_not_taken_is_given_up_under_tls(tmp_path):
    """What TLS has taken over is out of uvloop's sight: it must not take over all at once."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    assert any(given_up_under_tls(seconds, tmp_path) for seconds in (1, 4, 16, 64))


def stays_after_much(seconds: float) -> bool:
    """Read a large answer; say whether its connection is still open when a silent one is cut."""
    with asking_for_much(seconds, 1) as (server, connection), connection.makefile("rb") as answer:
        length, line = 0, answer.readline()
        while line.strip():
            name, _, value = line.partition(b": ")
            length, line = int(value) if name == b"content-length" else length, answer.readline()
        try:
            taken = len(answer.read(length))
        except ConnectionError:
            taken = 0
        if taken < 2**20:  # it was refused, or cut: this machine was too slow
            return False
        with connected(server) as silent:
            assert told(silent) == b""
        return used(connection)


def test_a_connection_stays_open_once_a_large_answer_has_been_taken():
    """The time to take an answer ends when it is taken, not when the next request comes."""
    assert any(map(stays_after_much, (1, 4, 16)))


def deaf_client(server: Running, stack: ExitStack) -> socket.socket:
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(server.address())
    connection.settimeout(0.05)
    return connection


def asks_on(connection: socket.socket) -> bool:
    """Ask until nothing more fits into what nobody reads; say whether the connection is open."""
    try:
        connection.sendall(20 * head(method="GET", path="/openapi.json"))
    except TimeoutError:
        return True
    except ConnectionError:
        return False
    return True


@pytest.mark.hostile(
    "clients that never read, as many as there may be requests",
    6,
    "they give way to new connections at once",
)
def test_clients_that_never_read_give_way():
    limits = {"max_connections": 4, "timeout_seconds": 10 * PATIENCE}
    with serving(**limits) as server, ExitStack() as stack:
        deaf = [deaf_client(server, stack) for _ in range(6)]
        soon(lambda: sum(map(asks_on, deaf)) <= 4)
        assert server.client.get("/v2/health/ready").status_code == 200
        soon(lambda: server.infer(QUERIES).status_code == 200)


def test_connections_that_ended_take_no_memory():
    """Else each waits, with its buffers, until the collector looks at all objects that are old."""
    asked = {
        "nothing": b"",
        "half a request": head("Content-Length: 10") + b"[",
        "many requests at once": 20 * GET,
        "no HTTP": b"\x16\x03\x01\r\n\r\n",
        "a query": head(f"Content-Length: {len(BODY)}") + BODY,
    }
    with serving() as server:
        gc.collect()
        gc.disable()
        try:
            for name, sent in asked.items():
                with connected(server) as connection:
                    connection.sendall(sent)
                    if name == "a query":
                        assert connection.recv(65536)[:12] == b"HTTP/1.1 200"
            with ExitStack() as stack:
                assert asks_on(deaf_client(server, stack))
            # The playground's server, in the same process, has uvicorn's own connections.
            soon(lambda: not any(isinstance(each, _Connection) for each in gc.get_objects()))
        finally:
            gc.enable()


def test_a_server_makes_room_for_all_connections_or_does_not_start(monkeypatch):
    """Without a file for a connection nobody is answered, and a keeper ends the server."""
    for limits, ports, expected in (
        ((256, resource.RLIM_INFINITY), {}, 640),
        ((256, 4096), {"admin_port": 0, "grpc_port": 0}, 1664),
        ((4096, 4096), {}, None),
        ((640, 640), {}, None),
        ((256, 639), {}, "needs 640 open files.*may open 639.*max_connections"),
    ):
        made: list[tuple[int, int]] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        monkeypatch.setattr(resource, "setrlimit", lambda _, pair, made=made: made.append(pair))
        if isinstance(expected, str):
            with pytest.raises(InvalidOptionError, match=expected):
                make_room(settings(**ports))
        else:
            make_room(settings(**ports))
        assert made == ([(expected, limits[1])] if isinstance(expected, int) else []), limits


def test_a_system_without_such_limits_serves_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    monkeypatch.delitem(sys.modules, "oneway.serving.running")
    import_module("oneway.serving.running").make_room(settings())


@pytest.mark.hostile(
    "clients that keep asking and never read",
    6,
    "their connections are closed; other clients are answered",
)
def test_clients_that_ask_on_and_never_read_keep_nobody_out():
    """Each may have one answer on its way; while that is not taken, nothing it sends helps it."""
    limits = {"max_connections": 4, "timeout_seconds": 0.5}
    with serving(**limits) as server, ExitStack() as stack:
        deaf = [deaf_client(server, stack) for _ in range(6)]
        soon(lambda: sum(map(asks_on, deaf)) == 0)
        assert server.log.getvalue().count("connection_cut") >= 1
        soon(lambda: server.infer(QUERIES).status_code == 200)


@pytest.mark.hostile(
    "more requests at once on one connection than may wait there", 1, "the connection is closed"
)
def test_so_many_requests_wait_on_one_connection_and_no_more():
    model = Held()
    with (
        serving(target=TorchTarget(model), timeout_seconds=10 * PATIENCE) as server,
        connected(server) as connection,
    ):
        model.held = True
        connection.sendall(head(f"Content-Length: {len(BODY)}") + BODY + MOST_PIPELINED * GET)
        assert model.entered.wait(PATIENCE)
        assert server.client.get("/v2/health/live").status_code == 200
        connection.sendall(GET)
        assert told(connection) == b""
        assert '"connection_cut"' in server.log.getvalue()
        model.go.set()
        assert server.release(QUERIES).shape == (3, 3)


@pytest.mark.hostile("clients that leave while they wait", 3, "their queries are not computed")
def test_clients_that_are_gone_are_not_answered():
    """Else a crowd that gives up and asks again keeps the model busy with what nobody reads."""
    model = Held()
    limits = {"max_waiting_rows": 3, "max_request_rows": 3}
    with serving(target=TorchTarget(model), **limits) as server, ThreadPoolExecutor(1) as pool:
        model.held = True
        first = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(PATIENCE)
        for _ in range(3):  # as many rows as may wait, each time
            with connected(server) as connection:
                connection.sendall(head(f"Content-Length: {len(BODY)}") + BODY)
                soon(lambda: server.metric("oneway_waiting_queries 3.0"))
            soon(lambda: server.metric("oneway_waiting_queries 0.0"))
        other = pool.submit(server.infer, QUERIES[1:])
        model.go.set()
        assert first.result().status_code == 200
        assert other.result().status_code == 200
        assert len(model.seen) == 2
        for seen, query in zip(model.seen, QUERIES, strict=False):
            assert torch.equal(seen[0], query)
        assert server.metric('oneway_refused_total{reason="disconnected"} 3.0')


@pytest.mark.hostile("clients that leave during a batch", 6, "other clients get the right answers")
def test_whoever_leaves_a_batch_mixes_nobody_up():
    model = Held()
    queries = torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(4))
    alone = served_model().answer([queries])[0]
    with serving(target=TorchTarget(model)) as server, ExitStack() as stack:
        model.held = True
        waiting = []
        for query in queries:
            body = json.dumps(request_of(query[None])).encode()
            connection = stack.enter_context(connected(server))
            connection.sendall(head(f"Content-Length: {len(body)}", "Connection: close") + body)
            waiting.append(connection)
        assert model.entered.wait(PATIENCE)
        soon(lambda: server.metric("oneway_waiting_queries 11.0"))
        first = next(at for at in range(12) if torch.equal(queries[at], model.seen[0][0]))
        gone = [at for at in range(12) if at != first][::2]
        for at in gone:
            waiting[at].close()
        soon(lambda: server.metric("oneway_waiting_queries 5.0"))
        model.go.set()
        for at in sorted(set(range(12)) - set(gone)):
            _, _, body = told(waiting[at]).partition(b"\r\n\r\n")
            assert json.loads(body)["outputs"][0]["data"] == alone[at].tolist()
