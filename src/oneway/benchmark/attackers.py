"""The attackers of an experiment: each trains its decoders through the store."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oneway.audit import AttackResult, run_attack
from oneway.benchmark.randomness import Stream
from oneway.benchmark.registry import ATTACKS
from oneway.benchmark.spec import AttackerSpec
from oneway.benchmark.store import Store, fingerprint
from oneway.contracts import Observations
from oneway.inversion import (
    DecoderSpec,
    Inverter,
    TrainingSettings,
    decoder_grid,
    held_out_rows,
    hold_contest,
    train_inverter,
)

Report = Callable[[str, float], None]
"""Told what is being done, and how much of it is done, from 0 to 1."""


def silent(stage: str, share: float) -> None:
    """Report to nobody."""


@dataclasses.dataclass(frozen=True)
class InverterTrainer:
    """Trains inverters on one set of auxiliary images, each only once.

    Attributes:
        images: ``(N, C, H, W)`` the auxiliary images.
        held_out: ``(N)`` bool, the rows for choosing.
        store: Where trained networks are kept.
        seed: Of the experiment.
        report: Told of progress.
    """

    images: Tensor
    held_out: Tensor
    store: Store
    seed: int
    report: Report = silent

    def train(
        self,
        role: str,
        options: Mapping[str, Any],
        settings: TrainingSettings,
        confidences: Tensor,
        *,
        stage: str,
        leader: Sequence[float] = (),
    ) -> tuple[nn.Module, list[float]]:
        """Return an inverter and its held-out errors by epoch, from the store if it is there.

        Args:
            role: ``"surrogate"`` or ``"attacker"``: each has random streams of its own.
            options: Keyword arguments of :class:`oneway.Inverter`.
            settings: How it is trained.
            confidences: ``(N, K)`` what it sees of each image.
            stage: What progress is reported as.
            leader: See :func:`oneway.train_inverter`.
        """
        device = self.images.device

        def fresh() -> tuple[nn.Module, Mapping[str, Any]]:
            network = Inverter(confidences.shape[-1], self.images.shape[1:], **options).to(device)
            errors = train_inverter(
                network,
                confidences,
                self.images,
                self.held_out,
                settings=settings,
                generator=Stream(self.seed, f"{role} order").generator(),
                leader=leader,
                on_epoch=lambda epoch: self.report(stage, epoch.epoch / epoch.epochs),
            )
            return network, {"held_out_errors": errors}

        spec = {
            "role": role,
            "seed": self.seed,
            "options": dict(options),
            "training": dataclasses.asdict(settings),
            "leader": list(leader),
            "data": fingerprint(confidences, self.images, self.held_out),
        }
        stream = Stream(self.seed, role)
        stored = self.store.network("inverter", spec, lambda: stream.call(fresh, device))
        self.report(stage, 1.0)
        return stored.network.to(device), list(stored.facts["held_out_errors"])


@dataclasses.dataclass(frozen=True)
class Attackers:
    """All attackers of an experiment, with equal means."""

    spec: AttackerSpec
    trainer: InverterTrainer

    def run(
        self, title: str, observations: Observations, released: Tensor, images: Tensor
    ) -> dict[str, AttackResult]:
        """Let each attack one release; return what each achieved, by name.

        Args:
            title: What progress is reported as.
            observations: What the attackers have.
            released: ``(M, K)`` what was released for the test queries.
            images: ``(M, C, H, W)`` the test queries, to grade with.
        """
        results = {}
        for name in self.spec.names:

            def train(confidences: Tensor, *_: Tensor, name: str = name) -> nn.Module:
                return self._contest(f"{title}: {name}", confidences)

            results[name] = run_attack(name, ATTACKS[name], observations, train, released, images)
        return results

    def _contest(self, title: str, confidences: Tensor) -> nn.Module:
        def fit(decoder: DecoderSpec, leader: Sequence[float]) -> tuple[nn.Module, list[float]]:
            return self.trainer.train(
                "attacker",
                dataclasses.asdict(decoder),
                self.spec.training,
                confidences,
                stage=f"{title}, {decoder.front_end} {decoder.width}",
                leader=leader,
            )

        return hold_contest(decoder_grid(self.spec.front_ends, self.spec.widths), fit)[0]


def prepare_attackers(
    spec: AttackerSpec, images: Tensor, store: Store, seed: int, report: Report
) -> Attackers:
    """Give attackers their auxiliary images, with the rows that they hold out.

    Args:
        spec: Who they are.
        images: ``(N, C, H, W)`` the auxiliary images.
        store: Where trained networks are kept.
        seed: Of the experiment.
        report: Told of progress.
    """
    choice = torch.Generator().manual_seed(seed)
    held_out = held_out_rows(len(images), spec.held_out, choice).to(images.device)
    return Attackers(spec, InverterTrainer(images, held_out, store, seed, report))


def contest_size(spec: AttackerSpec) -> int:
    """Return how many decoders take part in each contest."""
    return len(decoder_grid(spec.front_ends, spec.widths))
