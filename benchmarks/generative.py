"""What generative attackers gain beside decoders: squared error, similarity and re-identification.

Each release is attacked by the attackers that minimise squared error, by the latent search and by
the generative inverter: a row for each release, with figures of each attacker's best reconstructor
on held-out images, and of single draws ("sample"). ``gain`` is what an attacker adds to the mixture
of the usual ones, as a share of the gap between the label and clean scores: at .01 it would join
the default attackers.
``sharpness`` is the mean absolute difference of neighbouring pixels, as a share of the true one.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from presets import RELEASES, SMALL, preset_data, preset_spec
from rich.console import Console
from torch import Tensor

from oneway.attacks import ATTACKS, InversionAttack
from oneway.benchmark.runner import Experiment, trained_target
from oneway.contracts import AttackerKnowledge, Reconstructor
from oneway.data import no_progress
from oneway.evaluation import ReleaseSpec, Store
from oneway.evaluation.attackers import PriorTrainer
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.inversion import AutoencoderSettings, non_negative_weights
from oneway.metrics import (
    FeatureRegression,
    PrincipalComponents,
    inversion_errors,
    rank_share,
    reidentification_ranks,
    structural_similarity,
)
from oneway.report.figure import draw_reconstructions
from oneway.targets import DefendedTarget

SIZES = {
    SMALL: (600, 700, 497),
    "digits": (2000, 2000, 1000),
    "smoothed": (2000, 2000, 1000),
    "faces": (5300, 2400, 1000),
}
"""Private images, auxiliary images and queries, with fewer decoders than in the leaderboard."""

SHOWN = 8
USUAL = ("label-only", "cell-means", "kernel-ridge", "retrained")
GENERATIVE = ("latent-search", "generative")
ROWS = 256
"""Queries that are reconstructed at once."""

FIELDS = str.maketrans("- ", "__", ",")
"""Makes names of fields of attackers' names."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """Reconstructions of the held-out auxiliary images and of the queries."""

    held_out: Tensor
    queries: Tensor


def experiment_of(preset: str, seed: int, cache: Path, data_root: Path | None) -> Experiment:
    """Return a preset of the leaderboard with these releases, cut down to a small machine."""
    spec = preset_spec(preset)
    private, auxiliary, test = SIZES[preset]
    data = replace(spec.data, private=private, auxiliary=auxiliary, test=test, calibration=0)
    attackers = replace(spec.attackers, input_transforms=("within-label",), most_epochs=32)
    spec = replace(spec, releases=RELEASES, seed=seed, data=data, attackers=attackers)
    images, others = preset_data(preset, spec, data_root)
    device = torch.device("cpu")
    return Experiment(spec, images, Store(cache), auxiliary_dataset=others, device=device)


def reconstruct(made: Reconstructor, released: Tensor) -> Tensor:
    """Return ``(N, ...)`` reconstructions from ``(N, K)`` released vectors."""
    parts = [made.reconstruct(rows.unsqueeze(0)) for rows in released.split(ROWS)]
    return torch.cat(parts)


def sharpness(images: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels."""
    return float((images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2)


class Judge:
    """Grades reconstructions of a data set's queries."""

    def __init__(self, experiment: Experiment) -> None:
        """Fit the embedder to the auxiliary images."""
        self.seed = experiment.spec.seed
        self.test = experiment.splits.test_images
        self.truth = experiment.splits.auxiliary_images[experiment.attackers.held_out]
        self.embedder = PrincipalComponents.fit(experiment.splits.auxiliary_images)

    def measures(self, made: Made) -> Row:
        """Return error, similarity, sharpness, and shares of re-identified queries."""
        ranks = reidentification_ranks(
            self.embedder,
            self.test,
            made.queries,
            gallery=len(self.test),
            generator=Stream(self.seed, "gallery").generator(),
            regression=FeatureRegression.fit(self.embedder, self.truth, made.held_out),
        )
        return {
            "error": float(self.errors(made).mean()),
            "ssim": float(structural_similarity(self.test, made.queries).mean()),
            "sharpness": sharpness(made.queries) / sharpness(self.test),
            "rank_1": rank_share(ranks, 1),
            "rank_5": rank_share(ranks, 5),
        }

    def errors(self, made: Made) -> Tensor:
        """Return ``(N)`` squared errors per pixel of the queries."""
        return inversion_errors(self.test, made.queries)

    def best(self, candidates: Mapping[str, Made]) -> str:
        """Return the name of the candidate with the lowest held-out error."""
        errors = {
            name: float(inversion_errors(self.truth, made.held_out).mean())
            for name, made in candidates.items()
        }
        return min(errors, key=lambda name: errors[name])

    def mixture(self, candidates: Sequence[Made]) -> Made:
        """Return the mixture that the stack makes of candidates."""
        stacked = torch.stack([made.held_out for made in candidates])
        weights = non_negative_weights(stacked, self.truth).float()
        parts = (
            torch.einsum("c,cn...->n...", weights, torch.stack(list(each))).clamp(0, 1)
            for each in zip(*((made.held_out, made.queries) for made in candidates), strict=True)
        )
        return Made(*parts)


def attack(
    experiment: Experiment,
    row: ReleaseSpec,
    clean: Tensor,
    target: Any,
    options: argparse.Namespace,
) -> dict[str, dict[str, Made]]:
    """Return the reconstructions of each attacker, by reconstructor."""
    fitted = experiment.defender.build(row, target, clean)
    attackers, splits = experiment.attackers, experiment.splits
    defended = DefendedTarget(target, fitted.defense)
    again = DefendedTarget(target, fitted.again("asked again"))
    knowledge = AttackerKnowledge(
        images=splits.auxiliary_images,
        clean=clean,
        released=defended(splits.auxiliary_images),
        held_out=attackers.held_out,
        query=again.repeated,
        random=not fitted.defense.deterministic,
        train_prior=PriorTrainer(
            experiment.store, experiment.spec.seed, AutoencoderSettings(epochs=options.epochs)
        ).autoencoder,
    )
    released = defended(splits.test_images)
    made: dict[str, dict[str, Made]] = {}
    for name in options.attackers:

        def train(confidences: Tensor, images: Tensor, held_out: Tensor) -> torch.nn.Module:
            return attackers.train_decoder(row.name, confidences, images, held_out)[0]

        attack = ATTACKS[name]
        assert isinstance(attack, InversionAttack)
        reconstructors = attack(knowledge, train)
        with torch.no_grad():
            made[name] = {
                label: Made(
                    reconstruct(each, knowledge.released[attackers.held_out]),
                    reconstruct(each, released),
                )
                for label, each in reconstructors.items()
            }
    return made


def measure(
    experiment: Experiment, shown: dict[str, Tensor], options: argparse.Namespace
) -> Iterator[Row]:
    """Yield the rows of all releases; keep reconstructions of the first queries for a picture."""
    target = trained_target(experiment.spec, experiment.splits, experiment.store, no_progress)
    clean = target(experiment.splits.auxiliary_images)
    judge, gap = Judge(experiment), 1.0
    shown["truth"] = judge.test[:SHOWN]
    added = [name for name in GENERATIVE if name in options.attackers]
    for row in experiment.spec.releases:
        if row.name not in options.releases:
            continue
        made = attack(experiment, row, clean, target, options)
        rows = dict[str, Made]()
        for name, candidates in made.items():
            means = {label: each for label, each in candidates.items() if label != "sample"}
            rows[name] = means[judge.best(means)]
            if "sample" in candidates:
                rows[f"{name}, sample"] = candidates["sample"]
        others = [each for name in made if name not in added for each in made[name].values()]
        rows["mixture"] = judge.mixture(others)
        for name in added:
            rows[f"mixture with {name}"] = judge.mixture([*others, *made[name].values()])
        measured = {name: judge.measures(each) for name, each in rows.items()}
        if row.defense == "none":
            gap = measured["label-only"]["error"] - measured["mixture"]["error"]
        gains = dict[str, float]()
        for name in added:
            fewer = judge.errors(rows["mixture"]) - judge.errors(rows[f"mixture with {name}"])
            gains[f"gain {name}"] = float(fewer.mean()) / gap
            gains[f"standard error {name}"] = float(fewer.std()) / math.sqrt(len(fewer)) / gap
        yield {
            "release": row.name,
            **{name.translate(FIELDS): gain for name, gain in gains.items()},
            **{
                f"{measure}_{name}".translate(FIELDS): value
                for name, figures in measured.items()
                for measure, value in figures.items()
            },
        }
        pictures = ("retrained", "latent-search", "latent-search, sample", "generative, sample")
        for name in filter(rows.__contains__, pictures):
            shown[f"{row.name}:\n{name}"] = rows[name].queries[:SHOWN]


def main() -> None:
    """Measure all data sets, print, and write records and pictures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(SIZES))
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--releases", nargs="+", default=[row.name for row in RELEASES])
    parser.add_argument("--attackers", nargs="+", default=[*USUAL, *GENERATIVE])
    parser.add_argument("--epochs", type=int, default=40, help="epochs of autoencoders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    parser.add_argument("--pictures", type=Path, default=None, help="folder of pictures, .png")
    options = parser.parse_args()
    records, console = list[Row](), Console(width=160)
    place = origin(options.attackers)
    for name, seed in itertools.product(options.data, options.seeds):
        experiment = experiment_of(name, seed, options.cache, options.data_root)
        shown = dict[str, Tensor]()
        for row in measure(experiment, shown, options):
            records.append({"data": name, "seed": seed, **row, **place})
            shares = {key: round(row[key], 4) for key in row if key.startswith(("gain", "error"))}
            console.print(name, row["release"], shares)
            if options.out is not None:
                write_json_lines(options.out, records)
        if options.pictures is not None:
            rows = {label: images[:, 0].numpy() for label, images in shown.items()}
            title = f"Reconstructions of {name}: means and single draws"
            draw_reconstructions(
                rows, options.pictures / f"generative-{name}-seed{seed}.png", title
            )


if __name__ == "__main__":
    main()
