"""Who may ask, how much, how long; and what is written down of it."""

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
    SHAPE,
    linear_model,
    request_of,
    running,
    served_model,
    serving,
    settings,
)
from oneway.errors import InvalidOptionError
from oneway.serving import listen, serving_app
from oneway.serving.running import server_of
from oneway.targets import TorchTarget

TOKEN = "correct-horse-battery"
QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def locked():
    with serving(token=TOKEN) as server:
        yield server


@pytest.mark.parametrize(
    "given",
    [
        None,
        TOKEN,
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer  {TOKEN}",
        "Bearer",
        f"Basic {TOKEN}",
    ],
)
def test_without_the_token_nothing_but_health_is_answered(locked, given):
    headers = {} if given is None else {"Authorization": given}
    for path in ("/v2", PATH, "/metrics", "/openapi.json", "/nothing"):
        answer = locked.client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = locked.client.post(f"{PATH}/infer", json=request_of(QUERIES), headers=headers)
    assert answer.status_code == 401
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert locked.client.get(path, headers=headers).status_code == 200
    assert TOKEN not in locked.log.getvalue()


def test_with_the_token_all_is_answered_and_it_is_logged_nowhere(locked):
    headers = {"Authorization": f"bearer {TOKEN}"}  # the scheme may be written as one likes
    answer = locked.client.post(f"{PATH}/infer", json=request_of(QUERIES), headers=headers)
    assert answer.status_code == 200
    metrics = locked.client.get("/metrics", headers=headers)
    assert metrics.status_code == 200
    assert TOKEN not in locked.log.getvalue() + metrics.text + answer.text


def test_two_tokens_are_no_token(locked):
    given = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")]
    assert locked.client.get("/v2", headers=given).status_code == 401


def test_a_token_is_compared_in_constant_time(monkeypatch):
    """By the function of the standard library that does, on all of it."""
    import hmac

    from oneway.serving import middleware

    compared = []

    def compare(one, other):
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(middleware, "hmac", Watched)
    with serving(token=TOKEN) as server:
        assert server.client.get("/v2", headers={"Authorization": "Bearer x"}).status_code == 401
    assert compared == [(b"x", TOKEN.encode())]


def test_too_large_requests_are_refused_without_being_read():
    with serving(max_request_bytes=1024) as server:
        answer = server.client.post(f"{PATH}/infer", content=b" " * 1025)
        assert answer.status_code == 413
        pieces = (b" " * 600 for _ in range(2))
        assert server.client.post(f"{PATH}/infer", content=pieces).status_code == 413
        # Nobody waits for the rest of what is too long by its own account.
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {PATH}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_request_that_does_not_arrive_is_given_up():
    with serving(timeout_seconds=0.2) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                f"POST {PATH}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


class Held(torch.nn.Module):
    """A model that answers when it may, once it is held."""

    def __init__(self):
        super().__init__()
        self.inner, self.held = linear_model(), False
        self.entered, self.go = threading.Event(), threading.Event()

    def forward(self, images):
        if self.held:
            self.entered.set()
            assert self.go.wait(20)
        return self.inner(images)


def test_more_queries_than_may_wait_are_turned_away_with_a_time_to_return():
    model = Held()
    limits = {"max_waiting_rows": 4, "max_request_rows": 4}
    with serving(target=TorchTarget(model), **limits) as server, ThreadPoolExecutor(4) as pool:
        model.held = True
        first = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(20)
        second = pool.submit(server.infer, QUERIES)
        while "oneway_waiting_queries 3.0" not in server.client.get("/metrics").text:
            pass
        busy = server.infer(QUERIES[:2])
        assert busy.status_code == 429
        assert busy.headers["retry-after"] == "1"
        third = pool.submit(server.infer, QUERIES[:1])  # there is room for one
        while "oneway_waiting_queries 4.0" not in server.client.get("/metrics").text:
            pass
        model.go.set()
        assert [one.result().status_code for one in (first, second, third)] == [200, 200, 200]
        assert 'oneway_refused_total{reason="busy"} 1.0' in server.client.get("/metrics").text


def test_an_answer_that_takes_too_long_is_given_up_and_the_server_goes_on():
    model = Held()
    with serving(target=TorchTarget(model), timeout_seconds=0.2) as server:
        model.held = True
        assert server.infer(QUERIES).status_code == 504
        model.go.set()
        assert server.infer(QUERIES).status_code == 200


def test_a_model_that_hangs_makes_the_server_unwell_and_does_not_keep_it_from_ending():
    model = Held()
    limits = {"timeout_seconds": 0.1, "shutdown_seconds": 1}
    with serving(target=TorchTarget(model), **limits) as server:
        model.held = True
        assert server.infer(QUERIES).status_code == 504
        while server.client.get("/v2/health/live").status_code == 200:
            assert server.infer(QUERIES).status_code in (503, 504)
        assert server.infer(QUERIES).status_code == 503
        while '"refused": "stuck"' not in server.log.getvalue():  # written after the answer
            pass
        assert '"refused": "closing"' not in server.log.getvalue()
        server.stop()
        assert '"event": "stuck"' in server.log.getvalue()
        model.go.set()


def test_requests_together_may_hold_so_much_and_give_it_back():
    limits = {"max_request_bytes": 2048, "max_waiting_bytes": 2048}
    with serving(**limits) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {PATH}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n"
            connection.sendall(head.encode() + b" " * 1900)
            while server.infer(QUERIES[:1]).status_code == 200:
                pass
            busy = server.infer(QUERIES[:1])
            assert busy.status_code == 429
            assert busy.headers["retry-after"] == "1"
            connection.sendall(b" " * 100)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert server.infer(QUERIES[:1]).status_code == 200


def test_requests_that_are_being_answered_may_end_when_the_server_stops():
    model = Held()
    with serving(target=TorchTarget(model)) as server, ThreadPoolExecutor(4) as pool:
        model.held = True
        answer = pool.submit(server.infer, QUERIES)
        assert model.entered.wait(20)
        stopping = pool.submit(server.stop)
        while True:  # until it takes no more
            try:
                httpx.get(f"{server.url}/v2", trust_env=False)
            except httpx.TransportError:
                break
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
    context = server_of(serving_app(served_model(), how), how).config.ssl
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    with running(serving_app(served_model(), how), how, verify=trusting) as server:
        assert server.release(QUERIES).shape == (3, 3)
        port = int(server.url.rpartition(":")[2])
        plain = http.client.HTTPConnection("localhost", port, timeout=10)
        plain.request("GET", "/v2")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            plain.getresponse()
        plain.close()


def test_a_certificate_that_cannot_be_used_is_refused_before_it_serves(tmp_path):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    how = settings(tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    with pytest.raises(InvalidOptionError, match="belong together"):
        server_of(serving_app(served_model(), how), how)


def test_an_address_that_is_taken_is_said():
    with listen(settings()) as taken:
        how = settings().model_copy(update={"port": taken.getsockname()[1]})
        with pytest.raises(InvalidOptionError, match="Choose another"):
            listen(how)


def test_the_log_has_one_line_a_request_with_facts_and_no_text_of_a_client(locked):
    before = len(locked.log.getvalue())
    private = "a-name-in-a-path"
    locked.client.get(f"/v2/models/{private}?x={private}", headers={"X-Private": private})
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Private": private}
    asked = request_of(QUERIES, id=private)
    locked.client.post(f"{PATH}/infer", json=asked, headers=headers)
    said = locked.log.getvalue()[before:]
    refused, answered = map(json.loads, said.splitlines())
    assert (refused["status"], refused["refused"]) == (401, "unauthorized")
    assert (answered["route"], answered["status"], answered["queries"]) == ("infer", 200, 3)
    assert set(answered) == {"time", "level", "event", "route", "status", "milliseconds", "queries"}
    assert private not in said


def test_metrics_can_be_left_out():
    with serving(metrics=False) as server:
        assert server.client.get("/metrics").status_code == 404


def test_metrics_know_no_label_of_a_query():
    """Nothing in them may depend on what was asked: the same number of other queries, the same."""

    def counted(queries):
        with serving() as server:
            assert server.infer(queries).status_code == 200
            lines = server.client.get("/metrics").text.splitlines()
        timed = ("_seconds", "_created")
        return [line for line in lines if not any(part in line for part in timed)]

    assert counted(QUERIES) == counted(1 - QUERIES)
