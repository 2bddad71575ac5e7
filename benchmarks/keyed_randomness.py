"""How many draws of a keyed random defense a client reaches by changing a query invisibly.

A defense that draws noise is averaged away by whoever asks again, so a key decides its draws: by
the query's values, or by a grid of its scores (`oneway.defenses.KeyedRandomness`). Here a client
sends many variants of each query, each pixel changed by at most so much, and averages the answers.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from torch import Generator, Tensor

from oneway.defenses import KeyedRandomness, SecretKey, build_defense
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.releases import release
from oneway.report.table import Column, Listing

DISTORTIONS = (1e-6, 1e-3, 0.05)
"""Most that a pixel of [0, 1] is changed."""

DEVIATION = 1.0
"""Standard deviation of the noise on logits, in nats."""

Row = dict[str, Any]


def digits(preset: str, cache: Path, seed: int, queries: int) -> tuple[Any, Tensor]:
    """Return a preset's target and some of its queries."""
    target, splits = trained(preset, cache, seed=seed)
    return target, splits.test_images[:queries]


def measure(target: Any, queries: Tensor, variants: int, name: str) -> Iterator[Row]:
    """Yield what variants of each query reveal, by what binds the draws and by distortion."""
    clean = release(target.logits(queries))
    for distortion in DISTORTIONS:
        generator = Generator().manual_seed(0)
        for bind in ("input", "scores"):
            guard = KeyedRandomness(
                lambda drawing: build_defense(
                    "gaussian-noise",
                    {"standard_deviation": DEVIATION, "keep_label": True},
                    None,
                    generator=drawing,
                ),
                SecretKey(b"0123456789abcdef"),
                bind=bind,
            )
            draws, single, averaged = [], [], []
            for query, right in zip(queries, clean, strict=True):
                change = torch.rand(variants, *query.shape, generator=generator)
                sent = (query + distortion * (2 * change - 1)).clamp(0, 1)
                sent[0] = query
                logits = target.logits(sent)
                answers = guard(logits, sent)
                # The noise itself: equal draws differ by what float32 adds.
                noise = (answers - logits).sub((answers - logits)[:, :1])
                draws.append(len(noise.div(1e-3).round().unique(dim=0)))
                released = release(answers)
                single.append(float((released[0] - right).abs().sum()))
                averaged.append(float((released.mean(0) - right).abs().sum()))
            yield {
                "data": name,
                "draws_follow": bind,
                "distortion": distortion,
                "variants": variants,
                "queries": len(queries),
                "draws_median": statistics.median(draws),
                "draws_most": max(draws),
                "l1_single": statistics.fmean(single),
                "l1_averaged": statistics.fmean(averaged),
            }


def listing(records: list[Row]) -> Listing:
    """Return a row per way to bind and distortion."""
    columns = {
        "data": Column(lambda row: row["data"]),
        "draws follow": Column(lambda row: row["draws_follow"]),
        "change of a pixel": Column(lambda row: row["distortion"], "g"),
        "draws, median": Column(lambda row: row["draws_median"], ".0f"),
        "most": Column(lambda row: row["draws_most"], ".0f"),
        "L1, one answer": Column(lambda row: row["l1_single"], ".3f"),
        "L1, average": Column(lambda row: row["l1_averaged"], ".3f"),
    }
    return Listing("Draws that variants of a query reach", columns, records)


def main() -> None:
    """Measure, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["smoothed"])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--variants", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = origin()
    records: list[Row] = []
    for name in options.data:
        target, queries = digits(name, options.cache, options.seed, options.queries)
        records += measure(target, queries, options.variants, name)
    Console(width=140).print(listing(records), crop=False)
    if options.out is not None:
        write_json_lines(options.out, [{**record, **place} for record in records])


if __name__ == "__main__":
    main()
