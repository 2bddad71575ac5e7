"""The defender of an experiment: its target, its surrogates, and the defenses built of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from oneway.attacks.adversarial_training import put_through
from oneway.benchmark.attackers import InverterTrainer
from oneway.benchmark.randomness import Stream
from oneway.benchmark.registry import (
    build_defense,
    needs_network,
    needs_surrogate,
    trained_defense,
    training_options,
)
from oneway.benchmark.spec import ExperimentSpec, ReleaseSpec, is_copied
from oneway.benchmark.store import Store, fingerprint
from oneway.contracts import DefenderMaterial, Defense
from oneway.data import Report, Splits
from oneway.errors import InvalidOptionError
from oneway.inversion import full_depth
from oneway.targets import TargetNetwork, TorchTarget, train_target


@dataclasses.dataclass(frozen=True)
class Built:
    """A defense that is ready, and what it took.

    Attributes:
        defense: It.
        again: The same, for whoever asks again: it draws on a stream of its own, so that what
            was released stays the same.
        seconds: Of training, beyond the target's: a surrogate's, or a network's of its own.
        facts: What its training recorded.
    """

    defense: Defense
    again: Defense
    seconds: float
    facts: Mapping[str, Any]


class Defender:
    """Trains the target and whatever a release needs, each only once."""

    def __init__(
        self,
        spec: ExperimentSpec,
        splits: Splits,
        held_out: Tensor,
        store: Store,
        trainer: InverterTrainer,
        report: Report,
    ) -> None:
        """Prepare; nothing is trained yet.

        Args:
            spec: The experiment.
            splits: Its images, on the device where networks are trained.
            held_out: ``(N)`` bool, the auxiliary rows for choosing.
            store: Where trained networks are kept.
            trainer: Trains inverters.
            report: Told of progress.

        Raises:
            InvalidOptionError: No surrogate fits the images.
        """
        self.spec, self.splits, self.held_out = spec, splits, held_out
        self.store, self.trainer, self.report = store, trainer, report
        self.device = splits.private_images.device
        self.depth = surrogate_depth(spec, splits.auxiliary_images.shape[2:])

    def train_target(self) -> TorchTarget:
        """Return the undefended target."""
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
        return TorchTarget(stored.network.to(self.device))

    def build(self, row: ReleaseSpec, target: TorchTarget, clean: Tensor) -> Built:
        """Train what a release's defense needs, and build it.

        Args:
            row: The release.
            target: The undefended target.
            clean: ``(N, K)`` its confidences of the auxiliary images.
        """
        surrogate, network = None, None
        facts: Mapping[str, Any] = {}
        if needs_surrogate(row.defense):
            surrogate, facts = self._surrogate(row, clean, "surrogate")
            facts = {**facts, "surrogate_held_out_error": min(facts["held_out_errors"])}
        if needs_network(row.defense):
            network, facts = self._network(row, target)
        defense, again = (
            build_defense(
                row.defense,
                row.options,
                surrogate,
                network=network,
                generator=Stream(self.spec.seed, f"{row.name}, {purpose}").generator(),
            )
            for purpose in ("release", "asked again")
        )
        kept = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        return Built(defense, again, kept.pop("seconds", 0.0), kept)

    def own_copies(self, row: ReleaseSpec, clean: Tensor) -> list[Defense]:
        """Build an attacker's copies of a defense: its own surrogate, step sizes around ours.

        There are none of a defense without surrogate or step size.
        """
        if not is_copied(row):
            return []
        surrogate, _ = self._surrogate(row, clean, "attacker's surrogate")
        return self._copies(row, surrogate, f"{row.name}, copy")

    def _copies(self, row: ReleaseSpec, surrogate: nn.Module, purpose: str) -> list[Defense]:
        """Build a defense around another surrogate, once per step size around the defender's."""
        return [
            build_defense(
                row.defense,
                {**row.options, "step_size": factor * row.options["step_size"]},
                surrogate,
                generator=Stream(self.spec.seed, f"{purpose} {factor}").generator(),
            )
            for factor in self.spec.attackers.step_factors
        ]

    def _surrogate(
        self, row: ReleaseSpec, clean: Tensor, role: str
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        spec = self.spec.surrogate
        options = {
            "width": spec.width,
            "hidden_layers": self.depth,
            "front_end": spec.front_end,
        }
        owner = "the defender's" if role == "surrogate" else "an attacker's own"
        stage = f"train {owner} surrogate"
        shown, perturb, perturbed = clean, None, None
        if row.surrogate == "augmented":
            shown = self._with_own_noise(row, clean, role)
        if row.surrogate == "min-max":
            perturb, perturbed = self._noise_against_itself(row, role)
        if row.surrogate != "plain":
            stage += f" for {row.name}"
        return self.trainer.train(
            role,
            options,
            spec.training,
            shown,
            self.splits.auxiliary_images,
            self.held_out,
            stage=stage,
            perturb=perturb,
            perturbed=perturbed,
        )

    def _with_own_noise(self, row: ReleaseSpec, clean: Tensor, role: str) -> Tensor:
        """Return clean scores, all but a share of them with a plain surrogate's noise on them."""
        plain = dataclasses.replace(row, surrogate="plain")
        surrogate, _ = self._surrogate(plain, clean, role)
        copies = self._copies(row, surrogate, f"{role}, augmented")
        images = self.splits.auxiliary_images
        return put_through(copies, clean, images, every=len(copies) + 1)

    def _noise_against_itself(
        self, row: ReleaseSpec, role: str
    ) -> tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], Mapping[str, Any]]:
        """Return the inner maximisation of adversarial training (Madry et al., ICLR 2018)."""
        steps = self.spec.surrogate.adversarial_steps
        reach = row.options["step_size"] * row.options.get("steps", 10)
        factors = self.spec.attackers.step_factors
        draws = Stream(self.spec.seed, f"{role}, min-max").generator()

        def perturb(inverter: nn.Module, confidences: Tensor, images: Tensor) -> Tensor:
            # Every factor in every batch: then held-out errors of two epochs can be compared.
            copies = [
                build_defense(
                    row.defense,
                    {**row.options, "steps": steps, "step_size": factor * reach / steps},
                    inverter,
                    generator=draws,
                )
                for factor in factors
            ]
            return put_through(copies, confidences, images, every=len(copies))

        return perturb, {
            "defense": row.defense,
            "options": {key: str(value) for key, value in row.options.items()},
            "steps": steps,
            "step_factors": list(factors),
            "factors": "by row",
        }

    def _network(
        self, row: ReleaseSpec, target: TorchTarget
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        splits, options = self.splits, training_options(row.defense, row.options)
        told = ", ".join(f"{name} {value}" for name, value in options.items())
        stage = f"train {row.defense}" + (f", {told}" if told else "")
        logits = target.logits(splits.auxiliary_images)

        def fresh() -> tuple[nn.Module, Mapping[str, Any]]:
            material = DefenderMaterial(
                target.module,
                splits.private_images,
                splits.private_labels,
                splits.auxiliary_images,
                logits,
            )
            return trained_defense(row.defense).train(
                material,
                generator=Stream(self.spec.seed, f"{row.defense} order").generator(),
                on_epoch=lambda share: self.report(stage, share),
                **options,
            )

        key = {
            "role": row.defense,
            "seed": self.spec.seed,
            "options": options,
            "target": target_architecture(target),
            "data": fingerprint(
                splits.private_images, splits.private_labels, splits.auxiliary_images, logits
            ),
        }
        stream = Stream(self.spec.seed, row.defense)
        stored = self.store.network(row.defense, key, lambda: stream.call(fresh, self.device))
        self.report(stage, 1.0)
        return stored.network.to(self.device), stored.facts


def target_architecture(target: TorchTarget) -> dict[str, Any]:
    """Return what builds another network like the target's."""
    return dict(target.module.architecture)  # type: ignore[arg-type]


def surrogate_depth(spec: ExperimentSpec, sides: Sequence[int]) -> int:
    """Return how many hidden layers the surrogate has on images of these sides.

    Raises:
        InvalidOptionError: None would be left.
    """
    full = full_depth(*sides)
    removed = spec.surrogate.hidden_layers_removed
    wanted = any(needs_surrogate(row.defense) for row in spec.releases)
    if wanted and removed >= full:
        raise InvalidOptionError(
            f"hidden_layers_removed must be below {full}, the hidden layers of an inverter for "
            f"{sides[0]}x{sides[1]} images, but is {removed}."
        )
    return full - removed
