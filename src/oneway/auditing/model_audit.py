"""Audit a model, here or on a Ray cluster: all attackers, their controls, a checkable verdict."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from oneway.attacks import inversion_attacks
from oneway.auditing.audit_target import Answers, AuditTarget, ask, has_gradient
from oneway.auditing.controls import controls_for
from oneway.auditing.examples import examples_of
from oneway.auditing.measures import measure, utility
from oneway.auditing.pacing import measure_costs
from oneway.auditing.plan import (
    AuditPlan,
    AuditSettings,
    Costs,
    asking_seconds,
    make_plan,
    multiplications,
    search_seconds,
)
from oneway.auditing.record import InversionRecord, compose_record
from oneway.auditing.suspicions import suspicions
from oneway.auditing.tasks import (
    SEED_TASK,
    AuditContext,
    AuditTasks,
    TaskResult,
    tasks_of,
)
from oneway.auditing.understanding import Understanding, understand
from oneway.checks import check_count
from oneway.data import ProgressCallback, no_progress
from oneway.defenses.identity import Identity
from oneway.errors import OnewayError
from oneway.evaluation.cluster import RETRIES, run_tasks
from oneway.evaluation.convergence import OutOfTimeError
from oneway.evaluation.randomness import Stream
from oneway.evaluation.settings import is_simulated
from oneway.evaluation.store import Store
from oneway.metrics import Embedder
from oneway.metrics.reidentification import features_of
from oneway.targets import DefendedTarget

Executor = Callable[[AuditContext, Sequence[str]], Iterator[TaskResult | OnewayError]]
"""Runs the tasks of an audit; yields the result of each, or the error that the task raised on
purpose, in the order of the tasks."""


@dataclass(frozen=True)
class AuditOutcome:
    """The results of an audit.

    Attributes:
        record: All results except those of single queries.
        queries: Columns with a value for each seed, attacker and test query.
        pictures: Images of the record's examples, uint8, by view; empty for tables of records.
    """

    record: InversionRecord
    queries: dict[str, Any]
    pictures: dict[str, Any]


class ModelAudit:
    """An audit of a release."""

    def __init__(
        self,
        audited: AuditTarget,
        store: Store,
        settings: AuditSettings | None = None,
        *,
        seed: int = 0,
        report: ProgressCallback = no_progress,
        understanding: Understanding | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            audited: Model, data and release.
            store: Store of trained networks; a rerun trains only what is missing.
            settings: Settings of the audit; None: a full audit.
            seed: First of the seeds.
            report: Progress callback.
            understanding: From :func:`~oneway.auditing.understand`, if that was called already.
            embedder: Describes true inputs and reconstructions for re-identification, such as a
                network that recognizes faces. It must share nothing with the target. None:
                principal components of the auxiliary rows.
        """
        self.audited, self.store, self.understanding = audited, store, understanding
        self.settings = settings or AuditSettings.for_rows(len(audited.auxiliary))
        self.seed, self.report, self.embedder = seed, report, embedder
        self.tasks = AuditTasks(audited, store, self.settings, seed, report)
        self._begin = 0.0

    def run(self, executor: Executor | None = None) -> AuditOutcome:
        """Query the model, plan, attack, run the controls, and judge.

        Args:
            executor: Runs the tasks on a cluster; None: this process runs them in turn.

        Raises:
            InvalidTensorError: The embedder returns features of another type or shape, or NaN.
            OnewayError: The model or a task of the audit fails. If a seed fails and other seeds
                are done, the audit ends with those seeds instead.
        """
        self._begin = time.perf_counter()
        context = self._prepare()
        # A guard that is at hand cannot be built anew at twice its strength.
        rebuilt = "none" if self.audited.guard else self.audited.release.defense
        names = tasks_of(context.plan, rebuilt, self.seed)
        run = self._one_by_one if executor is None else executor
        collected, stopped = self._collect(run(context, names))
        plan, results, controls = context.plan, collected.seeds, collected.controls
        left_out = [*collected.left_out]
        if len(results) < plan.seeds and stopped is None:
            left_out.append(f"{plan.seeds - len(results)} of {plan.seeds} seeds")
        left_out += results[0].left_out
        if missing := [name for name in plan.controls if name not in controls]:
            left_out.append(f"the controls {', '.join(missing)}")
        # Planning names what it leaves out; another name may come when time runs out.
        plan = dataclasses.replace(plan, left_out=tuple(dict.fromkeys((*plan.left_out, *left_out))))
        images = self.audited.auxiliary[context.rows]
        fitted, answers = self.tasks.build(context.clean), context.answers
        measures = measure(results[0], self.audited, images, self.seed, self.embedder)
        useful = utility(self.audited, answers, fitted.defense)
        flags = [
            *answers.flags,
            *collected.flags,
            *suspicions(
                results,
                self.settings.seeds,
                controls,
                fitted.defense,
                useful,
            ),
        ]
        examples, pictures = examples_of(results[0], self.audited, answers)
        record = compose_record(
            self.audited,
            self.seed,
            results,
            measures,
            fitted,
            answers,
            plan=plan,
            controls=controls,
            flags=tuple(flags),
            utility=useful,
            stopped=stopped,
            examples=examples,
            matching=collected.matching,
            seconds=self._spent(),
            understanding=self.understanding,
        )
        return AuditOutcome(record, measures.queries(results), pictures)

    def _prepare(self) -> AuditContext:
        """Query the model, plan, and find the epochs at which decoders of clean scores converge."""
        audited = self.audited
        if self.embedder is not None:  # refused now, and not after hours of attacks
            features_of(self.embedder, audited.test[:2])
        self.report("ask the model", 0.0)
        if self.understanding is None:
            self.understanding = understand(audited)
        clean = DefendedTarget(audited.target, Identity())(audited.auxiliary)
        fitted = self.tasks.build(clean)
        answers = ask(audited, fitted.defense, clean)
        self.report("ask the model", 1.0)
        costs = measure_costs(audited, self.settings, answers, fitted, self.seed)
        full = self._full_plan(answers)
        plan = make_plan(full, costs, self.settings.minutes, spent=self._spent())
        context = self._context(plan, costs, clean, answers)
        if not plan.decoders:
            return context
        images = audited.auxiliary[context.rows]
        begin, longest = self._spent(), plan.first_epochs
        try:
            found = self.tasks.search_clean(plan, context.answers.clean, images, context.is_late)
            longest = 2 * found.epochs if found.shown else found.epochs
            context = dataclasses.replace(context, epochs=found.epochs)
        except OutOfTimeError:
            pass
        # A busy machine trains slower than it was timed. What does not fit is left out now.
        pace = (self._spent() - begin) / search_seconds(plan, costs, longest)
        if self.settings.minutes is None or pace <= 1:
            return context
        slower = costs.slower(pace)
        plan = make_plan(full, slower, self.settings.minutes, spent=self._spent())
        epochs = min(context.epochs, plan.most_epochs)
        return dataclasses.replace(self._context(plan, slower, clean, answers), epochs=epochs)

    def _context(
        self, plan: AuditPlan, costs: Costs, clean: Tensor, answers: Answers
    ) -> AuditContext:
        """Return the context of a plan, with its rows of the answers."""
        # Seeds that the plan did not count on are run if time is left.
        plan = dataclasses.replace(plan, seeds=self.settings.seeds)
        # In random order, since files are often sorted by class, and controls take the first rows.
        order = Stream(self.seed, "auxiliary rows").generator()
        rows = torch.randperm(len(clean), generator=order)[: plan.auxiliary].to(clean.device)
        answers = dataclasses.replace(
            answers, clean=answers.clean[rows], released=answers.released[rows]
        )
        minutes = self.settings.minutes
        left = math.inf if minutes is None else 60 * minutes - self._spent()
        # Linear systems are solved once more where time runs out, and averages still asked for.
        reserve = multiplications(plan, costs) * costs.solving + asking_seconds(plan, costs)
        now = time.time()
        return AuditContext(
            plan, rows, clean, answers, plan.first_epochs, now + left - reserve, now + left
        )

    def _collect(
        self, outcomes: Iterator[TaskResult | OnewayError]
    ) -> tuple[TaskResult, str | None]:
        """Put the results of tasks together; say why the seeds ended early, if they did."""
        collected = TaskResult()
        for result in outcomes:
            if isinstance(result, OnewayError):
                if not collected.seeds:
                    raise result
                # If the model fails now, the finished seeds are kept.
                return collected, f"{type(result).__name__}: {result}"
            attackers = [{*seed.results} for seed in (*collected.seeds[:1], *result.seeds)]
            if attackers != attackers[:1] * len(attackers):
                break  # time ran out, and seeds with other attackers cannot be averaged
            collected.add(result)
        return collected, None

    def _one_by_one(
        self, context: AuditContext, names: Sequence[str]
    ) -> Iterator[TaskResult | OnewayError]:
        """Run all tasks in this process; leave out seeds without enough time."""
        done, begin = 0, 0.0
        for name in names:
            is_seed = name.startswith(SEED_TASK)
            if is_seed and not done:
                begin = time.time()
            if is_seed and done and time.time() + (time.time() - begin) / done > context.deadline:
                return
            try:
                yield self.tasks.run(name, context)
            except OnewayError as error:
                yield error
            done += is_seed

    def _full_plan(self, answers: Answers) -> AuditPlan:
        """Return the plan of a full audit, without regard to time."""
        available = {"clean", "query", "candidates"}
        available |= {"random"} if answers.random else set()
        available |= {"simulated_defenses"} if is_simulated(self.audited.release) else set()
        available |= {"differentiable_logits"} if has_gradient(self.audited) else set()
        attacks = tuple(
            name
            for name, attack in inversion_attacks().items()
            if attack.by_default and attack.applies(available)
        )
        settings = self.settings
        classes = answers.clean.shape[-1]
        return AuditPlan(
            attacks=attacks,
            input_transforms=settings.input_transforms,
            widths=settings.widths,
            repeats=settings.repeats,
            most_epochs=settings.most_epochs,
            first_epochs=settings.first_epochs,
            controls=controls_for(attacks, classes) if settings.controls else (),
            seeds=settings.seeds,
            auxiliary=len(self.audited.auxiliary),
            detection=True,
        )

    def _spent(self) -> float:
        """Return the seconds since the audit began."""
        return time.perf_counter() - self._begin


@dataclass(frozen=True)
class AuditJob:
    """An audit with tasks that may run on other machines.

    Attributes:
        audited: Opens the model and loads the data, on the machine that runs a task. The cluster
            gets a copy: pass a function of an installed module, or a partial of such a function.
        store: Store of trained networks; see :class:`oneway.benchmark.CellsJob`.
        settings: Settings of the audit.
        seed: First of the seeds.
        device: Device for training and queries.
        report: Progress callback, in the process that runs a task.
    """

    audited: Callable[[], AuditTarget]
    store: Store
    settings: AuditSettings
    seed: int
    device: torch.device
    report: ProgressCallback = no_progress

    def run(self, name: str, context: AuditContext) -> TaskResult:
        """Run a task of the audit.

        Args:
            name: Name of the task, such as ``"controls"`` or ``"seed 0"``.
            context: Results that all tasks share.
        """
        tasks = AuditTasks(self.audited(), self.store, self.settings, self.seed, self.report)
        return tasks.run(name, context)


def audit_on_ray(
    job: AuditJob, *, retries: int = RETRIES, finished: Callable[[str], None] | None = None
) -> Executor:
    """Return an executor for ``ModelAudit.run``, which runs tasks on a Ray cluster.

    The cluster is that of :func:`oneway.benchmark.run_on_ray`. All tasks run at once, so that no
    seed is left out for lack of time; the plan is that of a single machine.

    Args:
        job: The audit.
        retries: Most attempts after the first, when a task's process or machine is lost.
        finished: Called with the name of each finished task.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidOptionError: ``retries`` is below 0.
    """
    check_count("retries", retries, least=0)
    sent = dataclasses.replace(job, store=Store(job.store.root.resolve()))

    def executor(context: AuditContext, names: Sequence[str]) -> Iterator[TaskResult | OnewayError]:
        tasks = [partial(sent.run, name, context) for name in names]
        results = dict[int, TaskResult | OnewayError]()
        position = 0
        for number, result in run_tasks(tasks, [job.device] * len(names), retries):
            results[number] = result
            if finished is not None:
                finished(names[number])
            while position in results:
                yield results.pop(position)
                position += 1

    return executor
