"""Audit somebody's model against thieves who copy it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from oneway.auditing.stealing import StealingAudit, StealingRecord, StealingSettings
from oneway.contracts import Defense
from oneway.data import ProgressCallback, no_progress
from oneway.evaluation import Store
from oneway.interface.audits import CACHE, CPU, AuditSource
from oneway.interface.data import AS_IT_IS, Reading, read_rows
from oneway.interface.threat_results import ThreatResult
from oneway.report.stealing import stealing_verdict


@dataclass(frozen=True)
class StealingResult(ThreatResult):
    """What an audit against thieves found.

    Attributes:
        record: All results.
    """

    record: StealingRecord
    file_name: ClassVar[str] = "stealing.json"

    @property
    def gap(self) -> float | None:
        """G_steal at the largest budget that has one.

        1: scores help thieves no more than labels do; 0: as much as without a guard. None: it is
        not certain that clean scores help thieves, so that there is nothing to close.
        """
        gaps = [each.gap.estimate for each in self.record.budgets if each.gap is not None]
        return gaps[-1] if gaps else None

    @property
    def verdict(self) -> str:
        """The verdict in sentences, one for each budget."""
        return "\n".join(stealing_verdict(self.record))

    def missed(self, least: float | None = None) -> list[str]:
        """Return what speaks against this release, in sentences.

        Args:
            least: Least G_steal that is asked for; None: any. Where there is nothing to defend,
                nothing is missed.
        """
        if least is None or self.gap is None or self.gap >= least:
            return []
        return [f"G_steal must be at least {least:g}, but it is {self.gap:.3f}."]


def audit_stealing(
    model: Any,
    *,
    attacker_data: Any,
    queries: Any,
    public: Any = None,
    guard: Defense | str | Path | None = None,
    outputs: str | None = None,
    budgets: Sequence[int] = StealingSettings.budgets,
    seeds: int = StealingSettings.seeds,
    steps: int = StealingSettings.steps,
    class_names: Sequence[str] | None = None,
    reading: Reading = AS_IT_IS,
    seed: int = 0,
    cache: str | Path = CACHE,
    report: ProgressCallback = no_progress,
    **model_options: Any,
) -> StealingResult:
    """Copy a model from its answers, with or without a guard, and say how well that works.

    For example::

        result = oneway.audit_stealing(
            model, outputs="logits", attacker_data=own, queries=test, guard=guard, budgets=[400]
        )
        print(result)

    Args:
        model: The undefended model: see :func:`oneway.interface.models.open_model`.
        attacker_data: Images or records like the queries, which thieves ask about; as many as the
            largest budget: see :func:`oneway.interface.data.read_rows`.
        queries: At least 50 others, which copies are graded on.
        public: Inputs of another kind, for a thief who has no others; as many as the largest
            budget. None: there is no such thief.
        guard: What stands before clients: a defense, or the file of a codebook. None: nothing.
        outputs: What the model answers with, ``"logits"`` or ``"confidences"``, where its kind does
            not fix that.
        budgets: Numbers of queries that thieves may ask, each a case of its own.
        seeds: Number of seeds.
        steps: Least number of training steps of a copy.
        class_names: Names of the model's classes, in the order of its scores; None: its own.
        reading: How files are read.
        seed: First of the seeds.
        cache: Folder of trained networks.
        report: Receives the progress.
        **model_options: Of the kind of model.

    Raises:
        OnewayError: Model, data or guard cannot be used.
    """
    source = AuditSource(
        (model, {"outputs": outputs, **model_options}),
        attacker_data,
        queries,
        guard=guard,
        class_names=class_names,
        reading=reading,
        device=CPU,
    )
    settings = StealingSettings(tuple(budgets), seeds, steps)
    return run_stealing(source, settings, public, seed=seed, cache=Path(cache), report=report)


def run_stealing(
    source: AuditSource,
    settings: StealingSettings,
    public: Any = None,
    *,
    seed: int = 0,
    cache: Path = CACHE,
    report: ProgressCallback = no_progress,
) -> StealingResult:
    """Open a model and its data, and steal it.

    Args:
        source: Model, data and guard.
        settings: Budgets, seeds and steps.
        public: See :func:`audit_stealing`.
        seed: First of the seeds.
        cache: Folder of trained networks.
        report: Receives the progress.

    Raises:
        OnewayError: Model, data or guard cannot be used.
    """
    others: Tensor | None = None
    if public is not None:
        others = read_rows(public, "the public inputs", source.reading).queries.to(source.device)
    audit = StealingAudit(
        source.open(report), Store(cache), settings, public=others, seed=seed, report=report
    )
    return StealingResult(audit.run())
