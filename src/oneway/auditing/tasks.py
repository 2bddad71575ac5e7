"""The independent tasks of an audit: matching, controls, twice the strength, and the seeds.

A task queries and trains with its own random streams. Its result depends neither on the machine nor
on the order of the tasks, unless time runs out.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from oneway.attacks import inversion_attacks
from oneway.auditing.audit_target import Answers, AuditTarget, access, clean_access
from oneway.auditing.control_runs import ControlRun
from oneway.auditing.controls import ControlResult
from oneway.auditing.measures import SeedResult
from oneway.auditing.plan import AuditPlan, AuditSettings, settings_for
from oneway.auditing.suspicions import LUCK
from oneway.contracts import AttackerKnowledge
from oneway.data import ProgressCallback, no_progress
from oneway.defenses import effective_options, strength_option
from oneway.defenses.identity import Identity
from oneway.evaluation import (
    AttackResult,
    Flag,
    GalleryMatching,
    MatchedScores,
    MatchingResult,
    judge,
    standard_error,
    take_baselines,
)
from oneway.evaluation.attackers import (
    Attackers,
    CleanErrors,
    label_only_error,
    prepare_attackers,
)
from oneway.evaluation.convergence import (
    Convergence,
    IsLate,
    OutOfTimeError,
    check_time,
    never_late,
)
from oneway.evaluation.defenders import Defender, DefenderImages, FittedDefense
from oneway.evaluation.detection import detection_limit
from oneway.evaluation.settings import AttackerSpec, SurrogateSpec
from oneway.evaluation.store import Store
from oneway.evaluation.verdict import no_limit
from oneway.inversion import default_depth
from oneway.metrics import inversion_errors
from oneway.targets import DefendedTarget

MATCHING_TASK, CONTROLS_TASK, BUDGET_TASK = "matching", "controls", "twice the strength"
SEED_TASK = "seed "

P = ParamSpec("P")
R = TypeVar("R")


def _always() -> bool:
    return True


@dataclass
class TaskResult:
    """The results of tasks of an audit.

    Attributes:
        matching: Queries that ``matching`` identifies, by kind of gallery.
        controls: Result of each control, by name.
        flags: Suspicious facts about the release.
        seeds: The attacks of each seed.
        left_out: Tasks that are left out, since the target run time is over.
    """

    matching: Mapping[str, MatchingResult] = field(default_factory=dict)
    controls: Mapping[str, ControlResult] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    seeds: Sequence[SeedResult] = ()
    left_out: Sequence[str] = ()

    def add(self, other: "TaskResult") -> None:
        """Add the results of another task."""
        self.matching = {**self.matching, **other.matching}
        self.controls = {**self.controls, **other.controls}
        for name in ("flags", "seeds", "left_out"):
            setattr(self, name, (*getattr(self, name), *getattr(other, name)))


@dataclass(frozen=True)
class AuditContext:
    """Results that all tasks of an audit share, as plain values and tensors.

    Attributes:
        plan: Attackers, decoders and controls.
        rows: ``(N)`` int64 numbers of the auxiliary rows that are used, in random order.
        clean: ``(A, K)`` undefended confidences of all auxiliary rows.
        answers: Answers of the model and of the release, for the rows that are used.
        epochs: Epochs at which decoders of clean scores converge, for controls.
        deadline: Time at which trainings end, in seconds since 1970; infinite without a target run
            time.
        end: Time at which queries end, in seconds since 1970: the end of the target run time, of
            which trainings leave enough for attackers that do without them.
    """

    plan: AuditPlan
    rows: Tensor
    clean: Tensor
    answers: Answers
    epochs: int
    deadline: float
    end: float

    def is_late(self) -> bool:
        """Return whether no more time is left for trainings."""
        return time.time() > self.deadline

    def is_over(self) -> bool:
        """Return whether the target run time is over."""
        return time.time() > self.end


def _timed(call: Callable[P, R], is_late: IsLate) -> Callable[P, R]:
    """Return a function that raises OutOfTimeError once it is late."""

    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_time(is_late)
        return call(*args, **kwargs)

    return checked


def finished_attackers(
    names: Sequence[str], clean: Collection[str], released: Collection[str]
) -> tuple[str, ...]:
    """Return the attackers to keep, where time ran out on clean scores or on a release.

    An audit never leaves out some attackers. If such an attacker is missing, no attacker is kept
    that needs decoders.

    Args:
        names: Registered names of the planned attacks.
        clean: Names of the attacks that finished on clean scores.
        released: Names of the attacks that finished on the release.
    """
    attacks = inversion_attacks()
    missing = {
        name
        for name in names
        if name not in released or (attacks[name].attacks_clean_scores and name not in clean)
    }
    required = any(attacks[name].left_out is None for name in missing)
    return tuple(
        name
        for name in names
        if name not in missing and not (required and attacks[name].needs_decoders)
    )


def tasks_of(plan: AuditPlan, release: str, seed: int) -> tuple[str, ...]:
    """Return the names of an audit's tasks, in the order in which a single machine runs them."""
    first = (MATCHING_TASK, CONTROLS_TASK) if plan.controls else (MATCHING_TASK,)
    more = (BUDGET_TASK,) if strength_option(release) is not None else ()
    return (*first, *more, *(f"{SEED_TASK}{n}" for n in range(seed, seed + plan.seeds)))


class AuditTasks:
    """Runs the tasks of an audit, one at a time."""

    def __init__(
        self,
        audited: AuditTarget,
        store: Store,
        settings: AuditSettings,
        seed: int,
        report: ProgressCallback = no_progress,
    ) -> None:
        """Prepare; the model is not queried yet."""
        self.audited, self.store, self.settings = audited, store, settings
        self.seed, self.report = seed, report
        self._fitted: FittedDefense | None = None

    def run(self, name: str, context: AuditContext) -> TaskResult:
        """Run a task.

        Args:
            name: Name of the task, from :func:`tasks_of`.
            context: Results that all tasks share.
        """
        try:
            return self._run(name, context)
        except OutOfTimeError:
            return TaskResult(left_out=[name])

    def _run(self, name: str, context: AuditContext) -> TaskResult:
        if name == MATCHING_TASK:
            return TaskResult(matching=self._matching(context))
        if name == CONTROLS_TASK:
            controls = ControlRun(
                context.plan,
                self.audited,
                context.answers,
                self.audited.auxiliary[context.rows],
                context.epochs,
                self.store,
                self.seed,
                self.report,
                context.is_late,
            )
            return TaskResult(controls=controls.results())
        if name == BUDGET_TASK:
            return TaskResult(flags=self._more_budget(context))
        seed = self._seed(int(name.removeprefix(SEED_TASK)), name, context)
        return TaskResult(seeds=[seed])

    def build(self, clean: Tensor) -> FittedDefense:
        """Build the release's defense, once, since its training may query the model.

        Args:
            clean: ``(A, K)`` undefended confidences of all auxiliary rows.
        """
        guard = self.audited.guard
        if guard is not None:
            return FittedDefense(guard, lambda _: guard, 0.0, {})
        if self._fitted is None:
            self._fitted = self.defender.build(self.audited.release, self.audited.target, clean)
        return self._fitted

    @cached_property
    def defender(self) -> Defender:
        """The defender, who trains surrogates and states of defenses."""
        images = self.audited.auxiliary
        attackers = self.attackers(self.seed, (), images)
        removed = min(2, default_depth(images.shape[1:]) - 1)
        surrogate = SurrogateSpec(
            width=max(self.settings.widths),
            hidden_layers_removed=removed,
            training=settings_for(2 * self.settings.first_epochs),
        )
        labels = self.audited.auxiliary_labels
        public = DefenderImages(images, attackers.held_out, auxiliary_labels=labels)
        factors = (0.5, 1.0, 2.0)
        return Defender(surrogate, factors, public, self.store, attackers.trainer, self.report)

    def attackers(
        self,
        seed: int,
        names: Sequence[str],
        images: Tensor,
        plan: AuditPlan | None = None,
        is_late: IsLate = never_late,
    ) -> Attackers:
        """Return attackers with equal means, and with the rows that they hold out.

        Args:
            seed: Seed of the attackers.
            names: Registered names of the attacks.
            images: ``(N, ...)`` auxiliary inputs.
            plan: Plan with the decoders of model selections; None: all decoders.
            is_late: Returns whether the target run time is over.
        """
        means = plan or self.settings
        spec = AttackerSpec(
            names=tuple(names),
            input_transforms=means.input_transforms,
            widths=means.widths,
            repeats=means.repeats,
            training=settings_for(means.first_epochs),
            most_epochs=means.most_epochs,
        )
        late = is_late if plan is None or plan.decoders else _always
        return prepare_attackers(spec, images, self.store, seed, self.report, late)

    def search_clean(
        self, plan: AuditPlan, clean: Tensor, images: Tensor, is_late: IsLate
    ) -> Convergence:
        """Train a decoder of clean scores until it converges, on the first seed.

        The store keeps its trainings, which the attacks on clean scores need again.

        Args:
            plan: Plan with the decoders of model selections.
            clean: ``(N, K)`` undefended confidences of the images.
            images: ``(N, ...)`` auxiliary inputs.
            is_late: Returns whether the target run time is over.

        Raises:
            OutOfTimeError: There is no time for the shortest training.
        """
        attackers = self.attackers(self.seed, (), images, plan, is_late)
        label_error = label_only_error(clean, images, attackers.held_out)
        return attackers.search(
            "pace: clean",
            clean,
            images,
            attackers.held_out,
            lambda held_out_error: label_error - held_out_error,
        )

    def _seed(self, seed: int, name: str, context: AuditContext) -> SeedResult:
        """Attack clean scores and the release, with a seed."""
        audited, plan, answers = self.audited, context.plan, context.answers
        images = audited.auxiliary[context.rows]
        attackers = self.attackers(seed, plan.attacks, images, plan, context.is_late)
        undefended, knowledge = self._knowledge(name, images, attackers, context)
        clean_results, results = self._attack(attackers, undefended, knowledge, context)
        baselines = take_baselines(clean_results, images, audited.test)
        left_out = [f"the {attack} attacker" for attack in plan.attacks if attack not in results]
        if plan.decoders:
            attacks = inversion_attacks()
            left_out += [
                f"the decoder of the {attack} attacker"
                for attack, result in results.items()
                if attacks[attack].falls_back and result.convergence is None
            ]
        gap = float((baselines.label - baselines.clean).mean())

        def find_limit() -> float | None:
            try:
                return detection_limit(
                    attackers,
                    answers.clean,
                    audited.test,
                    answers.clean_test,
                    gap,
                    tuple(results),
                )
            except OutOfTimeError:
                left_out.append("the detection limit")
                return None

        verdict = judge(
            results,
            baselines,
            answers.clean_test,
            answers.label_changes,
            find_limit if plan.detection else no_limit,
        )
        if seed != self.seed:
            # Only reconstructions of the first seed are used; large images would fill the memory.
            clean_results, results = (
                {
                    attack: dataclasses.replace(result, reconstructions=result.reconstructions[:0])
                    for attack, result in by_attack.items()
                }
                for by_attack in (clean_results, results)
            )
        return SeedResult(
            seed,
            clean_results,
            results,
            baselines,
            verdict,
            attackers.held_out,
            tuple(left_out),
        )

    def _knowledge(
        self, name: str, images: Tensor, attackers: Attackers, context: AuditContext
    ) -> tuple[AttackerKnowledge, AttackerKnowledge]:
        """Return what attackers know of clean scores, and of the release."""
        audited, plan, answers = self.audited, context.plan, context.answers
        attacks = inversion_attacks()
        simulated = (
            self.defender.simulated_defenses(audited.release, context.clean)
            if any("simulated_defenses" in attacks[attack].requires for attack in plan.attacks)
            else ()
        )
        again = self.build(context.clean).again(f"asked again, {name}")
        allowed = access(audited, again, undeclared=answers.undeclared)
        knowledge = AttackerKnowledge(
            images=images,
            clean=answers.clean,
            released=answers.released,
            held_out=attackers.held_out,
            query=_timed(allowed.query, context.is_over),
            random=answers.random,
            repeats=plan.repeats,
            simulated_defenses=simulated,
            differentiable_logits=(
                allowed.differentiable_logits
                and _timed(allowed.differentiable_logits, context.is_late)
            ),
        )
        # Clean scores are attacked with the same means, else the gap would be too small.
        bare = DefendedTarget(audited.target, Identity())
        undefended = dataclasses.replace(
            knowledge,
            released=answers.clean,
            random=False,
            differentiable_logits=(
                allowed.differentiable_logits
                and _timed(bare.differentiable_logits, context.is_late)
            ),
        )
        return undefended, knowledge

    def _attack(
        self,
        attackers: Attackers,
        undefended: AttackerKnowledge,
        knowledge: AttackerKnowledge,
        context: AuditContext,
    ) -> tuple[dict[str, AttackResult], dict[str, AttackResult]]:
        """Attack clean scores and the release with the same attackers, those for which time lasts.

        Attackers that finished on clean scores alone would make the release look safer than it is.
        """
        attacks, answers, test = inversion_attacks(), context.answers, self.audited.test
        seed, asked = attackers.trainer.seed, dict[str, AttackResult]()

        def on_clean(names: Collection[str]) -> dict[str, AttackResult]:
            chosen = [name for name in names if attacks[name].attacks_clean_scores]
            title = f"seed {seed}, clean"
            return attackers.run(title, undefended, answers.clean_test, test, chosen)

        def on_release(names: Sequence[str]) -> dict[str, AttackResult]:
            truth = knowledge.images[attackers.held_out]
            errors = CleanErrors.of(clean_results.values(), truth)
            return attackers.run(
                f"seed {seed}",
                knowledge,
                answers.trace.released,
                test,
                names,
                clean_errors=errors,
                asked=asked,
            )

        names = context.plan.attacks
        clean_results = on_clean(names)
        results = on_release(names)
        if context.is_late():
            # Trained decoders come from the store now, and only linear systems are solved again.
            kept = finished_attackers(names, clean_results, results)
            if not {*clean_results} <= {*kept}:
                clean_results = on_clean(kept)
            if not {*results} <= {*kept}:
                results = on_release(kept)
        return clean_results, results

    def _matching(self, context: AuditContext) -> dict[str, MatchingResult]:
        """Ask about each candidate of galleries that hold the test queries."""
        audited, answers = self.audited, context.answers
        check_time(context.is_late)
        self.report(MATCHING_TASK, 0.0)
        images = audited.auxiliary[context.rows]
        again = self.build(context.clean).again("asked by matching")
        clean = AttackerKnowledge(
            images=images,
            clean=answers.clean,
            released=answers.clean,
            held_out=self.attackers(self.seed, (), images).held_out,
            query=_timed(clean_access(audited, undeclared=answers.undeclared), context.is_late),
            random=answers.undeclared,
            repeats=context.plan.repeats,
        )
        released = dataclasses.replace(
            clean,
            released=answers.released,
            query=_timed(
                access(audited, again, undeclared=answers.undeclared).query, context.is_late
            ),
            random=answers.random,
        )
        matching = GalleryMatching(
            audited.test, MatchedScores(clean, answers.clean_test), self.seed, audited.columns
        )
        found = matching.results(MatchedScores(released, answers.trace.released))
        self.report(MATCHING_TASK, 1.0)
        return found

    def _more_budget(self, context: AuditContext) -> list[Flag]:
        """Attack the release at twice its strength, too, which must not reveal more."""
        row, plan, answers = self.audited.release, context.plan, context.answers
        check_time(context.is_late)
        images = self.audited.auxiliary[context.rows]
        option = str(strength_option(row.defense))  # planned for defenses that have it
        strength = effective_options(row.defense, row.options)[option]
        double = 2 * strength
        stronger = dataclasses.replace(row, options={**row.options, option: double})
        other = self.defender.build(stronger, self.audited.target, context.clean).defense
        guard = DefendedTarget(self.audited.target, other)
        attackers = self.attackers(self.seed, (), images, plan, context.is_late)
        errors = []
        for name, shown, released in (
            ("at its strength", answers.released, answers.trace.released),
            ("at twice its strength", guard(images), guard(self.audited.test)),
        ):
            network, _ = attackers.trainer.train(
                "attacker",
                {"input_transform": plan.input_transforms[0], "width": min(plan.widths)},
                attackers.spec.training_for(context.epochs),
                shown,
                images,
                attackers.held_out,
                stage=f"budget: {name}",
            )
            with torch.no_grad():
                parts = [network(rows) for rows in released.split(512)]
            errors.append(inversion_errors(self.audited.test, torch.cat(parts)))
        gain = errors[0] - errors[1]
        # Decoders also differ by the luck of their training, and not by the queries alone.
        slack = LUCK * float(errors[0].mean())
        if float(gain.mean()) <= max(2 * standard_error(gain), slack):
            return []
        detail = (
            f"at {option} {double:g} a decoder errs by {float(errors[1].mean()):.4f}, at "
            f"{strength:g} by {float(errors[0].mean()):.4f}: the stronger defense leaks "
            "more"
        )
        return [Flag("more-budget-smaller-gap", detail)]
