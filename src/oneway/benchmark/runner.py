"""Run an experiment: train what is not in the store, defend, attack, judge."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oneway.audit import AttackResult, Floors, take_floors
from oneway.benchmark.attackers import (
    Report,
    contest_size,
    prepare_attackers,
    silent,
)
from oneway.benchmark.randomness import Stream
from oneway.benchmark.records import Outcome, json_values, make_outcome, pixels
from oneway.benchmark.registry import build_defense, needs_surrogate
from oneway.benchmark.spec import ExperimentSpec, ReleaseSpec
from oneway.benchmark.store import Store, fingerprint
from oneway.confidences import release
from oneway.contracts import Defense, Observations
from oneway.data import Dataset, split_dataset
from oneway.errors import InvalidOptionError
from oneway.inversion import full_depth
from oneway.metrics import distortion, flips
from oneway.targets import DefendedTarget, TargetNetwork, TorchTarget, train_target

TIMED_QUERIES = 30
TIMED_BATCH = 256


class Experiment:
    """One experiment over one data set, with one seed."""

    def __init__(
        self,
        spec: ExperimentSpec,
        dataset: Dataset,
        store: Store,
        *,
        device: torch.device,
        report: Report = silent,
    ) -> None:
        """Split the data; everything else happens in :meth:`run`.

        Args:
            spec: What to run.
            dataset: The data set that ``spec.data`` names.
            store: Where trained networks are kept.
            device: Where networks are trained and queried.
            report: Told of progress.

        Raises:
            InvalidOptionError: The data set cannot be split so, or no surrogate fits its images.
        """
        self.spec, self.store, self.device, self.report = spec, store, device, report
        data = spec.data
        self.splits = split_dataset(
            dataset, private=data.private, auxiliary=data.auxiliary, test=data.test, seed=spec.seed
        ).to(device)
        self.surrogate_depth = surrogate_depth(spec, self.splits.auxiliary_images.shape[2:])
        self.attackers = prepare_attackers(
            spec.attackers, self.splits.auxiliary_images, store, spec.seed, report
        )
        self.trainer = self.attackers.trainer

    def run(self) -> list[Outcome]:
        """Return one outcome per release, in the order of the spec."""
        target = TorchTarget(self._target())
        splits = self.splits
        auxiliary = target(splits.auxiliary_images)
        logits = target.logits(splits.test_images)
        clean = release(logits)
        surrogate = self._surrogate(auxiliary) if _wants_surrogate(self.spec) else None
        outcomes: list[Outcome] = []
        floors: Floors | None = None
        for row in self.spec.releases:
            defense = build_defense(row.defense, row.options, surrogate)
            results, released = self._attack(row, target, defense, auxiliary)
            if floors is None:
                floors = take_floors(results, splits.auxiliary_images, splits.test_images)
            facts = self._facts(row, target, defense, logits, clean, released)
            outcomes.append(make_outcome(facts, results, floors, clean, released))
        return outcomes

    def gallery(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """Return rows of images for a figure: the first test image of each class, and attacks.

        Labels give each attack's error over all test images.
        """
        labels = self.splits.test_labels
        chosen = torch.stack([(labels == k).nonzero()[0, 0] for k in labels.unique()])
        rows = {"original": self.splits.test_images[chosen]}
        for outcome in outcomes:
            name = outcome.record["release"]
            shown = ("static",) if outcome is outcomes[0] else ("static", "retrained")
            for attack in shown:
                if attack in outcome.results:
                    result = outcome.results[attack]
                    title = f"{name}\n{attack}" if len(shown) > 1 else "no defense\n"
                    with torch.no_grad():
                        images = result.reconstruct(outcome.released[chosen])
                    rows[f"{title} {result.error:.4f}"] = images
        return {label: pixels(images) for label, images in rows.items()}

    def _target(self) -> nn.Module:
        spec, splits = self.spec.target, self.splits
        stage = "train the target"

        def fresh() -> tuple[nn.Module, Mapping[str, Any]]:
            network = TargetNetwork(
                splits.num_classes,
                splits.private_images.shape[1:],
                width=spec.width,
                blocks=spec.blocks,
            ).to(self.device)
            train_target(
                network,
                splits.private_images,
                splits.private_labels,
                settings=spec.training,
                generator=Stream(self.spec.seed, "target order").generator(),
                on_epoch=lambda epoch, _: self.report(stage, epoch / spec.training.epochs),
            )
            return network, {}

        key = {
            "role": "target",
            "seed": self.spec.seed,
            **dataclasses.asdict(spec),
            "data": fingerprint(splits.private_images, splits.private_labels),
        }
        stream = Stream(self.spec.seed, "target")
        stored = self.store.network("target", key, lambda: stream.call(fresh, self.device))
        self.report(stage, 1.0)
        return stored.network.to(self.device)

    def _surrogate(self, clean: Tensor) -> nn.Module:
        spec = self.spec.surrogate
        options = {
            "width": spec.width,
            "hidden_layers": self.surrogate_depth,
            "front_end": spec.front_end,
        }
        stage = "train the defender's surrogate"
        return self.trainer.train("surrogate", options, spec.training, clean, stage=stage)[0]

    def _attack(
        self, row: ReleaseSpec, target: TorchTarget, defense: Defense, clean: Tensor
    ) -> tuple[dict[str, AttackResult], Tensor]:
        splits, stage = self.splits, f"defend: {row.name}"
        self.report(stage, 0.0)
        defended = DefendedTarget(target, defense)
        observations = Observations(
            images=splits.auxiliary_images,
            clean=clean,
            released=defended(splits.auxiliary_images),
            held_out=self.trainer.held_out,
        )
        released = defended(splits.test_images)
        self.report(stage, 1.0)
        results = self.attackers.run(row.name, observations, released, splits.test_images)
        return results, released

    def _facts(
        self,
        row: ReleaseSpec,
        target: TorchTarget,
        defense: Defense,
        clean_logits: Tensor,
        clean: Tensor,
        released: Tensor,
    ) -> dict[str, Any]:
        images = self.splits.test_images
        batch = images[:TIMED_BATCH]
        batches = zip(clean_logits.split(512), images.split(512), strict=True)
        noisy_logits = torch.cat([defense(logits, some) for logits, some in batches])
        moved = distortion(clean_logits, noisy_logits, clean, released)
        return {
            "experiment": self.spec.name,
            "release": row.name,
            "defense": row.defense,
            "options": json_values(row.options),
            "seed": self.spec.seed,
            "seeds": 1,
            "auxiliary": len(self.splits.auxiliary_images),
            "queries": len(images),
            "accuracy": float((released.argmax(-1) == self.splits.test_labels).double().mean()),
            "flips": flips(clean_logits, released),
            "logit_distortion": moved.logits,
            "l1_mean": moved.l1_mean,
            "l1_p99": moved.l1_p99,
            "l1_max": moved.l1_max,
            "milliseconds_single_query": self._time(target, defense, images[:1], TIMED_QUERIES),
            "milliseconds_per_query_batched": self._time(target, defense, batch, 5) / len(batch),
            "spec": json_values(dataclasses.asdict(self.spec)),
        }

    def _time(self, target: TorchTarget, defense: Defense, images: Tensor, repeats: int) -> float:
        """Return the median milliseconds from images to released confidences."""
        defended = DefendedTarget(target, defense)
        taken = []
        for _ in range(repeats):
            synchronize(self.device)
            begin = time.perf_counter()
            defended(images)
            synchronize(self.device)
            taken.append(1000 * (time.perf_counter() - begin))
        return sorted(taken)[repeats // 2]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def surrogate_depth(spec: ExperimentSpec, sides: Sequence[int]) -> int:
    """Return how many hidden layers the surrogate has on images of these sides.

    Raises:
        InvalidOptionError: None would be left.
    """
    full = full_depth(*sides)
    removed = spec.surrogate.hidden_layers_removed
    if _wants_surrogate(spec) and removed >= full:
        raise InvalidOptionError(
            f"hidden_layers_removed must be below {full}, the hidden layers of an inverter for "
            f"{sides[0]}x{sides[1]} images, but is {removed}."
        )
    return full - removed


def count_stages(spec: ExperimentSpec) -> int:
    """Return how many stages an experiment will report."""
    per_release = 1 + len(spec.attackers.names) * contest_size(spec.attackers)
    return 1 + _wants_surrogate(spec) + len(spec.releases) * per_release


def _wants_surrogate(spec: ExperimentSpec) -> bool:
    return any(needs_surrogate(release.defense) for release in spec.releases)
