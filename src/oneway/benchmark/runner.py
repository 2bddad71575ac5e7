"""Run an experiment: train networks that the store lacks, defend, attack and judge."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from statistics import median_high
from typing import Any

import torch
from torch import Tensor, nn

from oneway.attacks import Workload, inversion_attacks
from oneway.benchmark.recorded import RecordedScores
from oneway.benchmark.spec import ExperimentSpec, cell_key
from oneway.contracts import AttackerKnowledge, Defense, Query
from oneway.data import Dataset, ProgressCallback, Splits, no_progress, split_dataset
from oneway.defenses import effective_options, needs_state, needs_surrogate, training_options
from oneway.defenses.identity import Identity
from oneway.evaluation import (
    AttackResult,
    Baselines,
    GalleryMatching,
    MatchedScores,
    take_baselines,
)
from oneway.evaluation.attackers import CleanErrors, prepare_attackers, selection_size
from oneway.evaluation.defenders import Defender, DefenderImages, FittedDefense, surrogate_options
from oneway.evaluation.detection import STAGE, detection_limit
from oneway.evaluation.pictures import pixels, shown_rows
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import (
    Outcome,
    Provenance,
    ReleaseRecord,
    distortion_of,
    json_values,
    judged,
    weights_hash,
)
from oneway.evaluation.settings import ReleaseSpec
from oneway.evaluation.store import Store, fingerprint
from oneway.evaluation.timing import query_times
from oneway.metrics import label_changes
from oneway.releases import release
from oneway.targets import DefendedTarget, TargetNetwork, TorchTarget, Trace, train_target

TIMED_QUERIES = 30
TIMED_BATCHES, TIMED_BATCH = 5, 256


class Experiment:
    """An experiment with its data and seed.

    Attributes:
        spec: Spec of the experiment.
        splits: Private, auxiliary and test images.
        data: SHA-256 of all images and labels, which is in every record.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        dataset: Dataset,
        store: Store,
        *,
        auxiliary_dataset: Dataset | None = None,
        device: torch.device,
        report: ProgressCallback = no_progress,
    ) -> None:
        """Split the data; :meth:`run` does everything else.

        Args:
            spec: Spec of the experiment.
            dataset: The data set that ``spec.data`` names.
            store: Store of trained networks.
            auxiliary_dataset: Source of the auxiliary images; None: the same data set.
            device: Device for training and queries.
            report: Progress callback.

        Raises:
            InvalidOptionError: The data set is too small, or no surrogate fits the images.
            OverlappingSplitsError: The auxiliary data set holds private or test images.
        """
        self.spec, self.device, self.report = spec, device, report
        self.splits = split_data(spec, dataset, auxiliary_dataset).to(device)
        splits = self.splits
        calibration = splits.calibration_images if len(splits.calibration_images) else None
        self.data = fingerprint(
            splits.private_images,
            splits.private_labels,
            splits.auxiliary_images,
            splits.test_images,
            splits.test_labels,
            *(() if calibration is None else (calibration,)),
        )
        self.attackers = prepare_attackers(
            spec.attackers, self.splits.auxiliary_images, store, spec.seed, report
        )
        if any(needs_surrogate(row.defense) for row in spec.releases):
            surrogate_options(spec.surrogate, splits.auxiliary_images.shape[1:])
        self.defender = Defender(
            spec.surrogate,
            spec.attackers.step_factors,
            DefenderImages(
                splits.auxiliary_images,
                self.attackers.held_out,
                splits.private_images,
                splits.private_labels,
                calibration,
                # Classes of another data set are not the target's.
                splits.auxiliary_labels if auxiliary_dataset is None else None,
                None if calibration is None else splits.calibration_labels,
            ),
            store,
            self.attackers.trainer,
            report,
        )
        self.store = store

    def run(self, finished: Collection[str] = ()) -> Iterator[Outcome[ReleaseRecord]]:
        """Yield the outcome of each release at once, in the order of the spec.

        Args:
            finished: Names of releases to leave out. The first release is attacked even so, since
                it gives the baselines.
        """
        splits = self.splits
        target = trained_target(self.spec, splits, self.store, self.report)
        auxiliary = target(splits.auxiliary_images)
        baselines, clean_errors, matching = None, None, self._matching(target, auxiliary)
        for row in self.spec.releases:
            if ":" in row.defense and row.name not in finished:
                self._try(row, target, auxiliary)
        for row in self.spec.releases:
            if baselines is not None and row.name in finished:
                continue
            fitted, knowledge, trace, results = self._attack(row, target, auxiliary, clean_errors)
            if baselines is None:
                baselines = take_baselines(results, splits.auxiliary_images, splits.test_images)
                held_out = splits.auxiliary_images[self.attackers.held_out]
                clean_errors = CleanErrors.of(results.values(), held_out)
                if row.name in finished:
                    continue
            clean = release(trace.clean_logits)
            changes = label_changes(trace.clean_logits, trace.released)
            limit = partial(self._detection_limit, row, auxiliary, clean, baselines)
            stage = f"{row.name}: matching"
            self.report(stage, 0.0)
            again = DefendedTarget(target, fitted.again("asked by matching"))
            asked = dataclasses.replace(knowledge, query=self._query(again))
            record = ReleaseRecord(
                **self._facts(row, target, fitted, trace, clean),
                **judged(results, baselines, clean, changes, limit),
                matching=matching.results(MatchedScores(asked, trace.released)),
            )
            self.report(stage, 1.0)
            yield Outcome(record, results, trace.released)
        self.report(STAGE, 1.0)

    def gallery(self, outcome: Outcome[ReleaseRecord]) -> dict[str, Any]:
        """Return the shown test images, as ``truth``, and their reconstructions by attacker."""
        chosen = shown_rows(self.splits.test_labels)
        return {
            "truth": pixels(self.splits.test_images[chosen]),
            **{
                name: pixels(result.reconstructions[chosen])
                for name, result in outcome.results.items()
            },
        }

    def _matching(self, target: TorchTarget, auxiliary: Tensor) -> GalleryMatching:
        """Return what grades matching, on releases of a target.

        Args:
            target: Undefended target.
            auxiliary: ``(N, K)`` clean confidences of the auxiliary images.
        """
        undefended, images = DefendedTarget(target, Identity()), self.splits.test_images
        knowledge = AttackerKnowledge(
            images=self.splits.auxiliary_images,
            clean=auxiliary,
            released=auxiliary,
            held_out=self.attackers.held_out,
            query=undefended.repeated,
        )
        clean = MatchedScores(knowledge, undefended(images))
        return GalleryMatching(images, clean, self.spec.seed)

    def _try(self, row: ReleaseSpec, target: TorchTarget, clean: Tensor) -> None:
        """Ask a release of a user's own a few queries: its faults must not end hours of work."""
        defense = self.defender.build(row, target, clean).defense
        most: int | None = TIMED_QUERIES
        if isinstance(defense, RecordedScores):
            defense.check_target(weights_hash(target.module))
            most = None  # a row may be missing anywhere
        defended = DefendedTarget(target, defense)
        for images in (self.splits.auxiliary_images, self.splits.test_images):
            defended(images[:most])

    def _attack(
        self,
        row: ReleaseSpec,
        target: TorchTarget,
        clean: Tensor,
        clean_errors: CleanErrors | None,
    ) -> tuple[FittedDefense, AttackerKnowledge, Trace, dict[str, AttackResult]]:
        splits, stage = self.splits, f"defend: {row.name}"
        names = self.spec.attackers_of(row)
        fitted = self.defender.build(row, target, clean)
        required = set[str]().union(*(inversion_attacks()[name].requires for name in names))
        simulated: Sequence[Defense] = ()
        if "simulated_defenses" in required:
            simulated = self.defender.simulated_defenses(row, clean)
        self.report(stage, 0.0)
        defended = DefendedTarget(target, fitted.defense)
        again = DefendedTarget(target, fitted.again("asked again"))
        query = self._query(again)
        knowledge = AttackerKnowledge(
            images=splits.auxiliary_images,
            clean=clean,
            released=defended(splits.auxiliary_images),
            held_out=self.attackers.held_out,
            query=query,
            random=not fitted.defense.deterministic,
            repeats=self.spec.attackers.repeats,
            simulated_defenses=simulated,
            differentiable_logits=again.differentiable_logits
            if query is not None and "differentiable_logits" in required
            else None,
        )
        trace = defended.trace(splits.test_images)
        self.report(stage, 1.0)
        results = self.attackers.run(
            row.name,
            knowledge,
            trace.released,
            splits.test_images,
            names,
            clean_errors=clean_errors,
        )
        return fitted, knowledge, trace, results

    @staticmethod
    def _query(defended: DefendedTarget) -> Query | None:
        """Return what answers an attacker's own queries; None where answers were recorded."""
        return None if isinstance(defended.defense, RecordedScores) else defended.repeated

    def _detection_limit(
        self, row: ReleaseSpec, auxiliary: Tensor, clean: Tensor, baselines: Baselines
    ) -> float | None:
        """Return the detection limit of a release's attackers, which no defense has a part in."""
        return detection_limit(
            self.attackers,
            auxiliary,
            self.splits.test_images,
            clean,
            float((baselines.label - baselines.clean).mean()),
            self.spec.attackers_of(row),
        )

    def _facts(
        self,
        row: ReleaseSpec,
        target: TorchTarget,
        fitted: FittedDefense,
        trace: Trace,
        clean: Tensor,
    ) -> dict[str, Any]:
        images, labels = self.splits.test_images, self.splits.test_labels
        batch = images[:TIMED_BATCH]
        defended = DefendedTarget(target, fitted.defense)
        single = median_high(query_times(defended, images[:1], TIMED_QUERIES))
        batched = median_high(query_times(defended, batch, TIMED_BATCHES))
        return {
            "experiment": self.spec.name,
            "preset": self.spec.preset,
            "cell": cell_key(self.spec, row),
            "provenance": Provenance.now(self.data, weights_hash(target.module)),
            "release": row.name,
            "defense": row.defense,
            "options": json_values(row.options),
            "effective_options": json_values(effective_options(row.defense, row.options)),
            "seed": self.spec.seed,
            "auxiliary": len(self.splits.auxiliary_images),
            "queries": len(images),
            "accuracy": float((trace.released.argmax(-1) == labels).double().mean()),
            "keeps_label": fitted.defense.keeps_label,
            "random": not fitted.defense.deterministic,
            **distortion_of(trace, clean),
            "training_seconds": fitted.seconds,
            "training": dict(fitted.facts),
            "milliseconds_single_query": single,
            "milliseconds_per_query_batched": batched / len(batch),
            "spec": json_values(dataclasses.asdict(self.spec)),
        }


def split_data(
    spec: ExperimentSpec, dataset: Dataset, auxiliary_dataset: Dataset | None = None
) -> Splits:
    """Return the splits of an experiment, by its sizes and seed.

    Args:
        spec: Sizes and seed.
        dataset: The data set that ``spec.data`` names.
        auxiliary_dataset: Source of the auxiliary images; None: the same data set.

    Raises:
        InvalidOptionError: The data set is too small.
        OverlappingSplitsError: The auxiliary data set holds private or test images.
    """
    data = spec.data
    return split_dataset(
        dataset,
        private=data.private,
        auxiliary=data.auxiliary,
        test=data.test,
        seed=spec.seed,
        auxiliary_dataset=auxiliary_dataset,
        calibration=data.calibration,
    )


def trained_target(
    spec: ExperimentSpec, splits: Splits, store: Store, report: ProgressCallback
) -> TorchTarget:
    """Return an experiment's undefended target; train it if the store lacks it.

    Args:
        spec: Spec of the experiment.
        splits: Images of the experiment, on the device where networks are trained.
        store: Store of trained networks.
        report: Progress callback.
    """
    device = splits.private_images.device
    stage = "train the target"

    def fresh() -> tuple[nn.Module, Mapping[str, Any]]:
        network = TargetNetwork(
            splits.num_classes,
            splits.private_images.shape[1:],
            width=spec.target.width,
            blocks=spec.target.blocks,
        ).to(device)
        train_target(
            network,
            splits.private_images,
            splits.private_labels,
            settings=spec.target.training,
            generator=Stream(spec.seed, "target order").generator(),
            on_epoch=lambda epoch, _: report(stage, epoch / spec.target.training.epochs),
        )
        return network, {}

    key = {
        "role": "target",
        "seed": spec.seed,
        **dataclasses.asdict(spec.target),
        "data": fingerprint(splits.private_images, splits.private_labels),
    }
    stream = Stream(spec.seed, "target")
    stored = store.network("target", key, lambda: stream.call(fresh, device))
    report(stage, 1.0)
    return TorchTarget(stored.module.to(device))


def count_stages(spec: ExperimentSpec) -> int:
    """Return the number of stages that an experiment reports."""
    decoders = selection_size(spec.attackers)
    networks, stages = set[str](), 2  # the target and the planted leaks
    # The number of model selections does not depend on the sizes of splits.
    workload = Workload(0, 0, spec.attackers.repeats)
    for row in spec.releases:
        applying = [inversion_attacks()[name] for name in spec.applying_attackers(row)]
        stages += 2 + decoders * sum(attack.model_selections(workload) for attack in applying)
        stages += sum("train_prior" in attack.requires for attack in applying)
        stages += sum(attack.reports for attack in applying)
        if needs_surrogate(row.defense):
            suffix = f" {row.name}" if row.surrogate != "plain" else ""
            roles = ["surrogate"]
            if any("simulated_defenses" in attack.requires for attack in applying):
                roles.append("attacker's surrogate")
            for role in roles:
                networks.add(role + suffix)
                if row.surrogate == "augmented":
                    networks.add(role)
        if needs_state(row.defense):
            networks.add(f"{row.defense} {training_options(row.defense, row.options)}")
    return stages + len(networks)
