"""Load guarded servers and the same server without a guard, side by side, on this machine alone.

Each server is a process of its own; this process sends requests over loopback, to one server after
the other in turns, so that a busy machine slows all of them alike. It looks at every answer:
labels must be the model's, nothing but what the protocol and the guard allow may be in it, and the
servers' memory must stay flat. Measured are

- *load*: 16 clients, one 32x32 image a request, JSON;
- *lone*: the same, one client;
- *forms*: 3x224x224 images in JSON and in binary, and 32x32 ones, before next to no model, also
  against a bare fast server, and against the same with our checks and guard and nothing else
  (`bare_server.py`): what reading, guarding and writing cost, and what all else does;
- *upstream*: one client, of the bare server itself and of guards before its address;
- *start*: seconds until a server is ready, and memory then.

Run `python benchmarks/serving.py`; about four minutes, or `--only load lone`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from oneway import CodebookRelease, Inverter, TorchTarget, release
from oneway.defenses import save_module
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.targets import TARGET_PRESETS, TargetNetwork

SMALL, LARGE = (1, 32, 32), (3, 224, 224)

FACTORY = """
import sys
sys.path.insert(0, {here!r})
from serving import build, build_light, build_pooled
"""

GUARDS: dict[str, tuple[str, ...]] = {
    "none": ("--defense", "none", "--allow-clean-scores"),
    "rounding": ("--defense", "rounding", "--option", "decimals=2"),
    "codebook": ("--guard", "codebook.safetensors"),
    "adversarial-noise": (
        *("--defense", "adversarial-noise", "--option", "step_size=0.1"),
        *("--inverter", "inverter.safetensors"),
    ),
}

BARE, FLOOR = "bare", "bare, checked and guarded"
"""The server of `bare_server.py`, and the same with the checks and the codebook of oneway's."""


def build_light() -> nn.Module:
    """Return a classifier of 32x32 images that costs next to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)).eval()


def build_pooled() -> nn.Module:
    """Return a classifier of 3x224x224 images that costs next to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, 10)).eval()


def build() -> nn.Module:
    """Return the classifier that all servers serve: of the size of the demo's, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        preset = TARGET_PRESETS["small"]
        network = TargetNetwork(10, SMALL, width=preset.width, blocks=preset.blocks)
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        nn.init.normal_(last.weight, std=4 * last.weight.detach().std().item())  # some contrast
    return network.eval()


@dataclass
class Server:
    """One server under load, and what was seen of it."""

    name: str
    process: subprocess.Popen[str]
    port: int
    ready_seconds: float
    seconds: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    answers: int = 0
    label_changes: int = 0
    leaks: int = 0
    refused: int = 0

    def cpu_seconds(self) -> float:
        """Return how long the process has computed: other jobs do not slow this."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measure_memory(self) -> None:
        """Note the bytes that the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True)
class Load:
    """What is asked, and what may come back.

    Attributes:
        requests: Whole requests of HTTP, one query each.
        labels: The model's.
        clean: Text of each query's clean confidences, as they would stand in JSON.
    """

    requests: Sequence[bytes]
    labels: Sequence[int]
    clean: Sequence[Sequence[str]]


def make_load(count: int, factory: str, shape: tuple[int, ...], *, in_binary: bool = False) -> Load:
    """Draw queries and compose requests for them."""
    queries = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))
    queries = (queries * 1e4).round() / 1e4
    clean = release(TorchTarget(globals()[factory]()).logits(queries))
    requests = []
    for query in queries:
        tensor: dict[str, Any] = {"name": "input", "shape": [1, *shape], "datatype": "FP32"}
        binary, more = b"", ""
        if in_binary:
            binary = query.numpy().astype("<f4").tobytes()
            tensor["parameters"] = {"binary_data_size": len(binary)}
        else:
            tensor["data"] = [round(number, 4) for number in query.flatten().tolist()]
        body = json.dumps({"inputs": [tensor]}).encode()
        if in_binary:
            more = f"Inference-Header-Content-Length: {len(body)}\r\n"
        body += binary
        head = f"POST /v2/models/model/infer HTTP/1.1\r\nHost: localhost\r\n{more}"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    # Five digits; a smaller number has fewer in as many places.
    begun = [[f"{number:.7f}"[:7] for number in row if number > 0.1] for row in clean.tolist()]
    return Load(requests, clean.argmax(1).tolist(), begun)


def write_guards(folder: Path) -> None:
    """Write the files that the guards need: of the size of real ones, fitted to nothing real."""
    surrogate = Inverter(10, SMALL, hidden_layers=1)
    save_module(folder / "inverter.safetensors", surrogate, "inverter", {})
    generator = torch.Generator().manual_seed(2)
    queries = torch.rand(4000, *SMALL, generator=generator)
    logits = TorchTarget(build()).logits(queries)
    CodebookRelease.fit(logits, generator=generator).save(folder / "codebook.safetensors")


@contextlib.contextmanager
def serving(name: str, folder: Path, served: str, shape: tuple[int, ...]) -> Iterator[Server]:
    """Run one server until the block ends.

    Args:
        name: The guard, :data:`BARE` or :data:`FLOOR`.
        folder: Where the guards' files are.
        served: The name of a factory in this file, or the address of a server.
        shape: The shape of one query.
    """
    command = [sys.executable, str(Path(__file__).with_name("bare_server.py")), served]
    if name == FLOOR:
        command.append("codebook.safetensors")
    elif name != BARE:
        at_address = served.startswith("http")
        command = [sys.executable, "-c", "from oneway.cli.main import app; app()", "serve"]
        command += [served if at_address else f"served:{served}"]
        command += ["--outputs", "confidences" if at_address else "logits"]
        command += ["--input-shape", "x".join(map(str, shape)), *GUARDS[name]]
        command += ["--setting", "port=0", "--setting", "log_level=warning"]
    begin = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603  our own command
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://[^/]*:(\d+)/", said)
        assert found, f"{name} did not start"
        yield Server(name, process, int(found[1]), time.perf_counter() - begin)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def ask(server: Server, load: Load, clients: int, seconds: float) -> None:
    """Let so many clients ask one query after the other, for so long."""
    until = time.perf_counter() + seconds
    before, known = server.answers, len(server.seconds)

    async def client(at: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            while time.perf_counter() < until:
                at = (at + clients) % len(load.requests)
                start = time.perf_counter()
                writer.write(load.requests[at])
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                assert length
                body = await reader.readexactly(int(length[1]))
                server.seconds.append(time.perf_counter() - start)
                judge(server, load, at, head, body)
        finally:
            writer.close()

    begin, computed = time.perf_counter(), server.cpu_seconds()
    await asyncio.gather(*(client(at) for at in range(clients)))
    answers = server.answers - before
    server.medians.append(statistics.median(server.seconds[known:]))
    server.rates.append(answers / (time.perf_counter() - begin))
    server.cpu_ms.append(1000 * (server.cpu_seconds() - computed) / answers)


def judge(server: Server, load: Load, at: int, head: bytes, body: bytes) -> None:
    """Look at one answer."""
    if not head.startswith(b"HTTP/1.1 200"):
        server.refused += 1
        return
    server.answers += 1
    answer = json.loads(body)
    (output,) = answer["outputs"]
    scores = output["data"]
    top = max(scores)
    server.label_changes += scores.index(top) != load.labels[at] or scores.count(top) > 1
    if server.name in (BARE, FLOOR):
        return
    strange = set(answer) - {"model_name", "model_version", "parameters", "outputs"}
    strange |= set(answer["parameters"]) - {"guard", "guard_version"}
    strange |= set(output) - {"name", "shape", "datatype", "data"}
    text = (head + body).decode()
    # Digits of clean scores in an answer: of one score by chance, of most of them by no chance.
    told = sum(number in text for number in load.clean[at])
    most = 2 * told > len(load.clean[at])
    server.leaks += bool(strange) or (server.name != "none" and most)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, in the values' unit."""
    return statistics.quantiles(values, n=100)[round(100 * share) - 1]


def in_turns(
    servers: Sequence[Server], load: Load, clients: int, seconds: float, turns: int
) -> None:
    """Load servers one after the other, and again; a first turn warms up, and is not kept."""
    for turn in range(turns + 1):
        for server in servers:
            asyncio.run(ask(server, load, clients, seconds if turn else seconds / 2))
            if turn:
                server.measure_memory()
            else:
                for kept in (server.seconds, server.medians, server.rates, server.cpu_ms):
                    kept.clear()


def ratio(mine: Sequence[float], its: Sequence[float]) -> float:
    """Return the median of the ratios of turns."""
    return statistics.median(one / other for one, other in zip(mine, its, strict=True))


class Benchmark:
    """The measurements, each of which returns records, and remembers the servers it ran."""

    def __init__(self, folder: Path, seconds: float, turns: int, guards: Sequence[str]) -> None:
        """Write what the servers need into a folder."""
        self.folder, self.seconds, self.turns = folder, seconds, turns
        self.guards = ["none", *(name for name in guards if name != "none")]
        self.servers: list[Server] = []
        (folder / "served.py").write_text(FACTORY.format(here=str(Path(__file__).parent)))
        write_guards(folder)

    @contextlib.contextmanager
    def running(
        self, names: Sequence[str], served: str, shape: tuple[int, ...]
    ) -> Iterator[list[Server]]:
        """Run several servers of one model until the block ends."""
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(serving(name, self.folder, served, shape)) for name in names
            ]
            self.servers += servers
            yield servers

    def load(self) -> list[dict[str, Any]]:
        """Measure throughput under load."""
        clients = 16
        with self.running(self.guards, "build", SMALL) as servers:
            in_turns(servers, make_load(256, "build", SMALL), clients, self.seconds, self.turns)
        return [record_of(server, servers[0], clients) for server in servers]

    def lone(self) -> list[dict[str, Any]]:
        """Measure a client that asks alone."""
        with self.running(self.guards, "build", SMALL) as servers:
            in_turns(servers, make_load(256, "build", SMALL), 1, self.seconds, self.turns)
        return [
            {
                "guard": server.name,
                "lone_p50_ms": 1000 * statistics.median(server.medians),
                "lone_of_unguarded": ratio(server.medians, servers[0].medians),
                "lone_cpu_ms": statistics.median(server.cpu_ms),
                "lone_cpu_of_unguarded": ratio(server.cpu_ms, servers[0].cpu_ms),
            }
            for server in servers
        ]

    def forms(self) -> list[dict[str, Any]]:
        """Measure what reading, guarding and writing cost, against a bare server."""
        records = []
        for form, factory, shape, in_binary in (
            ("32x32, JSON", "build_light", SMALL, False),
            ("3x224x224, JSON", "build_pooled", LARGE, False),
            ("3x224x224, binary", "build_pooled", LARGE, True),
        ):
            load = make_load(32, factory, shape, in_binary=in_binary)
            with self.running([BARE, FLOOR, "none", "codebook"], factory, shape) as servers:
                in_turns(servers, load, 4, self.seconds, self.turns)
            records += [
                {
                    "request": form,
                    "server": server.name,
                    "request_cpu_ms": statistics.median(server.cpu_ms),
                    "cpu_of_bare": ratio(server.cpu_ms, servers[0].cpu_ms),
                }
                for server in servers
            ]
        return records

    def upstream(self) -> list[dict[str, Any]]:
        """Measure what guards before the address of a server add."""
        with self.running([BARE], "build_light", SMALL) as (bare,):
            where = f"http://127.0.0.1:{bare.port}/v2/models/model"
            with self.running(self.guards[1:], where, SMALL) as proxies:
                load = make_load(256, "build_light", SMALL)
                in_turns([bare, *proxies], load, 1, self.seconds, self.turns)
        return [
            {
                "upstream_guard": server.name,
                "upstream_p50_ms": 1000 * statistics.median(server.medians),
                "added_p50_ms": 1000
                * statistics.median(
                    mine - its for mine, its in zip(server.medians, bare.medians, strict=True)
                ),
                "upstream_cpu_ms": statistics.median(server.cpu_ms),
            }
            for server in (bare, *proxies)
        ]

    def start(self) -> list[dict[str, Any]]:
        """Measure how long servers take until they are ready."""
        begun: dict[str, list[Server]] = {name: [] for name in self.guards}
        for _ in range(self.turns):
            for name in self.guards:
                with self.running([name], "build", SMALL) as (server,):
                    server.measure_memory()
                    begun[name].append(server)
        seconds = {name: [one.ready_seconds for one in turn] for name, turn in begun.items()}
        return [
            {
                "guard": name,
                "ready_seconds": statistics.median(seconds[name]),
                "ready_of_unguarded": ratio(seconds[name], seconds["none"]),
                "ready_mib": statistics.median(one.memory[0] for one in turn) / 2**20,
            }
            for name, turn in begun.items()
        ]


def main() -> None:
    """Measure and print; exit 1 if an answer was not as it must be."""
    parts = ("load", "lone", "forms", "upstream", "start")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per server and turn")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--guards", nargs="+", choices=list(GUARDS), default=list(GUARDS))
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", type=Path, help="also write records as JSON Lines")
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as place:
        benchmark = Benchmark(Path(place), options.seconds, options.turns, options.guards)
        for part in options.only:
            found = getattr(benchmark, part)()
            table = Table(title=part)
            for column in found[0]:
                table.add_column(column.replace("_", " "), justify="right", overflow="fold")
            for record in found:
                values = record.values()
                table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values))
            Console(width=150).print(table)
            records += found
    if options.out is not None:
        facts = origin()
        write_json_lines(options.out, [{**record, **facts} for record in records])
    sys.exit(
        any(
            server.label_changes or server.leaks or server.refused or grows(server)
            for server in benchmark.servers
        )
    )


def grows(server: Server) -> bool:
    """Say whether a server holds more memory in the end than a tenth beyond its first turn's."""
    return server.memory[-1] > 1.1 * server.memory[0]


def record_of(server: Server, bare: Server, clients: int) -> dict[str, object]:
    """Sum one server up, beside the one without a guard."""
    return {
        "guard": server.name,
        "clients": clients,
        "queries": server.answers,
        "queries_per_second": statistics.median(server.rates),
        "of_unguarded": ratio(server.rates, bare.rates),
        "cpu_ms_per_query": statistics.median(server.cpu_ms),
        "p50_ms": 1000 * percentile(server.seconds, 0.5),
        "p99_ms": 1000 * percentile(server.seconds, 0.99),
        "label_changes": server.label_changes,
        "leaks": server.leaks,
        "refused": server.refused,
        "memory_first_mib": server.memory[0] / 2**20,
        "memory_last_mib": server.memory[-1] / 2**20,
    }


if __name__ == "__main__":
    main()
