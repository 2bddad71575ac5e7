"""The client for guarded servers, before a server whose every byte is scripted."""

import asyncio
import gc
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trustme

from oneway.serving import http_client
from oneway.serving.connections import MOST_HEADER_BYTES
from oneway.serving.http_client import HttpClient
from oneway.serving.http_errors import RefusedError

SOON = 10
"""Seconds within which all is answered; a fault would wait for ever."""

MOST = 1000


def answer(body: bytes, *headers: bytes) -> bytes:
    headers = headers or (b"Content-Length: %d" % len(body),)
    return b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"", body])


GOOD = answer(b"{}")
CHUNKED = b"Transfer-Encoding: chunked"


@dataclass
class Scripted:
    """A server: what it sends to each request, and what it saw. It hangs up after ``b""``."""

    script: deque[bytes]
    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    ended: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                _, _, length = head.partition(b"Content-Length: ")
                await reader.readexactly(int(length.partition(b"\r\n")[0] or 0))
                sent = self.script.popleft()
                if not sent:
                    break
                writer.write(sent)
                await writer.drain()
                if b"Connection: close" in sent:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):  # the client has left
            pass
        self.ended += 1
        writer.transport.abort() if writer.is_closing() else writer.close()


@asynccontextmanager
async def scripted(
    script: Iterable[bytes],
    *,
    host: str = "127.0.0.1",
    encrypted: ssl.SSLContext | None = None,
    trusted: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[HttpClient, Scripted]]:
    scene = Scripted(deque(script))
    async with asyncio.timeout(SOON):
        server = await asyncio.start_server(scene.serve, host, 0, ssl=encrypted)
        port = server.sockets[0].getsockname()[1]
        scheme = "http" if encrypted is None else "https"
        scene.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/a?b=1"
        client = HttpClient({"X": "1"}, MOST, trusted or ssl.create_default_context())
        async with server:
            yield client, scene
            client.close()
            while scene.ended < scene.connections:
                await asyncio.sleep(0)


def test_a_body_has_the_most_bytes_and_no_more_however_it_is_framed():
    def framings(body):
        return {
            "length": answer(body),
            "chunks": answer(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), CHUNKED),
            "end": answer(body, b"Connection: close"),
        }

    async def ask():
        most, more = framings(MOST * b"a"), framings((MOST + 1) * b"a")
        async with scripted([*most.values(), *more.values()]) as (client, scene):
            for _ in most:
                assert (await client.ask("POST", scene.url, b"[1]")).body == MOST * b"a"
            for name in more:
                with pytest.raises(RefusedError) as refused:
                    await client.ask("GET", scene.url)
                assert refused.value.reason == "upstream_too_large", name
            assert scene.heads[0].startswith(b"POST /a?b=1 HTTP/1.1\r\nHost: 127.0.0.1:")

    asyncio.run(ask())


def test_connections_that_ended_take_no_memory():
    """Each client that leaves ends one: nothing may wait for the garbage collector."""

    async def ask():
        async with scripted([GOOD, b"SSH-2.0", answer(b"{}", b"Connection: close")]) as (
            client,
            at,
        ):
            for _ in range(3):
                with suppress(RefusedError):
                    await client.ask("GET", at.url)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(ask())
        assert not any(isinstance(each, http_client._Connection) for each in gc.get_objects())
    finally:
        gc.enable()


def test_a_request_is_sent_once_more_if_a_kept_connection_ends_without_an_answer():
    async def ask(*script):
        async with scripted(script) as (client, scene):
            try:
                for _ in range(2):
                    assert (await client.ask("POST", scene.url, b"[]")).status == 200
            except RefusedError as error:
                return error.reason, len(scene.heads), scene.connections
            return "", len(scene.heads), scene.connections

    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    for script, expected in (
        ((GOOD, early + GOOD), ("", 2, 1)),
        ((GOOD, b"", GOOD), ("", 3, 2)),
        ((GOOD, b"", b""), ("upstream_connection", 3, 2)),
        ((b"",), ("upstream_connection", 1, 1)),
        # What has begun to answer may have counted the query.
        ((GOOD, b"HTTP/1.1 200 OK\r\nConnection: close"), ("upstream_connection", 2, 1)),
        ((GOOD, early + b"Connection: close"), ("upstream_connection", 2, 1)),
    ):
        assert asyncio.run(ask(*script)) == expected, script


def test_what_is_neither_headers_nor_body_has_a_limit():
    endless = MOST_HEADER_BYTES * 8 * b"a"

    async def ask():
        frames = [
            answer(b"0\r\nX: " + endless, CHUNKED),
            answer(b"1;" + endless, CHUNKED),
            answer(b"", b"X: " + endless)[:-4],
        ]
        async with scripted(frames) as (client, scene):
            for frame in frames:
                with pytest.raises(RefusedError) as refused:
                    await client.ask("GET", scene.url)
                assert refused.value.reason == "upstream_connection", frame[:60]

    asyncio.run(ask())


def test_what_was_idle_too_long_is_closed_and_not_asked(monkeypatch):
    async def ask():
        async with scripted(4 * [GOOD]) as (client, scene):
            await asyncio.gather(*(client.ask("GET", scene.url) for _ in range(2)))
            assert (scene.connections, scene.ended) == (2, 0)
            await client.ask("GET", scene.url)
            assert (scene.connections, scene.ended) == (2, 0)
            monkeypatch.setattr(http_client, "IDLE_SECONDS", -1.0)
            await client.ask("GET", scene.url)
            assert scene.connections == 3
            while scene.ended < 2:
                await asyncio.sleep(0)

    asyncio.run(ask())


def test_a_server_is_asked_over_tls_if_its_certificate_is_trusted():
    authority, other = trustme.CA(), trustme.CA()
    encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    async def ask(trusted, name="localhost"):
        authority.issue_cert(name).configure_cert(encrypted)
        async with scripted(2 * [GOOD], encrypted=encrypted, trusted=trusted) as (client, scene):
            url = scene.url.replace("127.0.0.1", "localhost")
            answers = [await client.ask("GET", url) for _ in range(2)]
            return [each.body for each in answers], scene.connections

    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    assert asyncio.run(ask(trusted)) == (2 * [b"{}"], 1)
    strange = ssl.create_default_context()
    other.configure_trust(strange)
    for context, name in ((strange, "localhost"), (trusted, "elsewhere.example")):
        with pytest.raises(ssl.SSLCertVerificationError):
            asyncio.run(ask(context, name))


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python speaks no IPv6")
def test_an_address_of_ipv6_is_asked_by_its_name():
    async def ask():
        async with scripted([GOOD], host="::1") as (client, scene):
            assert (await client.ask("GET", scene.url)).status == 200
            assert b"\r\nHost: [::1]:" in scene.heads[0]

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    asyncio.run(ask())
