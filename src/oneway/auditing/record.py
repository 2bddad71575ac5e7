"""The typed record of an audit: what was found of each threat, without single queries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from oneway.attacks import LabelOnly
from oneway.auditing.audit_target import Answers, AuditTarget
from oneway.auditing.controls import ControlResult, failed_controls
from oneway.auditing.groups import GroupLeakage, leakage_by_group
from oneway.auditing.measures import (
    PRINCIPAL_COMPONENTS,
    Measures,
    SeedResult,
    convergence_over,
)
from oneway.auditing.membership import MembershipRecord
from oneway.auditing.plan import AuditPlan
from oneway.auditing.stealing import StealingRecord
from oneway.auditing.understanding import Understanding
from oneway.defenses import guard_version
from oneway.defenses.codebook import Certificate
from oneway.evaluation.convergence import Convergence
from oneway.evaluation.defenders import FittedDefense
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import (
    BaselineErrors,
    JudgedRelease,
    Provenance,
    TypedRecord,
    environment,
    json_values,
    numerics_of,
)
from oneway.evaluation.store import fingerprint
from oneway.evaluation.verdict import Verdict, errors_on, least_confident
from oneway.metrics import Interval, bootstrap_gap


@dataclass(frozen=True, kw_only=True)
class InversionRecord(JudgedRelease):
    """The results of an audit for inversion, means over seeds.

    It also has the attributes of :class:`oneway.evaluation.JudgedRelease`.

    Attributes:
        release: Name of the release.
        defense: Registered name of the defense, or ``"guarded endpoint"``.
        options: Options of the defense.
        classes: Number of classes, K.
        shape: Shape of one query.
        plan: Attackers, decoders and controls, with what was left out.
        seeds: Seeds that were run.
        stopped: Why seeds are missing, if the model failed after the first seed; else None.
        strongest: Strongest attacker of each seed.
        closed_gap_by_seed: G of each seed.
        closed_gap_interval: 95 % interval of G over queries.
        closed_gap_least_confident_interval: 95 % interval of G over the least confident queries.
        least_confident_queries: Number of the least confident queries.
        keeps_label: Whether the defense promises to keep labels.
        random: Whether the same query is answered differently each time.
        controls: Result of each control, by name.
        void: Whether a control failed.
        privacy: Similarity and re-identification by ``released``, ``clean`` and ``label``.
        reidentified: Shares of re-identified queries, by attacker on the release.
        utility: Quality, distortion and cost for users and the server.
        defender_training_seconds: Seconds that the defense trained.
        examples: Queries that are shown, with errors.
        seconds: Seconds that the audit took.
        understanding: What the audit understood of model and data; None in older records.
        clean_convergence: ``convergence`` of the attacks on clean scores.
        embedder: Name of the embedder that re-identified queries.
        guard_version: Version of the guard, if it was given as it serves; else None.
        groups: Leakage of each class and of each value of a column, of those with enough queries;
            None in older records.
    """

    subject: ClassVar = "an audit for inversion"

    release: str
    defense: str
    options: Mapping[str, Any]
    classes: int
    shape: tuple[int, ...]
    plan: AuditPlan
    seeds: tuple[int, ...]
    stopped: str | None
    strongest: tuple[str, ...]
    closed_gap_by_seed: tuple[float | None, ...]
    closed_gap_interval: Interval | None
    closed_gap_least_confident_interval: Interval | None
    least_confident_queries: int
    keeps_label: bool
    random: bool
    controls: Mapping[str, ControlResult]
    void: bool
    privacy: Mapping[str, Any]
    reidentified: Mapping[str, Any]
    utility: Mapping[str, Any]
    defender_training_seconds: float
    examples: Mapping[str, Any]
    seconds: float
    understanding: Understanding | None = None
    clean_convergence: Mapping[str, Convergence] = field(default_factory=dict)
    embedder: str = PRINCIPAL_COMPONENTS
    guard_version: str | None = None
    groups: tuple[GroupLeakage, ...] | None = None

    @property
    def failed(self) -> bool:
        """Whether the attack failed; of an older record, whether its interval of G reaches 1."""
        if self.attack_failed is not None:
            return self.attack_failed
        interval = self.closed_gap_interval
        reaches = interval is not None and interval.high >= 1
        return reaches or LabelOnly.name in self.strongest


def compose_record(
    audited: AuditTarget,
    seed: int,
    results: Sequence[SeedResult],
    measures: Measures,
    fitted: FittedDefense,
    answers: Answers,
    **known: Any,
) -> InversionRecord:
    """Return the record of an audit.

    Args:
        audited: Model, data and release.
        seed: First of the seeds; draws the bootstrap's queries.
        results: Result of each seed that was run.
        measures: Similarity and re-identification, of the first seed.
        fitted: The defense, ready to answer.
        answers: Answers of the model and of the release.
        known: Fields of the record that do not follow from these.
    """
    names = list(results[0].results)
    tail = least_confident(answers.clean_test)

    def errors_of_tail(result: SeedResult) -> Tensor:
        return errors_on(tail, result.results, result.verdict.strongest)

    interval = _gap_interval(results, seed, lambda result: result.strongest.errors)
    tail_interval = _gap_interval(results, seed, errors_of_tail, tail)
    return InversionRecord(
        release=audited.release.name,
        defense="guarded endpoint" if audited.guarded else audited.release.defense,
        options=json_values(audited.release.options),
        auxiliary=known["plan"].auxiliary,
        queries=len(audited.test),
        classes=answers.clean.shape[-1],
        shape=tuple(audited.test.shape[1:]),
        seeds=tuple(result.seed for result in results),
        errors={name: _mean([result.results[name].error for result in results]) for name in names},
        reconstructors={name: results[0].results[name].reconstructor for name in names},
        strongest=tuple(result.verdict.strongest for result in results),
        baselines=_mean_baselines(results),
        adaptive_error=_mean([result.verdict.adaptive_error for result in results]),
        # G of the mean errors over seeds: a mean of ratios would follow the seed of the smallest
        # gap.
        closed_gap=interval.estimate if interval else None,
        closed_gap_by_seed=tuple(result.verdict.closed_gap for result in results),
        closed_gap_interval=interval,
        closed_gap_least_confident=tail_interval.estimate if tail_interval else None,
        closed_gap_least_confident_interval=tail_interval,
        least_confident_queries=len(tail),
        label_changes=answers.label_changes,
        keeps_label=audited.guarded is None and fitted.defense.keeps_label,
        random=answers.random,
        void=bool(failed_controls(known["controls"])),
        privacy=measures.summary,
        reidentified=measures.reidentified,
        defender_training_seconds=fitted.seconds,
        environment=environment(audited.test.device),
        provenance=Provenance.now(
            fingerprint(audited.auxiliary, audited.test), audited.model_fingerprint()
        ),
        convergence=convergence_over([result.results for result in results]),
        clean_convergence=convergence_over([result.clean_results for result in results]),
        numerics=numerics_of((*results[0].baselines.attackers, *names)),
        **_bound([result.verdict for result in results], interval),
        **known,
        embedder=measures.embedder,
        guard_version=None if audited.guard is None else guard_version(audited.guard),
        groups=leakage_by_group(
            results, measures, audited, answers, _class_names(known["understanding"], answers)
        ),
    )


def _class_names(understanding: Understanding | None, answers: Answers) -> list[str]:
    """Return the names of the classes; their numbers where no names are known."""
    if understanding is None:
        return [str(place) for place in range(answers.clean.shape[-1])]
    return [each.name for each in understanding.classes]


def _bound(verdicts: Sequence[Verdict], interval: Interval | None) -> dict[str, Any]:
    """Return whether the attack failed on some seed, and what may be claimed then.

    Args:
        verdicts: Verdict of each seed.
        interval: Interval of G; None where there is no gap. It counts for seeds that did not fail.
    """
    failed = [verdict for verdict in verdicts if verdict.attack_failed]
    if not failed:
        return {"attack_failed": False}
    limits = [verdict.detection_limit for verdict in failed]
    bounds = [verdict.closed_gap_at_least for verdict in failed]
    if len(failed) < len(verdicts):
        low = None if interval is None else max(0.0, interval.low)
        bounds.append(low)
    known_limits = [limit for limit in limits if limit is not None]
    known_bounds = [bound for bound in bounds if bound is not None]
    return {
        "attack_failed": True,
        "detection_limit": max(known_limits) if len(known_limits) == len(limits) else None,
        "closed_gap_at_least": min(known_bounds) if len(known_bounds) == len(bounds) else None,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_baselines(results: Sequence[SeedResult]) -> BaselineErrors:
    baselines = [BaselineErrors.of(result.baselines) for result in results]
    return BaselineErrors(
        *(
            _mean([getattr(each, name) for each in baselines])
            for name in ("clean", "label", "prior")
        )
    )


def _gap_interval(
    results: Sequence[SeedResult],
    seed: int,
    errors: Callable[[SeedResult], Tensor],
    rows: Tensor | None = None,
) -> Interval | None:
    """Return the bootstrap interval of G over queries, of mean errors over seeds.

    Args:
        results: Result of each seed.
        seed: Seed of the bootstrap.
        errors: Returns ``(n)`` errors of a seed's attacker.
        rows: ``(n)`` row numbers of the queries; None: all queries.
    """
    index = slice(None) if rows is None else rows
    adaptive = torch.stack([errors(result) for result in results]).mean(0)
    clean = torch.stack([result.baselines.clean[index] for result in results]).mean(0)
    label = torch.stack([result.baselines.label[index] for result in results]).mean(0)
    if float(clean.mean()) >= float(label.mean()):
        return None
    generator = Stream(seed, "bootstrap").generator()
    return bootstrap_gap(adaptive, clean, label, generator=generator)


THREATS = ("inversion", "membership", "stealing")
"""Threats that an audit can be about, by their name in commands and records."""


@dataclass(frozen=True, kw_only=True)
class AuditRecord(TypedRecord):
    """The results of an audit of one release, by threat.

    Attributes:
        inversion: What answers reveal of queries; None if it was not audited.
        membership: Which training rows answers reveal; None if it was not audited.
        stealing: How well the model is copied; None if it was not audited.
        certificate: Certificate of the guard, if it is a codebook that holds one.
        minutes: Target run time of all threats together; None: there was none.
        seconds: Run time by threat.
        command: The command as it was typed, without credentials; None from Python.
    """

    subject: ClassVar = "an audit"

    inversion: InversionRecord | None = None
    membership: MembershipRecord | None = None
    stealing: StealingRecord | None = None
    certificate: Certificate | None = None
    minutes: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    command: str | None = None

    @property
    def threats(self) -> tuple[str, ...]:
        """Names of the threats that were audited."""
        return tuple(name for name in THREATS if getattr(self, name) is not None)
