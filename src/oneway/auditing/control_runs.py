"""Run the controls of an audit: its decoders attack releases whose leak is known."""

import dataclasses
from contextlib import suppress

import torch
from torch import Tensor

from oneway.attacks import LabelOnly, Retrained, inversion_attacks
from oneway.auditing.audit_target import Answers, AuditTarget
from oneway.auditing.controls import (
    CONTROLS,
    Control,
    ControlResult,
    MakeControl,
    MakeModel,
    Planted,
    judge_control,
    judge_planted,
    plant,
    planted_errors,
)
from oneway.auditing.plan import CONTROL_ROWS, CONTROL_TEST, AuditPlan, settings_for
from oneway.contracts import AttackerKnowledge
from oneway.data import ProgressCallback
from oneway.evaluation import AttackResult, run_attack
from oneway.evaluation.attackers import prepare_attackers
from oneway.evaluation.convergence import IsLate, OutOfTimeError, check_time
from oneway.evaluation.randomness import Stream
from oneway.evaluation.settings import AttackerSpec
from oneway.evaluation.store import Store
from oneway.inversion import MeanInput
from oneway.metrics import inversion_errors
from oneway.releases import guarded_release, logits_from_confidences
from oneway.targets import DefendedTarget, TorchTarget

COPIES = 3
"""Copies of a release that an attacker simulates, each on its share of the rows."""

LABEL_TRANSFORM = "within-label"
"""Input transform of the decoder that reads the label where no control names a transform."""


class ControlRun:
    """The attacks on the controls of a plan, which share data, decoders and the label-only attack.

    Each control names the input transform of the decoder that it vouches for.
    """

    def __init__(
        self,
        plan: AuditPlan,
        audited: AuditTarget,
        answers: Answers,
        images: Tensor,
        epochs: int,
        store: Store,
        seed: int,
        report: ProgressCallback,
        is_late: IsLate,
    ) -> None:
        """Attack the label and the clean scores, which controls are compared with.

        Args:
            plan: Names of controls, decoder widths, and numbers of answers that averaging tries.
            audited: Model, data and release.
            answers: Answers of the model and of the release.
            images: ``(N, ...)`` auxiliary images in random order; the first are used.
            epochs: Epochs that each decoder is trained.
            store: Store of trained networks.
            seed: Seed of the attackers.
            report: Progress callback.
            is_late: Returns whether the target run time is over.
        """
        self.is_late = is_late
        self.controls = {name: CONTROLS[name] for name in plan.controls}
        images = images[:CONTROL_ROWS]
        self.audited, self.images, self.seed = audited, images, seed
        self.clean = answers.clean[: len(images)]
        # At random: files are often sorted by class.
        order = Stream(seed, "control queries").generator()
        chosen = torch.randperm(len(audited.test), generator=order)[:CONTROL_TEST]
        chosen = chosen.to(audited.test.device)
        self.test, self.clean_test = audited.test[chosen], answers.clean_test[chosen]
        self.classes = self.clean.shape[-1]
        spec = AttackerSpec(
            widths=(min(plan.widths),),
            repeats=(max(plan.repeats),),
            training=settings_for(epochs),
            most_epochs=epochs,
        )
        # In the plan's order, since decoders of the first transform read the label.
        named = [control.input_transform for control in self.controls.values()]
        transforms = tuple(dict.fromkeys(name for name in named if name)) or (LABEL_TRANSFORM,)
        self.attackers = {
            transform: prepare_attackers(
                dataclasses.replace(spec, input_transforms=(transform,)),
                images,
                store,
                seed,
                report,
                is_late,
            )
            for transform in transforms
        }
        self.first = transforms[0]
        held_out = self.attackers[self.first].held_out
        self.knowledge = AttackerKnowledge(
            images, self.clean, self.clean, held_out, repeats=spec.repeats
        )
        self.label = self._attack("controls: the label", LabelOnly.name, self.first)
        self._on_clean = dict[str, AttackResult]()

    def results(self) -> dict[str, ControlResult]:
        """Attack all controls; return the result of each for which there is time, by name."""
        results = dict[str, ControlResult]()
        for name, control in self.controls.items():
            with suppress(OutOfTimeError):
                check_time(self.is_late)
                results[name] = self._judge(name, control)
        return results

    def on_clean(self, input_transform: str) -> AttackResult:
        """Return the attack on clean scores by a decoder of an input transform."""
        if input_transform not in self._on_clean:
            attacked = self._attack("controls: clean", Retrained.name, input_transform)
            self._on_clean[input_transform] = attacked
        return self._on_clean[input_transform]

    def _planted(self, control: Control) -> Planted:
        """Return the entries of a query that a control reveals."""
        return plant(self.images, self.classes, control.entries)

    def _shortened(self, rows: int | None) -> AttackerKnowledge:
        """Return what an attacker knows of clean scores, from at most so many auxiliary rows."""
        known, chosen = self.knowledge, slice(rows)
        return dataclasses.replace(
            known,
            images=known.images[chosen],
            clean=self.clean[chosen],
            released=self.clean[chosen],
            held_out=known.held_out[chosen],
        )

    def _attack(
        self,
        title: str,
        name: str,
        input_transform: str,
        knowledge: AttackerKnowledge | None = None,
        released: Tensor | None = None,
    ) -> AttackResult:
        """Attack released scores of the test queries; None: clean scores."""
        attackers = self.attackers[input_transform]
        results = attackers.run(
            title,
            self.knowledge if knowledge is None else knowledge,
            self.clean_test if released is None else released,
            self.test,
            (name,),
        )
        if name not in results:  # a control names attacks that apply to it
            raise OutOfTimeError
        return results[name]

    def _released(
        self, title: str, make: MakeControl, control: Control
    ) -> tuple[AttackerKnowledge, Tensor]:
        """Return what an attacker knows of a release, and its answers to the test queries."""
        defense = make(self._planted(control), Stream(self.seed, title).generator())
        known = self._shortened(control.rows)
        shown, released = (
            guarded_release(defense, logits_from_confidences(scores), queries).confidences
            for scores, queries in ((known.released, known.images), (self.clean_test, self.test))
        )
        if control.copies:
            return dataclasses.replace(known, simulated_defenses=(defense,) * COPIES), released
        knowledge = dataclasses.replace(
            known,
            released=shown,
            random=not defense.deterministic,
            query=DefendedTarget(self.audited.target, defense).repeated,
        )
        return knowledge, released

    def _attack_model(self, title: str, control: Control, model: MakeModel) -> AttackResult:
        """Attack the release of a model of the control's own, without a trained decoder."""
        planted, known = self._planted(control), self._shortened(control.rows)
        defense = control.make(planted, Stream(self.seed, title).generator())
        target = DefendedTarget(TorchTarget(model(planted)), defense)
        shown = target(known.images)
        knowledge = dataclasses.replace(
            known,
            clean=shown,
            released=shown,
            random=not defense.deterministic,
            query=target.repeated,
            differentiable_logits=target.differentiable_logits,
        )
        mean = MeanInput(known.images[~known.held_out])
        attack, released = inversion_attacks()[control.attack], target(self.test)
        result = run_attack(control.attack, attack, knowledge, lambda *_: mean, released, self.test)
        assert result is not None  # noqa: S101  the attack has all that it needs
        return result

    def _judge(self, name: str, control: Control) -> ControlResult:
        """Attack a control and its reference, and compare them with the label-only attack."""
        title, transform = f"control: {name}", control.input_transform or self.first
        if control.model is None:
            seen = self._released(title, control.make, control)
            result = self._attack(title, control.attack, transform, *seen)
        else:
            result = self._attack_model(title, control, control.model)
        if control.expected == "read":
            places = self._planted(control).positions
            errors, label = (
                planted_errors(self.test, attacked.reconstructions, places)
                for attacked in (result, self.label)
            )
            return judge_planted(name, errors, label)
        if control.reference is None:
            reference = self.on_clean(transform)
        else:
            title = f"reference: {name}"
            seen = self._released(title, control.reference, control)
            reference = self._attack(title, Retrained.name, transform, *seen)
        errors, clean, label = (
            inversion_errors(self.test, attacked.reconstructions)
            for attacked in (result, reference, self.label)
        )
        return judge_control(name, errors, clean, label)
