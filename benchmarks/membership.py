"""Membership inference through releases: what attackers reach, and how much of the gap is closed.

Targets are trained on random halves of the same candidates until they fit them closely, and are
attacked by the same reference models. Measures are means over targets; their intervals resample
candidates and targets. ``--data mnist`` needs mnist.npz in ``--data-root`` and trains overfitted
targets; ``--data digits`` takes the digits that scikit-learn carries.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.auditing.membership import MembershipAudit, MembershipSettings
from oneway.auditing.references import Candidates, train_reference
from oneway.contracts import Target
from oneway.evaluation import ReleaseSpec, Store
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import json_values, origin
from oneway.evaluation.store import fingerprint, write_json_lines
from oneway.metrics.membership import membership_gap, over_models, percentile_interval
from oneway.targets import TorchTarget

RELEASES = (
    ReleaseSpec("codebook, 20 members", "codebook", {}),
    ReleaseSpec("codebook, median, rate .1", "codebook", {"center": "median", "rate_weight": 0.1}),
    ReleaseSpec("MemGuard, .5", "memguard", {}),
)
LOSS = {"mnist": 0.005, "digits": 0.005}
"""Mean training loss at which training ends."""

Row = dict[str, Any]


def load(data: str, root: Path, most: int = 1800) -> tuple[Tensor, Tensor, int]:
    """Return inputs in [0, 1], labels, and the number of candidates; the rest is population."""
    if data == "mnist":
        with np.load(root / "mnist.npz") as arrays:
            images, labels = arrays["images"], arrays["labels"]
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:most]
        inputs = torch.from_numpy(images[rows.numpy()]).float().unsqueeze(1) / 255
        return inputs, torch.from_numpy(labels[rows.numpy()]), 1200
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
    inputs = torch.from_numpy(digits.data / 16).float()[rows]
    return inputs, torch.from_numpy(digits.target.astype(np.int64))[rows], 1200


class Workshop:
    """Trains each network once, whoever asks for it."""

    def __init__(self, loss: float) -> None:
        """Train down to a mean loss."""
        self.loss, self.made = loss, dict[str, nn.Module]()

    def __call__(self, inputs: Tensor, labels: Tensor, classes: int) -> nn.Module:
        """Return the network of these rows."""
        key = fingerprint(inputs, labels)
        if key not in self.made:
            generator = torch.Generator().manual_seed(int(key[:8], 16))
            self.made[key] = train_reference(
                inputs, labels, classes, loss=self.loss, generator=generator
            )
        return self.made[key]


def audits(options: argparse.Namespace) -> Iterator[MembershipAudit]:
    """Yield the audit of each target."""
    inputs, labels, count = load(options.data, options.data_root)
    workshop = Workshop(LOSS[options.data])
    classes = int(labels.max()) + 1
    settings = MembershipSettings(
        references=options.references,
        copies=options.copies,
        controls=False,
        seed=options.seed,
        train=workshop,
    )
    for number in range(options.targets):
        stream = Stream(options.seed, f"target {number}")
        order = torch.randperm(count, generator=stream.generator())
        members = torch.zeros(count, dtype=torch.bool)
        members[order[: count // 2]] = True
        rows = Candidates(inputs[:count], labels[:count], members, inputs[count:], labels[count:])
        target: Target = TorchTarget(workshop(rows.inputs[members], rows.labels[members], classes))
        yield MembershipAudit(target, rows, settings, Store(Path("unused")))


def attack(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each release, over all targets."""
    targets = list(audits(options))
    generator = torch.Generator().manual_seed(options.seed)
    for spec in RELEASES:
        begin = time.process_time()
        found = [audit.measured(spec) for audit in targets]
        for measure in ("area", "low"):
            drawn, best = dict[str, Tensor](), dict[str, str]()
            for name in ("clean", "label only", "release"):
                offered = [each.offered(name) for each in found]
                draws = {
                    key: [getattr(each[key].measures, measure) for each in offered]
                    for key in offered[0]
                }
                best[name] = max(draws, key=lambda key: sum(float(v[0]) for v in draws[key]))
                drawn[name] = over_models(draws[best[name]], generator)
            clean, label, released = drawn.values()
            leak = percentile_interval(clean - label)
            gap = percentile_interval(membership_gap(clean, released, label))
            row: Row = {"release": spec.name, "measure": measure, "data": options.data}
            shown = {
                "clean": clean,
                "label_only": label,
                "released": released,
                "leak": clean - label,
            }
            for name, values in shown.items():
                interval = percentile_interval(values)
                row[name] = dataclasses.asdict(interval)
                row[f"{name}_percent"] = 100 * interval.estimate
                row[f"{name}_range"] = f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
            row["G"] = dataclasses.asdict(gap) if leak.low > 0 else None
            row["G_shown"] = (
                f"{gap.estimate:.2f} ({gap.low:.2f} to {gap.high:.2f})" if leak.low > 0 else "none"
            )
            row["attacks"] = best
            row["l1"] = sum(each.l1 for each in found) / len(found)
            row["accuracy"] = [each.accuracy for each in found]
            row["total_variation"] = [
                None if each.total_variation is None else dataclasses.asdict(each.total_variation)
                for each in found
            ]
            row["ladder"] = [
                {
                    "release": release,
                    "reference_release": known,
                    "attack": one.attack,
                    "estimate": float(getattr(one.measures, measure)[0]),
                }
                for each in found
                for release, ladders in each.ladders.items()
                for known, ladder in ladders.items()
                for one in ladder
            ]
            row["processor_seconds"] = time.process_time() - begin
            yield row


def main() -> None:
    """Attack all releases, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("mnist", "digits"), default="digits")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--targets", type=int, default=1)
    parser.add_argument("--references", type=int, default=6)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = {
        "targets": options.targets,
        "references": options.references,
        "copies": options.copies,
        "seed": options.seed,
        "command": (
            f"python benchmarks/membership.py --data {options.data} --copies {options.copies}"
        ),
        **origin(MEMBERSHIP_ATTACKS),
    }
    records = []
    for row in attack(options):
        records.append(json_values({**row, **place}))
        values = ", ".join(
            f"{name} {row[f'{name}_percent']:.1f}" for name in ("clean", "released", "label_only")
        )
        gap = "nothing to defend" if row["G"] is None else f"G {row['G']['estimate']:.2f}"
        print(
            f"{row['release']}, {row['measure']}: {values}; {gap}; L1 {row['l1']:.3f}", flush=True
        )
        if options.out is not None:
            write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
