"""Where an audit's model and data come from, opened and checked."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oneway.adapters import load_guard
from oneway.auditing import AuditTarget
from oneway.auditing.references import Candidates
from oneway.contracts import Defense, Target
from oneway.data import ProgressCallback, check_disjoint, no_progress
from oneway.data.classes import ClassOrder, class_order, listed, map_labels
from oneway.defenses import registered_name
from oneway.errors import InvalidOptionError
from oneway.evaluation import ReleaseSpec
from oneway.interface.data import AS_IT_IS, Reading, Rows, read_pair, read_rows
from oneway.interface.models import open_model
from oneway.options import options_of
from oneway.targets import DefendedTarget, class_names_of, target_kind

CACHE = Path("runs/cache")
"""Where trained networks are kept, unless told otherwise."""

CPU = torch.device("cpu")

AS_ANSWERED = ReleaseSpec("as it is", "none")
"""The release without a guard."""

Model = tuple[Any, Mapping[str, Any]]
"""A model, and options of :func:`oneway.interface.models.open_model`."""


@dataclass(frozen=True)
class AuditSource:
    """Where an audit's model and data come from. With paths it can be sent to another machine.

    Attributes:
        model: The undefended model.
        auxiliary: The attacker's data: see :func:`oneway.interface.data.read_rows`.
        test: The queries that inversion and thieves are graded on, likewise; None: there are none.
        release: The defense that is audited, by its registered name.
        guard: The defense itself, or the file of a codebook, instead.
        guarded: A model that gives defended answers, instead.
        class_names: The model's classes, in the order of its scores; None: its own.
        reading: How data is read.
        device: Device for the model, training and queries; None: the CPU, but a module that is
            given as an object stays where it lies.
        batch_size: Most queries in one call of a model.
        members: For membership: rows that the model was trained on, with classes.
        non_members: For membership: rows that it was not trained on, with classes.
        public: For stealing: inputs of another kind; None: thieves have none.
    """

    model: Model
    auxiliary: Any
    test: Any = None
    release: ReleaseSpec = AS_ANSWERED
    guard: Defense | str | Path | None = None
    guarded: Model | None = None
    class_names: Sequence[str] | None = None
    reading: Reading = AS_IT_IS
    device: torch.device | None = None
    batch_size: int = 512
    members: Any = None
    non_members: Any = None
    public: Any = None

    @property
    def where(self) -> torch.device:
        """The device for training and queries."""
        return self.device or CPU

    @property
    def given(self) -> dict[str, Any]:
        """Data by option, for :func:`oneway.interface.threats.check_data`."""
        return {
            "--queries": self.test,
            "--members": self.members,
            "--non-members": self.non_members,
            "--public": self.public,
        }

    def open(self, report: ProgressCallback | None = None) -> AuditTarget:
        """Open the models, load their data, and check everything.

        Raises:
            OnewayError: A model cannot be opened, or the data cannot be used.
        """
        named = self._named_guard()  # before data is read, which takes longer
        given = [each for each in (self.model, self.guarded) if each is not None]
        targets = [self._opened(model) for model in given]
        files = read_pair(
            (self.auxiliary, "the attacker's data"),
            (self.test, "the queries"),
            self.reading,
            report or no_progress,
        )
        targets = [files[0].asked(target) for target in targets]
        auxiliary, test = (file.queries.to(self.where) for file in files)
        order = self._class_order(targets, test[:1], files)
        labels = [
            None
            if file.labels is None
            else map_labels(file.labels, file.names, order, file.source).to(self.where)
            for file in files
        ]
        model = self.model[0]
        encoding = files[0].encoding
        release, guard, guarded = self._in_front(*named, targets)
        return AuditTarget(
            targets[0],
            auxiliary,
            test,
            labels[1],
            release,
            () if encoding is None else encoding.columns,
            guarded,
            _file_hash(model),
            model_kind=target_kind(str(model)) if isinstance(model, str | Path) else None,
            class_names=order.names,
            classes_from=order.source,
            auxiliary_labels=labels[0],
            notes=tuple(f"{file.source}: {note}" for file in files for note in file.notes),
            guard=guard,
        )

    def open_members(
        self,
        audited: AuditTarget | None = None,
        report: ProgressCallback | None = None,
        *,
        apart: Tensor | None = None,
    ) -> "OpenedMembers":
        """Open the model and the data for membership, and check everything.

        Args:
            audited: What :meth:`open` returned, so that the model is opened once; None: it is
                opened here.
            report: Receives the progress.
            apart: ``compared`` of rows that must not be among members and non-members; None: none.

        Raises:
            OverlappingSplitsError: Members or non-members are among ``apart``.
            OnewayError: The model cannot be opened, or the data cannot be used.
        """
        if self.guarded is not None:
            raise InvalidOptionError(
                "a membership audit puts the guard before reference models, too, and cannot do so "
                "with --guarded. Pass the guard itself: --guard FILE, or --defense NAME."
            )
        progress = report or no_progress
        own = read_rows(self.auxiliary, "the attacker's data", self.reading, report=progress)
        inside, outside = (
            read_rows(data, name, self.reading, like=own, report=progress)
            for data, name in ((self.members, "the members"), (self.non_members, "the non-members"))
        )
        if apart is not None:
            inside, outside = inside.without(apart), outside.without(apart)
            candidates = torch.cat([inside.compared, outside.compared])
            check_disjoint({"queries": apart, "members and non-members": candidates})
        outside = outside.without(inside.compared)
        own = own.without(inside.compared).without(outside.compared)
        target = own.asked(self._opened(self.model)) if audited is None else audited.target
        files = (inside, outside, own)
        order = self._class_order([target], inside.queries[:1].to(self.where), files)
        rows = Candidates.of(*(self._labelled(file, order) for file in files))
        release, guard = self._named_guard()
        return OpenedMembers(target, rows, release, guard)

    def open_public(self, audited: AuditTarget) -> Tensor | None:
        """Return the ``(P, ...)`` public inputs of thieves; None if there are none.

        Args:
            audited: Model and data, whose shape they must have.

        Raises:
            OnewayError: The data cannot be used.
        """
        if self.public is None:
            return None
        rows = read_rows(self.public, "the public inputs", self.reading).queries.to(self.where)
        if rows.shape[1:] != audited.test.shape[1:]:
            raise InvalidOptionError(
                f"public inputs must have the queries' shape, {tuple(audited.test.shape[1:])}, but "
                f"have {tuple(rows.shape[1:])}. Scale them by --size and --channels."
            )
        return rows

    def _opened(self, model: Model) -> Target:
        options = {"class_names": self.class_names, **model[1]}
        return open_model(model[0], device=self.device, batch_size=self.batch_size, **options)

    def _labelled(self, rows: Rows, order: ClassOrder) -> tuple[Tensor, Tensor]:
        """Return rows with their classes as numbers of the model's classes."""
        if rows.labels is None:
            raise InvalidOptionError(
                f"{rows.source} must have classes, since attackers of membership know the true "
                "label. Pass pairs of inputs and labels, an .npz with labels, or --label COLUMN."
            )
        labels = map_labels(rows.labels, rows.names, order, rows.source)
        return rows.queries.to(self.where), labels.to(self.where)

    def _named_guard(self) -> tuple[ReleaseSpec, Defense | None]:
        """Return the guard with its name; somebody's own has the name of its class.

        Raises:
            InvalidOptionError: Several guards were given.
        """
        guard = self.guard
        if guard is None:
            return self.release, None
        if self.guarded is not None or self.release.defense != "none":
            raise InvalidOptionError(
                "one guard is audited, but several were given: a defense by name, a guard of its "
                "own, or a model that answers defended. Leave out all but one."
            )
        if isinstance(guard, str | Path):
            guard = load_guard(guard, device=self.where)
        name = registered_name(guard)
        if name is None:
            return replace(AS_ANSWERED, name=type(guard).__name__), guard
        options = {each: getattr(guard, each) for each in options_of(type(guard))}
        return ReleaseSpec(name, name, options), guard

    def _in_front(
        self, release: ReleaseSpec, guard: Defense | None, targets: Sequence[Target]
    ) -> tuple[ReleaseSpec, Defense | None, Target | None]:
        """Return what stands before clients: its name, itself, or a target that answers."""
        if guard is not None and release.defense == "none":  # somebody's own
            return self.release, None, DefendedTarget(targets[0], guard)
        return release, guard, targets[1] if len(targets) > 1 else None

    def _class_order(
        self, targets: Sequence[Target], query: torch.Tensor, files: Sequence[Rows]
    ) -> ClassOrder:
        """Return the model's classes; a guarded model must have the same."""
        order = class_order(
            targets[0](query).shape[-1],
            declared=self.class_names,
            of_model=class_names_of(targets[0]),
            of_data={file.source: file.names for file in files if file.labels is not None},
        )
        for guarded in targets[1:]:
            names = class_names_of(guarded)
            if names is not None and names != order.names:
                raise InvalidOptionError(
                    f"the guarded model must have the model's classes, {listed(order.names)}, in "
                    f"this order, but has {listed(names)}."
                )
        return order


@dataclass(frozen=True)
class OpenedMembers:
    """What an audit for membership looks at.

    Attributes:
        target: The undefended model.
        rows: Candidates and the attacker's population.
        release: Name and options of the defense.
        guard: The defense itself, built and fitted before; None: it is built from its name.
    """

    target: Target
    rows: Candidates
    release: ReleaseSpec
    guard: Defense | None


def _file_hash(model: Any) -> str | None:
    """Return the SHA-256 of a model's file; None if the model is no file."""
    if not isinstance(model, str | Path) or "://" in str(model) or not Path(model).is_file():
        return None
    with Path(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
