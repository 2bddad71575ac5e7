"""The attackers of an evaluation; the store keeps their decoders and generative priors."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from oneway.attacks import LabelOnly, inversion_attacks
from oneway.attacks.label_means import label_means
from oneway.contracts import AttackerKnowledge, Compute, TrainDecoder
from oneway.data import ProgressCallback, no_progress
from oneway.evaluation.convergence import (
    Convergence,
    Gap,
    IsLate,
    OutOfTimeError,
    check_time,
    least_converged,
    never_late,
    no_gap,
    search_epochs,
)
from oneway.evaluation.grading import AttackResult, run_attack
from oneway.evaluation.randomness import Stream
from oneway.evaluation.settings import AttackerSpec
from oneway.evaluation.store import Store, fingerprint
from oneway.inversion import (
    Autoencoder,
    AutoencoderSettings,
    DecoderSpec,
    MeanInput,
    Perturb,
    TrainingSettings,
    build_inverter,
    decoder_grid,
    held_out_rows,
    mix_decoders,
    train_autoencoder,
    train_each,
    train_inverter,
)
from oneway.metrics import inversion_errors


@dataclasses.dataclass(frozen=True)
class PriorTrainer:
    """Trains generative priors of auxiliary images.

    Attributes:
        store: Store of trained networks.
        seed: Seed of the experiment.
        settings: Size and training of autoencoders.
        report: Called with the share of a training that is done.
    """

    store: Store
    seed: int
    settings: AutoencoderSettings = dataclasses.field(default_factory=AutoencoderSettings)
    report: Callable[[float], None] = lambda _: None

    def autoencoder(
        self, images: Tensor, confidences: Tensor | None, held_out: Tensor
    ) -> Autoencoder:
        """Return a trained autoencoder, from the store if it has it.

        Args:
            images: ``(N, ...)`` auxiliary inputs.
            confidences: ``(N, K)`` confidences that are the condition; None: no condition.
            held_out: ``(N)`` bool, the rows that select the epoch.
        """
        sizes = {
            "num_classes": 0 if confidences is None else confidences.shape[-1],
            "latents": self.settings.latents,
            "width": self.settings.width,
        }

        def compute() -> Mapping[str, Tensor]:
            network = Autoencoder(images.shape[1:], **sizes).to(images.device)
            train_autoencoder(
                network,
                images,
                confidences,
                held_out,
                settings=self.settings,
                generator=Stream(self.seed, "autoencoder order").generator(),
                on_epoch=self.report,
            )
            return network.state_dict()

        data = fingerprint(images, held_out, *(() if confidences is None else (confidences,)))
        spec = {"seed": self.seed, "training": dataclasses.asdict(self.settings), "data": data}
        state = self.store.tensors(
            "autoencoder",
            spec,
            lambda: Stream(self.seed, "autoencoder").call(compute, images.device),
        )
        network = Autoencoder(images.shape[1:], **sizes, rows=len(state["codes"]))
        network.load_state_dict(state)
        self.report(1.0)
        return network.eval().to(images.device)


@dataclasses.dataclass(frozen=True)
class InverterTrainer:
    """Trains inverters; the store keeps each, so that no inverter is trained twice.

    Attributes:
        store: Store of trained networks.
        seed: Seed of the experiment.
        report: Progress callback.
        is_late: Returns whether no further step may be taken.
    """

    store: Store
    seed: int
    report: ProgressCallback = no_progress
    is_late: IsLate = never_late

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

        Raises:
            OutOfTimeError: The target run time is over. The store keeps nothing then.
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
                before_step=partial(check_time, self.is_late),
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
class CleanErrors:
    """Lowest held-out errors of attackers on clean scores, which say how wide the gap is.

    Attributes:
        quick: Lowest error of attackers that train no decoder and mix none; infinite where there
            is none. The gap of decoders of clean scores rests on it and on their own error, so
            that they are the same in each run.
        best: Lowest error of all attackers; infinite where none has attacked clean scores yet.
    """

    quick: float = math.inf
    best: float = math.inf

    @classmethod
    def of(cls, results: Iterable[AttackResult], truth: Tensor) -> "CleanErrors":
        """Return the lowest errors of attacks on clean scores.

        Args:
            results: Results of the attacks.
            truth: ``(M, C, H, W)`` held-out auxiliary images.
        """
        errors = {
            result.attack: float(inversion_errors(truth, result.own_reconstructions).mean())
            for result in results
            if result.own_reconstructions is not None
        }
        quick = [
            errors[result.attack]
            for result in results
            if result.convergence is None
            and result.attack in errors
            and not inversion_attacks()[result.attack].mixes
        ]
        return cls(min(quick, default=math.inf), min(errors.values(), default=math.inf))


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
        *,
        clean_errors: CleanErrors | None = None,
        asked: dict[str, AttackResult] | None = None,
    ) -> dict[str, AttackResult]:
        """Attack a release; return the result of each attack that applies, by name.

        When the target run time is over, attacks that must train or query are left out. An attack
        that falls back gets the mean image instead of a decoder: the label-only attack then reads
        the labels' mean images alone.

        Args:
            title: Name of the release, for progress.
            knowledge: The attackers' data and access.
            released: ``(M, K)`` released confidences of the test queries.
            images: ``(M, C, H, W)`` test queries, to grade with.
            names: Attacks to run, in the order of the registry; None: all attacks of the spec.
            clean_errors: Errors of the same attackers on clean scores, which say how wide the gap
                is; None: this run attacks clean scores, and measures them as it goes.
            asked: Receives the results of attackers that query the release. Those that it has are
                taken, so that another run asks nothing twice.
        """
        asked = {} if asked is None else asked
        attacks, results = inversion_attacks(), dict[str, AttackResult]()
        scores = knowledge.released if knowledge.clean is None else knowledge.clean
        label_error = label_only_error(scores, knowledge.images, knowledge.held_out)
        truth = knowledge.images[knowledge.held_out]
        chosen = self.spec.names if names is None else names
        # In the order of the registry: an attack that mixes others comes after them.
        for name in (name for name in attacks if name in chosen):
            attack, lengths = attacks[name], list[Convergence]()
            if name in asked:
                results[name] = asked[name]
                continue
            measured = clean_errors or CleanErrors.of(results.values(), truth)
            # The label alone closes nothing of the gap.
            widest = None if name == LabelOnly.name else label_error
            trained = self._trainer_of(f"{title}: {name}", knowledge, widest, measured, lengths)
            train = _or_mean(trained, lengths) if attack.falls_back else trained
            candidates = [each for other in results.values() for each in other.candidates]
            shown = knowledge
            if "train_prior" in attack.requires:
                report = partial(self.trainer.report, f"{title}: {name}, prior")
                priors = PriorTrainer(self.trainer.store, self.trainer.seed, report=report)
                shown = dataclasses.replace(knowledge, train_prior=priors.autoencoder)
            if attack.reports:
                shown = dataclasses.replace(
                    knowledge,
                    report=self._report_or_end(f"{title}: {name}"),
                    keep=partial(self._kept, name, knowledge),
                )
            if attack.mixes:
                shown = dataclasses.replace(knowledge, candidates=candidates)
            try:
                result = run_attack(name, attack, shown, train, released, images)
            except OutOfTimeError:
                continue
            if attack.reports:
                self.trainer.report(f"{title}: {name}", 1.0)  # it may have ended early
            if result is not None:
                results[name] = dataclasses.replace(result, convergence=least_converged(lengths))
                if "query" in attack.requires:
                    asked[name] = results[name]
        # Reconstructions by all candidates would fill the memory of an evaluation.
        return {
            name: dataclasses.replace(result, candidates=()) for name, result in results.items()
        }

    def _kept(
        self, name: str, knowledge: AttackerKnowledge, compute: Compute
    ) -> Mapping[str, Tensor]:
        """Return what an attack computes from what was released, from the store if it has it."""
        released, images = knowledge.released, knowledge.images
        spec = {
            "attack": name,
            "numerics": inversion_attacks()[name].numerics,
            "data": fingerprint(released, images, knowledge.held_out),
        }
        kept = self.trainer.store.tensors("attack", spec, compute)
        return {key: values.to(images.device) for key, values in kept.items()}

    def _report_or_end(self, stage: str) -> Callable[[float], None]:
        """Return what reports a stage's progress, and ends it where the run time is over."""

        def report(share: float) -> None:
            check_time(self.trainer.is_late)
            self.trainer.report(stage, share)

        return report

    def _trainer_of(
        self,
        title: str,
        knowledge: AttackerKnowledge,
        label_error: float | None,
        measured: CleanErrors,
        lengths: list[Convergence],
    ) -> TrainDecoder:
        """Return what trains the decoders of an attack.

        Args:
            title: Name of the release and the attack, for progress.
            knowledge: The attackers' data and access.
            label_error: Held-out error of the label alone; None: this attack closes no gap.
            measured: Errors of attackers on clean scores so far.
            lengths: Receives the convergence of each model selection.
        """
        selections = itertools.count(1)

        def train(confidences: Tensor, auxiliary: Tensor, held_out: Tensor) -> nn.Module:
            number = next(selections)
            stage = title + (f" {number}" if number > 1 else "")
            clean = knowledge.clean is not None and torch.equal(confidences, knowledge.clean)

            def gap(error: float) -> float:
                if label_error is None:
                    return 0.0
                return label_error - (min(measured.quick, error) if clean else measured.best)

            decoder, convergence = self.train_decoder(
                stage, confidences, auxiliary, held_out, gap=gap
            )
            lengths.append(convergence)
            return decoder

        return train

    def train_decoder(
        self,
        title: str,
        confidences: Tensor,
        images: Tensor,
        held_out: Tensor,
        *,
        gap: Gap = no_gap,
    ) -> tuple[nn.Module, Convergence]:
        """Train all decoders; return their mixture and its convergence.

        The first decoder is trained for twice the epochs, and twice as many again, until that gains
        nothing; all other decoders for as many epochs as were enough. The longer training of the
        first decoder is there by then, and takes part in the mixture.

        Args:
            title: Name of the release, for progress.
            confidences: ``(N, K)`` confidences that answer ``images``.
            images: ``(N, C, H, W)`` auxiliary images.
            held_out: ``(N)`` bool, the rows that select epochs and weigh decoders.
            gap: Returns the gap between the label and clean scores, in held-out errors.
        """
        grid = decoder_grid(self.spec.input_transforms, self.spec.widths)
        convergence = self.search(title, confidences, images, held_out, gap)

        def fit(
            decoder: DecoderSpec, incumbent: Sequence[float], epochs: int = convergence.epochs
        ) -> tuple[nn.Module, list[float]]:
            # The first decoder comes from the store.
            return self._train(title, decoder, epochs, confidences, images, held_out, incumbent)

        decoders = [trial.decoder for trial in train_each(grid, fit)]
        if convergence.shown:
            decoders.append(fit(grid[0], (), 2 * convergence.epochs)[0])
        mixture = mix_decoders(decoders, confidences[held_out], images[held_out])
        return mixture, convergence

    def search(
        self,
        title: str,
        confidences: Tensor,
        images: Tensor,
        held_out: Tensor,
        gap: Gap = no_gap,
    ) -> Convergence:
        """Train the first decoder of a model selection for longer and longer.

        The store keeps each training, so that none is repeated.

        Args:
            title: Name of the release, for progress.
            confidences: ``(N, K)`` confidences that answer ``images``.
            images: ``(N, C, H, W)`` auxiliary images.
            held_out: ``(N)`` bool, the rows that select the epoch.
            gap: Returns the gap between the label and clean scores, in held-out errors.
        """
        first, most = self.spec.training.epochs, self.spec.longest
        decoder = decoder_grid(self.spec.input_transforms, self.spec.widths)[0]

        def held_out_error(epochs: int) -> float:
            # All lengths are a single stage, since their number is not known in advance.
            before, whole = epochs - first, 2 * most - first

            def report(stage: str, share: float) -> None:
                if share < 1:  # a training from the store reports its end alone
                    self.trainer.report(stage, (before + share * epochs) / whole)

            trainer = dataclasses.replace(self.trainer, report=report)
            quiet = dataclasses.replace(self, trainer=trainer)
            return min(quiet._train(title, decoder, epochs, confidences, images, held_out, ())[1])

        found = search_epochs(first, most, held_out_error, gap)
        self.trainer.report(_stage(title, decoder), 1.0)
        return found

    def _train(
        self,
        title: str,
        decoder: DecoderSpec,
        epochs: int,
        confidences: Tensor,
        images: Tensor,
        held_out: Tensor,
        incumbent: Sequence[float],
    ) -> tuple[nn.Module, list[float]]:
        """Train a decoder for so many epochs; return it with its held-out errors by epoch."""
        network, facts = self.trainer.train(
            "attacker",
            dataclasses.asdict(decoder),
            self.spec.training_for(epochs),
            confidences,
            images,
            held_out,
            stage=_stage(title, decoder),
            incumbent=incumbent,
        )
        return network, list(facts["held_out_errors"])


def _or_mean(train: TrainDecoder, lengths: list[Convergence]) -> TrainDecoder:
    """Return what trains a decoder, or takes the mean image where the target run time is over.

    Args:
        train: Trains a decoder.
        lengths: Convergence of each model selection; none where a decoder is missing.
    """

    def trained(confidences: Tensor, images: Tensor, held_out: Tensor) -> nn.Module:
        try:
            return train(confidences, images, held_out)
        except OutOfTimeError:
            lengths.clear()
            return MeanInput(images[~held_out])

    return trained


def _stage(title: str, decoder: DecoderSpec) -> str:
    """Return the name of a decoder's training, for progress."""
    return f"{title}, {decoder.input_transform} {decoder.width}"


def label_only_error(confidences: Tensor, images: Tensor, held_out: Tensor) -> float:
    """Return the held-out error of each label's mean image.

    Args:
        confidences: ``(N, K)`` confidences that answer ``images``.
        images: ``(N, C, H, W)`` auxiliary images.
        held_out: ``(N)`` bool, the rows that means are graded on, and not taken of.
    """
    labels = confidences.argmax(-1)
    means = label_means(images[~held_out], labels[~held_out], confidences.shape[-1])
    return float(inversion_errors(images[held_out], means[labels[held_out]]).mean())


def prepare_attackers(
    spec: AttackerSpec,
    images: Tensor,
    store: Store,
    seed: int,
    report: ProgressCallback,
    is_late: IsLate = never_late,
) -> Attackers:
    """Return attackers with their auxiliary images, and with the rows that they hold out.

    Args:
        spec: Attackers and their decoders.
        images: ``(N, C, H, W)`` auxiliary images.
        store: Store of trained networks.
        seed: Seed of the experiment.
        report: Progress callback.
        is_late: Returns whether no further step may be taken.
    """
    choice = torch.Generator().manual_seed(seed)
    held_out = held_out_rows(len(images), spec.held_out, choice).to(images.device)
    return Attackers(spec, InverterTrainer(store, seed, report, is_late), images, held_out)


def selection_size(spec: AttackerSpec) -> int:
    """Return the number of decoders in each model selection."""
    return len(decoder_grid(spec.input_transforms, spec.widths))
