"""The controls of an audit: its decoders on releases whose leak is known."""

import dataclasses

import torch
from torch import Tensor

from oneway.audit.audit_target import Answers, AuditTarget
from oneway.audit.controls import (
    CONTROLS,
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


def run_controls(
    plan: AuditPlan,
    audited: AuditTarget,
    answers: Answers,
    images: Tensor,
    epochs: int,
    store: Store,
    seed: int,
    report: ProgressCallback,
) -> dict[str, ControlResult]:
    """Attack releases whose leak is known, with one decoder of the ensemble each: a quick form.

    Each names the input transform of the decoder that it vouches for.

    Args:
        plan: Says which controls, how wide the decoder is, and how often averaging asks.
        audited: Model, data and release.
        answers: Answers of the model and of the release.
        images: ``(N, ...)`` the attacker's own, in random order: the first ones are used.
        epochs: Epochs that each decoder is trained.
        store: Keeps trained networks.
        seed: Seed of the attackers.
        report: Progress callback.

    Returns:
        How each control went; none if the plan has none.
    """
    if not plan.controls:
        return {}
    images, clean = images[:CONTROL_ROWS], answers.clean[:CONTROL_ROWS]
    # At random: files are often sorted by class.
    order = Stream(seed, "control queries").generator()
    asked = torch.randperm(len(audited.test), generator=order)[:CONTROL_TEST]
    asked = asked.to(audited.test.device)
    test = audited.test[asked]
    own_clean = answers.clean_test[asked]
    places = planted_positions(images, clean.shape[-1])
    spec = AttackerSpec(
        widths=(min(plan.widths),), repeats=(max(plan.repeats),), training=settings_for(epochs)
    )
    controls = {name: CONTROLS[name] for name in plan.controls}
    attackers = {
        input_transform: prepare_attackers(
            dataclasses.replace(spec, input_transforms=(input_transform,)),
            images,
            store,
            seed,
            report,
        )
        # In the plan's order: the first one reads the label.
        for input_transform in dict.fromkeys(
            control.input_transform for control in controls.values()
        )
    }
    held_out = next(iter(attackers.values())).held_out
    seen = AttackerKnowledge(images, clean, clean, held_out, repeats=spec.repeats)

    def attack(
        title: str, name: str, input_transform: str, make: MakeControl | None = None
    ) -> AttackResult:
        """Attack what a control makes of the clean scores, or those scores."""
        observed, told = seen, own_clean
        if make is not None:
            defense = make(places, Stream(seed, title).generator())
            shown, told = (
                guarded_release(defense, logits_from_confidences(scores), queries).confidences
                for scores, queries in ((clean, images), (own_clean, test))
            )
            observed = dataclasses.replace(
                seen,
                released=shown,
                random=not defense.deterministic,
                query=DefendedTarget(audited.target, defense).repeated,
            )
        return attackers[input_transform].run(title, observed, told, test, (name,))[name]

    label = attack("controls: the label", "label-only", next(iter(attackers)))
    plain = dict.fromkeys(one.input_transform for one in controls.values() if one.reference is None)
    of_clean = {
        input_transform: attack("controls: clean", "retrained", input_transform)
        for input_transform in plain
    }
    found = {}
    for name, control in controls.items():
        reference = (
            of_clean[control.input_transform]
            if control.reference is None
            else attack(
                f"reference: {name}", "retrained", control.input_transform, control.reference
            )
        )
        result = attack(f"control: {name}", control.attack, control.input_transform, control.make)
        rows = (result, reference, label)
        errors = (
            (planted_errors(test, row.reconstructions, places) for row in rows)
            if control.expected == "read"
            else (inversion_errors(test, row.reconstructions) for row in rows)
        )
        found[name] = judge_control(name, *errors)
    return found
