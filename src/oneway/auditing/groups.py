"""Leakage by group of queries: of whom the scores reveal most beyond the label."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from oneway.auditing.audit_target import Answers, AuditTarget
from oneway.auditing.measures import Measures, SeedResult
from oneway.data import Column
from oneway.metrics import Interval, bootstrap_ratio, rank_share

FEWEST_QUERIES = 30
"""Fewest queries of a group: intervals of fewer say little."""

MOST_VALUES = 12
"""Most different values of a column whose values are groups."""

RISK = 0.05
"""Share of audits in which the interval of some group misses, about."""

RESAMPLES = 2000
"""Fewest draws of queries behind an interval; of many groups more, so that one lies beyond it."""


@dataclass(frozen=True, kw_only=True)
class GroupLeakage:
    """What the strongest attacker learns of a group of queries.

    Attributes:
        kind: ``"class"``, ``"predicted class"`` where no true labels are known, or the name of a
            column.
        name: Class or value of the column.
        queries: Number of queries.
        error: Mean squared error of the strongest attacker, mean over seeds.
        label_error: Error of the label-only attacker, on the same queries.
        clean_error: Error of the best attack on clean scores, on the same queries.
        reduction: Share of the label-only error that the release takes off, ``1 - error /
            label_error``; with intervals that hold for all groups at once (about 95 %, over
            queries). An end is infinite where the queries are too few to tell.
        reidentified: Share of queries that the best attacker re-identifies at rank 1, on the first
            seed.
    """

    kind: str
    name: str
    queries: int
    error: float
    label_error: float
    clean_error: float
    reduction: Interval
    reidentified: float


def leakage_by_group(
    results: Sequence[SeedResult],
    measures: Measures,
    audited: AuditTarget,
    answers: Answers,
    class_names: Sequence[str],
) -> tuple[GroupLeakage, ...]:
    """Return what the strongest attacker learns of each class, and of each value of a column.

    Groups with fewer than ``FEWEST_QUERIES`` queries, and groups whose label-only error is 0, are
    left out.

    Args:
        results: Result of each seed.
        measures: Re-identification, of the first seed.
        audited: Model, data and release.
        answers: Answers of the model and of the release.
        class_names: ``K`` names of the classes.
    """
    error, label, clean = (
        torch.stack(each).mean(0).double().cpu()
        for each in (
            [result.strongest.errors for result in results],
            [result.baselines.label for result in results],
            [result.baselines.clean for result in results],
        )
    )
    ranks = measures.columns[measures.summary["released"]["reidentified_by"]]["rank"].cpu()
    groups = [
        (kind, name, rows)
        for kind, name, rows in _groups(audited, answers, class_names)
        if rows.sum() >= FEWEST_QUERIES and label[rows].mean() > 0
    ]
    return tuple(
        GroupLeakage(
            kind=kind,
            name=name,
            queries=int(rows.sum()),
            error=float(error[rows].mean()),
            label_error=float(label[rows].mean()),
            clean_error=float(clean[rows].mean()),
            reduction=bootstrap_ratio(
                label[rows] - error[rows],
                label[rows],
                # Always the same draws, so that nobody picks them.
                generator=Generator().manual_seed(0),
                level=1 - RISK / len(groups),
                resamples=max(RESAMPLES, math.ceil(2 * len(groups) / RISK) + 1),
            ),
            reidentified=rank_share(ranks[rows], 1),
        )
        for kind, name, rows in groups
    )


def _groups(
    audited: AuditTarget, answers: Answers, class_names: Sequence[str]
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the kind, the name and the ``(N)`` bool mask of each group."""
    labels, kind = audited.labels, "class"
    if labels is None:
        labels, kind = answers.clean_test.argmax(-1), "predicted class"
    for place, name in enumerate(class_names):
        yield kind, name, (labels == place).cpu()
    test = audited.test.cpu()
    for column in audited.columns:
        values, names = _values(test[:, column.start : column.stop], column)
        if 2 <= len(names) <= MOST_VALUES:
            for place, name in enumerate(names):
                yield column.name, name, values == place


def _values(block: Tensor, column: Column) -> tuple[Tensor, list[str]]:
    """Return which of the column's values each row has, and the names of these values.

    Args:
        block: ``(N, stop - start)`` the column, as it is encoded.
        column: The column.
    """
    if column.kind == "categorical":
        names = ["missing" if each is None else str(each) for each in column.categories]
        return block.argmax(-1), names
    different, values = block.unique(dim=0, return_inverse=True)
    names = [
        "missing" if column.missing and row[1] else f"{column.low + column.span * row[0]:.4g}"
        for row in different.tolist()
    ]
    return values, names
