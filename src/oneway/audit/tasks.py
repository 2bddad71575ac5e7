"""The parts of an audit that need nothing of each other: its controls, and each of its seeds.

A part asks and trains with random streams of its own, so that it finds the same wherever it runs,
and in whatever order.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from oneway.attacks import inversion_attacks
from oneway.audit.audit_target import Answers, AuditTarget, access
from oneway.audit.control_runs import run_controls
from oneway.audit.controls import ControlResult
from oneway.audit.measures import SeedResult
from oneway.audit.plan import AuditPlan, settings_for
from oneway.audit.settings import AuditSettings
from oneway.audit.suspicions import LUCK
from oneway.contracts import AttackerKnowledge
from oneway.data import ProgressCallback, no_progress
from oneway.defenses import effective_options, strength_option
from oneway.defenses.identity import Identity
from oneway.evaluation import Flag, judge, standard_error, take_baselines
from oneway.evaluation.attackers import Attackers, prepare_attackers
from oneway.evaluation.defenders import Defender, DefenderImages, FittedDefense
from oneway.evaluation.settings import AttackerSpec, SurrogateSpec
from oneway.evaluation.store import Store
from oneway.inversion import default_depth
from oneway.metrics import inversion_errors
from oneway.targets import DefendedTarget

CONTROLS_TASK, BUDGET_TASK, SEED_TASK = "controls", "twice the strength", "seed "

TaskResult = dict[str, ControlResult] | list[Flag] | SeedResult
"""What a part finds: how controls went, flags, or a seed's attacks."""


@dataclass(frozen=True)
class AuditContext:
    """What is settled before the parts of an audit begin; plain values and tensors.

    Attributes:
        plan: Attackers, decoders and controls.
        rows: ``(N)`` int64, the auxiliary rows that are used, in random order.
        clean: ``(A, K)`` undefended confidences of all auxiliary rows.
        answers: Answers of the model and of the release, for the rows that are used.
        epochs: Epochs that each decoder is trained.
        plateau: Whether twice the epochs were seen to gain nothing.
    """

    plan: AuditPlan
    rows: Tensor
    clean: Tensor
    answers: Answers
    epochs: int
    plateau: bool


def tasks_of(plan: AuditPlan, release: str, seed: int) -> tuple[str, ...]:
    """Return the names of an audit's parts, in the order in which one machine runs them.

    Args:
        plan: Its plan.
        release: The registered name of the defense.
        seed: The first of the seeds.
    """
    first = (CONTROLS_TASK,) if plan.controls else ()
    more = (BUDGET_TASK,) if strength_option(release) is not None else ()
    return (*first, *more, *(f"{SEED_TASK}{one}" for one in range(seed, seed + plan.seeds)))


class AuditTasks:
    """Runs the parts of one audit, one at a time."""

    def __init__(
        self,
        audited: AuditTarget,
        store: Store,
        settings: AuditSettings,
        seed: int,
        report: ProgressCallback = no_progress,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            audited: Model, data and release.
            store: Keeps trained networks.
            settings: Settings of the audit.
            seed: The first of the seeds.
            report: Progress callback.
        """
        self.audited, self.store, self.settings = audited, store, settings
        self.seed, self.report = seed, report
        self._fitted: FittedDefense | None = None

    def run(self, part: str, context: AuditContext) -> TaskResult:
        """Run one part.

        Args:
            part: One of :func:`tasks_of`.
            context: Results that all tasks share.
        """
        if part == CONTROLS_TASK:
            return run_controls(
                context.plan,
                self.audited,
                context.answers,
                self.audited.auxiliary[context.rows],
                context.epochs,
                self.store,
                self.seed,
                self.report,
            )
        if part == BUDGET_TASK:
            return self._more_budget(context)
        return self._round(int(part.removeprefix(SEED_TASK)), part, context)

    def build(self, clean: Tensor) -> FittedDefense:
        """Train what the release's defense needs, and build it: once, since it may ask the model.

        Args:
            clean: ``(A, K)`` undefended confidences of all auxiliary rows.
        """
        if self._fitted is None:
            self._fitted = self.defender.build(self.audited.release, self.audited.target, clean)
        return self._fitted

    @cached_property
    def defender(self) -> Defender:
        """Trains what a release needs."""
        images = self.audited.auxiliary
        attackers = self.attackers(self.seed, (), self.settings.first_epochs, images)
        removed = min(2, default_depth(images.shape[1:]) - 1)
        surrogate = SurrogateSpec(
            width=max(self.settings.widths),
            hidden_layers_removed=removed,
            training=settings_for(2 * self.settings.first_epochs),
        )
        own = DefenderImages(images, attackers.held_out)
        return Defender(surrogate, (0.5, 1.0, 2.0), own, self.store, attackers.trainer, self.report)

    def attackers(
        self,
        seed: int,
        names: Sequence[str],
        epochs: int,
        images: Tensor,
        plan: AuditPlan | None = None,
    ) -> Attackers:
        """Return attackers with equal means, and rows of their own held out.

        Args:
            seed: Theirs.
            names: Registered attacks.
            epochs: Epochs that each decoder is trained.
            images: ``(N, ...)`` what they have.
            plan: Says which decoders compete; None: all.
        """
        spec = AttackerSpec(
            names=tuple(names),
            input_transforms=plan.input_transforms if plan else self.settings.input_transforms,
            widths=plan.widths if plan else self.settings.widths,
            repeats=plan.repeats if plan else self.settings.repeats,
            training=settings_for(epochs),
        )
        return prepare_attackers(spec, images, self.store, seed, self.report)

    def train_one(
        self,
        confidences: Tensor,
        images: Tensor,
        input_transform: str,
        width: int,
        epochs: int,
        stage: str,
    ) -> tuple[nn.Module, float]:
        """Return a decoder, trained as in a model selection, and its lowest held-out error."""
        attackers = self.attackers(self.seed, (), epochs, images)
        network, facts = attackers.trainer.train(
            "attacker",
            {"input_transform": input_transform, "width": width},
            attackers.spec.training,
            confidences,
            images,
            attackers.held_out,
            stage=stage,
        )
        return network, float(min(facts["held_out_errors"]))

    def _round(self, seed: int, part: str, context: AuditContext) -> SeedResult:
        audited, plan, answers = self.audited, context.plan, context.answers
        attacks = inversion_attacks()
        images = audited.auxiliary[context.rows]
        attackers = self.attackers(seed, plan.attacks, context.epochs, images, plan)
        copies = (
            self.defender.simulated_defenses(audited.release, context.clean)
            if any("simulated_defenses" in attacks[name].requires for name in plan.attacks)
            else ()
        )
        again = self.build(context.clean).again(f"asked again, {part}")
        allowed = access(audited, again, undeclared=answers.undeclared)
        seen = AttackerKnowledge(
            images=images,
            clean=answers.clean,
            released=answers.released,
            held_out=attackers.held_out,
            query=allowed.query,
            random=answers.random,
            repeats=plan.repeats,
            simulated_defenses=copies,
            differentiable_logits=allowed.differentiable_logits,
        )
        # Clean scores are attacked with the same means: else the gap would be too small.
        bare = DefendedTarget(audited.target, Identity())
        differentiable_logits = (
            None if allowed.differentiable_logits is None else bare.differentiable_logits
        )
        undefended = dataclasses.replace(
            seen, released=answers.clean, random=False, differentiable_logits=differentiable_logits
        )
        names = [name for name in plan.attacks if attacks[name].attacks_clean_scores]
        clean_results = attackers.run(
            f"seed {seed}, clean", undefended, answers.clean_test, audited.test, names
        )
        baselines = take_baselines(clean_results, images, audited.test)
        results = attackers.run(
            f"seed {seed}", seen, answers.trace.released, audited.test, plan.attacks
        )
        verdict = judge(results, baselines, answers.clean_test, answers.label_changes)
        if seed != self.seed:
            # Only the first seed's are looked at; of large images they fill the memory.
            clean_results, results = (
                {
                    name: dataclasses.replace(one, reconstructions=one.reconstructions[:0])
                    for name, one in some.items()
                }
                for some in (clean_results, results)
            )
        return SeedResult(seed, clean_results, results, baselines, verdict, attackers.held_out)

    def _more_budget(self, context: AuditContext) -> list[Flag]:
        """Attack the release at twice its strength, too: it must not tell more."""
        row, plan, answers = self.audited.release, context.plan, context.answers
        images = self.audited.auxiliary[context.rows]
        option = str(strength_option(row.defense))  # planned for defenses that have it
        strength = effective_options(row.defense, row.options)[option]
        double = 2 * strength
        stronger = dataclasses.replace(row, options={**row.options, option: double})
        other = self.defender.build(stronger, self.audited.target, context.clean).defense
        guard = DefendedTarget(self.audited.target, other)
        errors = []
        for name, shown, released in (
            ("at its strength", answers.released, answers.trace.released),
            ("at twice its strength", guard(images), guard(self.audited.test)),
        ):
            network, _ = self.train_one(
                shown,
                images,
                plan.input_transforms[0],
                min(plan.widths),
                context.epochs,
                f"budget: {name}",
            )
            with torch.no_grad():
                parts = [network(rows) for rows in released.split(512)]
            errors.append(inversion_errors(self.audited.test, torch.cat(parts)))
        gain = errors[0] - errors[1]
        # Decoders differ by their luck in training, too, and not only by the queries asked.
        slack = LUCK * float(errors[0].mean())
        if float(gain.mean()) <= max(2 * standard_error(gain), slack):
            return []
        detail = (
            f"at {option} {double:g} a decoder errs by {float(errors[1].mean()):.4f}, at "
            f"{strength:g} by {float(errors[0].mean()):.4f}: the stronger defense leaks "
            "more"
        )
        return [Flag("more-budget-smaller-gap", detail)]
