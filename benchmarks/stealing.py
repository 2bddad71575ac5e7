"""How well thieves copy a model through each release, with 100 to 1,000 queries.

A network for scikit-learn's digits of 8x8 pixels, overfitted on 300 of them, and a logistic
regression on its breast cancer table, whose rows are repeated with noise until thieves have enough.
``--data`` takes presets of the leaderboard, too. Public inputs of another kind are cut from
scikit-learn's two photographs.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from presets import trained
from rich.console import Console
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import minmax_scale
from torch import Tensor, nn

import oneway
from oneway.attacks.stealing import STEALING_ATTACKS
from oneway.auditing import AuditTarget
from oneway.auditing.stealing import (
    CLEAN,
    LABEL,
    RELEASED,
    StealingAudit,
    StealingRecord,
    StealingSettings,
)
from oneway.contracts import Defense
from oneway.defenses.rounding import Rounding
from oneway.defenses.top_rounding import TopRounding
from oneway.evaluation import Store
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.targets import TorchTarget
from oneway.targets.networks import TargetTrainingSettings, train_target

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


def small_digits() -> AuditTarget:
    """Return a network with a hidden layer of 64, trained on 300 digits of 8x8 pixels."""
    values, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(values / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    images, labels = images[order], labels[order]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    settings = TargetTrainingSettings(epochs=40)
    train_target(network, images[:300], labels[:300], settings=settings, generator=generator)
    return AuditTarget(TorchTarget(network), images[300:1300], images[1300:], labels=labels[1300:])


def preset_digits(preset: str, cache: Path) -> AuditTarget:
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


def rows(record: StealingRecord) -> Iterator[dict[str, Any]]:
    """Yield a flat row for each budget."""
    for result in record.budgets:
        fidelities = {name: theft.fidelity for name, theft in result.thefts.items()}
        thieves = result.thefts[RELEASED].fidelities
        gap = result.gap
        yield {
            "budget": result.budget,
            "seeds": record.settings.seeds,
            "steps": record.settings.steps,
            "queries": record.queries,
            "clean": fidelities[CLEAN].estimate,
            "label": fidelities[LABEL].estimate,
            "released": fidelities[RELEASED].estimate,
            "gain": asdict(result.gain),
            "gap": "nothing to defend"
            if gap is None
            else f"{gap.estimate:.2f} ({gap.low:.2f} to {gap.high:.2f})",
            "thief": result.thefts[RELEASED].thief,
            "thieves": dict(thieves),
            "clean_score_error": result.thefts[CLEAN].score_error,
            "label_score_error": result.thefts[LABEL].score_error,
            "score_error": result.thefts[RELEASED].score_error,
            "verdict": result.verdict,
            **origin(STEALING_ATTACKS),
        }


def main() -> None:
    """Steal, print, and write records if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["small-digits", "cancer"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[100, 400, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    options = parser.parse_args()
    settings = StealingSettings(
        budgets=tuple(options.budgets), seeds=options.seeds, steps=options.steps
    )
    records, console, store = [], Console(width=200), Store(options.cache)
    most = max(options.budgets)
    own: Mapping[str, Callable[[], AuditTarget]] = {
        "small-digits": small_digits,
        "cancer": partial(cancer, max(4000, most)),
    }
    for name in options.data:
        audited = own[name]() if name in own else preset_digits(name, options.cache)
        generator = torch.Generator().manual_seed(0)
        shape = audited.test.shape[1:]
        public = photographs(most, shape[-1], generator) if len(shape) == 3 else None
        for label, guard in releases(audited).items():
            guarded = AuditTarget(
                audited.target, audited.auxiliary, audited.test, audited.labels, guard=guard
            )
            audit = StealingAudit(guarded, store, settings, public=public)
            for row in rows(audit.run()):
                records.append({"data": name, "release": label, **row})
                console.print(records[-1])
            if options.out is not None:
                write_json_lines(options.out, records)


if __name__ == "__main__":
    main()
