"""Where the paper can be read in two ways, both, on MNIST; and its rivals at its operating points.

- ``surrogate``: the defender's surrogate without its first two hidden layers, and without its last
  two (the paper's section V-A3 does not say which), under the paper's noise.
- ``inner maximisation``: the paper's adaptive attacker trains on noise that was made once, against
  a surrogate of its own. Madry et al. (ICLR 2018) make it anew in every batch, against the decoder
  in training. ``stacked`` is the error of a mixture of all other attackers, ``stacked_with_it`` of
  the same with this decoder.
- ``biases``: the inverter's first layer with a bias per channel and position, and without one,
  which equals Yang et al.'s bias per channel, since BatchNorm cancels it.
- ``operating point``: accuracy, logit distortion and static error of MID by beta and of PPF by its
  weights. The paper prints 75.83 %, 1.8206 and .0604 for MID; 96.67 %, .4156 and .0544 for PPF.
- ``class means``: SSD with means of true and of predicted classes.
- ``class representative``: the confidence of its class that Fredrikson et al.'s search reaches, the
  mean over classes and the least, from scores and with the model at hand; ``per_query`` is the
  error of its answers to queries.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from oneway.attacks import ClassRepresentative, WhiteBoxClassRepresentative
from oneway.benchmark import Experiment, ExperimentSpec, bundled_spec, load_data
from oneway.benchmark.runner import trained_target
from oneway.contracts import AttackerKnowledge
from oneway.data import no_progress
from oneway.defenses.identity import Identity
from oneway.evaluation import AttackResult, Store
from oneway.evaluation.defenders import Defender
from oneway.evaluation.records import numerics_of, origin
from oneway.evaluation.settings import AttackerSpec, ReleaseSpec, SurrogateSpec
from oneway.evaluation.store import write_json_lines
from oneway.inversion import Inverter, mean_error, non_negative_weights, train_inverter
from oneway.metrics import label_changes
from oneway.targets import DefendedTarget, TorchTarget, Trace

BASELINES = ("label-only", "static")
NONE = ReleaseSpec("none", "none", attackers=BASELINES)
NOISE = ReleaseSpec("adversarial noise", "adversarial-noise", {"step_size": 0.1, "steps": 10})
BETAS = (0.3, 0.1, 0.02)
WEIGHTS = ((0.2, 10.0), (0.2, 1.0), (0.0, 10.0))
"""Weights of the label and of the helper's error."""

Row = dict[str, Any]
Measure = Callable[[ExperimentSpec, Store, Path | None], Iterator[Row]]


def small_spec(seed: int) -> ExperimentSpec:
    """Return Table I on 2,000 private and auxiliary digits, with one decoder per attacker."""
    spec = bundled_spec("table1-mnist", "cpu")
    training = replace(spec.attackers.training, epochs=12)
    return replace(
        spec,
        seed=seed,
        data=replace(spec.data, private=2000, auxiliary=2000, test=1000),
        target=replace(spec.target, training=replace(spec.target.training, epochs=12)),
        surrogate=replace(spec.surrogate, training=training),
        attackers=AttackerSpec(
            input_transforms=("standardized",), widths=(16,), training=training, most_epochs=12
        ),
    )


def experiment_of(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Experiment:
    """Return an experiment on MNIST."""
    dataset, _ = load_data(spec.data, data_root)
    return Experiment(spec, dataset, store, device=torch.device("cpu"))


def released(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Iterator[Row]:
    """Run an experiment; yield what its records say of each release but the first."""
    outcomes = experiment_of(spec, store, data_root).run()
    next(outcomes)
    for outcome in outcomes:
        record = outcome.record
        yield {
            "release": record.release,
            "accuracy": record.accuracy,
            "label_changes": record.label_changes,
            "logit_distortion": record.logit_distortion,
            "l1_mean": record.l1_mean,
            "clean_error": record.baselines.clean,
            "label_error": record.baselines.label,
            **{name.replace("-", "_"): error for name, error in record.errors.items()},
            "numerics": dict(record.numerics),
        }


def attacked_noise(run: Experiment, target: TorchTarget) -> tuple[Trace, dict[str, AttackResult]]:
    """Return what the paper's noise releases of the test images, and attacks on it."""
    images, test = run.splits.auxiliary_images, run.splits.test_images
    clean = target(images)
    defended = DefendedTarget(target, run.defender.build(NOISE, target, clean).defense)
    knowledge = AttackerKnowledge(
        images,
        clean,
        defended(images),
        run.attackers.held_out,
        simulated_defenses=run.defender.simulated_defenses(NOISE, clean),
    )
    trace, names = defended.trace(test), (*BASELINES, "retrained", "adversarial-training")
    return trace, run.attackers.run(NOISE.name, knowledge, trace.released, test, names)


def surrogates(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Iterator[Row]:
    """Yield the paper's noise with each reading of the surrogate."""
    for end in ("first", "last"):
        surrogate = replace(spec.surrogate, removed=end)
        run = experiment_of(
            replace(spec, surrogate=surrogate, releases=(NONE, NOISE)), store, data_root
        )
        target = trained_target(spec, run.splits, store, no_progress)
        trace, results = attacked_noise(run, target)
        yield {
            "surrogate": f"without its {end} two layers",
            "label_changes": label_changes(trace.clean_logits, trace.released),
            **{name.replace("-", "_"): result.error for name, result in results.items()},
            "numerics": numerics_of(results),
        }


def inner_maximisation(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Iterator[Row]:
    """Yield the errors of an attacker who trains against noise on its own decoder."""
    run = experiment_of(replace(spec, releases=(NONE, NOISE)), store, data_root)
    target = trained_target(spec, run.splits, store, no_progress)
    trace, results = attacked_noise(run, target)
    auxiliary, test = run.splits.auxiliary_images, run.splits.test_images
    clean, held_out = target(auxiliary), run.attackers.held_out
    own = SurrogateSpec(
        width=16,
        hidden_layers_removed=0,
        input_transform="standardized",
        training=spec.attackers.training,
    )
    trainer, factors = run.attackers.trainer, spec.attackers.step_factors
    madry = Defender(own, factors, run.defender.images, store, trainer, no_progress)
    hardened = replace(NOISE, surrogate="min-max")
    decoder, _ = madry.trained_surrogate(hardened, clean, "attacker's surrogate")
    defended = DefendedTarget(target, run.defender.build(NOISE, target, clean).defense)
    with torch.no_grad():
        own_test, own_held = decoder(trace.released), decoder(defended(auxiliary[held_out]))
    others = [
        (result.own_reconstructions, result.reconstructions)
        for result in results.values()
        if result.own_reconstructions is not None
    ]
    truth = auxiliary[held_out]
    yield {
        "own_decoder": float((own_test - test).square().mean()),
        "retrained": results["retrained"].error,
        "adversarial_training": results["adversarial-training"].error,
        "stacked": stacked(others, truth, test),
        "stacked_with_it": stacked([*others, (own_held, own_test)], truth, test),
        "numerics": numerics_of(results),
    }


def stacked(candidates: list[tuple[Tensor, Tensor]], truth: Tensor, test: Tensor) -> float:
    """Return the error on test images of the mixture that is best on held-out images.

    Args:
        candidates: Reconstructions of the held-out and of the test images by each attacker.
        truth: ``(M, C, H, W)`` held-out images.
        test: ``(N, C, H, W)`` test images.
    """
    seen, shown = (torch.stack(list(each)) for each in zip(*candidates, strict=True))
    weights = non_negative_weights(seen, truth).float()
    mixture = torch.einsum("c,cn...->n...", weights, shown).clamp(0, 1)
    return float((mixture - test).square().mean())


def biases(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Iterator[Row]:
    """Yield the error on clean scores of an inverter with each kind of first layer."""
    run = experiment_of(replace(spec, releases=(NONE,)), store, data_root)
    target = trained_target(spec, run.splits, store, no_progress)
    images, test = run.splits.auxiliary_images, run.splits.test_images
    clean, scores = target(images), target(test)
    for bias, variant in ((True, "per channel and position"), (False, "per channel")):
        torch.manual_seed(spec.seed)
        decoder = Inverter(10, images.shape[1:], width=16, input_transform="standardized")
        first = decoder.layers[0]
        assert isinstance(first, nn.Linear)
        if not bias:
            first.bias.requires_grad_(False).zero_()
        train_inverter(
            decoder,
            clean,
            images,
            run.attackers.held_out,
            settings=spec.attackers.training,
            generator=torch.Generator().manual_seed(spec.seed),
        )
        yield {"biases": variant, "error": mean_error(decoder, scores, test)}


def operating_points(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Iterator[Row]:
    """Yield MID by its beta, and PPF by its weights."""
    mid = [
        ReleaseSpec(f"MID, beta {beta:g}", "mutual-information", {"beta": beta, "epochs": 12})
        for beta in BETAS
    ]
    ppf = [
        ReleaseSpec(
            f"PPF, label {label:g}, helper {helper:g}",
            "purification",
            {"label_weight": label, "inversion_weight": helper, "epochs": 12},
        )
        for label, helper in WEIGHTS
    ]
    rows = tuple(replace(row, attackers=BASELINES) for row in (*mid, *ppf))
    for row in released(replace(spec, releases=(NONE, *rows)), store, data_root):
        yield {"rival": row.pop("release"), **row}


def class_means(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Iterator[Row]:
    """Yield SSD with means of true and of predicted classes."""
    rows = tuple(
        ReleaseSpec(
            f"SSD, {kind}", "ssd", {"epsilon": 0.5, "means_of": kind}, attackers=NONE.attackers
        )
        for kind in ("true", "predicted")
    )
    for row in released(replace(spec, releases=(NONE, *rows)), store, data_root):
        yield {"shield": row.pop("release"), **row}


def untrained(confidences: Tensor, images: Tensor, held_out: Tensor) -> nn.Module:
    """Refuse to train: the searches train no decoder."""
    raise NotImplementedError


def representatives(spec: ExperimentSpec, store: Store, data_root: Path | None) -> Iterator[Row]:
    """Yield what the search for an image of each class reaches, from scores and with the model."""
    run = experiment_of(replace(spec, releases=(NONE,)), store, data_root)
    target = trained_target(spec, run.splits, store, no_progress)
    images, test = run.splits.auxiliary_images, run.splits.test_images
    seen = AttackerKnowledge(
        images,
        None,
        target(images),
        run.attackers.held_out,
        query=DefendedTarget(target, Identity()).repeated,
        differentiable_logits=target.differentiable_logits,
    )
    for attack in (ClassRepresentative(), WhiteBoxClassRepresentative()):
        (made,) = attack.run(seen, untrained).values()
        found = target(made.reconstruct(torch.eye(10).unsqueeze(0))).diagonal()
        yield {
            "representative": attack.name,
            "confidence": float(found.mean()),
            "least_confidence": float(found.min()),
            "per_query": float((made.reconstruct(target(test)[None]) - test).square().mean()),
            "numerics": numerics_of([attack.name]),
        }


PARTS: Mapping[str, Measure] = {
    "biases": biases,
    "class means": class_means,
    "surrogate": surrogates,
    "inner maximisation": inner_maximisation,
    "operating point": operating_points,
    "class representative": representatives,
}


def main() -> None:
    """Measure, print, and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, help="folder with mnist.npz")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="file to write, JSON Lines")
    given = parser.parse_args()
    rows: list[Row] = []
    shown = Console()
    place = origin()
    for seed in given.seeds:
        spec = small_spec(seed)
        for part in given.only:
            for row in PARTS[part](spec, Store(given.cache), given.data_root):
                shown.print(part, seed, row)
                rows.append({"part": part, "seed": seed, **row, **place})
                if given.out is not None:
                    write_json_lines(given.out, rows)


if __name__ == "__main__":
    main()
