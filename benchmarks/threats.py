"""What releases do against three threats, on one target each: inversion, membership, stealing.

A case is a data set, and how closely its network fits: it is overfitted, or generalises. Each seed
of a case draws its own members, non-members and attackers' rows, and trains its own target and
reference models, which serve all releases. A record is one release on one target, with resampled
values of every measure; those of the same options and of today's attackers are not measured again.
``--board`` composes one row per case and release from all seeds.

Inversion is attacked by ``cell-means`` and ``kernel-ridge`` alone: a network may read more.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import minmax_scale
from torch import Tensor, nn

from oneway.attacks import inversion_attacks
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.attacks.stealing import STEALING_ATTACKS
from oneway.auditing import AuditTarget
from oneway.auditing.membership import MembershipAudit, MembershipSettings
from oneway.auditing.references import Candidates, train_reference
from oneway.auditing.stealing import CLEAN, LABEL, RELEASED, StealingAudit, StealingSettings
from oneway.benchmark.summary import estimate
from oneway.contracts import AttackerKnowledge, Defense
from oneway.defenses import build_defense, needs_surrogate
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.evaluation import ReleaseSpec, Store
from oneway.evaluation.grading import run_attack
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import json_values, origin, outdated, packed, unpacked
from oneway.evaluation.store import fingerprint, read_json_lines, write_json_lines
from oneway.inversion import HELD_OUT, build_inverter, held_out_rows, train_inverter
from oneway.metrics import Interval
from oneway.metrics.membership import (
    membership_gap,
    over_models,
    percentile_interval,
    resampled_counts,
)
from oneway.releases import guarded_release
from oneway.report.page.charts import (
    HEIGHT,
    WIDTH,
    Chart,
    Legend,
    Level,
    Point,
    change_axis,
    gap_axis,
    plane_chart,
)
from oneway.report.page.render import write_charts
from oneway.report.table import Column, Listing
from oneway.targets import TorchTarget

UNCERTIFIED = {"held_out": 0.0}
"""Options of codebooks: all queries are fitted to, so that few are enough."""

RELEASES = (
    ReleaseSpec("rounding, 1 decimal", "rounding", {"decimals": 1}),
    ReleaseSpec("codebook, 20 members", "codebook", UNCERTIFIED),
    ReleaseSpec(
        "codebook, 20 members, median, rate .1",
        "codebook",
        {**UNCERTIFIED, "center": "median", "rate_weight": 0.1},
    ),
    ReleaseSpec("top 1", "top-k", {"count": 1}),
    ReleaseSpec("ModelGuard-W, 1", "modelguard-w", {}),
    ReleaseSpec("ModelGuard-S, 1, fitted", "modelguard-s", {"grows": False}),
    ReleaseSpec("HAMP, output half", "hamp", {}),
    ReleaseSpec("adversarial noise, .4", "adversarial-noise", {"step_size": 0.4, "steps": 10}),
    ReleaseSpec("ModelGuard-S, 1, as published", "modelguard-s", {}),
    ReleaseSpec("MemGuard, .5", "memguard", {"hidden": 64}),
)
"""In order of value: what is not measured in time is last."""

FITS = {"overfitted": 0.005, "generalising": 0.3}
"""Mean training loss at which training ends."""

ROWS = {"mnist": 4000, "faces": 3600}
"""Rows that are drawn from larger sets."""

BUDGET, STEPS = 200, 200
"""A thief's queries, and least training steps."""

INVERTERS = ("cell-means", "kernel-ridge")
ATTACKERS = (*INVERTERS, *MEMBERSHIP_ATTACKS, *STEALING_ATTACKS)

Row = dict[str, Any]


@dataclass(frozen=True)
class Reached:
    """What the strongest attack reaches by one measure.

    Attributes:
        attack: Its name; it begins with ``label`` if it reads the label alone.
        values: ``(1 + R)``: the value, then resampled values, on the same draws for all releases.
    """

    attack: str
    values: Tensor


def load(data: str, root: Path) -> tuple[Tensor, Tensor]:
    """Return rows of a data set, flat and in [0, 1], with their labels."""
    if data == "digits":
        values, labels = load_digits(return_X_y=True)
        return torch.tensor(values / 16).float(), torch.tensor(labels)
    if data == "cancer":
        values, labels = load_breast_cancer(return_X_y=True)
        return torch.tensor(minmax_scale(values)).float(), torch.tensor(labels)
    file = {"mnist": "mnist.npz", "faces": "glint_celebs24_grey64.npz"}[data]
    with np.load(root / file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = order[: ROWS[data]].numpy()
    inputs = torch.from_numpy(images[rows]).float().unsqueeze(1) / 255
    if data == "faces":
        inputs = nn.functional.avg_pool2d(inputs, 2)
    return inputs.flatten(1), torch.from_numpy(labels[rows])


class Case:
    """One target, its attackers, and what they reach on each release."""

    def __init__(self, data: str, fit: str, seed: int, root: Path) -> None:
        """Draw rows, and train the target and its reference models."""
        inputs, labels = load(data, root)
        stream = Stream(seed, f"{data}, {fit}")
        self.seed, self.loss = seed, FITS[fit]
        order = torch.randperm(len(inputs), generator=stream.generator())
        inputs, labels = inputs[order], labels[order]
        side = 3 * len(inputs) // 10
        self.rows = Candidates.of(
            *((inputs[part], labels[part]) for part in _thirds(side, len(inputs)))
        )
        members = self.rows.members
        self.private, self.queries = self.rows.inputs[members], self.rows.inputs[~members]
        self.query_labels = self.rows.labels[~members]
        classes = int(labels.max()) + 1
        network = Stream(seed, f"{data}, {fit}, target").call(
            lambda: self.train(self.private, self.rows.labels[members], classes), inputs.device
        )
        self.target = TorchTarget(network)
        self.counts = resampled_counts(len(self.queries), stream.generator())
        self.folder = TemporaryDirectory()
        self.store = Store(Path(self.folder.name))
        self.guards = dict[str, Defense]()

    def train(self, inputs: Tensor, labels: Tensor, classes: int) -> nn.Module:
        """Train a network down to the case's loss."""
        generator = torch.Generator().manual_seed(int(fingerprint(inputs, labels)[:8], 16))
        return train_reference(inputs, labels, classes, loss=self.loss, generator=generator)

    @cached_property
    def accuracy(self) -> tuple[float, float]:
        """Share of right labels among members, and among others."""
        right = self.target(self.rows.inputs).argmax(-1) == self.rows.labels
        sides = (self.rows.members, ~self.rows.members)
        members, others = (float(right[side].double().mean()) for side in sides)
        return members, others

    @cached_property
    def membership(self) -> MembershipAudit:
        """Reference models, and attacks on clean scores and on the label."""
        settings = MembershipSettings(
            references=4, copies=0, controls=False, seed=self.seed, train=self.train
        )
        return MembershipAudit(self.target, self.rows, settings, self.store)

    @cached_property
    def surrogate(self) -> nn.Module:
        """The defender's inverter, trained on clean scores of the attackers' rows."""
        own = self.rows.population
        scores = self.target(own)
        stream = Stream(self.seed, "surrogate")

        def trained() -> nn.Module:
            network = build_inverter(scores.shape[-1], own.shape[1:])
            train_inverter(network, scores, own, generator=stream.generator())
            return network.eval()

        return stream.call(trained, own.device)

    def guard(self, spec: ReleaseSpec) -> Defense:
        """Return a fitted defense, which remembers no answers."""
        known = self.guards.get(spec.name)
        if known is not None and not getattr(known, "remembers", False):
            return known
        if needs_surrogate(spec.defense):
            guard = build_defense(spec.defense, spec.options, self.surrogate)
        else:
            audit = self.membership
            guard = audit.fit(spec, audit.target, self.rows.members, "release")
        self.guards[spec.name] = guard
        return guard

    def attacked(
        self, spec: ReleaseSpec
    ) -> Iterator[tuple[str, Mapping[str, Reached], float | None]]:
        """Yield what attacks reach on a release by each measure; first, on baselines as well.

        Each comes with its L1; None for the label alone, which is no vector of probabilities.
        """
        parts = (self.invert(spec), self.infer(spec), self.steal(spec))
        l1 = {CLEAN: 0.0, RELEASED: self._l1(self.guard(spec))}
        for name in (CLEAN, LABEL, RELEASED):
            reached = {measure: each for part in parts for measure, each in part[name].items()}
            yield name, reached, l1.get(name)

    def _l1(self, guard: Defense) -> float:
        clean = self._released(Identity(), self.queries)
        return float((self._released(guard, self.queries) - clean).abs().sum(-1).mean())

    def _released(self, guard: Defense, inputs: Tensor) -> Tensor:
        logits = self.target.logits(inputs)
        return guarded_release(guard, logits, inputs).confidences

    @cached_property
    def _inverted(self) -> dict[str, Mapping[str, Reached]]:
        label = self._invert(LABEL, LabelOnly())
        return {LABEL: label, CLEAN: _better(self._invert(CLEAN, Identity()), label)}

    def invert(self, spec: ReleaseSpec) -> dict[str, Mapping[str, Reached]]:
        """Return what attackers reconstruct of queries that the target was not trained on."""
        released = self._invert(RELEASED, self.guard(spec))
        return {**self._inverted, RELEASED: _better(released, self._inverted[LABEL])}

    def _invert(self, name: str, guard: Defense) -> dict[str, Reached]:
        own = self.rows.population
        held_out = held_out_rows(len(own), HELD_OUT, Stream(self.seed, "held out").generator())
        knowledge = AttackerKnowledge(own, None, self._released(guard, own), held_out)
        released = self._released(guard, self.queries)
        reached = []
        for attack in INVERTERS:
            found = run_attack(
                attack,
                inversion_attacks()[attack],
                knowledge,
                _train_nothing,
                released,
                self.queries,
            )
            assert found is not None
            values = -(self.counts @ found.errors.double()) / self.counts.sum(-1)
            reached.append(Reached(f"{name}: {attack}", values))
        return {"inversion": _strongest(reached)}

    def infer(self, spec: ReleaseSpec) -> dict[str, Mapping[str, Reached]]:
        """Return how well attackers tell members from others."""
        found = self.membership.measured(spec, self.guard(spec))
        names = {CLEAN: "clean", LABEL: "label only", RELEASED: "release"}
        return {
            name: {
                measure: _strongest(
                    [
                        Reached(attack, getattr(each.measures, field))
                        for attack, each in found.offered(ladder).items()
                    ]
                )
                for measure, field in (("membership", "area"), ("low", "low"))
            }
            for name, ladder in names.items()
        }

    def steal(self, spec: ReleaseSpec) -> dict[str, Mapping[str, Reached]]:
        """Return the share of queries on which copies have the target's label."""
        audited = AuditTarget(
            self.target,
            self.rows.population,
            self.queries,
            self.query_labels,
            release=spec,
            guard=self.guard(spec),
        )
        settings = StealingSettings(budgets=(BUDGET,), seeds=1, steps=STEPS)
        audit = StealingAudit(audited, self.store, settings)
        audit.run()
        reached: dict[str, Mapping[str, Reached]] = {
            name: {
                "stealing": self._stolen(
                    [copies for (release, _, _), copies in audit.stolen.items() if release == name],
                    name,
                )
            }
            for name in (CLEAN, LABEL, RELEASED)
        }
        for name in (CLEAN, RELEASED):
            reached[name] = _better(reached[name], reached[LABEL])
        return reached

    def _stolen(self, seeds: Sequence[Mapping[str, Any]], name: str) -> Reached:
        best = [max(copies.items(), key=lambda each: each[1].fidelity) for copies in seeds]
        agrees = torch.stack([copy.agrees for _, copy in best]).mean(0)
        return Reached(f"{name}: {best[0][0]}", self.counts @ agrees / self.counts.sum(-1))


def _thirds(side: int, rows: int) -> tuple[slice, slice, slice]:
    return slice(side), slice(side, 2 * side), slice(2 * side, rows)


def _strongest(reached: Sequence[Reached]) -> Reached:
    return max(reached, key=lambda each: float(each.values[0]))


def _better(reached: Mapping[str, Reached], label: Mapping[str, Reached]) -> dict[str, Reached]:
    """Return what an attacker reaches who may read the label alone, by each measure."""
    return {name: _strongest([label[name], each]) for name, each in reached.items()}


def _train_nothing(*_: Tensor) -> nn.Module:
    raise AssertionError("these attackers train no decoder")


def measure(options: argparse.Namespace) -> None:
    """Measure each release on each target, and write each record when it is done."""
    stored = read_json_lines(options.out)
    records = of_today(stored)
    done = {(row["data"], row["fit"], row["seed"], row["release"]): row for row in records}
    for seed in options.seeds:
        for data, fit in (case.split("-") for case in options.cases):
            case: Case | None = None
            for spec in RELEASES:
                if (data, fit, seed, spec.name) in done or spec.name not in options.releases:
                    continue
                begin = time.process_time()
                case = case or Case(data, fit, seed, options.data_root)
                for name, reached, l1 in case.attacked(spec):
                    release = spec.name if name == RELEASED else name
                    known = done.get((data, fit, seed, release))
                    if known is not None:
                        check_target(known, reached)
                        continue
                    row: Row = {"data": data, "fit": fit, "seed": seed, "release": release}
                    row |= {"options": dict(spec.options) if name == RELEASED else {}, "l1": l1}
                    row["accuracy"] = case.accuracy
                    for measured, each in reached.items():
                        row[measured] = {
                            "attack": each.attack,
                            "value": float(each.values[0]),
                            "resampled": packed(each.values[1:]),
                        }
                    row["processor_seconds"] = time.process_time() - begin
                    row |= origin(ATTACKERS)
                    records.append(json_values(row))
                    done[data, fit, seed, release] = records[-1]
                write_json_lines(options.out, with_older(records, stored))
                print(
                    data, fit, seed, spec.name, f"{time.process_time() - begin:.1f} s", flush=True
                )


def of_today(stored: Sequence[Row]) -> list[Row]:
    """Return the records that today's attackers made, of releases with these options."""
    options = {spec.name: dict(spec.options) for spec in RELEASES}
    return [
        row
        for row in stored
        if not outdated(row.get("numerics", {}), ATTACKERS)
        and row["options"] == options.get(row["release"], {})
    ]


def with_older(records: Sequence[Row], stored: Sequence[Row]) -> list[Row]:
    """Return today's records, and the stored ones of targets that are not measured again yet."""
    renewed = set(map(_target, records))
    return [*records, *(row for row in stored if _target(row) not in renewed)]


def _target(row: Row) -> tuple[str, str, int]:
    return row["data"], row["fit"], row["seed"]


def check_target(known: Row, reached: Mapping[str, Reached]) -> None:
    """Refuse to put a release beside baselines of another target.

    Args:
        known: The record of a baseline in the file.
        reached: What attacks reach on the same baseline now.

    Raises:
        SystemExit: They differ, since the code or the machine is another.
    """
    for measured, each in reached.items():
        now, then = float(each.values[0]), known[measured]["value"]
        if not math.isclose(now, then, rel_tol=1e-6, abs_tol=1e-9):
            case = f"{known['data']}-{known['fit']}, seed {known['seed']}"
            raise SystemExit(
                f"{case}: the file must hold {measured} of {known['release']} on the same target, "
                f"{now:.6g}, but holds {then:.6g} of commit {known['commit'][:7]}. Pass another "
                "--out, and measure all releases of this seed anew."
            )


NOTHING, FAILED = "nothing to defend", "attack failed"

DRAWN = {
    "rounding, 1 decimal": "rounding",
    "codebook, 20 members": "codebook",
    "codebook, 20 members, median, rate .1": "codebook, median",
    "top 1": "top 1",
    "ModelGuard-W, 1": "ModelGuard-W",
    "ModelGuard-S, 1, fitted": "ModelGuard-S",
    "HAMP, output half": "HAMP",
    "adversarial noise, .4": "paper's noise",
    "MemGuard, .5": "MemGuard",
}
"""Releases of the picture, by their short names."""

LOWEST = -0.25
"""Least gap that is drawn where it is."""

SHOWN = {
    "inversion": (-1, 4),
    "membership": (100, 1),
    "low": (100, 1),
    "stealing": (100, 1),
}
"""Measures: what the board multiplies each with, and its decimals.

More of a measure is a better attack: negative mean squared error, AUC, true positive rate at 1 %,
fidelity.
"""


def board(records: Sequence[Row]) -> Iterator[Row]:
    """Yield a row for each release of each case, over all its seeds."""
    cells = {(row["data"], row["fit"], row["seed"], row["release"]): row for row in records}
    defenses = {CLEAN: "none", LABEL: "label-only"} | {spec.name: spec.defense for spec in RELEASES}
    for data, fit in dict.fromkeys((row["data"], row["fit"]) for row in records):
        for release, defense in defenses.items():
            seeds = [key[2] for key in cells if key[:2] == (data, fit) and key[3] == release]
            if not seeds:
                continue
            beside = [
                [cells[data, fit, seed, name] for seed in seeds] for name in (CLEAN, LABEL, release)
            ]
            own = beside[-1]
            row: Row = {"data": f"{data}-{fit}", "release": release, "defense": defense}
            l1 = None if release == LABEL else estimate([each["l1"] for each in own])
            row |= {
                "seeds": len(seeds),
                "l1": l1 and l1.mean,
                "l1_half_width": l1 and l1.half_width,
            }
            row["accuracy"] = " and ".join(
                f"{100 * sum(sides) / len(own):.1f}"
                for sides in zip(*(each["accuracy"] for each in own), strict=True)
            )
            for measured, (scale, decimals) in SHOWN.items():
                clean, label, released = (
                    _over_seeds([each[measured] for each in rows]) for rows in beside
                )
                failed = release != LABEL and all(
                    each[measured]["attack"].startswith("label") for each in own
                )
                row |= _columns(measured, clean, label, released, failed=failed)
                interval = percentile_interval(released)
                row |= _with_half_width(measured, interval)
                ends = sorted(scale * end for end in asdict(interval).values())
                row[f"{measured}_shown"] = (
                    f"{ends[1]:.{decimals}f} ({ends[0]:.{decimals}f} to {ends[2]:.{decimals}f})"
                )
            row["commit"] = ", ".join(sorted({each["commit"] for each in own}))
            row["numerics"] = _oldest(
                [each.get("numerics", {}) for rows in beside for each in rows]
            )
            yield row


def _oldest(numerics: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the oldest version of each attacker in some records; 0 if one of them lacks it."""
    names = sorted(set().union(*numerics))
    return {name: min(each.get(name, 0) for each in numerics) for name in names}


def _over_seeds(measured: Sequence[Row]) -> Tensor:
    """Return the mean over seeds, then means of resampled seeds and candidates."""
    values = [
        torch.cat([torch.tensor([each["value"]]), torch.tensor(unpacked(each["resampled"]))])
        for each in measured
    ]
    return over_models([each.double() for each in values], torch.Generator().manual_seed(0))


def _columns(measured: str, clean: Tensor, label: Tensor, released: Tensor, *, failed: bool) -> Row:
    """Return the closed gap of a measure, as numbers and as the board shows it."""
    leak = percentile_interval(clean - label)
    if leak.low <= 0:
        return {f"G_{measured}": NOTHING}
    if failed:
        return {f"G_{measured}": FAILED}
    gap = percentile_interval(membership_gap(clean, released, label))
    shown = f"{gap.estimate:.2f} ({gap.low:.2f} to {gap.high:.2f})"
    return {f"G_{measured}": shown, **_with_half_width(f"gap_{measured}", gap)}


def _with_half_width(name: str, interval: Interval) -> Row:
    """Return the middle and half the width of an interval, for claims; none if it has no end."""
    half = (interval.high - interval.low) / 2
    if not math.isfinite(half):
        return {}
    return {name: interval.low + half, f"{name}_half_width": half}


def chart(rows: Sequence[Row]) -> Chart:
    """Return the chart of a case: what releases hide of members, against what of queries.

    Args:
        rows: Rows of the board, of one case; those without a gap to close are left out.
    """
    points = []
    for row in rows:
        hidden = [
            1.0 if row[f"G_{measured}"] == FAILED else row.get(f"gap_{measured}", math.nan)
            for measured in ("inversion", "membership")
        ]
        if row["release"] not in DRAWN or math.isnan(sum(hidden)):
            continue
        half = row.get("gap_membership_half_width")
        points.append(
            Point(
                row["release"],
                max(hidden[0], 0.0),
                hidden[1],
                low=None if half is None else hidden[1] - half,
                high=None if half is None else hidden[1] + half,
                on=row["defense"] == "codebook",
                label=DRAWN[row["release"]],
                shape="at least" if FAILED in (row["G_inversion"], row["G_membership"]) else "disc",
            )
        )
    axes = (
        change_axis("G, inversion: what is hidden of queries", points, WIDTH, spare=0.12),
        gap_axis("G, membership (AUC): what is hidden of members", LOWEST, HEIGHT),
    )
    described = "; ".join(f"{each.name}: {each.across:.2f} and {each.up:.2f}" for each in points)
    columns = {
        name: Column(itemgetter(name)) for name in ("release", "G_inversion", "G_membership")
    }
    case = rows[0]["data"]
    return plane_chart(
        case,
        f"{case}, {min(row['seeds'] for row in rows)} seeds",
        f"Releases on {case}, hidden of queries and of members. {described}.",
        points,
        axes,
        lowest=LOWEST,
        levels=[Level("as good as the label alone", 1), Level("clean scores", 0)],
        numbers=Listing(case, columns, rows),
        legend=[
            Legend("disc", "plain", "a release, with its 95 % interval"),
            Legend("at least", "plain", "one on which every attack failed in a threat, drawn at 1"),
        ],
    )


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw the overfitted cases that are worth defending against both threats."""
    charts = []
    for case in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == case]
        defended = NOTHING not in {row["G_membership"] for row in own}
        if defended and case.endswith("overfitted"):
            charts.append(chart(own))
    write_charts(path, "What hides queries need not hide members", charts)


def main() -> None:
    """Measure what the file lacks, compose the board, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    cases = [f"{data}-{fit}" for data in ("digits", "cancer", "mnist", "faces") for fit in FITS]
    parser.add_argument("--cases", nargs="+", choices=cases, default=["digits-overfitted"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    names = [spec.name for spec in RELEASES]
    parser.add_argument("--releases", nargs="+", choices=names, default=names)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("results/bench-threats.jsonl"))
    parser.add_argument("--board", type=Path, help="compose this file, and measure nothing")
    parser.add_argument("--picture", type=Path, help="draw the board to this file, .svg")
    options = parser.parse_args()
    if options.board is None:
        measure(options)
        return
    rows = list(board(read_json_lines(options.out)))
    write_json_lines(options.board, rows)
    if options.picture is not None:
        draw(options.picture, rows)


if __name__ == "__main__":
    main()
