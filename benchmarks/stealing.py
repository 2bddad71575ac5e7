"""How well thieves copy a model through each release, with 100 to 2,000 queries.

Two classifiers of digits, and a logistic regression on scikit-learn's breast cancer table, whose
rows are repeated with noise until thieves have enough. Public inputs of another kind are cut from
scikit-learn's two photographs.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from presets import trained
from rich.console import Console
from sklearn.datasets import load_breast_cancer, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import minmax_scale
from torch import Tensor, nn

import oneway
from oneway.auditing import AuditTarget
from oneway.auditing.stealing import StealingAudit, StealingSettings
from oneway.contracts import Defense
from oneway.defenses.rounding import Rounding
from oneway.defenses.top_rounding import TopRounding
from oneway.evaluation import Store
from oneway.evaluation.store import write_json_lines
from oneway.targets import TorchTarget

NOISE = 0.05
"""Standard deviation of the noise on repeated rows, of entries in [0, 1]."""


def photographs(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Return ``(count, 1, side, side)`` grey pieces of photographs, in [0, 1]."""
    images = [torch.tensor(one).double().mean(-1) / 255 for one in load_sample_images().images]
    pieces = []
    for number in range(count):
        image = images[number % len(images)]
        ends = [size - 2 * side for size in image.shape]
        top, left = (int(torch.randint(end, (), generator=generator)) for end in ends)
        pieces.append(image[top : top + 2 * side : 2, left : left + 2 * side : 2])
    return torch.stack(pieces).unsqueeze(1).float()


def cancer(rows: int) -> AuditTarget:
    """Return a logistic regression, with noisy copies of other rows for thieves."""
    values, labels = load_breast_cancer(return_X_y=True)
    inputs, labels = torch.tensor(minmax_scale(values)).float(), torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(inputs), generator=generator)
    inputs, labels = inputs[order], labels[order]
    model = LogisticRegression(C=100, max_iter=5000).fit(inputs[:150].numpy(), labels[:150].numpy())
    linear = nn.Linear(inputs.shape[1], 2)
    weights = torch.tensor(model.coef_[0]).float() / 2
    with torch.no_grad():
        linear.weight.copy_(torch.stack([-weights, weights]))
        linear.bias.copy_(torch.tensor([-1, 1]) * float(model.intercept_[0]) / 2)
    own = inputs[150:350].repeat(-(-rows // 200), 1)[:rows]
    own = (own + NOISE * torch.randn(own.shape, generator=generator)).clamp(0, 1)
    return AuditTarget(TorchTarget(linear.eval()), own, inputs[350:], labels=labels[350:])


def digits(preset: str, cache: Path) -> AuditTarget:
    """Return a leaderboard preset's target with its images."""
    target, splits = trained(preset, cache)
    return AuditTarget(
        target, splits.auxiliary_images, splits.test_images, labels=splits.test_labels
    )


def releases(audited: AuditTarget) -> Mapping[str, Defense]:
    """Return guards by name; codebooks are fitted to the auxiliary rows."""
    logits = audited.target.logits(audited.auxiliary)  # type: ignore[attr-defined]
    fitted = partial(
        oneway.fit_codebook, logits, audited.auxiliary, outputs="logits", min_members=20
    )
    return {
        "rounding, 1 decimal": Rounding(decimals=1),
        "top 1, 1 decimal": TopRounding(count=1, decimals=1),
        "codebook, 20 members": fitted(),
        "codebook, 20 members, median, rate .1": fitted(center="median", rate_weight=0.1),
    }


def main() -> None:
    """Steal, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits", "smoothed", "cancer"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[100, 400, 2000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    settings = StealingSettings(tuple(options.budgets), options.seeds, options.steps)
    records, console, store = [], Console(width=200), Store(options.cache)
    most = max(options.budgets)
    for name in options.data:
        audited = cancer(max(4000, most)) if name == "cancer" else digits(name, options.cache)
        generator = torch.Generator().manual_seed(0)
        shape = audited.test.shape[1:]
        public = photographs(most, shape[-1], generator) if len(shape) == 3 else None
        beside = None
        for label, guard in releases(audited).items():
            guarded = AuditTarget(
                audited.target, audited.auxiliary, audited.test, audited.labels, guard=guard
            )
            audit = StealingAudit(guarded, store, settings, public=public, beside=beside)
            beside = audit
            record = audit.run().to_json() | {"data": name, "release": label}
            records.append(record)
            for row in record["budgets"]:
                console.print(name, label, row["budget"], row["gain"], row["gap"], row["verdict"])
            if options.out is not None:
                write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
