"""Run an experiment: train what is not in the store, defend, attack, judge."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median_high
from typing import Any

import torch
from torch import Tensor

from oneway.audit import AttackResult, take_floors
from oneway.benchmark.attackers import contest_size, prepare_attackers
from oneway.benchmark.defenders import (
    Built,
    Defender,
    DefenderImages,
    surrogate_depth,
    trained_target,
)
from oneway.benchmark.records import (
    Outcome,
    cell_key,
    distortion_of,
    json_values,
    make_outcome,
    pixels,
    shown_rows,
)
from oneway.benchmark.spec import ExperimentSpec, ReleaseSpec, is_copied, sketch_defense
from oneway.benchmark.store import Store, fingerprint
from oneway.benchmark.timing import query_times
from oneway.confidences import release
from oneway.contracts import Defense, Observations
from oneway.data import Dataset, Report, silent, split_dataset
from oneway.guards import effective_options, needs_network, needs_surrogate, training_options
from oneway.metrics import flips
from oneway.targets import DefendedTarget, TorchTarget, Trace

TIMED_QUERIES = 30
TIMED_BATCHES, TIMED_BATCH = 5, 256


class Experiment:
    """One experiment over one data set, with one seed.

    Attributes:
        spec: What is run.
        splits: Whose images are whose.
        data: The hash of all images and labels, which is in every record.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        dataset: Dataset,
        store: Store,
        *,
        auxiliary_dataset: Dataset | None = None,
        device: torch.device,
        report: Report = silent,
    ) -> None:
        """Split the data; everything else happens in :meth:`run`.

        Args:
            spec: What to run.
            dataset: The data set that ``spec.data`` names.
            store: Where trained networks are kept.
            auxiliary_dataset: Where auxiliary images come from; None: the same.
            device: Where networks are trained and queried.
            report: Told of progress.

        Raises:
            InvalidOptionError: The data cannot be split so, or no surrogate fits the images.
            OverlappingSplitsError: The auxiliary data set holds private or test images.
        """
        self.spec, self.device, self.report = spec, device, report
        data = spec.data
        self.splits = split_dataset(
            dataset,
            private=data.private,
            auxiliary=data.auxiliary,
            test=data.test,
            seed=spec.seed,
            auxiliary_dataset=auxiliary_dataset,
            calibration=data.calibration,
        ).to(device)
        splits = self.splits
        kept = splits.calibration_images if len(splits.calibration_images) else None
        self.data = fingerprint(
            splits.private_images,
            splits.private_labels,
            splits.auxiliary_images,
            splits.test_images,
            splits.test_labels,
            *(() if kept is None else (kept,)),
        )
        self.attackers = prepare_attackers(
            spec.attackers, self.splits.auxiliary_images, store, spec.seed, report
        )
        if any(needs_surrogate(row.defense) for row in spec.releases):
            surrogate_depth(spec.surrogate, splits.auxiliary_images.shape[1:])
        self.defender = Defender(
            spec.surrogate,
            spec.attackers.step_factors,
            DefenderImages(
                splits.auxiliary_images,
                self.attackers.held_out,
                splits.private_images,
                splits.private_labels,
                kept,
            ),
            store,
            self.attackers.trainer,
            report,
        )
        self.store = store

    def run(self, finished: Collection[str] = ()) -> Iterator[Outcome]:
        """Give one outcome per release, in the order of the spec, each when it is done.

        Args:
            finished: Names of releases that are not wanted. The first is attacked even so, since
                all floors come from it.
        """
        splits = self.splits
        target = trained_target(self.spec, splits, self.store, self.report)
        auxiliary = target(splits.auxiliary_images)
        floors = None
        for row in self.spec.releases:
            if floors is not None and row.name in finished:
                continue
            built, trace, results = self._attack(row, target, auxiliary)
            if floors is None:
                floors = take_floors(results, splits.auxiliary_images, splits.test_images)
                if row.name in finished:
                    continue
            clean = release(trace.clean_logits)
            facts = self._facts(row, target, built, trace, clean)
            yield make_outcome(facts, results, floors, clean, trace.released)

    def gallery(self, outcome: Outcome) -> dict[str, Any]:
        """Return the shown test images, as ``truth``, and what each attacker made of them."""
        chosen = shown_rows(self.splits.test_labels)
        return {
            "truth": pixels(self.splits.test_images[chosen]),
            **{
                name: pixels(result.reconstructions[chosen])
                for name, result in outcome.results.items()
            },
        }

    def _attack(
        self, row: ReleaseSpec, target: TorchTarget, clean: Tensor
    ) -> tuple[Built, Trace, dict[str, AttackResult]]:
        splits, stage = self.splits, f"defend: {row.name}"
        names = self.spec.attackers_of(row)
        built = self.defender.build(row, target, clean)
        copies: Sequence[Defense] = ()
        if "adversarial-training" in names:
            copies = self.defender.own_copies(row, clean)
        self.report(stage, 0.0)
        defended = DefendedTarget(target, built.defense)
        again = DefendedTarget(target, built.again("asked again"))
        observations = Observations(
            images=splits.auxiliary_images,
            clean=clean,
            released=defended(splits.auxiliary_images),
            held_out=self.attackers.held_out,
            query=again.repeated,
            random=not built.defense.deterministic,
            repeats=self.spec.attackers.repeats,
            own_copies=copies,
            follow=again.follow if "optimising" in names else None,
        )
        trace = defended.trace(splits.test_images)
        self.report(stage, 1.0)
        results = self.attackers.run(
            row.name, observations, trace.released, splits.test_images, names
        )
        return built, trace, results

    def _facts(
        self, row: ReleaseSpec, target: TorchTarget, built: Built, trace: Trace, clean: Tensor
    ) -> dict[str, Any]:
        images, labels = self.splits.test_images, self.splits.test_labels
        batch = images[:TIMED_BATCH]
        defended = DefendedTarget(target, built.defense)
        single = median_high(query_times(defended, images[:1], TIMED_QUERIES))
        batched = median_high(query_times(defended, batch, TIMED_BATCHES))
        return {
            "experiment": self.spec.name,
            "preset": self.spec.preset,
            "cell": cell_key(self.spec, row),
            "data": self.data,
            "release": row.name,
            "defense": row.defense,
            "options": json_values(row.options),
            "effective_options": json_values(effective_options(row.defense, row.options)),
            "seed": self.spec.seed,
            "auxiliary": len(self.splits.auxiliary_images),
            "queries": len(images),
            "accuracy": float((trace.released.argmax(-1) == labels).double().mean()),
            "flips": flips(trace.clean_logits, trace.released),
            "keeps_label": built.defense.keeps_label,
            "random": not built.defense.deterministic,
            **distortion_of(trace, clean),
            "training_seconds": built.seconds,
            "training": dict(built.facts),
            "milliseconds_single_query": single,
            "milliseconds_per_query_batched": batched / len(batch),
            "spec": json_values(dataclasses.asdict(self.spec)),
        }


def count_stages(spec: ExperimentSpec) -> int:
    """Return how many stages an experiment will report."""
    contest = contest_size(spec.attackers)
    networks, stages = set[str](), 1
    for row in spec.releases:
        names = spec.attackers_of(row)
        contests: Mapping[str, int] = {
            "averaging": 0 if sketch_defense(row).deterministic else len(spec.attackers.repeats),
            "adversarial-training": int(is_copied(row)),
            "class-representative": 0,  # it trains no decoder
        }
        stages += 1 + contest * sum(contests.get(name, 1) for name in names)
        if needs_surrogate(row.defense):
            own = f" {row.name}" if row.surrogate != "plain" else ""
            roles = ["surrogate"]
            if "adversarial-training" in names and is_copied(row):
                roles.append("attacker's surrogate")
            for role in roles:
                networks.add(role + own)
                if row.surrogate == "augmented":
                    networks.add(role)
        if needs_network(row.defense):
            networks.add(f"{row.defense} {training_options(row.defense, row.options)}")
    return stages + len(networks)
