"""The defender of an evaluation, with surrogates, fitted states, and defenses built of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from oneway.attacks.adversarial_training import put_through
from oneway.contracts import Defense, Target, TrainingData
from oneway.data import ProgressCallback
from oneway.defenses import (
    build_defense,
    needs_state,
    needs_surrogate,
    trained_defense,
    training_options,
)
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError
from oneway.evaluation.attackers import InverterTrainer
from oneway.evaluation.randomness import Stream
from oneway.evaluation.settings import ReleaseSpec, SurrogateSpec, is_simulated
from oneway.evaluation.store import Store, fingerprint
from oneway.inversion import default_depth
from oneway.targets import DefendedTarget, TorchTarget


@dataclasses.dataclass(frozen=True)
class FittedDefense:
    """A defense that is ready to answer, with facts about its training.

    Attributes:
        defense: The defense.
        again: Rebuilds the defense with an independent random stream for the named purpose, which
            leaves the release unchanged.
        seconds: Seconds that the surrogate, or the state of the defense, was trained.
        facts: Numbers that the training recorded.
    """

    defense: Defense
    again: Callable[[str], Defense]
    seconds: float
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DefenderImages:
    """Images that a defender trains with.

    Attributes:
        auxiliary: ``(N, C, H, W)`` public images, on the device where networks are trained.
        held_out: ``(N)`` bool, the public images that select epochs.
        private: ``(M, C, H, W)`` training images of the target; None if they are not at hand.
        private_labels: ``(M)`` int64 classes of the private images, or None.
        calibration: ``(Q, C, H, W)`` queries that the operator has kept; None if there are none.
        auxiliary_labels: ``(N)`` int64 classes of the public images; None if they are unknown.
        calibration_labels: ``(Q)`` int64 classes of the calibration queries, or None.
    """

    auxiliary: Tensor
    held_out: Tensor
    private: Tensor | None = None
    private_labels: Tensor | None = None
    calibration: Tensor | None = None
    auxiliary_labels: Tensor | None = None
    calibration_labels: Tensor | None = None


class Defender:
    """Trains surrogates and states of defenses; the store keeps each, and none is trained twice."""

    def __init__(
        self,
        surrogate: SurrogateSpec,
        step_factors: Sequence[float],
        images: DefenderImages,
        store: Store,
        trainer: InverterTrainer,
        report: ProgressCallback,
    ) -> None:
        """Prepare; nothing is trained yet.

        Args:
            surrogate: Spec of the defender's inverter.
            step_factors: Step sizes of simulated defenses, as multiples of the defender's.
            images: Images to train with.
            store: Store of trained networks.
            trainer: Trainer of inverters; its seed is the defender's, too.
            report: Progress callback.
        """
        self.surrogate, self.step_factors, self.images = surrogate, step_factors, images
        self.store, self.trainer, self.report = store, trainer, report
        self.seed = trainer.seed

    def build(self, row: ReleaseSpec, target: Target, clean: Tensor) -> FittedDefense:
        """Build a release's defense, after training its surrogate or fitting its state.

        Args:
            row: Spec of the release.
            target: Undefended target.
            clean: ``(N, K)`` clean confidences of the auxiliary images.
        """
        surrogate, state = None, None
        facts: Mapping[str, Any] = {}
        if needs_surrogate(row.defense):
            surrogate, facts = self.trained_surrogate(row, clean)
            facts = {**facts, "surrogate_held_out_error": min(facts["held_out_errors"])}
        if needs_state(row.defense):
            state, facts = self._state(row, target)

        def build(purpose: str) -> Defense:
            return build_defense(
                row.defense,
                row.options,
                surrogate,
                state=state,
                generator=Stream(self.seed, f"{row.name}, {purpose}").generator(),
            )

        kept = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        return FittedDefense(build("release"), build, kept.pop("seconds", 0.0), kept)

    def simulated_defenses(self, row: ReleaseSpec, clean: Tensor) -> list[Defense]:
        """Build the defenses that an attacker simulates: another surrogate, several step sizes.

        Args:
            row: Spec of the release.
            clean: ``(N, K)`` clean confidences of the auxiliary images.

        Returns:
            A defense for each step factor; none for a defense without surrogate or step size.
        """
        if not is_simulated(row):
            return []
        surrogate, _ = self.trained_surrogate(row, clean, "attacker's surrogate")
        return self._copies(row, surrogate, f"{row.name}, copy")

    def _copies(self, row: ReleaseSpec, surrogate: nn.Module, purpose: str) -> list[Defense]:
        """Build a defense around a surrogate, once for each step factor."""
        return [
            build_defense(
                row.defense,
                {**row.options, "step_size": factor * row.options["step_size"]},
                surrogate,
                generator=Stream(self.seed, f"{purpose} {factor}").generator(),
            )
            for factor in self.step_factors
        ]

    def trained_surrogate(
        self, row: ReleaseSpec, clean: Tensor, role: str = "surrogate"
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return the trained surrogate of a release, and facts that its training recorded.

        Args:
            row: Spec of the release.
            clean: ``(N, K)`` clean confidences of the auxiliary images.
            role: ``"surrogate"`` for the defender, or ``"attacker's surrogate"``. Each role has
                independent random streams.
        """
        spec = self.surrogate
        options = surrogate_options(spec, self.images.auxiliary.shape[1:])
        owner = "the defender's" if role == "surrogate" else "an attacker's own"
        stage = f"train {owner} surrogate"
        shown, perturb, perturbed = clean, None, None
        if row.surrogate == "augmented":
            shown = self._with_plain_noise(row, clean, role)
        if row.surrogate == "min-max":
            perturb, perturbed = self._noise_against_itself(row, role)
        if row.surrogate != "plain":
            stage += f" for {row.name}"
        return self.trainer.train(
            role,
            options,
            spec.training,
            shown,
            self.images.auxiliary,
            self.images.held_out,
            stage=stage,
            perturb=perturb,
            perturbed=perturbed,
        )

    def _with_plain_noise(self, row: ReleaseSpec, clean: Tensor, role: str) -> Tensor:
        """Return clean scores, all but a share of them with the noise of a plain surrogate."""
        plain = dataclasses.replace(row, surrogate="plain")
        surrogate, _ = self.trained_surrogate(plain, clean, role)
        copies = self._copies(row, surrogate, f"{role}, augmented")
        images = self.images.auxiliary
        return put_through(copies, clean, images, every=len(copies) + 1)

    def _noise_against_itself(
        self, row: ReleaseSpec, role: str
    ) -> tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], Mapping[str, Any]]:
        """Return the inner maximisation of adversarial training (Madry et al., ICLR 2018)."""
        steps = self.surrogate.adversarial_steps
        reach = row.options["step_size"] * row.options.get("steps", 10)
        factors = self.step_factors
        draws = Stream(self.seed, f"{role}, min-max").generator()

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

    def _state(self, row: ReleaseSpec, target: Target) -> tuple[nn.Module, Mapping[str, Any]]:
        images, options = self.images, training_options(row.defense, row.options)
        settings = ", ".join(f"{name} {value}" for name, value in options.items())
        stage = f"train {row.defense}" + (f", {settings}" if settings else "")
        bare = DefendedTarget(target, Identity())
        logits = bare.trace(images.auxiliary).clean_logits
        queries = images.calibration
        queries_logits = None if queries is None else bare.trace(queries).clean_logits
        module = target.module if isinstance(target, TorchTarget) else None

        def fresh() -> tuple[nn.Module, Mapping[str, Any]]:
            training_data = TrainingData(
                module,
                images.private,
                images.private_labels,
                images.auxiliary,
                logits,
                queries,
                queries_logits,
                images.auxiliary_labels,
                images.calibration_labels,
            )
            return trained_defense(row.defense).train(
                training_data,
                generator=Stream(self.seed, f"{row.defense} order").generator(),
                on_epoch=lambda share: self.report(stage, share),
                **options,
            )

        optional = (
            *(images.private, images.private_labels, queries, queries_logits),
            *(images.auxiliary_labels, images.calibration_labels),
        )
        data = [tensor for tensor in optional if tensor is not None]
        key = {
            "role": row.defense,
            "seed": self.seed,
            "options": options,
            "target": dict(getattr(module, "architecture", {})),
            "data": fingerprint(*data, images.auxiliary, logits),
        }
        stream, device = Stream(self.seed, row.defense), images.auxiliary.device
        stored = self.store.network(row.defense, key, lambda: stream.call(fresh, device))
        self.report(stage, 1.0)
        return stored.module.to(device), stored.facts


def surrogate_options(spec: SurrogateSpec, shape: Sequence[int]) -> dict[str, Any]:
    """Return the options that build a surrogate for queries of a shape.

    Args:
        spec: Spec of the surrogate.
        shape: ``(C, H, W)`` of images, or ``(D,)`` of records.

    Returns:
        Keyword arguments of :func:`oneway.inversion.build_inverter`.

    Raises:
        InvalidOptionError: The surrogate would have no hidden layer.
    """
    full, removed = default_depth(shape), spec.hidden_layers_removed
    if removed >= full:
        raise InvalidOptionError(
            f"hidden_layers_removed must be below {full}, the hidden layers of an inverter for "
            f"{'x'.join(map(str, shape[1:]))} images, but is {removed}."
        )
    options = {
        "width": spec.width,
        "hidden_layers": full - removed,
        "input_transform": spec.input_transform,
    }
    if spec.removed == "first" or len(shape) == 1:  # all hidden layers of records are alike
        return options
    # The channels of the layers that stay, and one layer that enlarges as much as those that go.
    return {**options, "width": spec.width * 2**removed, "upsampling": 2 ** (removed + 1)}
