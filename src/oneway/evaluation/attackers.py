"""The attackers of an evaluation, who train their decoders through the store."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oneway.attacks import inversion_attacks
from oneway.contracts import AttackerKnowledge
from oneway.data import ProgressCallback, no_progress
from oneway.evaluation.grading import AttackResult, run_attack
from oneway.evaluation.randomness import Stream
from oneway.evaluation.settings import AttackerSpec
from oneway.evaluation.store import Store, fingerprint
from oneway.inversion import (
    DecoderSpec,
    Perturb,
    TrainingSettings,
    build_inverter,
    decoder_grid,
    held_out_rows,
    mix_decoders,
    train_each,
    train_inverter,
)


@dataclasses.dataclass(frozen=True)
class InverterTrainer:
    """Trains inverters; the store keeps each, so that no inverter is trained twice.

    Attributes:
        store: Store of trained networks.
        seed: Seed of the experiment.
        report: Progress callback.
    """

    store: Store
    seed: int
    report: ProgressCallback = no_progress

    def train(
        self,
        role: str,
        options: Mapping[str, Any],
        settings: TrainingSettings,
        confidences: Tensor,
        images: Tensor,
        held_out: Tensor,
        *,
        stage: str,
        incumbent: Sequence[float] = (),
        perturb: Perturb | None = None,
        perturbed: Mapping[str, Any] | None = None,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return a trained inverter and facts about its training, from the store if it has them.

        Args:
            role: Purpose of the inverter, such as ``"surrogate"`` or ``"attacker"``. Each role has
                independent random streams.
            options: Keyword arguments of :func:`oneway.inversion.build_inverter`'s networks.
            settings: Training settings.
            confidences: ``(N, K)`` confidences to invert.
            images: ``(N, C, H, W)`` true inputs of the confidences.
            held_out: ``(N)`` bool, the rows that select the epoch.
            stage: Name of the stage, for progress.
            incumbent: Held-out errors to keep up with; see :func:`oneway.train_inverter`.
            perturb: Adversarial training; see :func:`oneway.train_inverter`.
            perturbed: JSON values that describe ``perturb``, for the store's key.

        Returns:
            The network, and its ``held_out_errors`` by epoch and training ``seconds``.
        """
        device = images.device

        def fresh() -> tuple[nn.Module, Mapping[str, Any]]:
            network = build_inverter(confidences.shape[-1], images.shape[1:], **options).to(device)
            errors = train_inverter(
                network,
                confidences,
                images,
                held_out,
                settings=settings,
                generator=Stream(self.seed, f"{role} order").generator(),
                incumbent=incumbent,
                perturb=perturb,
                on_epoch=lambda epoch: self.report(stage, epoch.epoch / epoch.epochs),
            )
            return network, {"held_out_errors": errors}

        spec = {
            "role": role,
            "seed": self.seed,
            "options": dict(options),
            "training": dataclasses.asdict(settings),
            "incumbent": list(incumbent),
            "perturbed": perturbed and dict(perturbed),
            "data": fingerprint(confidences, images, held_out),
        }
        stream = Stream(self.seed, role)
        kind = "inverter" if images.ndim == 4 else "record-inverter"
        stored = self.store.network(kind, spec, lambda: stream.call(fresh, device))
        self.report(stage, 1.0)
        return stored.module.to(device), stored.facts


@dataclasses.dataclass(frozen=True)
class Attackers:
    """All attackers of an evaluation, with equal means.

    Attributes:
        spec: Attackers and their decoders.
        trainer: Trainer of the decoders.
        images: ``(N, C, H, W)`` auxiliary images.
        held_out: ``(N)`` bool, the rows that select epochs and decoders.
    """

    spec: AttackerSpec
    trainer: InverterTrainer
    images: Tensor
    held_out: Tensor

    def run(
        self,
        title: str,
        knowledge: AttackerKnowledge,
        released: Tensor,
        images: Tensor,
        names: Sequence[str] | None = None,
    ) -> dict[str, AttackResult]:
        """Attack a release; return the result of each attack that applies, by name.

        Args:
            title: Name of the release, for progress.
            knowledge: The attackers' data and access.
            released: ``(M, K)`` released confidences of the test queries.
            images: ``(M, C, H, W)`` test queries, to grade with.
            names: Attacks to run; None: all attacks of the spec.
        """
        attacks, results = inversion_attacks(), dict[str, AttackResult]()
        for name in self.spec.names if names is None else names:
            attack, selections = attacks[name], itertools.count(1)

            def train(
                confidences: Tensor,
                auxiliary: Tensor,
                held_out: Tensor,
                name: str = name,
                selections: Iterator[int] = selections,
            ) -> nn.Module:
                number = next(selections)
                stage = f"{title}: {name}" + (f" {number}" if number > 1 else "")
                return self.train_decoder(stage, confidences, auxiliary, held_out)

            candidates = [each for other in results.values() for each in other.candidates]
            shown = knowledge
            if attack.mixes:
                others = [candidate.held_out for candidate in candidates]
                shown = dataclasses.replace(knowledge, candidates=others)
            result = run_attack(
                name, attack, shown, train, released, images, candidates if attack.mixes else ()
            )
            if result is not None:
                results[name] = result
        # Reconstructions by all candidates would fill the memory of an evaluation.
        return {
            name: dataclasses.replace(result, candidates=()) for name, result in results.items()
        }

    def train_decoder(
        self, title: str, confidences: Tensor, images: Tensor, held_out: Tensor
    ) -> nn.Module:
        """Train all decoders, and return the mixture with the lowest held-out error.

        Args:
            title: Name of the release, for progress.
            confidences: ``(N, K)`` confidences that answer ``images``.
            images: ``(N, C, H, W)`` auxiliary images.
            held_out: ``(N)`` bool, the rows that select epochs and weigh decoders.
        """

        def fit(decoder: DecoderSpec, incumbent: Sequence[float]) -> tuple[nn.Module, list[float]]:
            network, facts = self.trainer.train(
                "attacker",
                dataclasses.asdict(decoder),
                self.spec.training,
                confidences,
                images,
                held_out,
                stage=f"{title}, {decoder.input_transform} {decoder.width}",
                incumbent=incumbent,
            )
            return network, list(facts["held_out_errors"])

        trials = train_each(decoder_grid(self.spec.input_transforms, self.spec.widths), fit)
        decoders = [trial.decoder for trial in trials]
        return mix_decoders(decoders, confidences[held_out], images[held_out])


def prepare_attackers(
    spec: AttackerSpec, images: Tensor, store: Store, seed: int, report: ProgressCallback
) -> Attackers:
    """Return attackers with their auxiliary images, and with the rows that they hold out.

    Args:
        spec: Attackers and their decoders.
        images: ``(N, C, H, W)`` auxiliary images.
        store: Store of trained networks.
        seed: Seed of the experiment.
        report: Progress callback.
    """
    choice = torch.Generator().manual_seed(seed)
    held_out = held_out_rows(len(images), spec.held_out, choice).to(images.device)
    return Attackers(spec, InverterTrainer(store, seed, report), images, held_out)


def selection_size(spec: AttackerSpec) -> int:
    """Return the number of decoders in each model selection."""
    return len(decoder_grid(spec.input_transforms, spec.widths))
