"""All that the page shows was trained here: a target, its defenses, and who attacks them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from oneway.attacks import inversion_attacks
from oneway.benchmark import Experiment, ExperimentSpec
from oneway.benchmark.runner import trained_target
from oneway.contracts import (
    AttackerKnowledge,
    AttackFunction,
    Defense,
    Reconstructor,
    TrainDecoder,
    TrainingData,
)
from oneway.data import Dataset, ProgressCallback, load_dataset
from oneway.defenses import build_defense
from oneway.defenses.codebook import Codebook, CodebookRelease
from oneway.defenses.codebook.certificate import table_hash
from oneway.evaluation import (
    AttackResult,
    Baselines,
    ReleaseSpec,
    Store,
    Verdict,
    judge,
    run_attack,
    take_baselines,
)
from oneway.evaluation.attackers import Attackers, selection_size
from oneway.evaluation.randomness import Stream
from oneway.evaluation.store import fingerprint
from oneway.metrics import label_changes
from oneway.playground.settings import SLIDERS, Setting, all_settings, mixed_settings
from oneway.releases import guarded_release, release
from oneway.targets import DefendedTarget, Trace

ROWS = 128
"""Queries that are released at once in the background: after each lot it may be called off."""

MIXED = "retrained, mixed"
"""The attacker who trained on several settings of a defense, and not on one alone."""

KEPT = 64
"""Defenses and attackers of single settings that are kept in memory."""

CLEAR, UNSURE = 10, 6
"""Samples: one of each digit, and those that the classifier is least sure of."""


@dataclasses.dataclass(frozen=True)
class Graded:
    """Somebody who turns scores into images, and how well that went on the test queries.

    Attributes:
        reconstructor: How they reconstruct.
        result: What they achieved.
    """

    reconstructor: Reconstructor
    result: AttackResult


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is known of a setting, over all test queries.

    Attributes:
        verdict: Of the attackers so far.
        errors: The mean error of each, by name.
        retrained: Who trained on exactly this setting's releases; None: not yet.
    """

    verdict: Verdict
    errors: Mapping[str, float]
    retrained: Reconstructor | None = None


class Study:
    """A target on real digits, every defense at every position of its sliders, and attackers.

    Attributes:
        target: The undefended classifier.
        samples: ``(S, 1, 32, 32)`` test queries to pick from.
        sample_labels: ``(S)`` int64, what they are.
        static: Who trained on clean scores.
        label_alone: Who has the label and nothing else.
        mixed: By defense, who trained on a mixture of its settings.
        baselines: Per test query.
    """

    def __init__(
        self, spec: ExperimentSpec, dataset: Dataset, store: Store, report: ProgressCallback
    ) -> None:
        """Train whatever the store lacks.

        Args:
            spec: Target, surrogate and attackers.
            dataset: The data set that it names.
            store: Where networks and releases are kept.
            report: Told of progress.

        Raises:
            InvalidOptionError: The data cannot be split so.
        """
        self._experiment = Experiment(
            spec, dataset, store, device=torch.device("cpu"), report=report
        )
        self._store, splits = store, self._experiment.splits
        self.target = trained_target(spec, splits, store, report)
        images = {"auxiliary": splits.auxiliary_images, "test": splits.test_images}
        spec_of_logits = {
            "target": fingerprint(*self.target.module.state_dict().values()),
            "data": self._experiment.data,
        }
        logits = store.tensors(
            "logits",
            spec_of_logits,
            lambda: {name: self.target.logits(each) for name, each in images.items()},
        )
        self._queries = {name: (each, logits[name]) for name, each in images.items()}
        self._clean, clean_test = release(logits["auxiliary"]), release(logits["test"])
        bare = ReleaseSpec("none", "none")
        self._surrogate, _ = self._experiment.defender.trained_surrogate(bare, self._clean)
        self._books = self._codebooks(report)
        self.defense: Callable[[Setting], Defense] = functools.lru_cache(KEPT)(self._build)
        self._surrogate_mark = fingerprint(*self._surrogate.state_dict().values())
        none = Setting.of("none", {})
        told = self._told(none, report)
        attackers = self._experiment.attackers
        self.static = self._attack("static", none, told, attackers)
        self.label_alone = self._attack("label-only", none, told, attackers)
        self.mixed = {
            defense: self._mixed(defense, report) for defense in SLIDERS if mixed_settings(defense)
        }
        self.baselines: Baselines = take_baselines(
            {"static": self.static.result, "label-only": self.label_alone.result},
            splits.auxiliary_images,
            splits.test_images,
        )
        chosen = _sample_rows(splits.test_labels, clean_test)
        self.samples = splits.test_images[chosen]
        self.sample_labels = splits.test_labels[chosen]

    @property
    def queries(self) -> int:
        """How many test queries every verdict is about."""
        return len(self._experiment.splits.test_images)

    @property
    def baseline_errors(self) -> dict[str, float]:
        """The mean errors that everything is measured against: ``clean``, ``label``, ``prior``."""
        return {
            name: float(getattr(self.baselines, name).mean())
            for name in ("clean", "label", "prior")
        }

    def trace(self, setting: Setting, images: Tensor) -> Trace:
        """Answer queries as the defended target does.

        Args:
            setting: Of the defense.
            images: ``(N, 1, 32, 32)`` in ``[0, 1]``.

        Raises:
            DefenseFailedError: The defense broke its promise; nothing is released.
        """
        return DefendedTarget(self.target, self.defense(setting)).trace(images)

    def cells(self, setting: Setting) -> int | None:
        """Return how many answers there are at all, of a codebook; None of any other defense."""
        return self._books[setting].sizes.cells if setting in self._books else None

    def examine(self, setting: Setting, report: ProgressCallback) -> Iterator[Finding]:
        """Attack a setting as an experiment would: give what is found, each time there is more.

        First the attackers who are there already are graded; then one trains on exactly what this
        setting releases.

        Args:
            setting: Of a defense.
            report: Told of progress; whatever it raises ends the examination.
        """
        told = self._told(setting, report)
        whole = self._experiment.attackers
        attackers = dataclasses.replace(
            whole, trainer=dataclasses.replace(whole.trainer, report=report)
        )
        ready = {"static": self.static.reconstructor}
        if setting.defense in self.mixed:
            ready[MIXED] = self.mixed[setting.defense]
        results = {"label-only": self.label_alone.result}
        for name, reconstructor in ready.items():
            results[name] = self._grade(name, _ready_made(reconstructor), told, attackers).result
        yield self._finding(results, told["test"], None)
        retrained = self._attack("retrained", setting, told, attackers)
        results["retrained"] = retrained.result
        yield self._finding(results, told["test"], retrained.reconstructor)

    def _finding(
        self,
        results: Mapping[str, AttackResult],
        released: Tensor,
        retrained: Reconstructor | None,
    ) -> Finding:
        _, logits = self._queries["test"]
        verdict = judge(results, self.baselines, release(logits), label_changes(logits, released))
        return Finding(verdict, {name: each.error for name, each in results.items()}, retrained)

    def _attack(
        self, name: str, setting: Setting, told: Mapping[str, Tensor], attackers: Attackers
    ) -> Graded:
        of = {"static": "clean scores", "label-only": "the label alone"}.get(name, str(setting))
        return self._grade(name, inversion_attacks()[name], told, attackers, f"attack {of}")

    def _grade(
        self,
        name: str,
        attack: AttackFunction,
        told: Mapping[str, Tensor],
        attackers: Attackers,
        title: str = "",
    ) -> Graded:
        """Let somebody attack, and keep how they do it."""
        splits = self._experiment.splits
        made = dict[str, Reconstructor]()

        def watched(
            knowledge: AttackerKnowledge, train: TrainDecoder
        ) -> Mapping[str, Reconstructor]:
            made.update(attack(knowledge, train))
            return made

        knowledge = AttackerKnowledge(
            images=splits.auxiliary_images,
            clean=self._clean,
            released=told["auxiliary"],
            held_out=attackers.held_out,
        )
        train = functools.partial(attackers.train_decoder, title)
        result = run_attack(name, watched, knowledge, train, told["test"], splits.test_images)
        assert result is not None  # noqa: S101  every one of them applies to every release
        return Graded(made[result.reconstructor], result)

    def _mixed(self, defense: str, report: ProgressCallback) -> Reconstructor:
        """Train an attacker on scores of a defense at several settings, a row at each in turn."""
        settings = mixed_settings(defense)
        released = torch.empty_like(self._clean)
        for position, setting in enumerate(settings):
            rows = slice(position, None, len(settings))
            released[rows] = self._releases(setting, "auxiliary", report)[rows]
        attackers, images = self._experiment.attackers, self._experiment.splits.auxiliary_images
        title = f"attack {defense} at several settings"
        decoder = attackers.train_decoder(title, released, images, attackers.held_out)
        return Reconstructor(lambda answers: decoder(answers[0]))

    def _told(self, setting: Setting, report: ProgressCallback) -> dict[str, Tensor]:
        return {split: self._releases(setting, split, report) for split in self._queries}

    def _releases(self, setting: Setting, split: str, report: ProgressCallback) -> Tensor:
        """Return what a setting releases of all images of a split, ``(N, K)``."""
        images, logits = self._queries[split]
        stage = f"release {setting}, {split}"

        def compute() -> dict[str, Tensor]:
            defense, parts = self.defense(setting), list[Tensor]()
            for some, clean in zip(images.split(ROWS), logits.split(ROWS), strict=True):
                parts.append(guarded_release(defense, clean, some).confidences)
                report(stage, len(parts) * ROWS / len(images))
            return {"released": torch.cat(parts)}

        spec = {
            "setting": setting.as_json(),
            "surrogate": self._surrogate_mark,
            "book": table_hash(self._books[setting]) if setting in self._books else None,
            "data": fingerprint(images, logits),
        }
        released = self._store.tensors("releases", spec, compute)["released"]
        report(stage, 1.0)
        return released

    def _codebooks(self, report: ProgressCallback) -> dict[Setting, Codebook]:
        """Fit a codebook at every position of its sliders, as an experiment does."""
        images, logits = self._queries["auxiliary"]
        training_data = TrainingData(None, None, None, images, logits)
        data, seed = fingerprint(images, logits), self._experiment.spec.seed
        settings, books = all_settings("codebook"), dict[Setting, Codebook]()
        for setting in settings:
            options = dict(setting.options)

            def fit(options: dict[str, Any] = options) -> tuple[nn.Module, Mapping[str, Any]]:
                generator = Stream(seed, "codebook order").generator()
                return CodebookRelease.train(training_data, generator=generator, **options)

            spec = {"role": "codebook", "seed": seed, "options": options, "data": data}
            stored = self._store.network("codebook", spec, fit)
            books[setting] = cast("Codebook", stored.module)
            report("fit codebooks", len(books) / len(settings))
        return books

    def _build(self, setting: Setting) -> Defense:
        return build_defense(
            setting.defense,
            dict(setting.options),
            self._surrogate,
            state=self._books.get(setting),
        )


def count_stages(spec: ExperimentSpec) -> int:
    """Return how many stages a study's training will report."""
    mixtures = [len(mixed_settings(defense)) for defense in SLIDERS if mixed_settings(defense)]
    contests = 2 + len(mixtures)  # clean scores and the label alone, besides
    networks, of_none = len(("target", "surrogate", "codebooks")), len(("auxiliary", "test"))
    return networks + of_none + sum(mixtures) + contests * selection_size(spec.attackers)


def kept_digits(store: Store) -> Dataset:
    """Return the bundled digits, checked by hash when they are first read.

    The package keeps them as text, which takes seconds to read; the store does not.

    Raises:
        MissingExtraError: The package that carries them is not installed.
        CorruptDataError: They are not the published ones.
    """

    def read() -> dict[str, Tensor]:
        digits = load_dataset("digits")
        return {
            "images": torch.from_numpy(digits.images),
            "labels": torch.from_numpy(digits.labels),
        }

    stored = store.tensors("dataset", {"name": "digits"}, read)
    images, labels = (stored[name].numpy() for name in ("images", "labels"))
    return Dataset("digits", images, labels, None, 10)


@torch.no_grad()
def reconstruct(reconstructor: Reconstructor, released: Tensor) -> Tensor:
    """Return ``(N, 1, 32, 32)`` images that somebody makes of ``(N, K)`` released confidences."""
    return reconstructor.reconstruct(released.unsqueeze(0))


def _ready_made(reconstructor: Reconstructor) -> AttackFunction:
    def attack(
        knowledge: AttackerKnowledge,  # noqa: ARG001  it has learned already
        train: TrainDecoder,  # noqa: ARG001
    ) -> Mapping[str, Reconstructor]:
        return {"decoder": reconstructor}

    return attack


def _sample_rows(labels: Tensor, clean: Tensor) -> Tensor:
    """Return which test queries a visitor may pick: clear ones by digit, then unsure ones."""
    sure = clean.amax(-1)
    right = clean.argmax(-1) == labels
    clear = [
        rows[sure[rows].argsort(descending=True, stable=True)[len(rows) // 2]]
        for digit in labels.unique()[:CLEAR]
        if len(rows := ((labels == digit) & right).nonzero().flatten())
    ]
    unsure = sure.masked_fill(~right, torch.inf).argsort(stable=True)[:UNSURE]
    return torch.cat([torch.stack(clear), unsure])
