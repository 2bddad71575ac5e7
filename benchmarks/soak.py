"""Let good, bad, slow, leaving, deaf and pipelining clients ask guarded servers for minutes.

Three processes of `oneway serve` run on this machine: a codebook before a model; a model that
answers with clean scores; and the same codebook before that one's address. Every answer is compared
with the expected release, and all that comes back is searched for clean scores. Memory, descriptors
and threads of the processes are measured before, meanwhile and after. Run
`python benchmarks/soak.py --minutes 10`; it exits with 1 if anything is not as it must be.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from oneway import CodebookRelease, TorchTarget, release
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from serving import FACTORY, SMALL, build, write_guards

PATH = "/v2/models/model/infer"
TIMEOUT = 2.0
"""The servers' ``timeout_seconds``: stalled clients are cut while the soak runs."""

SETTLE = 20.0
"""Seconds until idle connections are closed."""

SAMPLE_SECONDS = 2.0
BLOCKS = 12
"""Neighboring samples of memory depend on each other: lines are fitted to means of so many."""

BINARY = b"Inference-Header-Content-Length"
COMMAND = [sys.executable, "-c", "from oneway.cli.main import app; app()", "serve"]


@dataclass(frozen=True)
class Query:
    """A request's body and extra header, the release it must get, and its clean scores."""

    body: bytes
    header: bytes
    expected: list[float]
    clean: tuple[bytes, ...]

    def request(self, *more: bytes) -> bytes:
        """Return the whole request."""
        lines = [b"POST %s HTTP/1.1" % PATH.encode(), b"Host: localhost", *more]
        lines += [b"Content-Length: %d" % len(self.body), *filter(None, [self.header])]
        return b"\r\n".join([*lines, b"", self.body])


@dataclass
class Server:
    """One process, and what was seen of it."""

    name: str
    process: subprocess.Popen[str]
    port: int
    tally: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)

    def sample(self) -> None:
        """Note the time, and the process's resident bytes, descriptors and threads."""
        place = Path(f"/proc/{self.process.pid}")
        pages = int((place / "statm").read_text().split()[1])
        descriptors, threads = (len(list((place / kind).iterdir())) for kind in ("fd", "task"))
        size = pages * os.sysconf("SC_PAGE_SIZE")
        self.samples.append((time.monotonic(), size, descriptors, threads))


def make_queries(codebook: CodebookRelease, count: int) -> list[Query]:
    """Draw queries that lie in the midst of a cell: another order of sums must not move them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4 * count, *SMALL, generator=generator).mul(10_000).round().div(10_000)
    logits = TorchTarget(build()).logits(images)
    released = release(codebook(logits))
    firm = torch.ones(len(images), dtype=torch.bool)
    for _ in range(8):
        nudge = 1e-3 * torch.randn(logits.shape, generator=generator)
        firm &= (release(codebook(logits + nudge)) == released).all(-1)
    kept = firm.nonzero().flatten()[:count]
    assert len(kept) >= count // 2, "few queries lie in the midst of a cell"
    clean = release(logits)
    return [
        _query(images[at], released[at], clean[at], in_binary=place % 4 == 3)
        for place, at in enumerate(kept.tolist())
    ]


def _query(image: Tensor, released: Tensor, clean: Tensor, *, in_binary: bool) -> Query:
    tensor: dict[str, Any] = {"name": "input", "shape": [1, *SMALL], "datatype": "FP32"}
    wanted: dict[str, Any] = {"inputs": [tensor]}
    texts = tuple(f"{number:.7f}"[:7].encode() for number in clean.tolist())
    if not in_binary:
        tensor["data"] = [round(number, 4) for number in image.flatten().tolist()]
        return Query(json.dumps(wanted).encode(), b"", released.tolist(), texts)
    data = image.numpy().astype("<f4").tobytes()
    tensor["parameters"] = {"binary_data_size": len(data)}
    wanted["parameters"] = {"binary_data_output": True}
    head = json.dumps(wanted).encode()
    header = b"%s: %d" % (BINARY, len(head))
    numbers = tuple(np.float32(number).tobytes() for number in clean.tolist())
    return Query(head + data, header, released.tolist(), texts + numbers)


def judge(server: Server, query: Query, head: bytes, body: bytes) -> None:
    """Count one answer to a query: right, refused, or one that must not be."""
    status = int(head[9:12])
    # More than one clean score is no chance; a release may share one, such as 0.00000.
    server.tally["leaks"] += sum(number in head + body for number in set(query.clean)) > 1
    if status != 200:
        is_late = status in (408, 429, 503, 504)
        server.tally["refused" if is_late else "strange"] += 1
        if not is_late:
            print(f"{server.name}: a query got {status}", file=sys.stderr)
        return
    found = re.search(rb"%s: (\d+)" % BINARY.lower(), head.lower())
    if found:
        got = np.frombuffer(body[int(found[1]) :], "<f4").tolist()
    else:
        (output,) = json.loads(body)["outputs"]
        got = output["data"]
    server.tally["answers"] += 1
    server.tally["wrong"] += got != query.expected


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"\ncontent-length: (\d+)", head.lower())
    return head, await reader.readexactly(int(found[1]) if found else 0)


async def good(server: Server, queries: Sequence[Query], link: Connection) -> None:
    """Ask one query after the other."""
    for _ in range(random.randint(1, 20)):
        query = random.choice(queries)
        link[1].write(query.request())
        judge(server, query, *await read_answer(link[0]))


async def pipelining(server: Server, queries: Sequence[Query], link: Connection) -> None:
    """Ask several queries at once; the answers come in order."""
    asked = random.choices(queries, k=random.randint(2, 8))
    link[1].write(b"".join(query.request() for query in asked))
    for query in asked:
        judge(server, query, *await read_answer(link[0]))


async def slow(server: Server, queries: Sequence[Query], link: Connection) -> None:
    """Send a request in pieces, in time or not."""
    query = random.choice(queries)
    sent = query.request()
    cuts = sorted(random.sample(range(1, len(sent)), 5))
    pause = random.choice((0.02, 0.1, TIMEOUT))
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        link[1].write(sent[start:end])
        await link[1].drain()
        await asyncio.sleep(pause)
    judge(server, query, *await read_answer(link[0]))


async def leaving(server: Server, queries: Sequence[Query], link: Connection) -> None:
    """Go away in the middle of a request, or before its answer."""
    sent = random.choice(queries).request()
    link[1].write(sent[: random.choice((len(sent), random.randint(1, len(sent))))])
    await asyncio.sleep(random.choice((0, 0.005, 0.05)))
    link[1].transport.abort()
    server.tally["left"] += 1


async def deaf(server: Server, queries: Sequence[Query], link: Connection) -> None:
    """Ask on and never read, until the server cuts the connection."""
    link[1].transport.pause_reading()  # type: ignore[attr-defined]
    sent = random.choice(queries).request()
    until = time.monotonic() + 10 * TIMEOUT
    with contextlib.suppress(ConnectionError):
        while not link[1].is_closing() and time.monotonic() < until:
            link[1].write(sent)
            await asyncio.wait([asyncio.ensure_future(link[1].drain())], timeout=0.2)
            await asyncio.sleep(0.05)
    link[1].transport.abort()
    server.tally["deaf"] += 1


async def bad(server: Server, queries: Sequence[Query], link: Connection) -> None:
    """Send what must be refused."""
    query = random.choice(queries)
    whole = query.request()
    sent = random.choice(
        (
            whole.replace(b'"FP32"', b'"FP31"'),
            whole.replace(b"[1, 1, 32, 32]", b"[2, 1, 32, 32]"),
            whole.replace(b'"input"', b'"image"'),
            whole.replace(b"Host: localhost", b"Host: evil.example"),
            whole.replace(b"/v2/models", b"/v2/%6dodels"),
            whole.replace(b"Host:", b"Content-Encoding: gzip\r\nHost:"),
            whole.replace(b"Host:", b"Transfer-Encoding: chunked\r\nHost:"),
            whole.replace(b"Host:", b"X: " + b"a" * 70_000 + b"\r\nHost:"),
            whole.replace(b"POST", b"PUT"),
            b"\x16\x03\x01 no HTTP\r\n\r\n",
            Query(b"[" * 50_000, b"", [], query.clean).request(),
            Query(b'{"inputs": [NaN]}', b"", [], query.clean).request(),
        )
    )
    link[1].write(sent)
    head, body = await read_answer(link[0])
    server.tally["bad"] += 1
    server.tally["leaks"] += sum(number in head + body for number in set(query.clean)) > 1
    server.tally["strange"] += not 400 <= int(head[9:12]) < 500


Kind = Callable[[Server, Sequence[Query], Connection], Awaitable[None]]
KINDS: tuple[Kind, ...] = (good, good, good, pipelining, slow, slow, leaving, deaf, bad)
HONEST = (good, pipelining)


async def client(kind: Kind, server: Server, queries: Sequence[Query], until: float) -> None:
    """Connect again and again, and behave in one way."""
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            await asyncio.wait_for(kind(server, queries, (reader, writer)), 30 * TIMEOUT)
        except (ConnectionError, asyncio.IncompleteReadError):
            # Stalled clients are cut; nobody else may be.
            server.tally["cut"] += 1
            if kind in HONEST:
                server.tally["strange"] += 1
                print(f"{server.name}: a connection of {kind.__name__} was cut", file=sys.stderr)
        finally:
            writer.transport.abort()
        await asyncio.sleep(random.uniform(0, 0.1))


async def soak(servers: Sequence[Server], queries: Sequence[Query], seconds: float) -> None:
    """Let all clients ask, and measure."""
    until = time.monotonic() + seconds
    clients = [
        asyncio.create_task(client(kind, server, queries, until))
        for server in servers
        for kind in KINDS
        if server.name != "clean scores"
    ]
    while time.monotonic() < until:
        for server in servers:
            server.sample()
        await asyncio.sleep(SAMPLE_SECONDS)
    await asyncio.gather(*clients)


async def settle(servers: Sequence[Server], queries: Sequence[Query]) -> None:
    """Wait until idle connections are closed, those that close with the next query among them."""
    await asyncio.sleep(SETTLE)
    for server in servers:
        if server.name != "clean scores":
            await client(good, server, queries, time.monotonic() + 0.01)
    await asyncio.sleep(1)
    for server in servers:
        server.sample()


@contextlib.contextmanager
def serving(name: str, folder: Path, *arguments: str) -> Iterator[Server]:
    """Run a server until the block ends; it must end well."""
    command = [*COMMAND, *arguments, "--port", "0"]
    command += ["--setting", f"timeout_seconds={TIMEOUT}", "--setting", "log_level=error"]
    command += ["--setting", "keep_alive_seconds=5"]
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(  # noqa: S603  our own command
            command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout is not None
        found = re.search(r"http://[^/]*:(\d+)/", process.stdout.readline())
        assert found, f"{name} did not start: {log.read_text()}"
        yield Server(name, process, int(found[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, f"{name} did not end well"


def growth(samples: Sequence[tuple[float, int, int, int]], name: str) -> dict[str, float]:
    """Return the slope of memory, in MiB an hour, and its 95 % interval."""
    size = max(1, len(samples) // BLOCKS)
    blocks = [samples[at : at + size] for at in range(0, size * (len(samples) // size), size)]
    hours = [statistics.mean(sample[0] for sample in block) / 3600 for block in blocks]
    mib = [statistics.mean(sample[1] for sample in block) / 2**20 for block in blocks]
    line = stats.linregress(hours, mib)
    spread = float(stats.t.ppf(0.975, len(blocks) - 2)) * line.stderr
    return {
        f"{name}_mib_per_hour": line.slope,
        f"{name}_low": line.slope - spread,
        f"{name}_high": line.slope + spread,
    }


def record_of(server: Server, minutes: float) -> dict[str, Any]:
    """Sum one server up."""
    before, *load, after = server.samples
    kept = load[len(load) // 5 :]  # the first fifth warms up
    mib = [sample[1] / 2**20 for sample in kept]
    keys = ("answers", "wrong", "leaks", "strange", "refused", "bad", "left", "deaf", "cut")
    return {
        "server": server.name,
        "minutes": minutes,
        **{key: server.tally[key] for key in keys},
        "memory_first_mib": statistics.mean(mib[:BLOCKS]),
        "memory_last_mib": statistics.mean(mib[-BLOCKS:]),
        **growth(kept, "memory"),
        # What grows while pools and caches fill grows less in the end; a leak does not.
        **growth(kept[len(kept) // 2 :], "late_memory"),
        "descriptors_before": before[2],
        "descriptors_most": max(sample[2] for sample in load),
        "descriptors_after": after[2],
        "threads_before": before[3],
        "threads_after": after[3],
    }


def main() -> None:
    """Soak, print and record; exit 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="also write records as JSON Lines")
    options = parser.parse_args()
    random.seed(0)
    model = ("served:build", "--outputs", "logits", "--input-shape", "x".join(map(str, SMALL)))
    guard = ("--guard", "codebook.safetensors")
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        (folder / "served.py").write_text(FACTORY.format(here=str(Path(__file__).parent)))
        write_guards(folder)
        queries = make_queries(CodebookRelease.load(folder / "codebook.safetensors"), 64)
        local = stack.enter_context(serving("before a model", folder, *model, *guard))
        none = ("--defense", "none", "--allow-clean-scores")
        clean = stack.enter_context(serving("clean scores", folder, *model, *none))
        address = f"http://127.0.0.1:{clean.port}/v2/models/model"
        before = (address, "--outputs", "confidences", *guard)
        proxy = stack.enter_context(serving("before an address", folder, *before))
        servers = (local, proxy, clean)
        asyncio.run(soak(servers, queries, 3.0))  # all is loaded, and every pool is filled
        for server in servers:
            server.samples.clear()
            server.tally.clear()
        asyncio.run(settle(servers, queries))
        asyncio.run(soak(servers, queries, 60 * options.minutes))
        asyncio.run(settle(servers, queries))
    records = [record_of(server, options.minutes) for server in servers]
    for record in records:
        print(json.dumps(record, indent=1))
    if options.out is not None:
        about = origin()
        write_json_lines(options.out, [{**record, **about} for record in records])
    sys.exit(any(not is_well(record) for record in records))


def is_well(record: dict[str, Any]) -> bool:
    """Say whether nothing wrong came out, and nothing was kept.

    A server grows if the line of the second half does for certain, by a tenth in a day.
    """
    grows = 24 * record["late_memory_low"] > 0.1 * record["memory_first_mib"]
    faults = record["wrong"] + record["leaks"] + record["strange"]
    kept = record["descriptors_after"] - record["descriptors_before"]
    return not (faults or grows or kept > 2)


if __name__ == "__main__":
    main()
