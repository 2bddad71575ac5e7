"""Audit a release against thieves: how well copies of the model agree with it.

Every release faces the same thieves, with the same queries and budget: clean scores, labels alone,
and what is audited. A thief of scores may always use their labels alone, so that the floor is what
thieves reach on labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from oneway.attacks.stealing import STEALING_ATTACKS, Copy, ThiefKnowledge
from oneway.attacks.stealing.training import copy_trainer
from oneway.auditing.audit_target import AuditTarget, access, clean_access
from oneway.auditing.settings import AuditSettings
from oneway.auditing.tasks import AuditTasks
from oneway.checks import check_count
from oneway.contracts import Defense, Query
from oneway.data import ProgressCallback, check_disjoint, no_progress
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import InvalidOptionError
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import Environment, Provenance, environment
from oneway.evaluation.store import Store, fingerprint
from oneway.metrics import Interval
from oneway.metrics.intervals import bootstrap_gap, bootstrap_mean
from oneway.releases import release

CLEAN, LABEL, RELEASED = "clean scores", "label only", "release"

LEAST_MEMBERS = 5
"""Least number of queries with one answer that make it a cell, of which a thief learns the mean."""


@dataclass(frozen=True)
class StealingSettings:
    """Settings of an audit against thieves.

    Attributes:
        budgets: Numbers of queries that a thief may ask, each a case of its own.
        seeds: Number of seeds: thieves' queries, initial weights.
        steps: Least number of training steps of a copy.
    """

    budgets: tuple[int, ...] = (100, 400, 2000)
    seeds: int = 3
    steps: int = 1500

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            InvalidOptionError: There is no budget, or a number is below 1.
        """
        if not self.budgets:
            raise InvalidOptionError("budgets must hold at least one number of queries, got none.")
        for budget in self.budgets:
            check_count("budgets", budget)
        check_count("seeds", self.seeds)
        check_count("steps", self.steps)


@dataclass(frozen=True)
class Theft:
    """How well thieves copied the model from one release.

    Attributes:
        fidelity: Share of queries on which the strongest copy has the model's label, with its 95 %
            interval over queries; mean over seeds. Each seed's strongest copy is chosen on these
            queries, for all releases alike: chance favours the thieves.
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
        thefts: Results by release: ``"clean scores"``, ``"label only"`` and ``"release"``.
        gain: What clean scores add to the fidelity beyond labels, with its 95 % interval.
        gap: G_steal, the share of this gain that the release hides, with its interval; None where
            it is not certain that clean scores gain anything: then there is nothing to defend.
    """

    budget: int
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


@dataclass(frozen=True)
class StealingRecord:
    """Results of an audit against thieves.

    Attributes:
        release: Name of the audited release.
        queries: Number of queries that copies are graded on.
        settings: Settings of the audit.
        seed: First of the seeds.
        budgets: Results, one for each budget.
        provenance: Code, date, data and model.
        environment: Machine and versions.
        command: The command line, where there was one.
    """

    release: str
    queries: int
    settings: StealingSettings
    seed: int
    budgets: tuple[BudgetResult, ...]
    provenance: Provenance
    environment: Environment
    command: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all values as JSON has them, with a verdict for each budget."""
        values = asdict(self)
        for row, result in zip(values["budgets"], self.budgets, strict=True):
            row["verdict"] = result.verdict
        return values


@dataclass(frozen=True)
class GradedCopy:
    """One attack's best copy: agreement and correctness of each query, and the error of scores."""

    agrees: Tensor
    correct: Tensor | None
    score_error: float
    way: str

    @property
    def fidelity(self) -> float:
        """Share of queries with the model's label."""
        return float(self.agrees.mean())


_Stolen = dict[tuple[str, int, int], dict[str, GradedCopy]]
"""Each attack's best copy, by release, budget and seed."""


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
        beside: "StealingAudit | None" = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            audited: Model, data and release. Thieves ask about its auxiliary rows; copies are
                graded on its test rows.
            store: Store of trained networks, for a release that is trained.
            settings: Settings of the audit.
            public: ``(P, ...)`` inputs of another kind in ``[0, 1]``, for a thief with no others.
            seed: First of the seeds.
            report: Progress callback.
            beside: An audit of another release with the same model, data and settings, which ran
                before: what it stole from clean scores and labels is not stolen again.

        Raises:
            InvalidOptionError: A budget exceeds the rows that thieves have.
            OverlappingSplitsError: Graded queries are among the public inputs.
        """
        self.audited, self.settings = audited, settings or StealingSettings()
        self.store, self.public, self.seed, self.report = store, public, seed, report
        self.stolen: _Stolen = {} if beside is None else dict(beside.stolen)
        most = max(self.settings.budgets)
        for name, rows in (("attacker's rows", audited.auxiliary), ("public inputs", public)):
            if rows is not None and len(rows) < most:
                raise InvalidOptionError(
                    f"thieves who ask {most} queries need as many {name}, but got {len(rows)}. "
                    "Pass more rows, or lower budgets (--budget)."
                )
        if public is not None:
            check_disjoint({"public": public, "test": audited.test})

    def run(self) -> StealingRecord:
        """Steal from clean scores, from labels and from the release, with each budget and seed.

        Raises:
            OnewayError: The model or the release fails.
        """
        audited = self.audited
        clean = clean_access(audited, undeclared=False)
        clean_auxiliary = clean(audited.auxiliary, 1)[0]
        tasks = AuditTasks(audited, self.store, AuditSettings(), self.seed, self.report)
        defense = tasks.build(clean_auxiliary).defense
        released = access(audited, defense, undeclared=False).query
        labels = access(replace(audited, guarded=None), LabelOnly(), undeclared=False).query
        releases: Mapping[str, tuple[Query, Defense | None]] = {
            CLEAN: (clean, Identity()),
            LABEL: (labels, LabelOnly()),
            RELEASED: (released, None if audited.guarded is not None else defense),
        }
        means = {
            name: _cell_means(query(audited.auxiliary, 1)[0], clean_auxiliary)
            for name, (query, _) in releases.items()
            if name != CLEAN
        }
        truth = clean(audited.test, 1)[0]
        keeps = bool((released(audited.test, 1)[0].argmax(-1) == truth.argmax(-1)).all())
        done, total = 0, len(self.settings.budgets) * self.settings.seeds * len(releases)
        results = []
        for budget in self.settings.budgets:
            graded: dict[str, list[dict[str, GradedCopy]]] = {name: [] for name in releases}
            for seed in range(self.seed, self.seed + self.settings.seeds):
                for name, (query, guard) in releases.items():
                    self.report(f"steal with {budget} queries", done / total)
                    case = (name, budget, seed)
                    if case not in self.stolen or name == RELEASED:
                        thief = self._thief(query, guard, means.get(name), budget, seed)
                        self.stolen[case] = self._grade(thief, truth)
                    graded[name].append(self.stolen[case])
                    done += 1
            results.append(self._judge(budget, graded, keeps_labels=keeps))
        self.report("steal", 1.0)
        data = fingerprint(audited.auxiliary, audited.test)
        return StealingRecord(
            release=audited.release.name,
            queries=len(audited.test),
            settings=self.settings,
            seed=self.seed,
            budgets=tuple(results),
            provenance=Provenance.now(data, audited.model_fingerprint()),
            environment=environment(audited.test.device),
        )

    def _thief(
        self,
        query: Query,
        guard: Defense | None,
        cell_means: Callable[[Tensor], Tensor] | None,
        budget: int,
        seed: int,
    ) -> Callable[[], ThiefKnowledge]:
        """Return what makes a thief with its budget unspent; all have the same inputs."""
        audited = self.audited
        order = torch.randperm(
            len(audited.auxiliary), generator=Stream(seed, "thief's rows").generator()
        ).to(audited.auxiliary.device)
        copied = None
        if guard is not None and guard.deterministic and not guard.requires_input:
            copied = _copied(guard)

        def thief() -> ThiefKnowledge:
            generator = Stream(seed, f"thief with {budget} queries").generator()
            return ThiefKnowledge(
                ask=_budgeted(query, budget),
                budget=budget,
                own=audited.auxiliary[order],
                train=copy_trainer(self.settings.steps, generator),
                generator=generator,
                public=self.public,
                cell_means=cell_means,
                release=copied,
            )

        return thief

    def _grade(self, thief: Callable[[], ThiefKnowledge], truth: Tensor) -> dict[str, GradedCopy]:
        """Run all attacks; of each, the best copy counts."""
        graded = {}
        for name, attack in STEALING_ATTACKS.items():
            knowledge = thief()
            if not attack.applies(knowledge.available):
                continue
            copies = [self._graded(copy, way, truth) for way, copy in attack.run(knowledge).items()]
            if copies:
                graded[name] = max(copies, key=lambda each: each.fidelity)
        return graded

    @torch.no_grad()
    def _graded(self, copy: Copy, way: str, truth: Tensor) -> GradedCopy:
        logits = torch.cat([copy(rows) for rows in self.audited.test.split(512)]).to(truth.device)
        answered = logits.argmax(-1)
        if logits.shape[-1] < truth.shape[-1]:  # it never saw the last classes
            missing = truth.shape[-1] - logits.shape[-1]
            logits = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        labels = self.audited.labels
        error = (logits.softmax(-1) - truth).abs().sum(-1).mean()
        return GradedCopy(
            (answered == truth.argmax(-1)).double(),
            None if labels is None else (answered == labels).double(),
            float(error),
            way,
        )

    def _judge(
        self,
        budget: int,
        graded: Mapping[str, Sequence[Mapping[str, GradedCopy]]],
        *,
        keeps_labels: bool,
    ) -> BudgetResult:
        """Compare the strongest thieves on the same queries."""
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
            name: _theft(bootstrap_mean(agrees[name], generator=draws()), seeds, graded[name])
            for name, seeds in strongest.items()
        }
        gain = bootstrap_mean(agrees[CLEAN] - agrees[LABEL], generator=draws())
        gap = None
        if gain.low > 0:
            lost = [1 - agrees[name] for name in (RELEASED, CLEAN, LABEL)]
            gap = bootstrap_gap(*lost, generator=draws())
        return BudgetResult(budget, thefts, gain, gap)


def _copied(guard: Defense) -> Callable[[Tensor], Tensor]:
    """Return a thief's own copy of a guard: clean logits to released confidences."""
    return lambda logits: release(guard(logits))


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
