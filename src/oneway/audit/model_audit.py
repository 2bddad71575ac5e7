"""Audit somebody's model: the whole ensemble, its controls, and a verdict that can be checked."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from oneway.attacks import inversion_attacks
from oneway.audit.audit_target import Answers, AuditTarget, access, ask, has_gradient
from oneway.audit.controls import CONTROLS, ControlResult, controls_for, failed_controls
from oneway.audit.examples import examples_of
from oneway.audit.measures import Measures, SeedResult, measure, utility
from oneway.audit.plan import AuditPlan, Costs, make_plan
from oneway.audit.settings import AuditSettings
from oneway.audit.suspicions import suspicions
from oneway.audit.tasks import SEED_TASK, AuditContext, AuditTasks, TaskResult, tasks_of
from oneway.data import ProgressCallback, no_progress
from oneway.defenses.identity import Identity
from oneway.errors import OnewayError
from oneway.evaluation import Flag, errors_on, least_confident
from oneway.evaluation.defenders import FittedDefense
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import environment, json_values
from oneway.evaluation.settings import is_simulated
from oneway.evaluation.store import Store
from oneway.evaluation.timing import synchronize
from oneway.inversion import Inverter, RecordInverter, build_inverter
from oneway.metrics import Interval, bootstrap_gap
from oneway.targets import DefendedTarget

GAIN = 0.01
"""Share of the error that twice the epochs must take away to count as a gain."""

TIMED_SECONDS = 0.5
"""How long each decoder is timed before an audit is planned."""

Executor = Callable[[AuditContext, Sequence[str]], Iterator[TaskResult | OnewayError]]
"""Runs the parts of an audit; gives what each found, or the error that it raised on purpose, in
the order of the parts."""


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit found.

    Attributes:
        record: Everything but the rows, as JSON values.
        queries: Columns of one value per seed, attacker and test query.
        pictures: Of the record's examples, by who sees them; empty for records.
    """

    record: dict[str, Any]
    queries: dict[str, Any]
    pictures: dict[str, Any]


class ModelAudit:
    """One audit of one release."""

    def __init__(
        self,
        audited: AuditTarget,
        store: Store,
        settings: AuditSettings | None = None,
        *,
        seed: int = 0,
        report: ProgressCallback = no_progress,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            audited: What is audited.
            store: Where trained networks are kept; a rerun trains only what is missing.
            settings: How; None: everything.
            seed: The first of them.
            report: Told of progress.
        """
        self.audited, self.store = audited, store
        self.settings = settings or AuditSettings.for_rows(len(audited.auxiliary))
        self.seed, self.report = seed, report
        self.device = audited.auxiliary.device
        self.parts = AuditTasks(audited, store, self.settings, seed, report)

    def run(self, executor: Executor | None = None) -> AuditOutcome:
        """Ask, plan, attack, question the attack, and judge.

        Args:
            executor: Runs the parts elsewhere; None: one after the other, here.

        Raises:
            OnewayError: The model fails, or a part of the audit does. If it is a seed, and others
                are done, the audit ends with those.
        """
        begin = time.perf_counter()
        self.report("ask the model", 0.0)
        clean = DefendedTarget(self.audited.target, Identity())(self.audited.auxiliary)
        fitted = self.parts.build(clean)
        answers = ask(self.audited, fitted.defense, clean)
        self.report("ask the model", 1.0)
        costs = self._costs(answers, fitted)
        plan = make_plan(self._full_plan(answers), costs, self.settings.minutes)
        # In random order: files are often sorted by class, and controls take the first rows.
        order = Stream(self.seed, "auxiliary rows").generator()
        rows = torch.randperm(len(clean), generator=order)[: plan.auxiliary].to(self.device)
        answers = dataclasses.replace(
            answers, clean=answers.clean[rows], released=answers.released[rows]
        )
        images = self.audited.auxiliary[rows]
        epochs, plateau = self._find_epochs(plan, answers, images, begin)
        context = AuditContext(plan, rows, clean, answers, epochs)
        parts = tasks_of(plan, self.audited.release.defense, self.seed)
        controls = dict[str, ControlResult]()
        flags, seed_results, stopped = list(answers.flags), list[SeedResult](), None
        here = self._one_by_one(context, parts, begin)
        for found in here if executor is None else executor(context, parts):
            if isinstance(found, SeedResult):
                seed_results.append(found)
            elif isinstance(found, list):
                flags += found
            elif isinstance(found, dict):
                controls = found
            # A model that fails now must not lose the seeds that are done.
            elif seed_results:
                stopped = f"{type(found).__name__}: {found}"
                break
            else:
                raise found
        if len(seed_results) < plan.seeds and stopped is None:
            late = f"{plan.seeds - len(seed_results)} of {plan.seeds} seeds"
            plan = dataclasses.replace(plan, left_out=(*plan.left_out, late))
        measures = measure(seed_results[0], self.audited, images, self.seed)
        useful = utility(self.audited, answers, fitted.defense)
        flags += suspicions(
            seed_results, self.settings.seeds, controls, plateau, epochs, fitted.defense, useful
        )
        record = self._record(
            plan, seed_results, controls, flags, measures, useful, fitted, answers
        )
        examples, pictures = examples_of(seed_results[0], self.audited, answers)
        record |= {
            "examples": examples,
            "stopped": stopped,
            "epochs": epochs,
            "plateau_shown": plateau,
            "seconds": time.perf_counter() - begin,
        }
        return AuditOutcome(record, measures.queries(seed_results), pictures)

    def _one_by_one(
        self, context: AuditContext, parts: Sequence[str], begin: float
    ) -> Iterator[TaskResult | OnewayError]:
        """Run all parts here; leave seeds out for which there is no time."""
        done = 0
        for part in parts:
            is_seed = part.startswith(SEED_TASK)
            if is_seed and done and self._is_late(begin, done):
                return
            try:
                yield self.parts.run(part, context)
            except OnewayError as error:
                yield error
            done += is_seed

    def _full_plan(self, answers: Answers) -> AuditPlan:
        """Return all that applies to the release, whatever it takes."""
        available = {"clean", "query"}
        available |= {"random"} if answers.random else set()
        available |= {"simulated_defenses"} if is_simulated(self.audited.release) else set()
        available |= {"differentiable_logits"} if has_gradient(self.audited) else set()
        attacks = tuple(
            name
            for name, attack in inversion_attacks().items()
            if attack.reads_query and attack.applies(available)
        )
        settings = self.settings
        return AuditPlan(
            attacks=attacks,
            input_transforms=settings.input_transforms,
            widths=settings.widths,
            repeats=settings.repeats,
            most_epochs=settings.most_epochs,
            first_epochs=settings.first_epochs,
            controls=controls_for(attacks, answers.clean.shape[-1]) if settings.controls else (),
            seeds=settings.seeds,
            auxiliary=len(self.audited.auxiliary),
        )

    def _costs(self, answers: Answers, fitted: FittedDefense) -> Costs:
        """Measure what an epoch and a query cost on this machine."""
        images, confidences = self.audited.auxiliary[:64], answers.clean[:64]
        input_transforms = dict.fromkeys(self.settings.input_transforms)
        if self.settings.controls:
            input_transforms |= dict.fromkeys(
                control.input_transform for control in CONTROLS.values()
            )
        training = {
            (input_transform, width): self._step_seconds(
                confidences, images, input_transform, width
            )
            for input_transform, width in product(input_transforms, self.settings.widths)
        }
        again = fitted.again("timing")
        allowed, taken = access(self.audited, again, undeclared=answers.undeclared), []
        for asked in (images, images[:1]):
            begin = time.perf_counter()
            allowed.query(asked, 1)
            synchronize(self.device)
            taken.append(time.perf_counter() - begin)
        return Costs(
            training,
            asking=taken[0] / len(images),
            single=taken[1],
            auxiliary=len(self.audited.auxiliary),
            test=len(self.audited.test),
        )

    def _step_seconds(
        self, confidences: Tensor, images: Tensor, input_transform: str, width: int
    ) -> float:
        """Return what a decoder takes to learn from one row once."""
        classes, shape = confidences.shape[-1], images.shape[1:]

        def build() -> Inverter | RecordInverter:
            network = build_inverter(classes, shape, width=width, input_transform=input_transform)
            return network.to(self.device)

        network = Stream(self.seed, "timing").call(build, self.device)
        network.fit_input_transform(confidences)
        optimizer = torch.optim.Adam(network.parameters())
        taken = list[float]()
        begin = time.perf_counter()
        while len(taken) < 3 or taken[-1] - taken[0] < TIMED_SECONDS:
            optimizer.zero_grad()
            (network(confidences) - images).square().mean().backward()
            optimizer.step()
            synchronize(self.device)
            taken.append(time.perf_counter() - begin)
        # The first step is slow: it prepares kernels.
        return (taken[-1] - taken[0]) / (len(taken) - 1) / len(images)

    def _is_late(self, begin: float, seed_results: int) -> bool:
        """Say whether another seed would take longer than there is time."""
        if self.settings.minutes is None:
            return False
        spent = time.perf_counter() - begin
        return spent + spent / (seed_results + 1) > 60 * self.settings.minutes

    def _find_epochs(
        self, plan: AuditPlan, answers: Answers, images: Tensor, begin: float
    ) -> tuple[int, bool]:
        """Double the epochs until twice as many gain nothing; say whether that was reached.

        On clean scores and on released ones alike: whoever is still learning decides for both,
        since all releases are attacked with equal means.
        """
        epochs, input_transform, width = (
            plan.first_epochs,
            plan.input_transforms[0],
            max(plan.widths),
        )
        while 2 * epochs <= plan.most_epochs:
            gains = []
            for told, confidences in (("clean", answers.clean), ("released", answers.released)):
                once, twice = (
                    self.parts.train_one(
                        confidences, images, input_transform, width, count, f"pace: {told}, {count}"
                    )[1]
                    for count in (epochs, 2 * epochs)
                )
                gains.append(1 - twice / once)
            if max(gains) < GAIN:
                return epochs, True
            # Twice the epochs gained: so twice is what all decoders get.
            epochs *= 2
            spent = time.perf_counter() - begin
            limit = self.settings.minutes
            late = limit is not None and (3 * spent > 60 * limit or 2 * plan.seconds > 60 * limit)
            if late:
                break
        return epochs, False

    def _record(
        self,
        plan: AuditPlan,
        seed_results: Sequence[SeedResult],
        controls: Mapping[str, ControlResult],
        flags: Sequence[Flag],
        measures: Measures,
        useful: Mapping[str, Any],
        fitted: FittedDefense,
        answers: Answers,
    ) -> dict[str, Any]:
        audited = self.audited
        names = list(seed_results[0].results)
        baselines = {
            name: _mean([float(getattr(one.baselines, name).mean()) for one in seed_results])
            for name in ("clean", "label", "prior")
        }
        gaps = [one.verdict.closed_gap for one in seed_results]
        tail = least_confident(answers.clean_test)
        interval = self._gap_interval(seed_results, lambda one: one.strongest.errors)
        tail_interval = self._gap_interval(
            seed_results, lambda one: errors_on(tail, one.results, one.verdict.strongest), tail
        )
        return {
            "release": audited.release.name,
            "defense": "guarded endpoint" if audited.guarded else audited.release.defense,
            "options": json_values(audited.release.options),
            "auxiliary": plan.auxiliary,
            "queries": len(audited.test),
            "classes": answers.clean.shape[-1],
            "shape": list(audited.test.shape[1:]),
            "plan": json_values(dataclasses.asdict(plan)),
            "seeds": [one.seed for one in seed_results],
            "errors": {
                name: _mean([one.results[name].error for one in seed_results]) for name in names
            },
            "reconstructors": {name: seed_results[0].results[name].reconstructor for name in names},
            "strongest": [one.verdict.strongest for one in seed_results],
            "baselines": baselines,
            "adaptive_error": _mean([one.verdict.adaptive_error for one in seed_results]),
            # Of the errors that all seeds have in the mean: a mean of ratios follows the seed whose
            # clean and label-only errors differ least.
            "closed_gap": interval and interval["estimate"],
            "closed_gap_by_seed": gaps,
            "closed_gap_interval": interval,
            "closed_gap_least_confident": tail_interval and tail_interval["estimate"],
            "closed_gap_least_confident_interval": tail_interval,
            "least_confident_queries": len(tail),
            "label_changes": answers.label_changes,
            "keeps_label": audited.guarded is None and fitted.defense.keeps_label,
            "random": answers.random,
            "controls": {
                name: {
                    **dataclasses.asdict(result),
                    "attack": CONTROLS[name].attack,
                    "input_transform": CONTROLS[name].input_transform,
                }
                for name, result in controls.items()
            },
            "void": bool(failed_controls(controls)),
            "flags": [dataclasses.asdict(flag) for flag in flags],
            "privacy": measures.summary,
            "reidentified": measures.reidentified,
            "utility": dict(useful),
            "defender_training_seconds": fitted.seconds,
            "environment": environment(self.device),
        }

    def _gap_interval(
        self,
        seed_results: Sequence[SeedResult],
        errors: Callable[[SeedResult], Tensor],
        rows: Tensor | None = None,
    ) -> dict[str, Any] | None:
        """Return the bootstrap interval of G over queries, of errors averaged over seeds.

        Args:
            seed_results: One for each seed.
            errors: Those of a round's attacker.
            rows: Of which queries they are; None: all.
        """
        index = slice(None) if rows is None else rows
        adaptive = torch.stack([errors(one) for one in seed_results]).mean(0)
        clean = torch.stack([one.baselines.clean[index] for one in seed_results]).mean(0)
        label = torch.stack([one.baselines.label[index] for one in seed_results]).mean(0)
        if float(clean.mean()) >= float(label.mean()):
            return None
        generator = Stream(self.seed, "bootstrap").generator()
        interval: Interval = bootstrap_gap(adaptive, clean, label, generator=generator)
        found: dict[str, Any] = json_values(dataclasses.asdict(interval))
        return found


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if len(told) == len(values) else None
