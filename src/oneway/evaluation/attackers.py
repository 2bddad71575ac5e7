"""The attackers of an experiment: each trains its decoders through the store."""

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
    select_model,
    train_inverter,
)


@dataclasses.dataclass(frozen=True)
class InverterTrainer:
    """Trains inverters, each only once.

    Attributes:
        store: Keeps trained networks.
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
        """Return an inverter and what is known of it, from the store if it is there.

        Args:
            role: Such as ``"surrogate"`` or ``"attacker"``: each has random streams of its own.
            options: Keyword arguments of :func:`oneway.inversion.build_inverter`'s networks.
            settings: Training settings.
            confidences: ``(N, K)`` what it sees of each image.
            images: ``(N, C, H, W)`` what it is to reconstruct.
            held_out: ``(N)`` bool, the rows for choosing.
            stage: Name of the stage, for progress.
            incumbent: See :func:`oneway.train_inverter`.
            perturb: See there.
            perturbed: JSON values that say what ``perturb`` does.

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
    """All attackers of an experiment, with equal means.

    Attributes:
        spec: The attackers and their decoders.
        trainer: Trains their decoders.
        images: ``(N, C, H, W)`` the auxiliary images.
        held_out: ``(N)`` bool, the rows for choosing.
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
        """Let each attack one release; return what each achieved, by name.

        Args:
            title: Name of the release, for progress.
            knowledge: The attackers' data and access.
            released: ``(M, K)`` what was released for the test queries.
            images: ``(M, C, H, W)`` the test queries, to grade with.
            names: Attacks to run; None: all. An attack that does not apply has no result.
        """
        attacks, results = inversion_attacks(), {}
        for name in self.spec.names if names is None else names:
            selections = itertools.count(1)

            def train(
                confidences: Tensor,
                own: Tensor,
                held_out: Tensor,
                name: str = name,
                selections: Iterator[int] = selections,
            ) -> nn.Module:
                number = next(selections)
                more = f" {number}" if number > 1 else ""
                return self.train_decoder(f"{title}: {name}{more}", confidences, own, held_out)

            result = run_attack(name, attacks[name], knowledge, train, released, images)
            if result is not None:
                results[name] = result
        return results

    def train_decoder(
        self, title: str, confidences: Tensor, images: Tensor, held_out: Tensor
    ) -> nn.Module:
        """Train all decoders and return the one with the lowest held-out error.

        Args:
            title: Name of the release, for progress.
            confidences: ``(N, K)`` what the attacker got for its images.
            images: ``(N, C, H, W)`` those images.
            held_out: ``(N)`` bool, the rows for choosing.
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

        return select_model(decoder_grid(self.spec.input_transforms, self.spec.widths), fit)[0]


def prepare_attackers(
    spec: AttackerSpec, images: Tensor, store: Store, seed: int, report: ProgressCallback
) -> Attackers:
    """Give attackers their auxiliary images, with the rows that they hold out.

    Args:
        spec: The attackers and their decoders.
        images: ``(N, C, H, W)`` the auxiliary images.
        store: Keeps trained networks.
        seed: Seed of the experiment.
        report: Progress callback.
    """
    choice = torch.Generator().manual_seed(seed)
    held_out = held_out_rows(len(images), spec.held_out, choice).to(images.device)
    return Attackers(spec, InverterTrainer(store, seed, report), images, held_out)


def selection_size(spec: AttackerSpec) -> int:
    """Return how many decoders take part in each model selection."""
    return len(decoder_grid(spec.input_transforms, spec.widths))
