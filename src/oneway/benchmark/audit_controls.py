"""The controls of an audit: its decoders on releases whose leak is known."""

import dataclasses

import torch
from torch import Tensor

from oneway.audit import (
    CONTROLS,
    ControlResult,
    judge_control,
    planted_errors,
    planted_positions,
)
from oneway.benchmark.attackers import prepare_attackers
from oneway.benchmark.audit_plan import CONTROL_ROWS, AuditPlan, settings_for
from oneway.benchmark.randomness import Stream
from oneway.benchmark.spec import AttackerSpec
from oneway.benchmark.store import Store
from oneway.benchmark.subject import Answers, Subject
from oneway.confidences import logits_from_confidences, release
from oneway.contracts import Observations
from oneway.data import Report
from oneway.metrics import inversion_errors

CONTROL_TEST = 2000
"""Test queries that each control is graded on."""


def run_controls(
    plan: AuditPlan,
    subject: Subject,
    answers: Answers,
    images: Tensor,
    epochs: int,
    store: Store,
    seed: int,
    report: Report,
) -> dict[str, ControlResult]:
    """Attack releases whose leak is known, with one decoder of the ensemble each: a quick form.

    Args:
        plan: Says which controls, and how wide the decoder is.
        subject: What is audited.
        answers: What it was asked, and answered.
        images: ``(N, ...)`` the attacker's own, in random order: the first ones are used.
        epochs: How long each decoder is trained.
        store: Where trained networks are kept.
        seed: Of the attackers.
        report: Told of progress.

    Returns:
        How each control went; none if the plan has none.
    """
    if not plan.controls:
        return {}
    images, clean = images[:CONTROL_ROWS], answers.clean[:CONTROL_ROWS]
    # At random: files are often sorted by class.
    order = Stream(seed, "control queries").generator()
    asked = torch.randperm(len(subject.test), generator=order)[:CONTROL_TEST]
    asked = asked.to(subject.test.device)
    test = subject.test[asked]
    own_clean = release(answers.trace.clean_logits[asked])
    width = min(plan.widths)
    spec = AttackerSpec(
        names=("label-only", "retrained"),
        front_ends=("within-label",),
        widths=(width,),
        training=settings_for(epochs),
    )
    attackers = prepare_attackers(spec, images, store, seed, report)
    seen = Observations(images, clean, clean, attackers.held_out)
    floor = attackers.run("controls: clean", seen, own_clean, test)
    places = planted_positions(images, clean.shape[-1])
    found = {}
    for name in plan.controls:
        control = CONTROLS[name].make(places)
        shown, told = (
            release(control(logits_from_confidences(scores), queries))
            for scores, queries in ((clean, images), (own_clean, test))
        )
        result = attackers.run(
            f"control: {name}",
            dataclasses.replace(seen, released=shown),
            told,
            test,
            ("retrained",),
        )["retrained"]
        rows = (result, floor["retrained"], floor["label-only"])
        errors = (
            (planted_errors(test, row.reconstructions, places) for row in rows)
            if CONTROLS[name].expected == "read"
            else (inversion_errors(test, row.reconstructions) for row in rows)
        )
        found[name] = judge_control(name, *errors)
    return found
