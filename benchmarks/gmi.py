"""What a release does against GMI, a search for one image per class; and what labels alone give.

The prior is GMI's WGAN-GP, or a variational autoencoder, trained on images of other classes or
people than the target's. ``white-box`` follows the gradient of the undefended model, as GMI does:
no release has a part in it. The other searches ask the release. Judges of the images:

- ``accuracy``: of a classifier of another size, trained with moved copies and another seed on the
  same private images. Such judges have many false positives, so that two others stand beside it.
- ``distance``: squared distance to the nearest private image of the class, in that classifier's
  features, as a share of the mean distance between private images of different classes.
- ``identified``: the share whose nearest private image, in principal components of the attacker's
  images, is of the class; the judge knows no target.

The same measures of real queries, and of draws of the prior given to classes at random, say what
is best and worst.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from adversarial_prior import AdversarialPriorSettings, train_adversarial_prior
from presets import RELEASES, SMALL, preset_data, preset_spec
from rich.console import Console
from torch import Tensor, nn

from oneway.attacks.gmi import (
    BUDGET,
    GMI,
    STARTS,
    Found,
    search_by_gradient,
    search_by_labels,
    search_by_scores,
)
from oneway.benchmark.runner import Experiment, trained_target
from oneway.benchmark.spec import ExperimentSpec
from oneway.contracts import Prior
from oneway.data import Dataset, no_progress
from oneway.evaluation import ReleaseSpec, Store
from oneway.evaluation.attackers import PriorTrainer
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import origin
from oneway.evaluation.store import write_json_lines
from oneway.metrics import PrincipalComponents
from oneway.report.figure import draw_reconstructions
from oneway.targets import DefendedTarget, TargetNetwork, TargetTrainingSettings, train_target

LABEL_ONLY = ReleaseSpec("label only", "label-only")

SIZES = {
    SMALL: (350, 800, 100, 440),
    "mnist": (5000, 10_000, 1000, 1000),
    "faces": (5300, 9600, 1000, 1000),
}
"""Private images, auxiliary images, queries, and queries that releases are fitted to."""

CLASSES = 5
"""Digits that a target of digits knows: 0 to 4. The attacker has 5 to 9."""

RATES = {SMALL: 0.01, "mnist": 0.01, "faces": 0.02}
"""Step sizes of the gradient search, as published."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """Judges of images that stand for a class.

    Attributes:
        classifier: The evaluation classifier.
        images: ``(N, C, H, W)`` private images.
        labels: ``(N)`` their classes.
        embedder: Principal components of the attacker's images.
    """

    classifier: TargetNetwork
    images: Tensor
    labels: Tensor
    embedder: PrincipalComponents

    def __call__(self, images: Tensor, owners: Tensor) -> Row:
        """Return the measures of ``(M, C, H, W)`` images that stand for ``(M)`` classes."""
        known = self.features(self.images)
        spread = torch.cdist(known[:1000], known[:1000]).square()
        unlike = self.labels[:1000, None] != self.labels[None, :1000]
        distances = torch.cdist(self.features(images), known).square()
        others = self.labels.unsqueeze(0) != owners.unsqueeze(1)
        nearest = distances.masked_fill(others, torch.inf).amin(-1)
        seen = torch.cdist(self.embedder(images), self.embedder(self.images)).argmin(-1)
        with torch.no_grad():
            top = self.classifier(images).argmax(-1)
        return {
            "accuracy": float((top == owners).double().mean()),
            "distance": float(nearest.mean() / spread[unlike].mean()),
            "identified": float((self.labels[seen] == owners).double().mean()),
        }

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features before the evaluation classifier's last layer."""
        parts = [self.classifier.layers[:-1](rows) for rows in images.split(512)]
        return torch.cat(parts)


def spec_of(preset: str, seed: int) -> ExperimentSpec:
    """Return a preset of the leaderboard with these releases, cut down to a small machine."""
    spec = preset_spec(preset)
    private, auxiliary, test, calibration = SIZES[preset]
    data = replace(
        spec.data, private=private, auxiliary=auxiliary, test=test, calibration=calibration
    )
    return replace(spec, releases=(*RELEASES, LABEL_ONLY), seed=seed, data=data)


def experiment_of(preset: str, seed: int, cache: Path, data_root: Path | None) -> Experiment:
    """Return an experiment whose attacker has images of other classes or people."""
    spec = spec_of(preset, seed)
    dataset, auxiliary = preset_data(preset, spec, data_root)
    if auxiliary is None:
        dataset, auxiliary = (
            only(dataset, dataset.labels < CLASSES),
            only(dataset, dataset.labels >= CLASSES),
        )
    return Experiment(
        spec,
        dataset,
        Store(cache),
        auxiliary_dataset=auxiliary,
        device=torch.device("cpu"),
    )


def only(dataset: Dataset, rows: Any) -> Dataset:
    """Return some rows of a data set, with classes from 0."""
    labels = dataset.labels[rows] - dataset.labels[rows].min()
    is_test = None if dataset.is_test is None else dataset.is_test[rows]
    return replace(
        dataset,
        images=dataset.images[rows],
        labels=labels,
        is_test=is_test,
        num_classes=int(labels.max()) + 1,
    )


def judge_of(experiment: Experiment) -> Judge:
    """Train the evaluation classifier: wider, with moved copies, and from another stream."""
    splits, spec = experiment.splits, experiment.spec

    def fresh() -> dict[str, Tensor]:
        network = build()
        train_target(
            network,
            splits.private_images,
            splits.private_labels,
            settings=TargetTrainingSettings(
                epochs=spec.target.training.epochs, augmentation="moves"
            ),
            generator=Stream(spec.seed, "evaluation classifier order").generator(),
        )
        return network.state_dict()

    def build() -> TargetNetwork:
        return TargetNetwork(splits.num_classes, splits.private_images.shape[1:], width=24)

    stream = Stream(spec.seed, "evaluation classifier")
    state = experiment.store.tensors(
        "evaluation-classifier",
        {"data": experiment.data, "seed": spec.seed, "epochs": spec.target.training.epochs},
        lambda: stream.call(fresh, torch.device("cpu")),
    )
    network = build()
    network.load_state_dict(state)
    embedder = PrincipalComponents.fit(splits.auxiliary_images)
    return Judge(network.eval(), splits.private_images, splits.private_labels, embedder)


Search = Callable[[torch.Generator], Found]


def searches(
    prior: Prior, defended: DefendedTarget, classes: int, options: argparse.Namespace
) -> Iterator[tuple[str, Search]]:
    """Yield the searches through a release by name."""
    ask, budget = defended.repeated, options.budget
    yield "scores", partial(search_by_scores, prior, ask, classes, budget=budget)
    yield "labels", partial(search_by_labels, prior, ask, classes, budget=budget)
    logits_of, rate, steps = defended.differentiable_logits, options.rate, options.steps
    gradient = partial(search_by_gradient, prior, logits_of, classes, rate=rate, steps=steps)
    yield "gradient through the release", gradient


def measure(
    experiment: Experiment, prior: Prior, judge: Judge, options: argparse.Namespace
) -> Iterator[tuple[Row, Tensor]]:
    """Yield the measures of all searches, each with its best image of every class."""
    splits, seed = experiment.splits, experiment.spec.seed
    target = trained_target(experiment.spec, splits, experiment.store, no_progress)
    clean = target(splits.auxiliary_images)
    classes = splits.num_classes
    owners = torch.arange(classes).repeat_interleave(STARTS)

    def generator() -> torch.Generator:
        return Stream(seed, "search").generator()

    @torch.no_grad()
    def row(release: str, search: str, found: Found) -> tuple[Row, Tensor]:
        best = prior(found.best)
        measured = judge(prior(found.latents.flatten(0, 1)), owners)
        of_best = judge(best, torch.arange(classes))
        measured |= {f"{name}_of_best": value for name, value in of_best.items()}
        return {"release": release, "search": search, **measured}, best

    examples = torch.stack([splits.test_images[splits.test_labels == k][0] for k in range(classes)])
    real = {"release": "-", "search": "real queries"}
    yield real | judge(splits.test_images, splits.test_labels), examples
    with torch.no_grad():
        drawn = prior(prior.draw(200, generator()).clamp(-prior.limit, prior.limit))
    anything = {"release": "-", "search": "draws of the prior"}
    yield anything | judge(drawn, torch.arange(200) % classes), drawn[:classes]
    module: nn.Module = target.module.eval()
    rate, steps = options.rate, options.steps
    white = search_by_gradient(prior, module, classes, generator(), rate=rate, steps=steps)
    yield row("-", "white-box", white)
    for release in experiment.spec.releases:
        fitted = experiment.defender.build(release, target, clean)
        defended = DefendedTarget(target, fitted.again("asked again"))
        for name, search in searches(prior, defended, classes, options):
            # Labels are the same for every release that keeps them: one search is enough.
            if (name == "labels") == (release.defense == "label-only"):
                yield row(release.name, name, search(generator()))


def main() -> None:
    """Measure all data sets, print, and write records and pictures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(SIZES))
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--prior", choices=["gan", "autoencoder"], default="gan")
    parser.add_argument("--width", type=int, default=16, help="width of the GAN; GMI's is 64")
    parser.add_argument("--training", type=int, default=1000, help="generator steps of the GAN")
    parser.add_argument("--rows", type=int, default=3000, help="images of the autoencoder")
    parser.add_argument("--budget", type=int, default=BUDGET, help="queries of each search")
    parser.add_argument("--steps", type=int, default=1500, help="steps of gradient searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=None, help="records, .jsonl")
    parser.add_argument("--pictures", type=Path, default=None, help="folder of pictures, .png")
    options = parser.parse_args()
    records, console = list[Row](), Console(width=160)
    place = origin([GMI.name])
    for name in options.data:
        experiment = experiment_of(name, options.seed, options.cache, options.data_root)
        trainer = PriorTrainer(experiment.store, options.seed)
        images = experiment.splits.auxiliary_images
        prior: Prior
        if options.prior == "gan":
            settings = AdversarialPriorSettings(width=options.width)
            prior = train_adversarial_prior(
                images, settings, options.training, experiment.store, options.seed
            )
        else:
            held_out = experiment.attackers.held_out
            prior = trainer.autoencoder(images[: options.rows], None, held_out[: options.rows])
        judge, pictures = judge_of(experiment), dict[str, Tensor]()
        options.rate = RATES[name]
        for row, best in measure(experiment, prior, judge, options):
            records.append({"data": name, "prior": options.prior, "seed": options.seed, **row})
            records[-1] |= {"budget": options.budget, "steps": options.steps, **place}
            if options.prior == "gan":
                records[-1] |= {"training_steps": options.training}
            console.print(name, row)
            label = f"{row['release']}:\n{row['search']}".removeprefix("-:\n")
            pictures[label] = best[:12]
            if options.out is not None:
                write_json_lines(options.out, records)
        if options.pictures is not None:
            rows = {label: best[:, 0].numpy() for label, best in pictures.items()}
            title = f"One image per class of {name}"
            draw_reconstructions(rows, options.pictures / f"gmi-{name}-{options.prior}.png", title)


if __name__ == "__main__":
    main()
