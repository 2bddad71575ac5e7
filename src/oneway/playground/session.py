"""What the page shows: a target behind its defenses, and attackers of each setting."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from oneway.attacks import inversion_attacks
from oneway.benchmark import Experiment, ExperimentSpec
from oneway.contracts import (
    AttackerKnowledge,
    AttackFunction,
    Defense,
    Reconstructor,
    TrainDecoder,
)
from oneway.data import Dataset, ProgressCallback
from oneway.evaluation import (
    AttackResult,
    Baselines,
    Store,
    Verdict,
    judge,
    run_attack,
    take_baselines,
)
from oneway.evaluation.store import fingerprint
from oneway.metrics import label_changes
from oneway.playground.networks import Networks, networks_key
from oneway.playground.settings import Setting
from oneway.releases import guarded_release, release
from oneway.targets import DefendedTarget, TorchTarget, Trace

ROWS = 128
"""Queries per batch of a release in the background, which can be canceled after each batch."""

MIXED = "retrained, mixed"
"""Name of the attacker who trained on several settings of a defense."""

KEPT = 64
"""Most defenses of single settings, and findings about them, that are kept in memory."""

CLEAR, UNSURE = 10, 6
"""Numbers of samples: one of each digit, and those that the classifier is least sure of."""


def _train_nothing(*_: Tensor) -> nn.Module:
    raise AssertionError("an attacker that is trained already trained again")


@dataclasses.dataclass(frozen=True)
class Graded:
    """A reconstructor, and its result on the test queries."""

    reconstructor: Reconstructor
    result: AttackResult


@dataclasses.dataclass(frozen=True)
class Finding:
    """The results at a setting, over all test queries.

    Attributes:
        verdict: Of the attackers so far.
        errors: The mean error of each attacker, by name.
        retrained: Trained on the releases of exactly this setting; None: not trained yet.
    """

    verdict: Verdict
    errors: Mapping[str, float]
    retrained: Reconstructor | None = None


class Session:
    """A target on real digits, every defense at every position of its sliders, and attackers.

    Attributes:
        target: The undefended classifier.
        samples: ``(S, 1, 32, 32)`` test queries to pick from, in ``[0, 1]``.
        sample_labels: ``(S)`` int64 digits of the samples.
        static: The attacker who trained on clean scores.
        label_alone: The attacker who has the label and nothing else.
        mixed: By defense, the attacker who trained on a mixture of its settings.
        baselines: Squared errors per test query.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        dataset: Dataset,
        store: Store,
        networks: Callable[[str], Networks],
    ) -> None:
        """Grade the attackers of clean scores and of the label.

        Args:
            spec: Target, surrogate and attackers.
            dataset: The data set that ``spec`` names.
            store: Keeps releases, and the attackers of single settings.
            networks: Returns the networks of a key, as :func:`load_networks` does.

        Raises:
            InvalidOptionError: The data set is too small for the splits of ``spec``.
        """
        self._experiment = Experiment(spec, dataset, store, device=torch.device("cpu"))
        self._store, splits = store, self._experiment.splits
        trained = networks(networks_key(spec, self._experiment.data))
        self.target = TorchTarget(trained.target)
        images = {"auxiliary": splits.auxiliary_images, "test": splits.test_images}
        self._queries = {name: (each, self.target.logits(each)) for name, each in images.items()}
        self._clean = release(self._queries["auxiliary"][1])
        clean_test = release(self._queries["test"][1])
        self._codebooks = trained.codebooks
        self.defense: Callable[[Setting], Defense] = functools.lru_cache(KEPT)(trained.defense)
        self._surrogate_hash = fingerprint(*trained.surrogate.state_dict().values())
        self.mixed = {name: _decoded_by(decoder) for name, decoder in trained.mixed.items()}
        undefended = {"auxiliary": self._clean, "test": clean_test}
        self.static, self.label_alone = (
            self._grade(name, _trained_already(reconstructor), undefended)
            for name, reconstructor in (
                ("static", _decoded_by(trained.static)),
                ("label-only", Reconstructor(lambda each: trained.label_alone[each[0].argmax(-1)])),
            )
        )
        self.baselines: Baselines = take_baselines(
            {"static": self.static.result, "label-only": self.label_alone.result},
            splits.auxiliary_images,
            splits.test_images,
        )
        rows = _sample_rows(splits.test_labels, clean_test)
        self.samples = splits.test_images[rows]
        self.sample_labels = splits.test_labels[rows]

    @property
    def queries(self) -> int:
        """The number of test queries of every verdict."""
        return len(self._experiment.splits.test_images)

    @property
    def baseline_errors(self) -> dict[str, float]:
        """The mean errors of the baselines: ``clean``, ``label`` and ``prior``."""
        return {
            name: float(getattr(self.baselines, name).mean())
            for name in ("clean", "label", "prior")
        }

    def trained_for(self, setting: Setting) -> Reconstructor | None:
        """Return the attacker who trained on exactly what a setting releases, if it is there."""
        known = {"none": self.static, "label-only": self.label_alone}.get(setting.defense)
        return None if known is None else known.reconstructor

    def trace(self, setting: Setting, images: Tensor) -> Trace:
        """Answer queries as the defended target does.

        Args:
            setting: A defense and its options.
            images: ``(N, 1, 32, 32)`` in ``[0, 1]``.

        Raises:
            DefenseFailedError: The defense broke its promise; nothing is released.
        """
        return DefendedTarget(self.target, self.defense(setting)).trace(images)

    def cells(self, setting: Setting) -> int | None:
        """Return the number of different answers of a codebook; None for any other defense."""
        codebook = self._codebooks.get(setting)
        return None if codebook is None else codebook.sizes.cells

    def examine(self, setting: Setting, report: ProgressCallback) -> Iterator[Finding]:
        """Attack a setting as an experiment does: yield a finding each time there is more.

        The first finding grades the attackers that exist already. The second adds one that trains
        on the releases of exactly this setting.

        Args:
            setting: A defense and its options.
            report: Receives the progress; an error that it raises ends the examination.
        """
        released = self._all_releases(setting, report)
        attackers = self._experiment.attackers
        attackers = dataclasses.replace(
            attackers, trainer=dataclasses.replace(attackers.trainer, report=report)
        )
        trained = {"static": self.static.reconstructor}
        if setting.defense in self.mixed:
            trained[MIXED] = self.mixed[setting.defense]
        results = {"label-only": self.label_alone.result}
        for name, reconstructor in trained.items():
            attack = _trained_already(reconstructor)
            results[name] = self._grade(name, attack, released).result
        yield self._finding(results, released["test"], None)

        def train(confidences: Tensor, auxiliary: Tensor, held_out: Tensor) -> nn.Module:
            title = f"attack {setting}"
            return attackers.train_decoder(title, confidences, auxiliary, held_out)[0]

        known = self.trained_for(setting)
        attack = inversion_attacks()["retrained"] if known is None else _trained_already(known)
        retrained = self._grade("retrained", attack, released, train)
        results["retrained"] = retrained.result
        yield self._finding(results, released["test"], retrained.reconstructor)

    def _finding(
        self,
        results: Mapping[str, AttackResult],
        released: Tensor,
        retrained: Reconstructor | None,
    ) -> Finding:
        _, logits = self._queries["test"]
        verdict = judge(results, self.baselines, release(logits), label_changes(logits, released))
        return Finding(verdict, {name: each.error for name, each in results.items()}, retrained)

    def _grade(
        self,
        name: str,
        attack: AttackFunction,
        released: Mapping[str, Tensor],
        train: TrainDecoder = _train_nothing,
    ) -> Graded:
        """Run an attack, and keep the reconstructor that it chose."""
        splits = self._experiment.splits
        reconstructors = dict[str, Reconstructor]()

        def recorded(
            knowledge: AttackerKnowledge, train: TrainDecoder
        ) -> Mapping[str, Reconstructor]:
            reconstructors.update(attack(knowledge, train))
            return reconstructors

        knowledge = AttackerKnowledge(
            images=splits.auxiliary_images,
            clean=self._clean,
            released=released["auxiliary"],
            held_out=self._experiment.attackers.held_out,
        )
        result = run_attack(name, recorded, knowledge, train, released["test"], splits.test_images)
        assert result is not None  # noqa: S101  each of these attacks applies to every release
        return Graded(reconstructors[result.reconstructor], result)

    def _all_releases(self, setting: Setting, report: ProgressCallback) -> dict[str, Tensor]:
        return {split: self._releases(setting, split, report) for split in self._queries}

    def _releases(self, setting: Setting, split: str, report: ProgressCallback) -> Tensor:
        """Return the ``(N, K)`` releases of a setting for all images of a split."""
        images, logits = self._queries[split]
        stage = f"release {setting}, {split}"

        def compute() -> dict[str, Tensor]:
            defense, parts = self.defense(setting), list[Tensor]()
            for batch, clean in zip(images.split(ROWS), logits.split(ROWS), strict=True):
                parts.append(guarded_release(defense, clean, batch).confidences)
                report(stage, min(1.0, len(parts) * ROWS / len(images)))
            return {"released": torch.cat(parts)}

        codebook = self._codebooks.get(setting)
        spec = {
            "setting": setting.as_json(),
            "surrogate": self._surrogate_hash,
            "book": None if codebook is None else codebook.digest(),
            "data": fingerprint(images, logits),
        }
        released = self._store.tensors("releases", spec, compute)["released"]
        report(stage, 1.0)
        return released


@torch.no_grad()
def reconstruct(reconstructor: Reconstructor, released: Tensor) -> Tensor:
    """Reconstruct ``(N, 1, 32, 32)`` images from ``(N, K)`` released confidences."""
    return reconstructor.reconstruct(released.unsqueeze(0))


def _decoded_by(decoder: nn.Module) -> Reconstructor:
    return Reconstructor(lambda answers: decoder(answers[0]))


def _trained_already(reconstructor: Reconstructor) -> AttackFunction:
    def attack(
        knowledge: AttackerKnowledge,  # noqa: ARG001  it is trained already
        train: TrainDecoder,  # noqa: ARG001
    ) -> Mapping[str, Reconstructor]:
        return {"decoder": reconstructor}

    return attack


def _sample_rows(labels: Tensor, clean: Tensor) -> Tensor:
    """Return the rows of the samples: clear queries by digit, then unsure ones."""
    confidence = clean.amax(-1)
    right = clean.argmax(-1) == labels
    clear = [
        rows[confidence[rows].argsort(descending=True, stable=True)[len(rows) // 2]]
        for digit in labels.unique()[:CLEAR]
        if len(rows := ((labels == digit) & right).nonzero().flatten())
    ]
    unsure = confidence.masked_fill(~right, torch.inf).argsort(stable=True)[:UNSURE]
    return torch.cat([torch.stack(clear), unsure])
