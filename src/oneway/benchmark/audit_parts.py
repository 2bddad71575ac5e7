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

from oneway.audit import ControlResult, Flag, judge, standard_error, take_floors
from oneway.benchmark.attackers import Attackers, prepare_attackers
from oneway.benchmark.audit_controls import run_controls
from oneway.benchmark.audit_flags import LUCK
from oneway.benchmark.audit_measures import Round
from oneway.benchmark.audit_plan import AuditPlan, settings_for
from oneway.benchmark.audit_settings import AuditSettings
from oneway.benchmark.defenders import Built, Defender, DefenderImages
from oneway.benchmark.spec import AttackerSpec, SurrogateSpec
from oneway.benchmark.store import Store
from oneway.benchmark.subject import Answers, Subject, access
from oneway.contracts import Observations
from oneway.data import Report, silent
from oneway.defenses.identity import Identity
from oneway.guards import STRENGTHS, effective_options
from oneway.inversion import default_depth
from oneway.metrics import inversion_errors
from oneway.targets import DefendedTarget

CONTROLS_PART, BUDGET_PART, SEED_PART = "controls", "twice the strength", "seed "

Found = dict[str, ControlResult] | list[Flag] | Round
"""What a part finds: how controls went, flags, or a seed's attacks."""


@dataclass(frozen=True)
class Groundwork:
    """What is settled before the parts of an audit begin; plain values and tensors.

    Attributes:
        plan: Who attacks, with what, for how long.
        rows: ``(N)`` int64, the auxiliary rows that are used, in random order.
        clean: ``(A, K)`` undefended confidences of all auxiliary rows.
        answers: What was answered, of the rows that are used.
        epochs: How long each decoder is trained.
    """

    plan: AuditPlan
    rows: Tensor
    clean: Tensor
    answers: Answers
    epochs: int


def parts_of(plan: AuditPlan, release: str, seed: int) -> tuple[str, ...]:
    """Return the names of an audit's parts, in the order in which one machine runs them.

    Args:
        plan: Its plan.
        release: The registered name of the defense.
        seed: The first of the seeds.
    """
    first = (CONTROLS_PART,) if plan.controls else ()
    more = (BUDGET_PART,) if release in STRENGTHS else ()
    return (*first, *more, *(f"{SEED_PART}{one}" for one in range(seed, seed + plan.seeds)))


class AuditParts:
    """Runs the parts of one audit, one at a time."""

    def __init__(
        self,
        subject: Subject,
        store: Store,
        settings: AuditSettings,
        seed: int,
        report: Report = silent,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            subject: What is audited.
            store: Where trained networks are kept.
            settings: How.
            seed: The first of the seeds.
            report: Told of progress.
        """
        self.subject, self.store, self.settings = subject, store, settings
        self.seed, self.report = seed, report
        self._built: Built | None = None

    def run(self, part: str, groundwork: Groundwork) -> Found:
        """Run one part.

        Args:
            part: One of :func:`parts_of`.
            groundwork: What was settled before.
        """
        if part == CONTROLS_PART:
            return run_controls(
                groundwork.plan,
                self.subject,
                groundwork.answers,
                self.subject.auxiliary[groundwork.rows],
                groundwork.epochs,
                self.store,
                self.seed,
                self.report,
            )
        if part == BUDGET_PART:
            return self._more_budget(groundwork)
        return self._round(int(part.removeprefix(SEED_PART)), part, groundwork)

    def build(self, clean: Tensor) -> Built:
        """Train what the release's defense needs, and build it: once, since it may ask the model.

        Args:
            clean: ``(A, K)`` undefended confidences of all auxiliary rows.
        """
        if self._built is None:
            self._built = self.defender.build(self.subject.release, self.subject.target, clean)
        return self._built

    @cached_property
    def defender(self) -> Defender:
        """Trains what a release needs."""
        images = self.subject.auxiliary
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
            epochs: How long each decoder is trained.
            images: ``(N, ...)`` what they have.
            plan: Says which decoders compete; None: all.
        """
        spec = AttackerSpec(
            names=tuple(names),
            front_ends=plan.front_ends if plan else self.settings.front_ends,
            widths=plan.widths if plan else self.settings.widths,
            repeats=plan.repeats if plan else self.settings.repeats,
            training=settings_for(epochs),
        )
        return prepare_attackers(spec, images, self.store, seed, self.report)

    def train_one(
        self,
        confidences: Tensor,
        images: Tensor,
        front_end: str,
        width: int,
        epochs: int,
        stage: str,
    ) -> tuple[nn.Module, float]:
        """Return one decoder by itself, as in a contest, and its lowest held-out error."""
        attackers = self.attackers(self.seed, (), epochs, images)
        network, facts = attackers.trainer.train(
            "attacker",
            {"front_end": front_end, "width": width},
            attackers.spec.training,
            confidences,
            images,
            attackers.held_out,
            stage=stage,
        )
        return network, float(min(facts["held_out_errors"]))

    def _round(self, seed: int, part: str, groundwork: Groundwork) -> Round:
        subject, plan, answers = self.subject, groundwork.plan, groundwork.answers
        images = subject.auxiliary[groundwork.rows]
        attackers = self.attackers(seed, plan.attacks, groundwork.epochs, images, plan)
        copies = (
            self.defender.own_copies(subject.release, groundwork.clean)
            if "adversarial-training" in plan.attacks
            else ()
        )
        again = self.build(groundwork.clean).again(f"asked again, {part}")
        allowed = access(subject, again, undeclared=answers.undeclared)
        seen = Observations(
            images=images,
            clean=answers.clean,
            released=answers.released,
            held_out=attackers.held_out,
            query=allowed.query,
            random=answers.random,
            repeats=plan.repeats,
            own_copies=copies,
            follow=allowed.follow,
        )
        # Clean scores are attacked with the same means: else the gap would be too small.
        bare = DefendedTarget(subject.target, Identity())
        follow = None if allowed.follow is None else bare.follow
        undefended = dataclasses.replace(seen, released=answers.clean, random=False, follow=follow)
        names = [name for name in ("label-only", "static", "optimising") if name in plan.attacks]
        baseline = attackers.run(
            f"seed {seed}, clean", undefended, answers.clean_test, subject.test, names
        )
        floors = take_floors(baseline, images, subject.test)
        results = attackers.run(
            f"seed {seed}", seen, answers.trace.released, subject.test, plan.attacks
        )
        verdict = judge(results, floors, answers.clean_test, answers.flips)
        if seed != self.seed:
            # Only the first seed's are looked at; of large images they fill the memory.
            baseline, results = (
                {
                    name: dataclasses.replace(one, reconstructions=one.reconstructions[:0])
                    for name, one in some.items()
                }
                for some in (baseline, results)
            )
        return Round(seed, baseline, results, floors, verdict, attackers.held_out)

    def _more_budget(self, groundwork: Groundwork) -> list[Flag]:
        """Attack the release at twice its strength, too: it must not tell more."""
        row, plan, answers = self.subject.release, groundwork.plan, groundwork.answers
        images = self.subject.auxiliary[groundwork.rows]
        option = STRENGTHS[row.defense]
        strength = effective_options(row.defense, row.options)[option]
        double = 2 * strength
        stronger = dataclasses.replace(row, options={**row.options, option: double})
        other = self.defender.build(stronger, self.subject.target, groundwork.clean).defense
        guard = DefendedTarget(self.subject.target, other)
        errors = []
        for name, asked, told in (
            ("at its strength", answers.released, answers.trace.released),
            ("at twice its strength", guard(images), guard(self.subject.test)),
        ):
            network, _ = self.train_one(
                asked,
                images,
                plan.front_ends[0],
                min(plan.widths),
                groundwork.epochs,
                f"budget: {name}",
            )
            with torch.no_grad():
                parts = [network(some) for some in told.split(512)]
            errors.append(inversion_errors(self.subject.test, torch.cat(parts)))
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
