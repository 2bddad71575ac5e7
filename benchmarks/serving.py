"""Load guarded servers and the same server without a guard, side by side, on this machine alone.

Each server is a process of its own, `oneway serve`; this process sends requests over loopback,
in turns, so that a busy machine slows all of them alike. It looks at every answer: labels must
be the model's, nothing but what the protocol and the guard allow may be in it, and the servers'
memory must stay flat. Run `python benchmarks/serving.py`; about a minute.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from oneway import CodebookRelease, Inverter, TorchTarget, release
from oneway.defenses import save_module
from oneway.evaluation.records import environment, source_commit
from oneway.evaluation.store import write_json_lines
from oneway.targets import TARGET_PRESETS, TargetNetwork

SHAPE = (1, 32, 32)

FACTORY = """
import sys
sys.path.insert(0, {here!r})
from serving import build
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


def build() -> nn.Module:
    """Return the classifier that all servers serve: of the size of the demo's, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        preset = TARGET_PRESETS["small"]
        network = TargetNetwork(10, SHAPE, width=preset.width, blocks=preset.blocks)
        last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
        nn.init.normal_(last.weight, std=4 * last.weight.detach().std().item())  # some contrast
    return network.eval()


@dataclass
class Server:
    """One server under load, and what was seen of it."""

    name: str
    process: subprocess.Popen[str]
    port: int
    seconds: list[float] = field(default_factory=list)
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


def make_load(count: int) -> Load:
    """Draw queries and compose requests for them."""
    queries = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    clean = release(TorchTarget(build()).logits(queries))
    requests = []
    for query in queries:
        tensor = {
            "name": "input",
            "shape": [1, *SHAPE],
            "datatype": "FP32",
            "data": [round(number, 4) for number in query.flatten().tolist()],
        }
        body = json.dumps({"inputs": [tensor]}).encode()
        head = f"POST /v2/models/model/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        requests.append(head.encode() + b"\r\n\r\n" + body)
    begun = [[f"{number:.7f}"[:7] for number in row] for row in clean.tolist()]
    return Load(requests, clean.argmax(1).tolist(), begun)


def write_guards(folder: Path) -> None:
    """Write the files that the guards need: of the size of real ones, fitted to nothing real."""
    surrogate = Inverter(10, SHAPE, hidden_layers=1)
    save_module(folder / "inverter.safetensors", surrogate, "inverter", {})
    generator = torch.Generator().manual_seed(2)
    queries = torch.rand(4000, *SHAPE, generator=generator)
    logits = TorchTarget(build()).logits(queries)
    CodebookRelease.fit(logits, generator=generator).save(folder / "codebook.safetensors")


@contextlib.contextmanager
def serving(name: str, folder: Path) -> Iterator[Server]:
    """Run one server until the block ends."""
    command = [
        sys.executable,
        "-c",
        "from oneway.cli.main import app; app()",
        "serve",
        "served:build",
        "--outputs",
        "logits",
    ]
    command += ["--input-shape", "x".join(map(str, SHAPE)), *GUARDS[name]]
    command += ["--setting", "port=0", "--setting", "log_level=warning"]
    process = subprocess.Popen(  # noqa: S603  our own command
        command, cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://[^/]*:(\d+)/", said)
        assert found, f"{name} did not start"
        yield Server(name, process, int(found[1]))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def ask(server: Server, load: Load, clients: int, seconds: float) -> None:
    """Let so many clients ask one query after the other, for so long."""
    until = time.perf_counter() + seconds
    before = server.answers

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
    strange = set(answer) - {"model_name", "model_version", "parameters", "outputs"}
    strange |= set(answer["parameters"]) - {"guard", "guard_version"}
    strange |= set(output) - {"name", "shape", "datatype", "data"}
    text = (head + body).decode()
    # The digits of a clean score in an answer, more than one of which is no chance.
    told = sum(number in text for number in load.clean[at])
    server.leaks += bool(strange) or (server.name != "none" and told > 1)


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, in the values' unit."""
    return statistics.quantiles(values, n=100)[round(100 * share) - 1]


def main() -> None:
    """Measure and print; exit 1 if an answer was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per server and turn")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--guards", nargs="+", choices=list(GUARDS), default=list(GUARDS))
    parser.add_argument("--out", type=Path, help="also write records as JSON Lines")
    options = parser.parse_args()
    load = make_load(256)
    names = ["none", *(name for name in options.guards if name != "none")]
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        (folder / "served.py").write_text(FACTORY.format(here=str(Path(__file__).parent)))
        write_guards(folder)
        servers = [stack.enter_context(serving(name, folder)) for name in names]
        for server in servers:  # warm up
            asyncio.run(ask(server, load, options.clients, options.seconds / 2))
            server.seconds.clear()
            server.rates.clear()
            server.cpu_ms.clear()
        for _ in range(options.turns):
            for server in servers:
                asyncio.run(ask(server, load, options.clients, options.seconds))
                server.measure_memory()
    records = [record_of(server, servers[0], options.clients) for server in servers]
    table = Table(title=f"{options.clients} clients, one query a request")
    for column in records[0]:
        table.add_column(column.replace("_", " "), justify="right", overflow="fold")
    for record in records:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in record.values()))
    Console(width=150).print(table)
    if options.out is not None:
        facts = {
            "environment": asdict(environment(torch.device("cpu"))),
            "commit": source_commit(),
        }
        write_json_lines(options.out, [{**record, **facts} for record in records])
    sys.exit(
        any(
            server.label_changes or server.leaks or server.refused or grows(server)
            for server in servers
        )
    )


def grows(server: Server) -> bool:
    """Say whether a server holds more memory in the end than a tenth beyond its first turn's."""
    return server.memory[-1] > 1.1 * server.memory[0]


def record_of(server: Server, bare: Server, clients: int) -> dict[str, object]:
    """Sum one server up, beside the one without a guard."""
    ratios = [mine / its for mine, its in zip(server.rates, bare.rates, strict=True)]
    return {
        "guard": server.name,
        "clients": clients,
        "queries": server.answers,
        "queries_per_second": statistics.median(server.rates),
        "of_unguarded": statistics.median(ratios),
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
