"""A client that is patient with servers that say "later", and quotes nobody."""

import gc
import logging
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from endpoints import Reply, as_json, no_environment, running
from laws import looped
from oneway.errors import InvalidOptionError, MissingExtraError, TargetFailedError
from oneway.targets.http_client import HttpClient

QUICK = {"backoff_seconds": 0.01}


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    no_environment(monkeypatch)


@pytest.fixture
def server():
    with running(lambda _: as_json({"fine": True})) as endpoint:
        yield endpoint


@pytest.fixture
def slept(monkeypatch):
    """The waits between attempts, not waited for."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def post(server, **options):
    client = HttpClient("the server", **(QUICK | options))
    return client.post_json(f"{server.address}/ask", {"queries": [[0.5, 0.25]]})


def test_what_is_sent_and_answered_is_json(server):
    assert post(server) == {"fine": True}
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/ask")
    assert asked.json == {"queries": [[0.5, 0.25]]}
    assert asked.headers["Content-Type"] == "application/json"
    assert "Authorization" not in asked.headers


def test_a_server_that_says_later_is_asked_again_with_doubled_waits(server, slept):
    for status in (429, 502, 503, 504):
        slept.clear()
        server.asked.clear()
        server.faults.extend([Reply(status)] * 3)
        assert post(server, backoff_seconds=0.5) == {"fine": True}, status
        assert slept == [0.5, 1, 2], status
        assert len({asked.body for asked in server.asked}) == 1, status
        assert len(server.asked) == 4, status


def test_the_last_attempt_is_the_last(server, slept):
    server.faults.extend([Reply(503, b"secret 0.125")] * 3)
    with pytest.raises(TargetFailedError, match=r"the server failed 3 times.*status 503") as caught:
        post(server, attempts=3)
    assert "0.125" not in str(caught.value)
    assert len(slept) == 2
    assert len(server.asked) == 3


def test_a_longer_wait_is_honored_when_it_is_asked_for(server, slept):
    for status in (429, 503):
        for after, waited in (
            *(("7", 7), ("0", 0.5), ("soon", 0.5), ("-3", 0.5), ("nan", 0.5), ("\u00b2", 0.5)),
            ("", 0.5),
        ):
            slept.clear()
            server.faults.append(Reply(status, headers={"Retry-After": after}))
            assert post(server, backoff_seconds=0.5) == {"fine": True}
            assert slept == [waited], (status, after)


def test_a_date_to_wait_for_is_honored(server, slept):
    for seconds in (50, -50):
        slept.clear()
        before = datetime.now(UTC)
        until = before.replace(microsecond=0) + timedelta(seconds=seconds)
        header = {"Retry-After": format_datetime(until, usegmt=True)}
        server.faults.append(Reply(429, headers=header))
        post(server, backoff_seconds=0.5)
        (waited,) = slept
        least, most = (max(0.5, (until - at).total_seconds()) for at in (datetime.now(UTC), before))
        assert least <= waited <= most


def test_waits_end_at_a_minute(server, slept):
    server.faults.extend([Reply(503)] * 3)
    post(server, backoff_seconds=45)
    assert slept == [45, 60, 60]
    slept.clear()
    server.faults.append(Reply(429, headers={"Retry-After": "3600"}))
    with pytest.raises(TargetFailedError, match="asks to wait 3600 s, longer than 60 s"):
        post(server)
    assert not slept


def test_other_statuses_are_final_and_the_body_is_not_quoted(server, slept):
    for status, remedy in (
        (301, "redirects are not followed"),
        (400, "the shape and the type that the model takes, or lower batch_size"),
        (401, "token into the environment variable ONEWAY_TOKEN"),
        (404, "Check the address"),
        (413, "Lower batch_size"),
        (418, "server's log"),
        (500, "server's log"),
    ):
        server.asked.clear()
        headers = {"Location": "http://127.0.0.1:1/"} if status == 301 else {}
        server.faults.append(Reply(status, b"secret 0.125", headers))
        said = f"the server failed: .*{status}.*{remedy}"
        with pytest.raises(TargetFailedError, match=said) as caught:
            post(server)
        assert "0.125" not in str(caught.value), status
        assert not slept, status
        assert len(server.asked) == 1, status


def test_oneway_s_own_server_is_quoted_and_no_other(server, slept):
    own = {"Oneway-Refused": "true"}
    for headers, body, said in (
        (
            own,
            b'{"error": "input must have 3 columns"}',
            "status 400: input must have 3 columns. Ch",
        ),
        ({}, b'{"error": "0.125"}', r"status 400\. Check"),
        (own, b'["0.125"]', r"status 400\. Check"),
        (own, b'{"error": 0.125}', r"status 400\. Check"),
        (own, b"0.125", r"status 400\. Check"),
        (own, b"[" * 99_999, r"status 400\. Check"),
    ):
        server.faults.append(Reply(400, body, headers))
        with pytest.raises(TargetFailedError, match=said) as caught:
            post(server)
        assert "0.125" not in str(caught.value), body
        assert not slept


def test_a_server_that_cannot_be_reached_is_tried_again_and_said_to_be_so(slept):
    with running(lambda _: Reply()) as gone:
        pass
    with pytest.raises(TargetFailedError, match=r"failed 3 times.*ConnectError.*can be reached"):
        post(gone, attempts=3)
    assert len(slept) == 2


def test_an_answer_that_is_cut_off_is_asked_for_again(server, slept):
    server.faults.append(Reply(200, b'{"fine"', promised=20))
    assert post(server) == {"fine": True}
    assert len(slept) == 1


def test_a_slow_answer_is_given_up(server, slept):
    server.faults.extend([Reply(200, b"{}", drip=lambda: _pause(0.4))] * 2)
    with pytest.raises(TargetFailedError, match=r"within 0\.1 s \((Read|Connect)Timeout\)"):
        post(server, timeout_seconds=0.1, attempts=2)
    assert len(slept) == 1


def test_an_answer_that_drips_is_given_up_though_each_drop_is_in_time(server, slept):
    drops = []

    def drip():
        drops.append(1)
        _pause(0.02)

    server.faults.append(Reply(200, b"1" * 1000, drip=drip))
    with pytest.raises(TargetFailedError, match=r"no whole answer within 0\.3 s"):
        post(server, timeout_seconds=0.3, attempts=1)
    assert len(drops) < 1000
    assert not slept


def _pause(seconds, pause=time.sleep):
    pause(seconds)


def test_what_is_no_json_is_refused_without_a_word_of_it(server):
    for body in (b"", b'{"fine": [0.125, ', b"\xff0.125", b"<p>0.125</p>", b"[" * 9999):
        server.faults.append(Reply(200, body))
        said = f"answer with JSON, but its {len(body)} b"
        with pytest.raises(TargetFailedError, match=said) as caught:
            post(server)
        assert "0.125" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_answers_are_read_up_to_the_limit(server):
    server.faults.extend([Reply(200, b'"' + b"x" * 98 + b'"'), Reply(200, b'"' + b"x" * 99 + b'"')])
    assert post(server, most_bytes=100) == "x" * 98
    with pytest.raises(TargetFailedError, match=r"more than 100 bytes\. Lower batch_size"):
        post(server, most_bytes=100)


def test_the_token_is_sent_and_never_shown(server, monkeypatch, caplog):
    monkeypatch.setenv("ONEWAY_TOKEN", "s3cret")
    caplog.set_level(logging.DEBUG)
    server.faults.append(Reply(403))
    with pytest.raises(TargetFailedError, match="ONEWAY_TOKEN") as caught:
        post(server)
    assert server.asked[0].headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in caplog.text


def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch):
    for token in ("s3cret\n", "s3 cret", "s3cr\u00e9t", "s3cret\t"):
        monkeypatch.setenv("ONEWAY_TOKEN", token)
        with pytest.raises(InvalidOptionError, match="printable ASCII without blanks") as caught:
            HttpClient("the server")
        assert "s3" not in str(caught.value)


def test_connections_are_kept_and_closed_with_the_client(server):
    client = HttpClient("the server")
    inner = client._client
    for _ in range(2):
        client.get(f"{server.address}/ask")
    assert not inner.is_closed
    del client
    gc.collect()
    assert inner.is_closed


def test_options_outside_their_range_are_refused():
    for option in (
        *({"timeout_seconds": 0}, {"attempts": 0}, {"backoff_seconds": -1}, {"most_bytes": 0.5}),
    ):
        with pytest.raises(InvalidOptionError, match=next(iter(option))):
            HttpClient("the server", **option)


def test_the_extra_is_named_where_httpx_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingExtraError, match=r"'httpx'.*pip install 'oneway\[http\]'"):
        HttpClient("the server")


@looped(
    ("name", "value"),
    [
        ("NO_PROXY", "localhost,[::1]"),
        ("no_proxy", "fe80::/10"),
        ("HTTP_PROXY", "socks5://ada:secret@127.0.0.1:9"),
        ("ALL_PROXY", "ftp://ada:secret@proxy"),
        ("SSL_CERT_FILE", "/nowhere.pem"),
    ],
)
def test_an_environment_that_httpx_cannot_use_is_refused_by_name(name, value):
    with pytest.MonkeyPatch.context() as patch:
        no_environment(patch)
        patch.setenv(name, value)
        with pytest.raises(InvalidOptionError, match=rf"Check .*\b{name}\b") as refused:
            HttpClient("the server")
    assert "secret" not in str(refused.value)
    assert refused.value.__context__ is None  # its text may hold the password


def test_a_failed_connection_names_the_proxy_of_the_environment(server, monkeypatch):
    for bypass in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(bypass, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://ada:secret@127.0.0.1:9")
    with pytest.raises(TargetFailedError, match=r"the proxy of HTTP_PROXY.*NO_PROXY") as failed:
        post(server, attempts=1)
    assert "secret" not in str(failed.value)


def test_an_answer_that_cannot_be_unpacked_is_not_blamed_on_the_address(server):
    server.faults.append(Reply(200, b"plain", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(TargetFailedError, match="Content-Encoding does not unpack"):
        post(server)
