"""Run the controls of an audit: its decoders attack releases whose leak is known."""

import dataclasses

import torch
from torch import Tensor

from oneway.attacks import LabelOnly, Retrained
from oneway.audit.audit_target import Answers, AuditTarget
from oneway.audit.controls import (
    CONTROLS,
    Control,
    ControlResult,
    MakeControl,
    judge_control,
    planted_errors,
    planted_positions,
)
from oneway.audit.plan import CONTROL_ROWS, CONTROL_TEST, AuditPlan, settings_for
from oneway.contracts import AttackerKnowledge
from oneway.data import ProgressCallback
from oneway.evaluation import AttackResult
from oneway.evaluation.attackers import prepare_attackers
from oneway.evaluation.randomness import Stream
from oneway.evaluation.settings import AttackerSpec
from oneway.evaluation.store import Store
from oneway.metrics import inversion_errors
from oneway.releases import guarded_release, logits_from_confidences
from oneway.targets import DefendedTarget


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
        """
        self.controls = {name: CONTROLS[name] for name in plan.controls}
        images = images[:CONTROL_ROWS]
        self.audited, self.images, self.seed = audited, images, seed
        self.clean = answers.clean[: len(images)]
        # At random: files are often sorted by class.
        order = Stream(seed, "control queries").generator()
        chosen = torch.randperm(len(audited.test), generator=order)[:CONTROL_TEST]
        chosen = chosen.to(audited.test.device)
        self.test, self.clean_test = audited.test[chosen], answers.clean_test[chosen]
        self.places = planted_positions(images, self.clean.shape[-1])
        spec = AttackerSpec(
            widths=(min(plan.widths),),
            repeats=(max(plan.repeats),),
            training=settings_for(epochs),
            most_epochs=epochs,
        )
        # In the plan's order, since decoders of the first transform read the label.
        transforms = dict.fromkeys(control.input_transform for control in self.controls.values())
        self.attackers = {
            transform: prepare_attackers(
                dataclasses.replace(spec, input_transforms=(transform,)),
                images,
                store,
                seed,
                report,
            )
            for transform in transforms
        }
        held_out = self.attackers[next(iter(transforms))].held_out
        self.knowledge = AttackerKnowledge(
            images, self.clean, self.clean, held_out, repeats=spec.repeats
        )
        self.label = self._attack("controls: the label", LabelOnly.name, next(iter(transforms)))
        plain = [control for control in self.controls.values() if control.reference is None]
        self.on_clean = {
            transform: self._attack("controls: clean", Retrained.name, transform)
            for transform in dict.fromkeys(control.input_transform for control in plain)
        }

    def results(self) -> dict[str, ControlResult]:
        """Attack all controls; return the result of each, by name."""
        return {name: self._judge(name, control) for name, control in self.controls.items()}

    def _attack(
        self, title: str, name: str, input_transform: str, make: MakeControl | None = None
    ) -> AttackResult:
        """Attack a control's release of the clean scores, or the clean scores themselves."""
        knowledge, released = self.knowledge, self.clean_test
        if make is not None:
            defense = make(self.places, Stream(self.seed, title).generator())
            shown, released = (
                guarded_release(defense, logits_from_confidences(scores), queries).confidences
                for scores, queries in (
                    (self.clean, self.images),
                    (self.clean_test, self.test),
                )
            )
            knowledge = dataclasses.replace(
                knowledge,
                released=shown,
                random=not defense.deterministic,
                query=DefendedTarget(self.audited.target, defense).repeated,
            )
        attackers = self.attackers[input_transform]
        return attackers.run(title, knowledge, released, self.test, (name,))[name]

    def _judge(self, name: str, control: Control) -> ControlResult:
        """Attack a control and its reference, and compare them with the label-only attack."""
        transform = control.input_transform
        if control.reference is None:
            reference = self.on_clean[transform]
        else:
            title = f"reference: {name}"
            reference = self._attack(title, Retrained.name, transform, control.reference)
        result = self._attack(f"control: {name}", control.attack, transform, control.make)
        results = (result, reference, self.label)
        if control.expected == "read":
            errors = [planted_errors(self.test, r.reconstructions, self.places) for r in results]
        else:
            errors = [inversion_errors(self.test, r.reconstructions) for r in results]
        return judge_control(name, *errors)
