"""Audit a release against thieves: how well copies of the model agree with it.

Every release faces the same thieves, with the same queries and budget: clean scores, labels alone,
and what is audited. A thief of scores may always use their labels alone, so that the floor is what
thieves reach on labels.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from oneway.attacks.stealing import STEALING_ATTACKS, Copy, ThiefKnowledge
from oneway.attacks.stealing.training import copy_trainer
from oneway.auditing.audit_target import AuditTarget, access, clean_access
from oneway.auditing.deadline import Deadline
from oneway.auditing.plan import AuditSettings
from oneway.auditing.tasks import AuditTasks
from oneway.contracts import Defense, Query
from oneway.data import ProgressCallback, check_disjoint, no_progress
from oneway.defenses.codebook.shares import lower_expectation
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import InvalidOptionError
from oneway.evaluation.convergence import OutOfTimeError
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import Environment, Provenance, TypedRecord, environment
from oneway.evaluation.store import Store, fingerprint
from oneway.metrics import Interval
from oneway.metrics.intervals import bootstrap_gap, bootstrap_mean
from oneway.options import Options, option
from oneway.releases import release

CLEAN, LABEL, RELEASED = "clean scores", "label only", "release"

COPIES = 24
"""Copies that are trained, about, with one budget and seed for all three releases."""

TIMED_STEPS, LEAST_STEPS = 4, 50
"""Training steps that are timed, and the fewest that a copy gets where time is short."""

LEAST_MEMBERS = 5
"""Least number of queries with one answer that make it a cell, of which a thief learns the mean."""


class StealingSettings(Options):
    """Settings of an audit against thieves."""

    budgets: tuple[int, ...] = option(
        "Numbers of queries that a thief may ask, each a case of its own.",
        default=(100, 400, 2000),
    )
    seeds: int = option(
        "Number of seeds: thieves' queries, initial weights. :func:`oneway.audit` takes its own.",
        default=3,
    )
    steps: int = option("Least number of training steps of a copy.", default=1500)


@dataclass(frozen=True)
class Theft:
    """How well thieves copied the model from one release.

    Attributes:
        fidelity: Share of queries on which the strongest copy has the model's label, with a 95 %
            interval over queries that holds for any distribution; mean over seeds. Each seed's
            strongest copy is chosen on these queries, for all releases alike: chance favours the
            thieves.
        accuracy: Share of queries on which it has the true label; None if labels are unknown.
        score_error: Lowest mean L1 distance, in [0, 2], of any copy's confidences to the model's
            clean ones; mean over seeds.
        thief: The strongest attack of the first seed, and its way.
        fidelities: Mean over seeds of each attack's fidelity, by attack.
        score_errors: Mean over seeds of the error of each attack's scores, by attack.
    """

    fidelity: Interval
    accuracy: float | None
    score_error: float
    thief: str
    fidelities: Mapping[str, float]
    score_errors: Mapping[str, float]


@dataclass(frozen=True)
class BudgetResult:
    """What thieves reach with one budget.

    Attributes:
        budget: Most queries of a thief.
        seeds: Number of seeds that were run.
        thefts: Results by release: ``"clean scores"``, ``"label only"`` and ``"release"``.
        gain: What clean scores add to the fidelity beyond labels, with its 95 % interval.
        gap: G_steal, the share of this gain that the release hides, with its interval; None where
            it is not certain that clean scores gain anything: then there is nothing to defend.
    """

    budget: int
    seeds: int
    thefts: Mapping[str, Theft]
    gain: Interval
    gap: Interval | None

    @property
    def verdict(self) -> str:
        """What may be said, in words."""
        if self.gap is None:
            return "nothing to defend: it is not certain that scores help thieves more than labels"
        if self.gap.low > 0.5:
            return "the release hides most of what scores add for thieves"
        if self.gap.low > 0:
            return "the release hides a part of what scores add for thieves"
        return "it is not certain that the release hinders thieves"


@dataclass(frozen=True, kw_only=True)
class StealingRecord(TypedRecord):
    """Results of an audit against thieves.

    Attributes:
        release: Name of the audited release.
        queries: Number of queries that copies are graded on.
        settings: Settings of the audit.
        seed: First of the seeds.
        budgets: Results, one for each budget.
        provenance: Code, date, data and model.
        environment: Machine and versions.
        left_out: What was left out for lack of time, in words.
    """

    subject: ClassVar[str] = "an audit against thieves"
    release: str
    queries: int
    settings: StealingSettings
    seed: int
    budgets: tuple[BudgetResult, ...]
    provenance: Provenance
    environment: Environment
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class GradedCopy:
    """One attack's best copy: agreement and correctness of each query, and the error of scores."""

    agrees: Tensor
    correct: Tensor | None
    score_error: float
    way: str

    @classmethod
    def of(cls, values: Tensor, way: str, truth: Tensor, labels: Tensor | None) -> Self:
        """Grade a copy.

        Args:
            values: ``(M + 1)`` float64, labels of the test queries, then its error of scores.
            way: What the attack calls the copy.
            truth: ``(M, K)`` clean confidences.
            labels: ``(M)`` true classes; or None.
        """
        answered = values[:-1].to(truth.device).long()
        return cls(
            (answered == truth.argmax(-1)).double(),
            None if labels is None else (answered == labels).double(),
            float(values[-1]),
            way,
        )

    @property
    def fidelity(self) -> float:
        """Share of queries with the model's label."""
        return float(self.agrees.mean())


_Stolen = dict[str, GradedCopy]
"""Best copy of each attack from one release, with one budget and seed, by attack."""


@dataclass(frozen=True)
class _Case:
    """A release as thieves meet it.

    Attributes:
        release: ``"clean scores"``, ``"label only"`` or ``"release"``.
        query: Returns what asks the service, for a purpose: of a random release each has a stream
            of its own, so that an interrupted audit goes on with the same answers.
        guard: What stands before the model; None where it is unknown.
        cell_means: See :class:`ThiefKnowledge`.
        truth: ``(M, K)`` clean confidences of the test queries.
        answers: Hash of the answers to all auxiliary rows and test queries.
        steps: Least number of training steps of a copy.
        deadline: When thieves must be done.
    """

    release: str
    query: Callable[[str], Query]
    guard: Defense | None
    cell_means: Callable[[Tensor], Tensor] | None
    truth: Tensor
    answers: str
    steps: int
    deadline: Deadline


class StealingAudit:
    """An audit of a release against thieves.

    Attributes:
        stolen: Each attack's best copy, by release, budget and seed; empty before a run.
    """

    def __init__(
        self,
        audited: AuditTarget,
        store: Store,
        settings: StealingSettings | None = None,
        *,
        public: Tensor | None = None,
        seed: int = 0,
        report: ProgressCallback = no_progress,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            audited: Model, data and release. Thieves ask about its auxiliary rows; copies are
                graded on its test rows.
            store: Store of what thieves stole, and of a defense that is trained: an interrupted
                audit goes on, and an audit of another release steals from clean scores and from
                labels no second time.
            settings: Settings of the audit.
            public: ``(P, ...)`` inputs of another kind in ``[0, 1]``, for a thief with no others.
            seed: First of the seeds.
            report: Progress callback.

        Raises:
            InvalidOptionError: A budget exceeds the rows that thieves have.
            OverlappingSplitsError: Graded queries are among the public inputs.
        """
        self.audited, self.settings = audited, settings or StealingSettings()
        self.store, self.public, self.seed, self.report = store, public, seed, report
        self.stolen = dict[tuple[str, int, int], _Stolen]()
        most = max(self.settings.budgets)
        for name, rows in (("attacker's rows", audited.auxiliary), ("public inputs", public)):
            if rows is not None and len(rows) < most:
                raise InvalidOptionError(
                    f"thieves who ask {most} queries need as many {name}, but got {len(rows)}. "
                    "Pass more rows, or lower budgets (--budget)."
                )
        if public is not None:
            check_disjoint({"public": public, "test": audited.test})

    def run(self, seconds: float = math.inf) -> StealingRecord:
        """Steal from clean scores, from labels and from the release, with each budget and seed.

        Args:
            seconds: Target run time.

        Raises:
            OnewayError: The model or the release fails.
        """
        audited, deadline = self.audited, Deadline.after(seconds)
        clean = clean_access(audited, undeclared=False)
        clean_auxiliary = clean(audited.auxiliary, 1)[0]
        tasks = AuditTasks(audited, self.store, AuditSettings(), self.seed, self.report)
        fitted = tasks.build(clean_auxiliary)
        labels = access(replace(audited, guarded=None), LabelOnly(), undeclared=False).query
        guard = None if audited.guarded is not None else fitted.defense

        def released(purpose: str) -> Query:
            return access(audited, fitted.again(purpose), undeclared=False).query

        releases: Mapping[str, tuple[Callable[[str], Query], Defense | None]] = {
            CLEAN: (lambda _: clean, Identity()),
            LABEL: (lambda _: labels, LabelOnly()),
            RELEASED: (released, guard),
        }
        truth = clean(audited.test, 1)[0]
        steps = self._steps_that_fit(deadline, truth.shape[-1])
        cases, answers = dict[str, _Case](), {CLEAN: (clean_auxiliary, truth)}
        for name, (query, guard) in releases.items():
            if name != CLEAN:
                ask = query("asked before thieves")
                answers[name] = ask(audited.auxiliary, 1)[0], ask(audited.test, 1)[0]
            known = None if name == CLEAN else _cell_means(answers[name][0], clean_auxiliary)
            answered = fingerprint(*answers[name])
            cases[name] = _Case(name, query, guard, known, truth, answered, steps, deadline)
        keeps = bool((answers[RELEASED][1].argmax(-1) == truth.argmax(-1)).all())
        seeds, left_out = self._steal(cases, deadline)
        if steps < self.settings.steps:
            most = self.settings.steps
            left_out.insert(0, f"{most - steps:,} of {most:,} training steps of each copy")
        data = fingerprint(audited.auxiliary, audited.test)
        return StealingRecord(
            release=audited.release.name if audited.guarded is None else "guarded endpoint",
            queries=len(audited.test),
            settings=replace(self.settings, steps=steps),
            seed=self.seed,
            budgets=tuple(
                self._judge(budget, done, keeps_labels=keeps)
                for budget, done in seeds.items()
                if done
            ),
            provenance=Provenance.now(data, audited.model_fingerprint()),
            environment=environment(audited.test.device),
            left_out=tuple(left_out),
        )

    def _steal(
        self, cases: Mapping[str, "_Case"], deadline: Deadline
    ) -> tuple[dict[int, list[int]], list[str]]:
        """Steal with each seed and budget from all releases, or from none of them.

        Returns:
            The seeds that were run by budget; and what was left out.
        """
        budgets = sorted(self.settings.budgets)
        seeds: dict[int, list[int]] = {budget: [] for budget in budgets}
        seconds, left_out = dict[int, float](), list[str]()
        for seed in range(self.seed, self.seed + self.settings.seeds):
            for budget in budgets:
                begin = time.perf_counter()
                # A larger budget takes at least as long as those before it.
                if seconds.get(budget, max(seconds.values(), default=0)) > deadline.left():
                    continue
                self.report(f"steal with {budget} queries, seed {seed}", 0.0)
                try:
                    found = {name: self._stolen(case, budget, seed) for name, case in cases.items()}
                except OutOfTimeError:
                    continue
                self.stolen |= {(name, budget, seed): copies for name, copies in found.items()}
                seeds[budget].append(seed)
                seconds[budget] = time.perf_counter() - begin
        self.report("steal", 1.0)
        for budget, done in seeds.items():
            missing = self.settings.seeds - len(done)
            if missing:
                left_out.append(f"{missing} of {self.settings.seeds} seeds with {budget:,} queries")
        return seeds, left_out

    def _steps_that_fit(self, deadline: Deadline, classes: int) -> int:
        """Return the training steps of each copy that let the smallest case fit in the time.

        They are halved until it fits, so that an audit which goes on takes the same number.
        """
        steps, rows = self.settings.steps, self.audited.auxiliary[:64]
        if deadline.left() == math.inf:
            return steps
        train = copy_trainer(TIMED_STEPS, Stream(self.seed, "timing").generator())
        begin = time.perf_counter()
        train(rows, rows.new_full((len(rows), classes), 1 / classes))
        each = (time.perf_counter() - begin) / TIMED_STEPS
        while steps // 2 >= LEAST_STEPS and COPIES * steps * each > deadline.left() / 2:
            steps //= 2
        return steps

    def _stolen(self, case: "_Case", budget: int, seed: int) -> _Stolen:
        """Return the best copy of each attack in the order of the registry, from the store."""
        audited = self.audited
        tensors = [audited.auxiliary, audited.test, case.truth]
        tensors += [] if self.public is None else [self.public]
        spec = {
            "budget": budget,
            "seed": seed,
            "steps": case.steps,
            "attacks": {name: attack.numerics for name, attack in STEALING_ATTACKS.items()},
            "data": fingerprint(*tensors),
            "answers": case.answers,
            "release": [case.release, type(case.guard).__name__],
        }
        run = partial(self._run, case, budget, seed)
        copies = self.store.tensors("theft", spec, run)
        found = {}
        for name in STEALING_ATTACKS:
            for key, values in copies.items():
                attack, _, way = key.partition(": ")
                if attack == name:
                    found[name] = GradedCopy.of(values, way, case.truth, audited.labels)
        return found

    def _run(self, case: "_Case", budget: int, seed: int) -> dict[str, Tensor]:
        """Run all attacks.

        Returns:
            The labels of each attack's best copy, and last the error of its scores, ``(M + 1)``
            float64, by attack and way.
        """
        best, query = {}, case.query(f"asked by thieves, {budget} queries, seed {seed}")
        for name, attack in STEALING_ATTACKS.items():
            case.deadline.check()
            knowledge = self._thief(case, query, budget, seed)
            if not attack.applies(knowledge.available):
                continue
            copies = {
                f"{name}: {way}": self._answered(copy, case.truth)
                for way, copy in attack.run(knowledge).items()
            }
            if copies:
                right = case.truth.argmax(-1).cpu()
                key = max(copies, key=lambda key: int((copies[key][:-1] == right).sum()))
                best[key] = copies[key]
        return best

    def _thief(self, case: "_Case", query: Query, budget: int, seed: int) -> ThiefKnowledge:
        """Return a thief with its budget unspent; all have the same inputs."""
        audited, guard = self.audited, case.guard
        order = torch.randperm(
            len(audited.auxiliary), generator=Stream(seed, "thief's rows").generator()
        ).to(audited.auxiliary.device)
        copied = None
        if guard is not None and guard.deterministic and not guard.requires_input:
            copied = _copied(guard)
        generator = Stream(seed, f"thief with {budget} queries").generator()
        return ThiefKnowledge(
            ask=_budgeted(query, budget),
            budget=budget,
            own=audited.auxiliary[order],
            train=copy_trainer(case.steps, generator, lambda *_: case.deadline.check()),
            generator=generator,
            public=self.public,
            cell_means=case.cell_means,
            release=copied,
        )

    @torch.no_grad()
    def _answered(self, copy: Copy, truth: Tensor) -> Tensor:
        logits = torch.cat([copy(rows) for rows in self.audited.test.split(512)]).to(truth.device)
        answered = logits.argmax(-1)
        if logits.shape[-1] < truth.shape[-1]:  # it never saw the last classes
            missing = truth.shape[-1] - logits.shape[-1]
            logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        error = (logits.softmax(-1) - truth).abs().sum(-1).mean()
        return torch.cat([answered.double(), error.double().view(1)]).cpu()

    def _judge(
        self,
        budget: int,
        done: Sequence[int],
        *,
        keeps_labels: bool,
    ) -> BudgetResult:
        """Compare the strongest thieves on the same queries."""
        graded = {
            name: [self.stolen[name, budget, seed] for seed in done]
            for name in (CLEAN, LABEL, RELEASED)
        }
        strongest = {
            name: [max(seed.items(), key=lambda named: named[1].fidelity) for seed in seeds]
            for name, seeds in graded.items()
        }
        agrees = {
            name: torch.stack([best.agrees for _, best in seeds]).mean(0)
            for name, seeds in strongest.items()
        }

        def draws() -> torch.Generator:
            return Stream(self.seed, f"intervals with {budget} queries").generator()

        # Whoever gets scores may use their labels alone.
        if keeps_labels and agrees[RELEASED].mean() < agrees[LABEL].mean():
            agrees[RELEASED] = agrees[LABEL]
            strongest[RELEASED] = strongest[LABEL]
        thefts = {
            name: _theft(_fidelity(agrees[name]), seeds, graded[name])
            for name, seeds in strongest.items()
        }
        gain = bootstrap_mean(agrees[CLEAN] - agrees[LABEL], generator=draws())
        gain = Interval(max(-1.0, gain.low), gain.estimate, min(1.0, gain.high))
        gap = None
        if gain.low > 0:
            lost = [1 - agrees[name] for name in (RELEASED, CLEAN, LABEL)]
            gap = bootstrap_gap(*lost, generator=draws())
        return BudgetResult(budget, len(done), thefts, gain, gap)


def _copied(guard: Defense) -> Callable[[Tensor], Tensor]:
    """Return a thief's own copy of a guard: clean logits to released confidences."""
    return lambda logits: release(guard(logits))


def _fidelity(agrees: Tensor) -> Interval:
    """Return the mean of ``(N)`` shares of seeds, with an interval that holds for any of them.

    Resampling would tell nothing where all copies agree on all queries.
    """
    mean, risk = float(agrees.mean()), 0.05
    low, below = (lower_expectation(each, len(agrees), risk / 2) for each in (mean, 1 - mean))
    return Interval(low, mean, 1 - below)


def _theft(
    fidelity: Interval,
    strongest: Sequence[tuple[str, GradedCopy]],
    graded: Sequence[Mapping[str, GradedCopy]],
) -> Theft:
    """Compose what thieves reached on one release; attacks that a seed lacks are left out."""
    attacks = [name for name in graded[0] if all(name in seed for seed in graded)]
    errors = {name: _mean(seed[name].score_error for seed in graded) for name in attacks}
    return Theft(
        fidelity=fidelity,
        accuracy=_accuracy(strongest),
        score_error=_mean(min(each.score_error for each in seed.values()) for seed in graded),
        thief=f"{strongest[0][0]}, {strongest[0][1].way}",
        fidelities={name: _mean(seed[name].fidelity for seed in graded) for name in attacks},
        score_errors=errors,
    )


def _accuracy(seeds: Sequence[tuple[str, GradedCopy]]) -> float | None:
    correct = [best.correct for _, best in seeds if best.correct is not None]
    return None if not correct else _mean(float(each.mean()) for each in correct)


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _budgeted(query: Query, budget: int) -> Callable[[Tensor], Tensor]:
    """Return what asks a service at most ``budget`` queries."""
    left = budget

    def ask(inputs: Tensor) -> Tensor:
        nonlocal left
        left -= len(inputs)
        if left < 0:
            raise InvalidOptionError(
                f"a thief may ask {budget} queries, but asked {budget - left}: its attack is wrong."
            )
        return query(inputs, 1)[0]

    return ask


def _cell_means(released: Tensor, clean: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what maps released confidences to the mean clean ones of their cell.

    None if no answer is shared by ``LEAST_MEMBERS`` queries. Answers that are no cells stay.
    """
    vectors, place, counts = released.unique(dim=0, return_inverse=True, return_counts=True)
    means = torch.zeros_like(vectors).index_add_(0, place, clean) / counts.unsqueeze(-1)
    shared = counts >= LEAST_MEMBERS
    if not shared.any():
        return None
    vectors, means = vectors[shared], means[shared]

    def mean(answers: Tensor) -> Tensor:
        distances = torch.cdist(answers, vectors, p=1)
        nearest = distances.min(-1)
        known = nearest.values <= 1e-6
        return torch.where(known.unsqueeze(-1), means[nearest.indices], answers)

    return mean
