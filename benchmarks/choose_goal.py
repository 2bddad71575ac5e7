"""Releases chosen to hide members, queries or both.

They are chosen on one half of members and non-members, and audited for membership on the other. A
network is trained until it fits its rows closely; the codebook at its defaults stands beside.
It needs mnist.npz in ``--data-root``.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from membership import LOSS, load
from torch import Tensor

import oneway
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.auditing.membership import MembershipAudit, MembershipSettings
from oneway.auditing.references import Candidates, train_reference
from oneway.contracts import Defense
from oneway.defenses.codebook import CodebookRelease
from oneway.evaluation import ReleaseSpec, Store
from oneway.evaluation.records import json_values, origin
from oneway.evaluation.store import write_json_lines
from oneway.interface.threats import GOALS, Goal
from oneway.targets import TorchTarget

PARTS = ("members", "non_members", "other members", "other non-members", "own", "queries")

ROWS, MEMBERS = 3000, 20
"""Most rows that are used, and least members of the candidate codebooks."""

Parts = dict[str, tuple[Tensor, Tensor]]


def parts_of(root: Path) -> Parts:
    """Return images with labels: two lots of members and non-members, the attacker's, queries."""
    inputs, labels, _ = load("mnist", root, ROWS)
    lot = len(inputs) // 10  # queries are the rest: some of them certify
    sizes = [lot] * 5 + [len(inputs) - 5 * lot]
    pairs = zip(inputs.split(sizes), labels.split(sizes), strict=True)
    return dict(zip(PARTS, pairs, strict=True))


def row_of(
    name: str, guard: Defense, parts: Parts, target: TorchTarget, audit: MembershipAudit
) -> dict[str, Any]:
    """Return what a release hides of members that did not choose it, and what it moves."""
    queries = parts["queries"][0]
    clean = target.logits(queries).double().softmax(-1)
    released = oneway.DefendedTarget(target, guard)(queries).double()
    row: dict[str, Any] = {"l1": float((clean - released).abs().sum(-1).mean())}
    for measure, gap in audit.measured(ReleaseSpec(name, "none"), guard).gaps().items():
        for side in ("clean", "released", "label"):
            row[f"{measure}_{side}"] = 100 * getattr(gap, side).estimate
        closed = gap.closed
        row[f"{measure}_gap"] = "none"
        if closed is not None:
            row[f"{measure}_gap"] = f"{closed.estimate:.2f} ({closed.low:.2f} to {closed.high:.2f})"
    return row


def defaults(parts: Parts, target: TorchTarget, audit: MembershipAudit) -> dict[str, Any]:
    """Return the row of a codebook at its defaults."""
    queries = parts["queries"][0]
    generator = torch.Generator().manual_seed(0)
    plain = CodebookRelease.fit(target.logits(queries), queries, generator=generator)
    row = row_of("defaults", plain, parts, target, audit)
    return {"goal": "none: the defaults", "release": "codebook", **row}


def chosen(
    goals: Sequence[Goal], parts: Parts, target: TorchTarget, audit: MembershipAudit
) -> list[dict[str, Any]]:
    """Return a row for the release of each goal."""
    queries, rows = parts["queries"][0], []
    for goal in goals:
        names = () if goal == "inversion" else ("members", "non_members")
        data: dict[str, Any] = {name: parts[name] for name in names}
        data |= {"attacker_data": parts["own"]} if names else {}
        begin = time.process_time()
        with TemporaryDirectory() as folder:
            choice = oneway.choose(
                target.module,
                queries,
                outputs="logits",
                goal=goal,
                min_members=[MEMBERS],
                cache=folder,
                **data,
            )
        seconds, best = time.process_time() - begin, choice.candidate
        options = [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in best.options.items()
        ]
        rows.append(
            {
                "goal": goal,
                "release": ", ".join([best.defense, *options]),
                "processor_seconds": seconds,
                **row_of(goal, choice.guard, parts, target, audit),
            }
        )
    return rows


def main() -> None:
    """Choose, audit, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--goals", nargs="*", choices=GOALS, default=list(GOALS))
    parser.add_argument("--defaults", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    parts = parts_of(options.data_root)
    images, labels = (
        torch.cat(each) for each in zip(parts["members"], parts["other members"], strict=True)
    )
    torch.manual_seed(0)
    network = train_reference(
        images,
        labels,
        int(labels.max()) + 1,
        loss=LOSS["mnist"],
        generator=torch.Generator().manual_seed(0),
    )
    target = TorchTarget(network)
    others = Candidates.of(parts["other members"], parts["other non-members"], parts["own"])
    with TemporaryDirectory() as folder:
        audit = MembershipAudit(
            target, others, MembershipSettings(references=8, copies=0), Store(Path(folder))
        )
        rows = [defaults(parts, target, audit)] if options.defaults else []
        rows += chosen(options.goals, parts, target, audit)
    place = {"command": "python benchmarks/choose_goal.py", **origin(MEMBERSHIP_ATTACKS)}
    for row in rows:
        print(row)
    if options.out is not None:
        write_json_lines(options.out, [json_values({**row, **place}) for row in rows])


if __name__ == "__main__":
    main()
