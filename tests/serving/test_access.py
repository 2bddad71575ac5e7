"""Who may ask, how much, how long; and what is written down of it."""

import asyncio
import gzip
import hmac
import http.client
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
import trustme

from guarded_servers import (
    PATH,
    PATIENCE,
    SHAPE,
    Held,
    eventually,
    request_of,
    running,
    served_model,
    serving,
    settings,
)
from oneway.errors import InvalidOptionError
from oneway.serving import admission, base_app, listen, middleware, serving_app
from oneway.serving.metrics import ServerMetrics
from oneway.serving.running import beside, server_of
from oneway.targets import TorchTarget

TOKEN = "correct-horse-battery"
QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def locked():
    with serving(token=TOKEN) as server:
        yield server


@pytest.mark.hostile("missing or wrong token", 7 * 6, "401")
def test_without_the_token_nothing_but_health_is_answered(locked):
    for sent in (
        *(None, TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer  {TOKEN}"),
        *("Bearer", f"Basic {TOKEN}"),
    ):
        headers = {} if sent is None else {"Authorization": sent}
        for path in ("/v2", PATH, "/metrics", "/openapi.json", "/nothing"):
            answer = locked.client.get(path, headers=headers)
            assert answer.status_code == 401, (sent, path)
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = locked.client.post(f"{PATH}/infer", json=request_of(QUERIES), headers=headers)
        assert answer.status_code == 401, sent
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert locked.client.get(path, headers=headers).status_code == 200, (sent, path)
    assert TOKEN not in locked.log.getvalue()


def test_with_the_token_all_is_answered_and_it_is_logged_nowhere(locked):
    headers = {"Authorization": f"bearer {TOKEN}"}  # the scheme may be written as one likes
    answer = locked.client.post(f"{PATH}/infer", json=request_of(QUERIES), headers=headers)
    assert answer.status_code == 200
    metrics = locked.client.get("/metrics", headers=headers)
    assert metrics.status_code == 200
    assert TOKEN not in locked.log.getvalue() + metrics.text + answer.text


@pytest.mark.hostile("two tokens", 1, "401")
def test_two_tokens_are_no_token(locked):
    given = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")]
    assert locked.client.get("/v2", headers=given).status_code == 401


@pytest.mark.hostile("paths with needless percent signs or other spellings", 10, "400 or 404")
def test_a_path_is_served_as_it_is_written_or_not_at_all(locked):
    """A gateway that keeps clients from /metrics compares texts."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    spelled = ["/%6detrics", "/metric%73", "/v2%2Fhealth/live", "/v2/models/digit%73/infer"]
    for path in (*spelled, "http://localhost/metrics", "/metrics#x"):
        answer = http_get(locked, path, headers)
        assert answer == 400, path
    for path in ("//metrics", "/v2/../metrics", "/metrics/", "/METRICS"):
        assert http_get(locked, path, headers) == 404, path
    assert http_get(locked, "/metrics", headers) == 200


def http_get(server, path, headers):
    """Ask for a path as it is written here, which clients would tidy up."""
    connection = http.client.HTTPConnection(*server.address(), timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.hostile("host names of other machines (DNS rebinding)", 5, "421")
def test_a_name_that_is_not_this_machine_s_is_refused_on_a_loopback_address():
    """A page elsewhere can let its own name point to 127.0.0.1, and read the answers."""
    with serving() as server:
        for host in ("localhost", "127.0.0.1:99", "[::1]:8000", "LOCALHOST"):
            assert http_get(server, "/v2", {"Host": host}) == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
            assert http_get(server, "/v2", {"Host": host}) == 421, host
            assert http_get(server, "/v2/health/live", {"Host": host}) == 200, "a probe's own name"
    with serving(allowed_hosts="scores.example.org, *.internal") as server:
        for host, status in (("Scores.example.org", 200), ("a.b.internal:8", 200), ("x.org", 421)):
            assert http_get(server, "/v2", {"Host": host}) == status, host


@pytest.mark.hostile("compressed bodies", 1, "415")
def test_packed_requests_are_refused(locked):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}
    packed = gzip.compress(json.dumps(request_of(QUERIES)).encode())
    answer = locked.client.post(f"{PATH}/infer", content=packed, headers=headers)
    assert answer.status_code == 415
    headers["Content-Encoding"] = "identity"
    answer = locked.client.post(f"{PATH}/infer", json=request_of(QUERIES), headers=headers)
    assert answer.status_code == 200


def test_refused_requests_are_not_counted_as_under_way():
    """Else whoever has no token, or only probes, keeps those out who have one."""

    async def app(*_):
        raise AssertionError("refused before it is asked")

    admitted = admission.Admission(b"x" * 16, ServerMetrics({}), most_bytes=1, most_requests=1)
    layer = middleware.AccessMiddleware(app, admission=admitted, hosts=None)
    counts = []

    async def send(_):
        counts.append(admitted.requests)

    scope = {"type": "http", "http_version": "1.0", "path": "/v2", "raw_path": b"/v2"}
    asyncio.run(layer({**scope, "query_string": b"", "headers": [], "method": "GET"}, None, send))
    assert counts == [0, 0]


def test_no_version_of_http_but_1_0_needs_no_host():
    admitted = admission.Admission(b"x" * 16, ServerMetrics({}), most_bytes=1, most_requests=1)
    layer = middleware.AccessMiddleware(None, admission=admitted, hosts=None)
    scope = {"type": "http", "path": "/v2", "raw_path": b"/v2", "query_string": b""}
    statuses = []

    async def send(message):
        statuses.append(message.get("status"))

    for version in ("1.0", "1.1", "2.0"):
        asked = {**scope, "http_version": version, "headers": [], "method": "GET"}
        asyncio.run(layer(asked, None, send))
    assert statuses[::2] == [401, 400, 400]


@pytest.mark.hostile("bodies larger than any valid queries", 1, "413")
def test_a_request_is_no_larger_than_its_queries_can_be():
    with serving() as server:  # 64 queries of 16 numbers, whatever max_request_bytes allows
        answer = server.client.post(f"{PATH}/infer", content=b" " * 200_000)
        assert answer.status_code == 413
        queries = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(1))
        wordy = request_of(queries.double() / 3e-7)
        wordy["inputs"][0]["datatype"] = "FP64"
        text = json.dumps(wordy, indent=2)
        assert server.client.post(f"{PATH}/infer", content=text).status_code == 200


def test_a_token_is_compared_in_constant_time(locked, monkeypatch):
    """By the function of the standard library that does, on all of it."""
    compared = []

    class Watched:
        @staticmethod
        def compare_digest(first, second):
            compared.append((first, second))
            return hmac.compare_digest(first, second)

    monkeypatch.setattr(admission, "hmac", Watched)
    assert locked.client.get("/v2", headers={"Authorization": "Bearer x"}).status_code == 401
    assert compared == [(b"x", TOKEN.encode())]


def test_the_log_has_one_line_a_request_with_facts_and_no_text_of_a_client(locked):
    before = len(locked.log.getvalue())
    private = "a-name-in-a-path"
    locked.client.get(f"/v2/models/{private}?x={private}", headers={"X-Private": private})
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Private": private}
    request = request_of(QUERIES, id=private)
    locked.client.post(f"{PATH}/infer", json=request, headers=headers)
    eventually(lambda: locked.log.getvalue()[before:].count("\n") == 2)  # written after the answer
    text = locked.log.getvalue()[before:]
    refused, answered = map(json.loads, text.splitlines())
    assert (refused["status"], refused["refused"]) == (401, "unauthorized")
    assert (answered["route"], answered["status"], answered["queries"]) == ("infer", 200, 3)
    assert set(answered) == {"time", "level", "event", "route", "status", "milliseconds", "queries"}
    assert private not in text


def test_a_fault_of_the_server_is_an_error_without_its_text(monkeypatch):
    """Its text may quote a query: neither client, log nor metrics get it."""

    async def broken(request, *_):
        raise ValueError(f"the body was {await request.body()!r} 0.8765")

    monkeypatch.setattr(base_app, "read_body", broken)
    with serving() as server:
        answer = server.infer(QUERIES)
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed"}
        eventually(lambda: '"failure"' in server.log.getvalue())  # written after the answer
        everything = server.everything(answer)
        (line,) = (line for line in server.log.getvalue().splitlines() if '"failure"' in line)
    assert json.loads(line)["error"] == "ValueError"
    assert "test_access.py, line" in json.loads(line)["raised"]
    assert "0.8765" not in everything
    assert "the body was" not in everything


@pytest.mark.hostile(
    "bodies larger than max_request_bytes, declared or not", 3, "413; the body is not read"
)
def test_too_large_requests_are_refused_without_being_read():
    with serving(max_request_bytes=1024) as server:
        answer = server.client.post(f"{PATH}/infer", content=b" " * 1025)
        assert answer.status_code == 413
        pieces = (b" " * 600 for _ in range(2))
        assert server.client.post(f"{PATH}/infer", content=pieces).status_code == 413
        # Nobody waits for the rest of what is too long by its own account.
        with socket.create_connection(server.address(), timeout=PATIENCE) as connection:
            head = f"POST {PATH}/infer HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 99999999\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.hostile("bodies that never arrive", 1, "408")
def test_a_request_that_does_not_arrive_is_given_up():
    with (
        serving(timeout_seconds=0.2) as server,
        socket.create_connection(server.address(), timeout=PATIENCE) as connection,
    ):
        connection.sendall(
            f"POST {PATH}/infer HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.hostile("more waiting queries than allowed", 1, "429 and Retry-After")
def test_more_queries_than_may_wait_are_turned_away_with_a_time_to_return():
    model = Held()
    limits = {"max_waiting_rows": 4, "max_request_rows": 4}
    with serving(target=TorchTarget(model), **limits) as server, ThreadPoolExecutor(4) as pool:
        model.held = True
        first = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(PATIENCE)
        second = pool.submit(server.infer, QUERIES)
        eventually(lambda: server.metric("oneway_waiting_queries 3.0"))
        busy = server.infer(QUERIES[:2])
        assert busy.status_code == 429
        assert busy.headers["retry-after"] == "1"
        third = pool.submit(server.infer, QUERIES[:1])  # there is room for one
        eventually(lambda: server.metric("oneway_waiting_queries 4.0"))
        model.go.set()
        assert [answer.result().status_code for answer in (first, second, third)] == [200] * 3
        assert server.metric('oneway_refused_total{reason="busy"} 1.0')


def test_an_answer_that_takes_too_long_is_given_up_and_the_server_goes_on():
    model = Held()
    with serving(target=TorchTarget(model), timeout_seconds=0.5) as server:
        model.held = True
        assert server.infer(QUERIES).status_code == 504
        model.go.set()
        eventually(lambda: server.infer(QUERIES).status_code == 200)


@pytest.mark.hostile(
    "a model that hangs", 1, "504, then 503; the server is not live, and can be stopped"
)
def test_a_model_that_hangs_makes_the_server_unwell_and_does_not_keep_it_from_ending():
    model = Held()
    limits = {"timeout_seconds": 0.1, "shutdown_seconds": 1}
    with serving(target=TorchTarget(model), **limits) as server:
        model.held = True
        assert server.infer(QUERIES).status_code == 504

        def is_unwell():
            assert server.infer(QUERIES).status_code in (503, 504)
            return server.client.get("/v2/health/live").status_code == 503

        eventually(is_unwell)
        assert server.infer(QUERIES).status_code == 503
        eventually(lambda: '"refused": "stuck"' in server.log.getvalue())
        assert '"refused": "closing"' not in server.log.getvalue()
        server.stop()
        assert '"event": "stuck"' in server.log.getvalue()
        model.go.set()


@pytest.mark.hostile("a blocked event loop", 1, "the admin port answers")
def test_health_and_metrics_have_a_port_that_no_load_delays(monkeypatch):
    """The event loop of the queries is held here until the other port has answered."""
    held, go = threading.Event(), threading.Event()

    async def holding(*_):
        held.set()
        assert go.wait(PATIENCE)
        return b""  # no request, so that it is refused

    monkeypatch.setattr(base_app, "read_body", holding)
    how = settings(admin_port=0, token=TOKEN)
    app = serving_app(served_model(), how)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        running(app, how, headers=headers) as server,
        listen(how, admin=True) as listener,
        beside(app.admin, how, listener),
        httpx.Client(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=PATIENCE
        ) as admin,
        ThreadPoolExecutor(1) as pool,
    ):
        eventually(lambda: admin.get("/v2/health/ready").status_code == 200)
        assert server.client.get("/metrics").status_code == 404
        asked = pool.submit(server.infer, QUERIES)
        assert held.wait(PATIENCE)
        assert admin.get("/v2/health/live").status_code == 200
        assert admin.get("/v2/health/ready").status_code == 503, "no query can be answered"
        assert admin.get("/metrics").status_code == 401
        assert "oneway_requests" in admin.get("/metrics", headers=headers).text
        assert admin.get("/v2", headers=headers).status_code == 404
        go.set()
        assert asked.result(PATIENCE).status_code == 400
    assert '"event": "other"' not in server.log.getvalue()  # what the library would log


@pytest.mark.hostile("more bytes in progress than allowed", 1, "429 and Retry-After")
def test_requests_together_may_hold_so_much_and_give_it_back():
    limits = {"max_request_bytes": 2048, "max_waiting_bytes": 2048}
    with serving(**limits) as server:
        with socket.create_connection(server.address(), timeout=PATIENCE) as connection:
            head = f"POST {PATH}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n"
            connection.sendall(head.encode() + b" " * 1900)
            eventually(lambda: server.infer(QUERIES[:1]).status_code == 429)
            assert server.infer(QUERIES[:1]).headers["retry-after"] == "1"
            connection.sendall(b" " * 100)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert server.infer(QUERIES[:1]).status_code == 200


def test_requests_that_are_being_answered_may_end_when_the_server_stops():
    model = Held()
    limits = {"shutdown_seconds": PATIENCE}
    with serving(target=TorchTarget(model), **limits) as server, ThreadPoolExecutor(4) as pool:
        model.held = True
        answer = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(PATIENCE)
        stopping = pool.submit(server.stop)

        def takes_no_more():
            try:
                httpx.get(f"{server.url}/v2", trust_env=False)
            except httpx.TransportError:
                return True
            return False

        eventually(takes_no_more)
        model.go.set()
        assert answer.result().status_code == 200
        stopping.result()


def test_tls_is_spoken_and_nothing_else(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    how = settings(tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    app = serving_app(served_model(), how)
    context = server_of(app, how).config.ssl
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    with running(app, how, verify=trusting) as server:
        assert server.release(QUERIES).shape == (3, 3)
        port = int(server.url.rpartition(":")[2])
        plain = http.client.HTTPConnection("localhost", port, timeout=PATIENCE)
        plain.request("GET", "/v2")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            plain.getresponse()
        plain.close()
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(InvalidOptionError, match="belong together"):
        server_of(app, how)


def test_an_address_that_is_taken_is_said():
    with listen(settings()) as taken:
        how = settings().model_copy(update={"port": taken.getsockname()[1]})
        with pytest.raises(InvalidOptionError, match="Choose another"):
            listen(how)


def test_metrics_can_be_left_out():
    with serving(metrics=False) as server:
        assert server.client.get("/metrics").status_code == 404


def test_metrics_know_no_label_of_a_query():
    """Nothing in them may depend on what was asked: the same number of other queries, the same."""

    def counted(queries):
        with serving() as server:
            assert server.infer(queries).status_code == 200
            eventually(lambda: '"route": "infer"' in server.log.getvalue())  # and so counted
            lines = server.client.get("/metrics").text.splitlines()
        timed = ("_seconds", "_created")
        return [line for line in lines if not any(part in line for part in timed)]

    assert counted(QUERIES) == counted(1 - QUERIES)
