"""CPU time and peak memory of fitting, certifying and choosing codebooks, as queries grow.

Each job runs in a process of its own, on one thread, and counts processor time: other work on the
machine lengthens the wait, not the figure. Beside each fit stands scikit-learn's k-means at the
same job in the same process: cut each label's confidences into as many cells.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor

from oneway.defenses.candidate_releases import measure_candidates
from oneway.defenses.codebook import Budget, CodebookRelease, FitSettings, certify, fit_codebook
from oneway.evaluation.records import origin
from oneway.evaluation.store import read_json_lines, write_json_lines

JOBS = (
    ("fit", 20_000, 10),
    ("fit", 200_000, 10),
    ("certify", 10_000, 10),
    ("certify", 40_000, 10),
    ("choose", 2_000, 10),
    ("fit", 200_000, 100),
    ("choose", 20_000, 10),
)
"""Job, queries, classes. All but fits have images of 1x32x32; `--job` takes other sizes."""

PIXELS = 32 * 32


def scores(rows: int, classes: int) -> Tensor:
    """Draw ``(N, K)`` logits of a classifier that is sure of most queries."""
    generator = Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator)
    sure = torch.randn(rows, generator=generator).abs() * 6
    logits[torch.arange(rows), torch.arange(rows) % classes] += sure
    return logits


def images_of(logits: Tensor, pixels: int = PIXELS) -> Tensor:
    """Return ``(N, 1, S, S)`` images that the logits are a function of, and noise."""
    generator, side = Generator().manual_seed(1), math.isqrt(pixels)
    basis = torch.randn(logits.shape[1], pixels, generator=generator)
    images = torch.randn(len(logits), pixels, generator=generator)
    return images.addmm_(logits, basis).mul_(0.2).sigmoid_().view(-1, 1, side, side)


def memory(field: str) -> int:
    """Return this process's memory, in bytes: ``VmRSS`` (now) or ``VmHWM`` (at its peak)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found.group(1)) if found else 0


def processor_seconds(run: Callable[[], object]) -> float:
    """Return the processor time that a call takes."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def k_means(logits: Tensor, name: str) -> float:
    """Return the processor time of a k-means of scikit-learn, label by label."""
    from sklearn import cluster  # here, so that other jobs' memory is without it

    rows, labels = logits.double().softmax(-1).numpy(), logits.argmax(-1).numpy()
    most = FitSettings().max_boxes

    def fit() -> None:
        for label in range(logits.shape[1]):
            own = rows[labels == label]
            getattr(cluster, name)(min(most, len(own)), n_init=1, random_state=0).fit(own)

    return processor_seconds(fit)


def measure(job: str, rows: int, classes: int, with_peers: bool) -> dict[str, Any]:
    """Run one job in this process."""
    torch.set_num_threads(1)
    logits = scores(rows, classes)
    images = None if job == "fit" else images_of(logits)
    generator = Generator().manual_seed(0)

    # Of other jobs a small one, which loads what is loaded once.
    settings = FitSettings() if job == "certify" else FitSettings(min_members=2)

    def run() -> Any:
        if job == "fit":
            return fit_codebook(logits)
        assert images is not None
        if job == "choose":
            return measure_candidates(logits, images, generator=generator)
        if job == "certify":
            return certify(book, logits, images)
        return CodebookRelease.fit(logits, images, generator=generator, budget=Budget(l1_mean=0.4))

    book = fit_codebook(logits if job == "certify" else logits[:200], settings)
    data = logits.nbytes + (0 if images is None else images.nbytes)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    seconds = processor_seconds(run)
    record: dict[str, Any] = {
        "job": job,
        "queries": rows,
        "classes": classes,
        "seconds": seconds,
        "peak_over_data": 1 + (memory("VmHWM") - before) / data,
    }
    if job == "fit" and with_peers:
        for name in ("KMeans", "MiniBatchKMeans"):
            record[f"{name}_seconds"] = k_means(logits, name)
            record[f"{name}_over_oneway"] = record[f"{name}_seconds"] / seconds
    return record | origin()


def main() -> None:
    """Run all jobs, print them, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", default=None, help="only this one, such as fit:20000:10")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--before", type=Path, default=None, help="records of older code, .jsonl")
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    if options.job is not None:
        job, rows, classes = options.job.split(":")
        print(json.dumps(measure(job, int(rows), int(classes), options.peers)))
        return
    older = {} if options.before is None else {_key(each): each for each in read(options.before)}
    records = []
    for job in JOBS:
        command = [sys.executable, __file__, "--job", ":".join(map(str, job))]
        command += ["--peers" if options.peers else "--no-peers"]
        done = subprocess.run(  # noqa: S603  this file
            command, check=True, capture_output=True, text=True, env={**os.environ, **ONE_THREAD}
        )
        record = json.loads(done.stdout)
        if _key(record) in older:
            before = older[_key(record)]
            record["seconds_before"] = before["seconds"]
            record["peak_over_data_before"] = before["peak_over_data"]
            record["times_faster"] = before["seconds"] / record["seconds"]
            record["commit_before"] = before["commit"]
        records.append(record)
        if options.out is not None:
            write_json_lines(options.out, records)
    show(records)


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file."""
    return [dict(record) for record in read_json_lines(path)]


def _key(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["job"], record["queries"], record["classes"]


def show(records: list[dict[str, Any]]) -> None:
    """Print records as a table."""
    table = Table(title="Codebooks, one thread", title_justify="left")
    names = [
        name
        for name in dict.fromkeys(name for record in records for name in record)
        if name != "environment" and not name.startswith("commit")
    ]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for record in records:
        values = [record.get(name, "") for name in names]
        table.add_row(*(f"{each:.3g}" if isinstance(each, float) else str(each) for each in values))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
