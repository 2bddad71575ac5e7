"""Time a codebook beside the model that it guards, and as classes grow to 10,000, in one run.

The overhead of a release is what turns a batch of logits into probabilities to release
(`CodebookRelease.probabilities`), against the model's own forward pass on the same batch. On
a busy machine the ratios hold better than the times.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from oneway.defenses.codebook import CodebookRelease, FitSettings, fit_codebook
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.targets import TargetNetwork

BATCHES = (1, 64, 512)
GOAL = 0.05


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Build one block; its output has four times ``channels``."""
        super().__init__()
        out = 4 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride > 1 or channels_in != out
            else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map maps to maps."""
        summed: Tensor = self.layers(images) + self.shortcut(images)
        return summed.relu()


def resnet50(classes: int) -> nn.Module:
    """Build a network of ResNet-50's shape, with random weights."""
    blocks: list[nn.Module] = []
    channels_in = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        channels = 64 * 2**stage
        for block in range(count):
            stride = 2 if block == 0 and stage > 0 else 1
            blocks.append(Bottleneck(channels_in, channels, stride))
            channels_in = 4 * channels
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, classes)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head).eval()


def milliseconds(run: Callable[[], object], seconds: float) -> float:
    """Return the median time of a call, over so many seconds and three calls at least."""
    run()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def scores(classes: int, rows: int, seed: int) -> Tensor:
    """Draw logits of a classifier that is sure of most queries, each class about as often."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    labels = torch.arange(rows) % classes
    sure = torch.randn(rows, generator=generator).abs() * 6
    logits[torch.arange(rows), labels] += sure
    return logits


def beside_models(seconds: float) -> list[dict[str, Any]]:
    """Time releases beside forward passes."""
    records = []
    for name, network, shape, classes in (
        (
            "MNIST target",
            TargetNetwork(10, (1, 32, 32), width=32, blocks=3).eval(),
            (1, 32, 32),
            10,
        ),
        ("ResNet-50, 1,000 classes", resnet50(1000), (3, 224, 224), 1000),
    ):
        book = fit_codebook(scores(classes, 100 * classes, 0), FitSettings(min_members=20))
        guard = CodebookRelease(book)
        for batch in BATCHES:
            # Of a large network a few images' maps fill the memory: its batches are cut up.
            part = min(batch, 16 if classes > 10 else batch)
            images = torch.rand(part, *shape)
            logits = scores(classes, batch, 1)
            with torch.inference_mode():
                forward = milliseconds(partial(network, images), seconds) * batch / part
                release = milliseconds(partial(guard.probabilities, logits), seconds / 2)
            records.append(
                {
                    "model": name,
                    "batch": batch,
                    "forward_milliseconds": forward,
                    "release_milliseconds": release,
                    "overhead": release / forward,
                    "cells": book.sizes.cells,
                }
            )
    return records


def as_classes_grow(seconds: float) -> list[dict[str, Any]]:
    """Time fit and release, and weigh the table, for more and more classes."""
    records = []
    for classes in (10, 100, 1000, 10000):
        # Scores of 40,000 queries over 10,000 classes take 1.6 GB themselves.
        rows = min(100 * classes, 40_000)
        calibration = scores(classes, rows, 2)
        settings = FitSettings(min_members=min(20, max(1, rows // classes // 2)))
        begin = time.perf_counter()
        book = fit_codebook(calibration, settings)
        fitted = time.perf_counter() - begin
        guard = CodebookRelease(book)
        logits = scores(classes, 64, 3)
        with torch.inference_mode():
            release = milliseconds(partial(guard.probabilities, logits), seconds / 2)
        size = sum(one.numel() * one.element_size() for one in book.state_dict().values())
        records.append(
            {
                "classes": classes,
                "calibration": rows,
                "min_members": settings.min_members,
                "cells": book.sizes.cells,
                "boxes": book.sizes.boxes,
                "explicit_classes": book.sizes.explicit_classes,
                "table_mebibytes": size / 2**20,
                "fit_seconds": fitted,
                "release_microseconds_per_query": 1000 * release / len(logits),
            }
        )
    return records


def show(console: Console, title: str, records: list[dict[str, Any]]) -> None:
    """Print records as a table."""
    table = Table(title=title, title_justify="left")
    for name in records[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "model" else "right")
    for record in records:
        table.add_row(
            *(
                f"{value:.4g}" if isinstance(value, float) else str(value)
                for value in record.values()
            )
        )
    console.print(table)


def main() -> None:
    """Time, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    beside, growing = beside_models(options.seconds), as_classes_grow(options.seconds)
    show(console, "Release beside forward pass", beside)
    show(console, "As classes grow (batch 64)", growing)
    missed = [record for record in beside if record["overhead"] > GOAL]
    for record in missed:
        console.print(f"over {GOAL:.0%}: {record['model']}, batch {record['batch']}")
    if options.out is not None:
        place = {
            "threads": options.threads,
            **origin(),
        }
        write_json_lines(options.out, [{**record, **place} for record in (*beside, *growing)])


if __name__ == "__main__":
    main()
