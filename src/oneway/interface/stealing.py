"""Audit somebody's model against thieves who copy it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneway.auditing.stealing import StealingAudit, StealingRecord, StealingSettings
from oneway.contracts import Defense
from oneway.data import ProgressCallback, no_progress
from oneway.evaluation import Store
from oneway.interface.audits import CACHE, CPU, AuditSource
from oneway.interface.data import AS_IT_IS, Reading, read_rows


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
) -> StealingRecord:
    """Copy a model from its answers, with or without a guard, and say how well that works.

    For example::

        record = oneway.audit_stealing(
            model, outputs="logits", attacker_data=own, queries=test, guard=guard, budgets=[400]
        )
        print(record.budgets[0].verdict)

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
    settings = StealingSettings(tuple(budgets), seeds, steps)
    source = AuditSource(
        (model, {"outputs": outputs, **model_options}),
        attacker_data,
        queries,
        guard=guard,
        class_names=class_names,
        reading=reading,
        device=CPU,
    )
    others = None if public is None else read_rows(public, "the public inputs", reading).queries
    audit = StealingAudit(
        source.open(report), Store(Path(cache)), settings, public=others, seed=seed, report=report
    )
    return audit.run()
