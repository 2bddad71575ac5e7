"""What an audit looks at: a model, what it releases, and whether its answers are stable."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oneway.checks import check_images, name_of, sorted_scores
from oneway.contracts import Defense, Query, Target
from oneway.data import Column, check_disjoint
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.evaluation import Flag
from oneway.evaluation.records import weights_hash
from oneway.evaluation.settings import ReleaseSpec
from oneway.metrics import label_changes
from oneway.releases import logits_from_confidences, release
from oneway.targets import DefendedTarget, TorchTarget, Trace
from oneway.targets.answers import lifts_labels

PROBED = 64
"""Queries that are asked again, to see whether the answers are stable."""

ALONE = 8
"""Of those, how many are asked one by one."""

SAME = 1e-3
"""L1 distance of two answers that count as the same: rounding differs with the batch."""

ROWS = 512
"""Queries that a guarded endpoint is asked at once."""

LEAST_AUXILIARY, LEAST_TEST = 200, 50

BELOW_MAJORITY = 0.05
"""Least difference of accuracy and the share of the most frequent class that is flagged."""


@dataclass(frozen=True)
class AuditTarget:
    """A model, the data to audit it with, and what stands before its clients.

    Attributes:
        target: The model, undefended; or, if only that is at hand, whatever answers.
        auxiliary: ``(N, C, H, W)`` images in ``[0, 1]``, or ``(N, D)`` encoded records: the
            attacker's own.
        test: ``(M, ...)`` the queries that attacks are graded on.
        labels: ``(M)`` int64, their true classes, for accuracy and calibration; or None.
        release: The defense that is audited, by its registered name.
        columns: What the entries of a record are; empty for images.
        guarded: Where defended answers come from instead, such as an endpoint with its guard on.
        model_hash: SHA-256 of the model's file, where it comes from one.
        model_kind: Kind of the model in words, such as ``"an ONNX file"``; None: its class.
        class_names: Names of the classes, in the order of the scores; None: the target's own.
        classes_from: Where these names come from, in words.
        auxiliary_labels: ``(N)`` int64, true classes of the auxiliary rows, for counts; or None.
        notes: What was left out, cut or converted when the data was loaded, with counts.
        guard: The defense itself, built and fitted before; ``release`` says its name. None: it is
            built from its name.
    """

    target: Target
    auxiliary: Tensor
    test: Tensor
    labels: Tensor | None = None
    release: ReleaseSpec = field(default_factory=lambda: ReleaseSpec("as it is", "none"))
    columns: tuple[Column, ...] = ()
    guarded: Target | None = None
    model_hash: str | None = None
    model_kind: str | None = None
    class_names: tuple[str, ...] | None = None
    classes_from: str | None = None
    auxiliary_labels: Tensor | None = None
    notes: tuple[str, ...] = ()
    guard: Defense | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be audited, before any query.

        Raises:
            InvalidTensorError: A tensor is not what is said above.
            InvalidOptionError: There are too few rows, or two defenses.
            OverlappingSplitsError: Test queries are among the attacker's.
        """
        check_images(self.auxiliary)
        check_images(self.test)
        if self.auxiliary.shape[1:] != self.test.shape[1:]:
            raise InvalidTensorError(
                "auxiliary and test queries must have one shape, but are "
                f"{tuple(self.auxiliary.shape[1:])} and {tuple(self.test.shape[1:])}. Image files "
                "are brought to one by --channels 1 or 3 (channels=...) and --size HxW (size=...)."
            )
        for name, rows, least in (
            ("auxiliary", self.auxiliary, LEAST_AUXILIARY),
            ("test", self.test, LEAST_TEST),
        ):
            if len(rows) < least:
                raise InvalidOptionError(
                    f"an audit needs at least {least} {name} rows, but got {len(rows)}. "
                    "With too few rows, a failed attack proves nothing."
                )
            if not (rows.min() >= 0 and rows.max() <= 1):
                raise InvalidTensorError(
                    f"{name} queries must lie in [0, 1], but some do not. Scale them, and let the "
                    "model undo it: errors are measured in this range."
                )
        for name, labels, rows in (
            ("labels", self.labels, self.test),
            ("auxiliary labels", self.auxiliary_labels, self.auxiliary),
        ):
            if labels is not None and (
                labels.dtype != torch.int64 or labels.shape != rows.shape[:1]
            ):
                raise InvalidTensorError(
                    f"{name} must be int64, one per row, ({len(rows)},), but are "
                    f"{name_of(labels.dtype)} of shape {tuple(labels.shape)}."
                )
        if self.guarded is not None and self.release.defense != "none":
            raise InvalidOptionError(
                "either a defense or a guarded endpoint is audited, but both were given."
            )
        check_disjoint({"auxiliary": self.auxiliary, "test": self.test})

    def model_fingerprint(self) -> str | None:
        """Return the SHA-256 of the model's file or weights; None where neither is at hand."""
        if self.model_hash is None and isinstance(self.target, TorchTarget):
            return weights_hash(self.target.module)
        return self.model_hash


@dataclass(frozen=True)
class Answers:
    """What was answered to all queries of an audit.

    Attributes:
        clean: ``(N, K)`` confidences of the auxiliary rows, undefended.
        released: ``(N, K)`` of the same rows, defended.
        trace: Scores of the test queries, from clean logits to the release.
        clean_test: ``(M, K)`` undefended confidences of the test queries.
        label_changes: How many of their labels changed in what was released.
        random: Whether the same query is answered differently each time.
        undeclared: Whether it is the model that answers at random, and not its defense.
        flags: Suspicious facts about the answers.
    """

    clean: Tensor
    released: Tensor
    trace: Trace
    clean_test: Tensor
    label_changes: int
    random: bool
    undeclared: bool
    flags: tuple[Flag, ...]


def ask(audited: AuditTarget, defense: Defense, clean: Tensor | None = None) -> Answers:
    """Ask everything that the attackers train on and are graded with.

    Args:
        audited: Model, data and release.
        defense: What stands before the clients; ignored where a guarded endpoint does.
        clean: ``(N, K)`` undefended confidences of the auxiliary rows, if they are known already.

    Raises:
        InvalidTensorError: Labels, or the guarded endpoint, are of other classes than the model.
    """
    lifted = lifts_labels(audited.target)
    bare = _undefended(audited)
    if audited.guarded is None:
        defended = DefendedTarget(audited.target, defense)
        guard: Target = defended
        trace = defended.trace(audited.test)
        declared = not defense.deterministic
    else:
        # As it answers, with its zeros and ties: a defended target would mend them.
        guard = _in_batches(audited.guarded)
        declared = False
        released = guard(audited.test)
        clean_logits = DefendedTarget(audited.target, Identity()).trace(audited.test).clean_logits
        trace = Trace(clean_logits, logits_from_confidences(released), released)
    _check_classes(trace, audited.labels)
    random, batched = _probe(guard, audited.test[:PROBED])
    undeclared = random and not declared and audited.guarded is None
    flags = list[Flag]()
    if random or declared:
        flags.append(
            Flag(
                "unstable-answers",
                "the same query is answered differently each time: whoever repeats it averages "
                "the noise away",
            )
        )
    if batched and not (random or declared):
        flags.append(
            Flag("unstable-answers", "answers depend on which queries share a batch with them")
        )
    flags += _ties(trace.released) + _descending(audited, trace)
    flags += _accuracy(trace.clean_logits, audited.labels)
    return Answers(
        bare(audited.auxiliary) if clean is None else clean,
        guard(audited.auxiliary),
        trace,
        bare(audited.test) if lifted else release(trace.clean_logits),
        label_changes(trace.clean_logits, trace.released),
        random or declared,
        undeclared,
        tuple(flags),
    )


@dataclass(frozen=True)
class Access:
    """An attacker's further access to an API, beyond its recorded answers.

    Attributes:
        query: Asks again.
        differentiable_logits: Target and defense with a gradient; None where the model itself is
            not at hand.
    """

    query: Query
    differentiable_logits: Callable[[Tensor], Tensor] | None


def access(audited: AuditTarget, defense: Defense, *, undeclared: bool) -> Access:
    """Return what attackers of a audited may do.

    Args:
        audited: Model, data and release.
        defense: What stands before the clients; ignored where a guarded endpoint does.
        undeclared: Whether the model itself answers at random, of which its defense knows nothing.
    """
    if audited.guarded is not None:
        return Access(_asked_again(_in_batches(audited.guarded)), None)
    guard = DefendedTarget(audited.target, defense)
    return Access(
        _asked_again(guard) if undeclared else guard.repeated,
        guard.differentiable_logits if has_gradient(audited) else None,
    )


def clean_access(audited: AuditTarget, *, undeclared: bool) -> Query:
    """Return what asks the model without its defense."""
    bare = _undefended(audited)
    return _asked_again(bare) if undeclared else bare.repeated


def _undefended(audited: AuditTarget) -> DefendedTarget:
    """Return an API without a guard, which answers by its confidences alone."""
    lifted = lifts_labels(audited.target)
    return DefendedTarget(audited.target.__call__ if lifted else audited.target, Identity())


def has_gradient(audited: AuditTarget) -> bool:
    """Say whether the model itself is at hand, with its gradient."""
    return audited.guarded is None and isinstance(audited.target, TorchTarget)


def _check_classes(trace: Trace, labels: Tensor | None) -> None:
    """Refuse what would fail only after all attacks: the first answers tell."""
    classes, answered = trace.clean_logits.shape[-1], trace.released.shape[-1]
    if answered != classes:
        raise InvalidTensorError(
            f"the guarded endpoint must answer with the model's {classes} classes, but answers "
            f"with {answered}. Let it release whole vectors."
        )
    if labels is not None and not (labels.min() >= 0 and labels.max() < classes):
        outside = int(((labels < 0) | (labels >= classes)).sum())
        raise InvalidTensorError(
            f"labels must lie in [0, {classes}), the model's classes, but {outside} of "
            f"{len(labels)} do not. Number them as the model does, or give none."
        )


def _in_batches(target: Target) -> Target:
    def answer(images: Tensor) -> Tensor:
        return torch.cat([target(batch.clone()) for batch in images.split(ROWS)])

    return answer


def _asked_again(guard: Target) -> Query:
    def query(images: Tensor, count: int) -> Tensor:
        return torch.stack([guard(images) for _ in range(count)])

    return query


def _probe(guard: Target, queries: Tensor) -> tuple[bool, bool]:
    """Say whether answers differ from time to time, and whether they differ with the batch."""
    first, second = guard(queries), guard(queries)
    random = _differ(first, second)
    reordered = guard(queries.flip(0)).flip(0)
    alone = torch.cat([guard(query.unsqueeze(0)) for query in queries[:ALONE]])
    return random, _differ(first, reordered) or _differ(first[:ALONE], alone)


def _differ(first: Tensor, second: Tensor) -> bool:
    return bool(((first.double() - second.double()).abs().sum(-1) > SAME).any())


def _accuracy(clean_logits: Tensor, labels: Tensor | None) -> list[Flag]:
    """Raise a flag where the model is right less often than its most frequent class would be."""
    if labels is None:
        return []
    accuracy = float((clean_logits.argmax(-1) == labels).double().mean())
    majority = float(labels.bincount().max() / len(labels))
    error = (majority * (1 - majority) / len(labels)) ** 0.5
    if accuracy >= majority - max(BELOW_MAJORITY, 2 * error):
        return []
    detail = f"accuracy is {accuracy:.3f}, the most frequent class would give {majority:.3f}"
    return [Flag("accuracy-below-majority", detail)]


def _ties(released: Tensor) -> list[Flag]:
    """Raise a flag where released rows hold zeros, or entries that are exactly the same."""
    zeros = (released == 0).any(-1)
    ordered = released.sort(-1).values
    ties = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
    found = []
    for rows, what in ((zeros, "an exact zero"), (ties, "two entries that are exactly equal")):
        if rows.any():
            share = float(rows.double().mean())
            found.append(f"{100 * share:.0f} % of released vectors hold {what}")
    return [Flag("ties-or-zeros", "; ".join(found))] if found else []


def _descending(audited: AuditTarget, trace: Trace) -> list[Flag]:
    """Raise a flag where the model, or a guarded endpoint, seems to sort each query's scores."""
    answers = {"the model": trace.clean_logits}
    if audited.guarded is not None:
        answers["the guarded endpoint"] = trace.released
    sorting = [name for name, scores in answers.items() if sorted_scores(scores)]
    detail = f"the scores of {' and of '.join(sorting)} descend in each of {len(audited.test)} rows"
    return [Flag("scores-descend", detail)] if sorting else []
