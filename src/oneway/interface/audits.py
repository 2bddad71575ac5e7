"""Audit somebody's model, with or without a guard, and say what leaks."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from oneway.adapters import load_guard
from oneway.auditing import (
    AuditJob,
    AuditOutcome,
    AuditRecord,
    AuditSettings,
    AuditTarget,
    ModelAudit,
    Understanding,
    audit_on_ray,
    understand,
    unexplained_flags,
)
from oneway.contracts import Defense, Target
from oneway.data import ProgressCallback, no_progress
from oneway.data.classes import ClassOrder, class_order, listed, map_labels
from oneway.defenses import registered_name
from oneway.errors import GapTooSmallError, InvalidOptionError
from oneway.evaluation import Flag, ReleaseSpec, Store, write_queries
from oneway.extras import load_extra
from oneway.files import atomic_file, write_npz
from oneway.interface.data import AS_IT_IS, Reading, Rows, read_pair
from oneway.interface.models import open_model
from oneway.metrics import Interval
from oneway.options import options_of
from oneway.report import draw_reconstructions
from oneway.report.audit import Gap, closed_gap, headline
from oneway.report.page import audit_page, render, write_page
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
        test: The queries that attacks are graded on, likewise.
        release: The defense that is audited, by its registered name.
        guard: The defense itself, or the file of a codebook, instead.
        guarded: A model that gives defended answers, instead.
        class_names: The model's classes, in the order of its scores; None: its own.
        reading: How data is read.
        device: Device for training and queries.
        batch_size: Most queries in one call of a model.
    """

    model: Model
    auxiliary: Any
    test: Any
    release: ReleaseSpec = AS_ANSWERED
    guard: Defense | str | Path | None = None
    guarded: Model | None = None
    class_names: Sequence[str] | None = None
    reading: Reading = AS_IT_IS
    device: torch.device = CPU
    batch_size: int = 512

    def open(self, report: ProgressCallback | None = None) -> AuditTarget:
        """Open the models, load their data, and check everything.

        Raises:
            OnewayError: A model cannot be opened, or the data cannot be used.
        """
        given = [each for each in (self.model, self.guarded) if each is not None]
        targets = [
            open_model(
                model,
                device=self.device,
                batch_size=self.batch_size,
                **{"class_names": self.class_names, **options},
            )
            for model, options in given
        ]
        files = read_pair(
            (self.auxiliary, "the attacker's data"),
            (self.test, "the queries"),
            self.reading,
            report or no_progress,
        )
        targets = [files[0].asked(target) for target in targets]
        auxiliary, test = (file.queries.to(self.device) for file in files)
        order = self._class_order(targets, test[:1], files)
        labels = [
            None
            if file.labels is None
            else map_labels(file.labels, file.names, order, file.source).to(self.device)
            for file in files
        ]
        model = self.model[0]
        encoding = files[0].encoding
        release, guard, guarded = self._guard(targets)
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

    def _guard(
        self, targets: Sequence[Target]
    ) -> tuple[ReleaseSpec, Defense | None, Target | None]:
        """Return what stands before clients: its name, itself, or a target that answers."""
        guarded = targets[1] if len(targets) > 1 else None
        guard = self.guard
        if guard is None:
            return self.release, None, guarded
        if guarded is not None or self.release.defense != "none":
            raise InvalidOptionError(
                "one guard is audited, but several were given: a defense by name, a guard of its "
                "own, or a model that answers defended. Leave out all but one."
            )
        if isinstance(guard, str | Path):
            guard = load_guard(guard, device=self.device)
        name = registered_name(guard)
        if name is None:  # somebody's own
            return self.release, None, DefendedTarget(targets[0], guard)
        options = {each: getattr(guard, each) for each in options_of(type(guard))}
        return ReleaseSpec(name, name, options), guard, None

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
class AuditResult:
    """What an audit found.

    Attributes:
        outcome: The record, the results of single queries, and pictures of examples.
        seeds: Number of seeds that were asked for.
    """

    outcome: AuditOutcome
    seeds: int

    @property
    def record(self) -> AuditRecord:
        """All results but those of single queries."""
        return self.outcome.record

    @property
    def gap(self) -> float | None:
        """G that may be claimed: measured, or a bound where the trained attackers failed.

        1: the scores tell no more than the label; 0: as much as without a guard; below 0: more.
        None: nothing can be claimed.
        """
        return self._gap.claimed

    @property
    def interval(self) -> Interval | None:
        """95 % interval of G over queries; None where G is a bound, or unknown."""
        return None if self._gap.failed else self.record.closed_gap_interval

    @property
    def verdict(self) -> str:
        """The verdict in a sentence, with its numbers."""
        return headline(self.record).sentence

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Suspicious facts about the release or the audit."""
        return self.record.flags

    @property
    def per_query(self) -> Any:
        """A pandas DataFrame with a row for each seed, attacker and query.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = load_extra("pandas", extra="records", purpose="results of single queries")
        return pandas.DataFrame(self.outcome.queries)

    @property
    def _gap(self) -> Gap:
        return closed_gap(self.record)

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(self.record.to_json(), indent=2, allow_nan=False) + "\n"

    def report(self, path: str | Path) -> Path:
        """Write the page to read, one file of HTML; return its path."""
        path = Path(path)
        write_page(path, audit_page(self.record, self.outcome.pictures))
        return path

    def write(self, folder: Path, *, images: bool = True) -> None:
        """Write the record, every query, and for images the pictures; and the page last.

        Args:
            folder: Where to: audit.json, queries.parquet, report.html, pictures.npz, figure.png.
            images: Whether images of queries are written.

        Raises:
            MissingExtraError: pyarrow or Pillow is not installed.
        """
        with atomic_file(folder / "audit.json") as path:
            path.write_text(self.to_json(), encoding="utf-8")
        write_queries(folder / "queries.parquet", self.outcome.queries)
        # Pictures of another audit would be taken for this audit's.
        for name in ("pictures.npz", "figure.png"):
            (folder / name).unlink(missing_ok=True)
        pictures = self.outcome.pictures if images else {}
        if pictures:
            write_npz(folder / "pictures.npz", pictures)
            rows = _figure_rows(self.record.examples, pictures)
            draw_reconstructions(rows, folder / "figure.png", "What the scores give away")
        write_page(folder / "report.html", audit_page(self.record, pictures))

    def missed(self, least: float | None = None) -> list[str]:
        """Return what speaks against this release: too small a gap, and flags, in sentences.

        Args:
            least: Least G, or bound of G, that is asked for; None: any.
        """
        record, gap = self.record, self.gap
        lines = []
        if least is not None and (gap is None or gap < least):
            got = "nothing can be claimed" if gap is None else f"it is {gap:.3f}"
            lines.append(f"G must be at least {least:g}, but {got}.")
        blind = record.failed and record.closed_gap_at_least is None
        unexplained = unexplained_flags(record.flags, self.seeds, blind=blind)
        return lines + [f"{flag.name}: {flag.detail}" for flag in unexplained]

    def assert_gap(self, least: float) -> None:
        """Raise where the release hides less than asked for, or a flag is raised.

        For a test suite: the error is an AssertionError, too.

        Args:
            least: Least G, or bound of G, at most 1.

        Raises:
            GapTooSmallError: It hides less, or a flag is raised that nothing explains.
        """
        missed = self.missed(least)
        if missed:
            raise GapTooSmallError(" ".join([*missed, self.verdict]))

    def __str__(self) -> str:
        return self.verdict

    def _repr_html_(self) -> str:
        page = escape(render(audit_page(self.record, self.outcome.pictures)))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


def audit(
    model: Any,
    *,
    attacker_data: Any,
    queries: Any,
    guard: Defense | str | Path | None = None,
    outputs: str | None = None,
    minutes: float | None = None,
    seeds: int = 3,
    controls: bool = True,
    class_names: Sequence[str] | None = None,
    reading: Reading = AS_IT_IS,
    seed: int = 0,
    cache: str | Path = CACHE,
    device: torch.device | None = None,
    report: ProgressCallback = no_progress,
    **model_options: Any,
) -> AuditResult:
    """Attack a model's scores, with or without a guard, and say what leaks.

    For example::

        result = oneway.audit(
            model, outputs="logits", attacker_data=own, queries=test, guard=guard, minutes=5
        )
        print(result)
        result.report("report.html")

    Args:
        model: The undefended model: see :func:`oneway.interface.models.open_model`.
        attacker_data: At least 200 images or records like the queries, which the attacker asks
            about and learns from: see :func:`oneway.interface.data.read_rows`.
        queries: At least 50 others, which attacks are graded on.
        guard: What stands before clients: a defense, or the file of a codebook. None: nothing.
        outputs: What the model answers with, ``"logits"`` or ``"confidences"``, where its kind does
            not fix that.
        minutes: Target run time; None: no limit.
        seeds: Number of seeds; each repeats all attacks.
        controls: Whether controls are run, which vouch for the attackers.
        class_names: Names of the model's classes, in the order of its scores; None: its own.
        reading: How files are read.
        seed: First of the seeds.
        cache: Folder of trained networks; a rerun trains only what is missing.
        device: Device for training and queries; None: the CPU.
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
        device=device or torch.device("cpu"),
    )
    settings = {"seeds": seeds, "minutes": minutes, "controls": controls}
    return run_audit(source, settings, seed=seed, cache=Path(cache), report=report)


def run_audit(
    source: AuditSource,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    cache: Path = CACHE,
    executor: str = "local",
    understood: Callable[[Understanding], None] | None = None,
    report: ProgressCallback = no_progress,
) -> AuditResult:
    """Open a model and its data, and audit them.

    Args:
        source: Model, data and guard.
        settings: Of :class:`oneway.auditing.AuditSettings`, by name.
        seed: First of the seeds.
        cache: Folder of trained networks.
        executor: ``"local"``, or ``"ray"`` for seeds as tasks of a Ray cluster.
        understood: Called with what the model and its data are understood to be, before the work.
        report: Receives the progress.

    Raises:
        OnewayError: Model, data or guard cannot be used.
    """
    audited = source.open(report)
    understanding = understand(audited)
    if understood is not None:
        understood(understanding)
    chosen = AuditSettings.for_rows(len(audited.auxiliary), **settings)
    run_tasks = None
    if executor == "ray":
        job = AuditJob(source.open, Store(cache), chosen, seed, source.device)
        run_tasks = audit_on_ray(job, finished=lambda task: report(task, 1.0))
    audit_of_model = ModelAudit(
        audited, Store(cache), chosen, seed=seed, report=report, understanding=understanding
    )
    return AuditResult(audit_of_model.run(run_tasks), chosen.seeds)


def _figure_rows(examples: Mapping[str, Any], pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of the figure: the queries that are shown, and their reconstructions."""
    strongest = examples["attackers"]["strongest"]
    rows = (
        ("original", "truth"),
        ("label only", "label"),
        ("static", "static"),
        (f"strongest:\n{strongest}", "strongest"),
    )
    count = len(examples["shown"])
    return {title: pictures[view][:count] for title, view in rows if view in pictures}


def _file_hash(model: Any) -> str | None:
    """Return the SHA-256 of a model's file; None if the model is no file."""
    if not isinstance(model, str | Path) or "://" in str(model) or not Path(model).is_file():
        return None
    with Path(model).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
