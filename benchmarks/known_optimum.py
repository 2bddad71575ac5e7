"""How far from the best possible reconstruction each attacker ends, where that is known.

Scores and images are drawn together, so that ``E[x | scores]`` has a formula: a linear one, a
smooth one that is not linear, and one of 20 vectors per label whose means follow no rule. No
attacker can err less than this mean on average. What an attacker errs beyond it is a share of what
scores tell beyond the label: 0 % is the optimum, 100 % as much as knowing the label alone.
"""

import argparse
import dataclasses
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from oneway.auditing.plan import settings_for
from oneway.contracts import AttackerKnowledge
from oneway.data import no_progress
from oneway.evaluation import Store
from oneway.evaluation.attackers import prepare_attackers
from oneway.evaluation.records import origin
from oneway.evaluation.settings import AttackerSpec
from oneway.evaluation.store import write_json_lines
from oneway.report.page.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Chart,
    Legend,
    Level,
    Point,
    plane_chart,
)
from oneway.report.page.render import write_charts
from oneway.report.table import Column, Listing

CLASSES, SHAPE = 10, (1, 8, 8)
PIXELS = math.prod(SHAPE)
ROWS = (500, 2000, 10_000)
QUERIES = 4000
FEATURES = 16
"""Features that an image is made of, each with a pattern of its own."""

BEND = 0.35
"""Radians that a nat adds to the sine of a feature."""

VECTORS = 20
"""Released vectors of each label, in the case of few vectors."""

LEAD = 4.0
"""Nats that the drawn class is ahead on average."""

WITHIN, NOISE = 0.04, 0.06
"""Standard deviations of a pixel: what scores tell within a label, and what nothing tells.

They are small, so that no pixel around 0.5 leaves the range of an image.
"""

CASES = ("linear", "smooth", "few vectors")
MARKS = {
    "cell-means": "beyond",
    "kernel-ridge": "diamond",
    "smooth-kernel-ridge": "below",
    "bagged-perceptrons": "at least",
    "retrained": "ring",
    "stack": "disc",
}
"""Marks of attackers; the label-only one is the line at 100 percent."""

ATTACKS = ("label-only", *MARKS)
HEIGHT, FLOOR = 330, 0.5
"""Height of a chart, and the least share in percent that it shows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """Queries with their released scores and what the scores tell of them.

    Attributes:
        released: ``(N, K)`` released confidences.
        images: ``(N, 1, 8, 8)`` queries.
        optimum: ``(N, 1, 8, 8)`` the mean of all queries with the same scores.
    """

    released: Tensor
    images: Tensor
    optimum: Tensor


Features = Callable[[Tensor], Tensor]
"""Maps ``(N, K)`` centered log confidences to ``(N, F)`` features that images are made of."""


def patterns(generator: Generator) -> Tensor:
    """Return ``(F, D)`` smooth random patterns."""
    coarse = torch.randn(FEATURES, 1, 4, 4, generator=generator)
    return interpolate(coarse, SHAPE[1:], mode="bicubic", align_corners=True).flatten(1)


def linear(generator: Generator) -> Features:
    """Return a linear map: the optimum is a linear regression on log confidences."""
    weights = torch.randn(CLASSES, FEATURES, generator=generator)
    return lambda logs: logs @ weights


def smooth(generator: Generator) -> Features:
    """Return sines of random directions."""
    weights = torch.randn(CLASSES, FEATURES, generator=generator)
    phases = 2 * math.pi * torch.rand(FEATURES, generator=generator)
    return lambda logs: torch.sin(BEND * logs @ weights + phases)


def draw_scores(rows: int, generator: Generator, table: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ``(N, K)`` centered log confidences, and the ``(N)`` place of each in the table.

    Args:
        rows: Number of rows, N.
        generator: Source of randomness.
        table: ``(V, K)`` all vectors that are released; None: as many as rows.
    """
    if table is not None:
        places = torch.randint(len(table), (rows,), generator=generator)
        return table[places], places
    classes = torch.randint(CLASSES, (rows,), generator=generator)
    scores = torch.randn(rows, CLASSES, generator=generator)
    scores[torch.arange(rows), classes] += LEAD
    return scores - scores.mean(-1, keepdim=True), torch.arange(rows)


class Case:
    """A distribution of scores and queries whose conditional mean is known.

    The mean is scaled so that it varies as much between labels, and within them, as stated above.
    """

    def __init__(self, name: str, generator: Generator) -> None:
        """Draw the parameters.

        Args:
            name: ``"linear"``, ``"smooth"`` or ``"few vectors"``.
            generator: Source of randomness.
        """
        self.name, self.patterns = name, patterns(generator)
        self.table: Tensor | None = None
        if name == "few vectors":
            drawn = draw_scores(50 * CLASSES * VECTORS, generator, None)[0]
            labels = drawn.argmax(-1)
            self.table = torch.cat([drawn[labels == label][:VECTORS] for label in range(CLASSES)])
            self.rules = torch.randn(len(self.table), FEATURES, generator=generator)
        else:
            self.features = {"linear": linear, "smooth": smooth}[name](generator)
        logs, places = draw_scores(200_000, generator, self.table)
        labels, raw = logs.argmax(-1), self._raw(logs, places)
        counts = labels.bincount(minlength=CLASSES).unsqueeze(-1)
        sums = raw.new_zeros(CLASSES, PIXELS).index_add_(0, labels, raw)
        self.centers = sums / counts
        self.center, self.wide = raw.mean(0), (raw - self.centers[labels]).std(0)

    def _raw(self, logs: Tensor, places: Tensor) -> Tensor:
        features = self.features(logs) if self.table is None else self.rules[places]
        return features @ self.patterns

    def draw(self, rows: int, generator: Generator) -> Draw:
        """Draw queries.

        Args:
            rows: Number of rows, N.
            generator: Source of randomness.
        """
        logs, places = draw_scores(rows, generator, self.table)
        optimum = self._scaled(self._raw(logs, places))
        images = optimum + NOISE * torch.randn(rows, PIXELS, generator=generator)
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError("a pixel lies outside [0, 1], so that its mean has no formula")
        return Draw(logs.softmax(-1), *(part.view(rows, *SHAPE) for part in (images, optimum)))

    def label_means(self, labels: Tensor) -> Tensor:
        """Return the ``(N, 1, 8, 8)`` means of all queries with these labels."""
        return self._scaled(self.centers[labels]).view(-1, *SHAPE)

    def _scaled(self, raw: Tensor) -> Tensor:
        return 0.5 + WITHIN * (raw - self.center) / self.wide


def excess(guess: Tensor, optimum: Tensor) -> float:
    """Return the mean squared difference from the optimum: the error beyond that of the optimum."""
    return float((guess - optimum).double().square().mean())


def epochs_for(rows: int, steps: int) -> int:
    """Return the epochs of at least so many steps."""
    return -(-steps // -(-rows // settings_for(1).batch_size))


def attack(case: Case, rows: int, steps: int, seed: int) -> Iterator[Row]:
    """Attack a case with so many auxiliary rows; yield a record for each attacker."""
    generator = torch.Generator().manual_seed(1000 * seed + rows)
    own, asked = case.draw(rows, generator), case.draw(QUERIES, generator)
    epochs = epochs_for(rows, steps)
    spec = AttackerSpec(
        names=ATTACKS,
        input_transforms=("standardized",),
        widths=(16,),
        training=settings_for(epochs),
        most_epochs=4 * epochs,
    )
    of_label = case.label_means(asked.released.argmax(-1))
    label = excess(of_label, asked.optimum)
    with tempfile.TemporaryDirectory() as folder:
        attackers = prepare_attackers(spec, own.images, Store(Path(folder)), seed, no_progress)
        seen = AttackerKnowledge(own.images, own.released, own.released, attackers.held_out)
        begin = time.process_time()
        results = attackers.run(case.name, seen, asked.released, asked.images)
        seconds = time.process_time() - begin
    for name, result in results.items():
        trained = result.convergence
        yield {
            "case": case.name,
            "rows": rows,
            "attacker": name,
            "seed": seed,
            "above_optimum": excess(result.reconstructions, asked.optimum) / label,
            "error": result.error,
            "optimal_error": excess(asked.images, asked.optimum),
            "label_error": excess(asked.images, of_label),
            "convergence": trained and dataclasses.asdict(trained),
            "processor_seconds_of_all": seconds,
        }


def listing(records: Sequence[Row]) -> Listing:
    """Return the shares by case, attacker and rows."""
    columns = {
        "scores": Column(lambda row: row[0]["case"]),
        "attacker": Column(lambda row: row[0]["attacker"]),
    }
    for place, rows in enumerate(ROWS):
        columns[f"{rows:,} rows"] = Column(partial(_share, place), ".1f")
    keys = dict.fromkeys((row["case"], row["attacker"]) for row in records)
    grouped = [[row for row in records if (row["case"], row["attacker"]) == key] for key in keys]
    return Listing("Percent of the gap above the optimum", columns, grouped)


def _share(place: int, row: Sequence[Row]) -> float:
    return 100 * float(row[place]["above_optimum"])


def chart(name: str, records: Sequence[Row]) -> Chart:
    """Return the chart of a case: shares above the optimum against auxiliary rows."""
    ends = math.log(ROWS[0] / 1.6), math.log(ROWS[-1] * 1.6)
    most = max(100.0, *(100 * row["above_optimum"] for row in records)) * 1.15

    def across(rows: float) -> float:
        share = (math.log(rows) - ends[0]) / (ends[1] - ends[0])
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def up(percent: float) -> float:
        share = math.log(max(percent, FLOOR) / FLOOR) / math.log(most / FLOOR)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    points = [
        Point(
            row["attacker"],
            row["rows"],
            max(FLOOR, 100 * row["above_optimum"]),
            on=row["attacker"] == "stack",
            shape=MARKS[row["attacker"]],
            nudge=14.0 * ([*MARKS].index(row["attacker"]) - 2.5),
        )
        for row in records
        if row["attacker"] in MARKS
    ]
    ticks = [value for value in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if value < most]
    axes = (
        Axis("auxiliary rows", ROWS, across),
        Axis("percent of the gap above the optimum (dashed: the mean of the label)", ticks, up),
    )
    told = "; ".join(
        f"{row['attacker']}, {row['rows']} rows, {100 * row['above_optimum']:.1f} %"
        for row in records
    )
    return plane_chart(
        name.replace(" ", "-"),
        name,
        f"Scores: {name}. Percent of the gap above the optimum: {told}.",
        points,
        axes,
        lowest=FLOOR,
        size=(WIDTH, HEIGHT),
        levels=[Level("", 100.0)],
        numbers=listing(records),
        legend=[
            Legend(mark, "strong" if name == "stack" else "plain", name)
            for name, mark in MARKS.items()
        ],
    )


def main() -> None:
    """Attack all cases, print, and write records and a picture if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=750, help="least steps of a training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    parser.add_argument("--picture", type=Path, default=None, help="picture, .svg")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, records = Console(width=120), list[Row]()
    place = origin(ATTACKS)
    cases = [Case(name, torch.Generator().manual_seed(options.seed)) for name in CASES]
    for case, rows in itertools.product(cases, options.rows):
        made = list(attack(case, rows, options.steps, options.seed))
        records += [{**row, **place} for row in made]
        shares = ", ".join(f"{row['attacker']} {100 * row['above_optimum']:.1f}" for row in made)
        seconds = made[0]["processor_seconds_of_all"]
        console.print(f"{case.name}, {rows} rows: {shares} ({seconds:.0f} s)")
        if options.out is not None:
            write_json_lines(options.out, records)
    if options.picture is not None:
        charts = [chart(name, [row for row in records if row["case"] == name]) for name in CASES]
        write_charts(options.picture, "How far from the optimum attackers end", charts)


if __name__ == "__main__":
    main()
