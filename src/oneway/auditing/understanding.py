"""The facts about a model and its data that an audit assumes, shown before any long work."""

from dataclasses import dataclass

import torch

from oneway.auditing.audit_target import AuditTarget
from oneway.contracts import ScoredTarget
from oneway.data import Column
from oneway.data.classes import class_counts
from oneway.targets import class_names_of
from oneway.targets.answers import lifts_labels

LOW_ACCURACY = 0.5
"""An accuracy below this asks for a look at the order of the classes."""

CHECK_ORDER = (
    "the accuracy is low. If the classes are not in the order of the model's scores, pass "
    "--classes NAME,NAME,... (class_names=...) in that order"
)

ASKED = 64
"""Test queries that the model is asked to see what it answers."""


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """A class of the model, and how many rows of the data have it.

    Attributes:
        name: Name of the class.
        auxiliary: Its auxiliary rows; None without labels.
        test: Its test queries; None without labels.
    """

    name: str
    auxiliary: int | None
    test: int | None


@dataclass(frozen=True, kw_only=True)
class ColumnFact:
    """A column of a table, as it is encoded.

    Attributes:
        name: Name of the column.
        kind: ``"numeric"`` or ``"categorical"``.
        content: Its range in the auxiliary table, or its number of categories, in words.
    """

    name: str
    kind: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Understanding:
    """What an audit understood of a model and its data.

    Attributes:
        model: Kind of the model, and what it answers with.
        scores: What its scores are, in words.
        accuracy: Share of the asked test queries whose predicted class is the true class; None
            without labels.
        queries: What a query is: shape and range of images, or columns of records.
        classes: The classes, in the order of the scores.
        classes_from: Where their names and order come from.
        columns: Columns of a table; empty for images.
        notes: What was left out, cut or converted, with counts.
    """

    model: str
    scores: str
    accuracy: float | None
    queries: str
    classes: tuple[ClassCount, ...]
    classes_from: str
    columns: tuple[ColumnFact, ...]
    notes: tuple[str, ...]


def understand(audited: AuditTarget) -> Understanding:
    """Ask a model a few queries, and say what it and its data are understood to be.

    Args:
        audited: Model, data and release.

    Raises:
        OnewayError: The model cannot be asked, or its answers are not what they must be.
    """
    # Evenly spaced: files are often sorted by class.
    asked = torch.linspace(0, len(audited.test) - 1, min(ASKED, len(audited.test))).long()
    queries = audited.test[asked.to(audited.test.device)]
    answer = audited.target(queries)
    predicted = answer.argmax(-1)
    if isinstance(audited.target, ScoredTarget) and lifts_labels(audited.target):
        predicted = audited.target.logits(queries).argmax(-1)
    right = None if audited.labels is None else predicted == audited.labels[asked]
    accuracy = None if right is None else float(right.double().mean())
    low = accuracy is not None and accuracy < LOW_ACCURACY
    count = answer.shape[-1]
    names = audited.class_names or class_names_of(audited.target)
    rows = [class_counts(labels, count) for labels in (audited.auxiliary_labels, audited.labels)]
    outputs = getattr(audited.target, "outputs", "confidences")
    return Understanding(
        model=audited.model_kind or type(audited.target).__name__,
        scores=f"{count} {outputs}, as declared and as seen in {len(answer)} answers",
        accuracy=accuracy,
        queries=_queries(audited),
        classes=tuple(
            ClassCount(
                name=str(place) if names is None else names[place],
                auxiliary=None if rows[0] is None else rows[0][place],
                test=None if rows[1] is None else rows[1][place],
            )
            for place in range(count)
        ),
        classes_from=audited.classes_from
        or ("the data's class numbers" if names is None else "the model"),
        columns=tuple(_fact(column) for column in audited.columns),
        notes=(*audited.notes, CHECK_ORDER) if low else audited.notes,
    )


def _queries(audited: AuditTarget) -> str:
    rows = f"{len(audited.auxiliary):,} auxiliary, {len(audited.test):,} test"
    shape = tuple(audited.test.shape[1:])
    if audited.columns:
        return f"records of {len(audited.columns)} columns, encoded as {shape[0]} numbers; {rows}"
    if len(shape) != 3:
        return f"records of {shape[0]} numbers; {rows}"
    low = min(float(part.min()) for part in (audited.auxiliary, audited.test))
    high = max(float(part.max()) for part in (audited.auxiliary, audited.test))
    channels = {1: "1 channel (gray)", 3: "3 channels (color)"}.get(
        shape[0], f"{shape[0]} channels"
    )
    return (
        f"images of {shape[1]} x {shape[2]} pixels, {channels}, values from {low:.3g} to "
        f"{high:.3g}; {rows}"
    )


def _fact(column: Column) -> ColumnFact:
    content = (
        f"{column.low:g} to {column.high:g}"
        if column.kind == "numeric"
        else f"{len(column.categories)} categories"
    )
    return ColumnFact(name=column.name, kind=column.kind, content=content)
