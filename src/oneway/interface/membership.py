"""Audit somebody's model for membership inference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from oneway.adapters import load_guard
from oneway.auditing.membership import MembershipAudit, MembershipRecord, MembershipSettings
from oneway.auditing.references import Candidates, TrainReference
from oneway.contracts import Defense
from oneway.data import ProgressCallback, no_progress
from oneway.data.classes import class_order, map_labels
from oneway.defenses import registered_name
from oneway.errors import InvalidOptionError
from oneway.evaluation import ReleaseSpec, Store
from oneway.interface.audits import AS_ANSWERED, CACHE
from oneway.interface.data import AS_IT_IS, Reading, Rows, read_rows
from oneway.interface.models import open_model
from oneway.interface.threat_results import ThreatResult
from oneway.options import options_of
from oneway.report.membership import membership_verdict
from oneway.targets import class_names_of


@dataclass(frozen=True)
class MembershipResult(ThreatResult):
    """What a membership audit found.

    Attributes:
        record: All results.
    """

    record: MembershipRecord
    file_name: ClassVar[str] = "membership.json"

    @property
    def gap(self) -> float | None:
        """G_mem by the true positive rate at 1 %, else by the area under the ROC curve.

        1: the scores leak no more than the label; 0: as much as without a guard. None: clean
        scores leak no more than the label, so that there is nothing to close.
        """
        closed = (self.record.gaps[name].closed for name in ("low", "area"))
        return next((each.estimate for each in closed if each is not None), None)

    @property
    def verdict(self) -> str:
        """The verdict in sentences, with its numbers."""
        return "\n".join(membership_verdict(self.record))

    def missed(self, least: float | None = None) -> list[str]:
        """Return what speaks against this release, in sentences.

        Args:
            least: Least G_mem that is asked for; None: any. Where there is nothing to defend,
                nothing is missed.
        """
        lines = [f"control failed: {name}" for name in self.record.controls_failed]
        if least is not None and self.gap is not None and self.gap < least:
            lines.append(f"G_mem must be at least {least:g}, but it is {self.gap:.3f}.")
        return lines


def audit_membership(
    model: Any,
    *,
    members: Any,
    non_members: Any,
    attacker_data: Any,
    guard: Defense | str | Path | None = None,
    release: ReleaseSpec = AS_ANSWERED,
    outputs: str | None = None,
    references: int = MembershipSettings.references,
    copies: int = MembershipSettings.copies,
    controls: bool = True,
    train_reference: TrainReference | None = None,
    class_names: Sequence[str] | None = None,
    reading: Reading = AS_IT_IS,
    seed: int = 0,
    cache: str | Path = CACHE,
    device: torch.device | None = None,
    report: ProgressCallback = no_progress,
    **model_options: Any,
) -> MembershipResult:
    """Measure whether a model's scores, with or without a guard, reveal what it was trained on.

    For example::

        result = oneway.audit_membership(
            model, outputs="logits", members=(x, y), non_members=(x_new, y_new),
            attacker_data=(x_own, y_own), guard=guard,
        )
        print(result)

    Args:
        model: The undefended model: see :func:`oneway.interface.models.open_model`.
        members: At least 50 rows that the model was trained on, with their classes: see
            :func:`oneway.interface.data.read_rows`.
        non_members: At least 50 rows that it was not trained on, with classes, drawn alike.
        attacker_data: At least 50 other rows that it was not trained on, with classes.
        guard: What stands before clients: a defense, or the file of a codebook.
        release: A registered defense instead, with its options; a codebook and its like are fitted
            to the attacker's data.
        outputs: What the model answers with, where its kind does not fix that.
        references: Reference models of the attacker, even; at least 4 for a claim.
        copies: Jittered copies of each candidate that are asked about, too.
        controls: Whether controls are run.
        train_reference: Trains a reference model on inputs, labels and the number of classes; None:
            a network of one hidden layer, which is trained until it fits as closely as the model.
        class_names: Names of the model's classes, in the order of its scores; None: its own.
        reading: How files are read.
        seed: Seed of every random stream.
        cache: Folder of reference models: they serve every release of the same model and data.
        device: Device for queries; None: the CPU.
        report: Receives the progress.
        **model_options: Of the kind of model.

    Raises:
        OnewayError: Model, data or guard cannot be used; members and non-members share rows.
    """
    device = device or torch.device("cpu")
    settings = MembershipSettings(references, copies, controls, seed)
    own = read_rows(attacker_data, "the attacker's data", reading, report=report)
    inside = read_rows(members, "the members", reading, like=own, report=report)
    outside = read_rows(non_members, "the non-members", reading, like=own, report=report)
    outside = outside.without(inside)
    own = own.without(inside).without(outside)
    opened = {"class_names": class_names, "outputs": outputs, **model_options}
    target = own.asked(open_model(model, device=device, **opened))
    labels = _labels((inside, outside, own), target, class_names)
    pairs = [
        (rows.queries.to(device), each.to(device))
        for rows, each in zip((inside, outside, own), labels, strict=True)
    ]
    rows = Candidates.of(pairs[0], pairs[1], pairs[2])
    if guard is not None:
        if release.defense != "none":
            raise InvalidOptionError(
                "one guard is audited, but a defense by name and a guard were given. Leave out one."
            )
        if isinstance(guard, str | Path):
            guard = load_guard(guard, device=device)
        release = _spec_of(guard)
    audit = MembershipAudit(
        target, rows, settings, Store(Path(cache)), train=train_reference, report=report
    )
    return MembershipResult(audit.run(release, guard))


def _labels(data: Sequence[Rows], target: Any, class_names: Sequence[str] | None) -> list[Tensor]:
    """Return the classes of all rows as numbers of the model's classes.

    Raises:
        InvalidOptionError: Rows have no classes.
    """
    for rows in data:
        if rows.labels is None:
            raise InvalidOptionError(
                f"{rows.source} must have classes, since attackers of membership know the true "
                "label. Pass pairs of inputs and labels, an .npz with labels, or --label COLUMN."
            )
    order = class_order(
        target(data[0].queries[:1]).shape[-1],
        declared=class_names,
        of_model=class_names_of(target),
        of_data={rows.source: rows.names for rows in data},
    )
    return [
        map_labels(rows.labels, rows.names, order, rows.source)
        for rows in data
        if rows.labels is not None
    ]


def _spec_of(guard: Defense) -> ReleaseSpec:
    """Return the name and options of a guard; one of somebody's own has no copies to fit."""
    name = registered_name(guard)
    if name is None:
        return replace(AS_ANSWERED, name=type(guard).__name__)
    return ReleaseSpec(name, name, {each: getattr(guard, each) for each in options_of(type(guard))})
