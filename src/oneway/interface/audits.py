"""Audit somebody's model, with or without a guard, and say what leaks."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch

from oneway.auditing import (
    AuditJob,
    AuditOutcome,
    AuditRecord,
    MembershipSettings,
    ModelAudit,
    StealingSettings,
    Understanding,
    audit_on_ray,
    understand,
    unexplained_flags,
)
from oneway.auditing.membership import MembershipAudit, MembershipRecord
from oneway.auditing.stealing import StealingAudit
from oneway.contracts import Defense
from oneway.data import ProgressCallback, no_progress
from oneway.errors import GapTooSmallError, InvalidOptionError
from oneway.evaluation import Flag, Store, write_queries
from oneway.extras import load_extra
from oneway.files import atomic_file, write_npz
from oneway.interface.audit_source import CACHE, AuditSource, OpenedMembers
from oneway.interface.data import AS_IT_IS, Reading
from oneway.interface.threats import ThreatSettings, check_data, check_options, parse_threats
from oneway.metrics import Interval
from oneway.options import check_keywords
from oneway.report.audit import Gap
from oneway.report.figure import draw_reconstructions
from oneway.report.page.audit import audit_page
from oneway.report.page.render import render, write_page
from oneway.report.threats import LEAST_REFERENCES, SYMBOLS, closed_gaps, verdict_of_threats
from oneway.targets.opening import MODEL_OPTIONS


@dataclass(frozen=True, repr=False)
class AuditResult:
    """What an audit found.

    Attributes:
        record: All results but those of single queries, by threat.
        seeds: Number of seeds that were asked for.
        queries: Columns with a value for each seed, inversion attacker and test query; empty if
            inversion was not audited.
        pictures: Images of the record's examples, uint8, by view; empty for tables of records.
    """

    record: AuditRecord
    seeds: int
    queries: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gaps(self) -> dict[str, float | None]:
        """G that may be claimed of each threat: measured, or a bound.

        1: scores reveal no more than the label; 0: as much as without a guard; below 0: more.
        None: nothing can be claimed; or for membership and stealing, there is nothing to defend.
        """
        return {threat: gap.claimed for threat, gap in closed_gaps(self.record).items()}

    @property
    def gap(self) -> float | None:
        """The smallest of ``gaps``; None if there is none, or if nothing can be claimed of one."""
        gap = self._smallest
        return None if gap is None else gap.claimed

    @property
    def interval(self) -> Interval | None:
        """95 % interval of ``gap``; None where it is a bound, or unknown."""
        gap = self._smallest
        if gap is None or gap.failed or gap.low is None or gap.high is None or gap.value is None:
            return None
        return Interval(gap.low, gap.value, gap.high)

    @property
    def verdict(self) -> str:
        """The verdict with its numbers, a sentence for each threat."""
        return verdict_of_threats(self.record)

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Suspicious facts about the release or the audit, from the audit for inversion."""
        return () if self.record.inversion is None else self.record.inversion.flags

    @property
    def per_query(self) -> Any:
        """A pandas DataFrame with a row for each seed, inversion attacker and query.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = load_extra("pandas", extra="records", purpose="results of single queries")
        return pandas.DataFrame(self.queries)

    @property
    def _smallest(self) -> Gap | None:
        gaps = closed_gaps(self.record)
        if any(_is_unknown(threat, gap) for threat, gap in gaps.items()):
            return None
        claimed = [gap for gap in gaps.values() if gap.claimed is not None]
        return min(claimed, key=lambda gap: gap.claimed or 0.0, default=None)

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(self.record.to_json(), indent=2, allow_nan=False) + "\n"

    def report(self, path: str | Path) -> Path:
        """Write the page to read, one file of HTML; return its path."""
        path = Path(path)
        write_page(path, audit_page(self.record, self.pictures))
        return path

    def write(self, folder: str | Path, *, images: bool = True) -> None:
        """Write the record, every query, and for images the pictures; and the page last.

        Args:
            folder: Where to: audit.json, queries.parquet, report.html, pictures.npz, figure.png.
            images: Whether images of queries are written.

        Raises:
            MissingExtraError: pyarrow or Pillow is not installed.
        """
        folder = Path(folder)
        with atomic_file(folder / "audit.json") as path:
            path.write_text(self.to_json(), encoding="utf-8")
        # Queries and pictures of another audit would be taken for this audit's.
        for name in ("queries.parquet", "pictures.npz", "figure.png"):
            (folder / name).unlink(missing_ok=True)
        if self.queries:
            write_queries(folder / "queries.parquet", self.queries)
        pictures = self.pictures if images else {}
        if pictures and self.record.inversion is not None:
            write_npz(folder / "pictures.npz", pictures)
            rows = _figure_rows(self.record.inversion.examples, pictures)
            draw_reconstructions(rows, folder / "figure.png", "What the scores give away")
        write_page(folder / "report.html", audit_page(self.record, pictures))

    def missed(self, least: float | None = None) -> list[str]:
        """Return what speaks against this release: too small gaps, controls and flags.

        Args:
            least: Least G, or bound of G, that is asked for of every threat; None: any. Where
                there is nothing to defend against a threat, nothing is missed.
        """
        record, lines = self.record, list[str]()
        for threat, gap in closed_gaps(record).items():
            claimed, unknown = gap.claimed, _is_unknown(threat, gap)
            if least is not None and (unknown or (claimed is not None and claimed < least)):
                got = "nothing can be claimed" if claimed is None else f"it is {claimed:.3f}"
                lines.append(f"{SYMBOLS[threat]} must be at least {least:g}, but {got}.")
        if record.membership is not None:
            failed = record.membership.controls_failed
            lines += [f"membership control failed: {name}" for name in failed]
            trained = record.membership.references
            if trained < LEAST_REFERENCES and record.membership.left_out:
                lines.append(
                    f"membership: {trained} reference models were trained in time, and a claim "
                    f"needs {LEAST_REFERENCES}. Allow more minutes."
                )
        inversion = record.inversion
        if inversion is not None:
            blind = inversion.failed and inversion.closed_gap_at_least is None
            run = len(inversion.seeds)
            unexplained = unexplained_flags(inversion.flags, self.seeds, run=run, blind=blind)
            lines += [f"{flag.name}: {flag.detail}" for flag in unexplained]
        return lines

    def assert_gap(self, least: float) -> None:
        """Raise where the release hides less than asked for, or a flag is raised.

        For a test suite: the error is an AssertionError, too.

        Args:
            least: Least G, or bound of G, at most 1.

        Raises:
            GapTooSmallError: It hides less, or a flag is raised that nothing explains.
            InvalidOptionError: ``least`` is no number of at most 1.
        """
        if not isinstance(least, int | float) or not math.isfinite(least) or least > 1:
            raise InvalidOptionError(
                f"least must be a number of at most 1, such as 0.9, but got {least!r}. G is 1 "
                "where scores reveal no more than the label."
            )
        missed = self.missed(least)
        if missed:
            raise GapTooSmallError("\n".join([*missed, self.verdict]))

    def __str__(self) -> str:
        return self.verdict

    def __repr__(self) -> str:
        return f"<AuditResult: {self.verdict}>"

    def _repr_html_(self) -> str:
        page = escape(render(audit_page(self.record, self.pictures)))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


def _is_unknown(threat: str, gap: Gap) -> bool:
    """Return whether nothing can be claimed, rather than that there is nothing to defend."""
    return gap.claimed is None and (threat == "inversion" or gap.failed)


def audit(
    model: Any,
    *,
    attacker_data: Any,
    queries: Any = None,
    members: Any = None,
    non_members: Any = None,
    public: Any = None,
    threats: str | Sequence[str] = ("inversion",),
    guard: Defense | str | Path | None = None,
    outputs: str | None = None,
    minutes: float | None = None,
    seeds: int = 3,
    controls: bool = True,
    membership: MembershipSettings | None = None,
    stealing: StealingSettings | None = None,
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
        attacker_data: Images or records like the queries, which the attacker asks about and learns
            from, at least 200 (50 for membership alone): see
            :func:`oneway.interface.data.read_rows`. With classes for membership.
        queries: At least 50 others, which inversion and copies of the model are graded on.
        members: For membership: at least 50 rows that the model was trained on, with classes.
        non_members: For membership: at least 50 rows that it was not trained on, with classes,
            drawn alike.
        public: For stealing: inputs of another kind, for a thief who has no others; as many as the
            largest budget. None: there is no such thief.
        threats: Of ``"inversion"``, ``"membership"`` and ``"stealing"``.
        guard: What stands before clients: a defense, or the file of a codebook. None: nothing.
        outputs: What the model answers with, ``"logits"`` or ``"confidences"``, where its kind does
            not fix that.
        minutes: Target run time of all threats together; None: no limit.
        seeds: Number of seeds; each repeats all attacks of inversion and stealing.
        controls: Whether controls are run, which vouch for the attackers.
        membership: Size of the audit for membership; None: the defaults.
        stealing: Budgets and steps of thieves; None: the defaults.
        class_names: Names of the model's classes, in the order of its scores; None: its own.
        reading: How files are read.
        seed: First of the seeds.
        cache: Folder of trained networks; a rerun trains only what is missing.
        device: Device for the model, training and queries; None: the CPU, but a module stays where
            it lies.
        report: Receives the progress.
        **model_options: Of the kind of model.

    Raises:
        OnewayError: Model, data or guard cannot be used.
    """
    check_keywords(audit, model_options, MODEL_OPTIONS)
    source = AuditSource(
        (model, {"outputs": outputs, **model_options}),
        attacker_data,
        queries,
        members=members,
        non_members=non_members,
        public=public,
        guard=guard,
        class_names=class_names,
        reading=reading,
        device=device,
    )
    settings = ThreatSettings(
        parse_threats(threats),
        seeds,
        minutes,
        controls,
        membership or MembershipSettings(),
        stealing or StealingSettings(),
    )
    check_options(settings.threats, {"membership=": membership, "stealing=": stealing})
    return run_audit(source, settings, seed=seed, cache=Path(cache), report=report)


def run_audit(
    source: AuditSource,
    settings: ThreatSettings,
    *,
    seed: int = 0,
    cache: Path = CACHE,
    executor: str = "local",
    understood: Callable[[Understanding | None], None] | None = None,
    report: ProgressCallback = no_progress,
) -> AuditResult:
    """Open a model and its data, check everything, and audit one threat after the other.

    Args:
        source: Model, data and guard.
        settings: Threats, and the size of each audit.
        seed: First of the seeds.
        cache: Folder of trained networks.
        executor: ``"local"``, or ``"ray"`` for seeds of inversion as tasks of a Ray cluster.
        understood: Called with what the model and its data are understood to be, before the work;
            with None for membership alone.
        report: Receives the progress.

    Raises:
        OnewayError: Model, data or guard cannot be used.
    """
    on_cluster = executor if executor == "ray" else None
    check_data(settings.threats, {**source.given, "--executor ray": on_cluster})
    store, threats = Store(cache), set(settings.threats)
    audited = source.open(report) if threats & {"inversion", "stealing"} else None
    opened = source.open_members(audited, report) if "membership" in threats else None
    runs: dict[str, Callable[[float], Any]] = {}
    if opened is not None:
        runs["membership"] = partial(_audit_members, opened, settings, seed, store, report)
    if audited is not None and "stealing" in threats:
        thieves = StealingAudit(
            audited,
            store,
            settings.of_stealing(),
            public=source.open_public(audited),
            seed=seed,
            report=report,
        )
        runs["stealing"] = thieves.run
    understanding = None if audited is None else understand(audited)
    if understood is not None:
        understood(understanding)
    outcome: AuditOutcome | None = None
    found, seconds = dict[str, Any](), dict[str, float]()
    for threat, limit in settings.shares():
        begin = time.perf_counter()
        if threat in runs:
            found[threat] = runs[threat](limit)
        elif audited is not None:
            size = settings.of_inversion(len(audited.auxiliary), limit)
            run_tasks = None
            if executor == "ray":
                job = AuditJob(source.open, store, size, seed, source.where)
                run_tasks = audit_on_ray(job, finished=lambda task: report(task, 1.0))
            attacked = ModelAudit(
                audited, store, size, seed=seed, report=report, understanding=understanding
            )
            outcome = attacked.run(run_tasks)
            found[threat] = outcome.record
        seconds[threat] = time.perf_counter() - begin
    guards = [each.guard for each in (audited, opened) if each is not None]
    certificate = getattr(guards[0], "certificate", None)
    record = AuditRecord(
        **found, certificate=certificate, minutes=settings.minutes, seconds=seconds
    )
    if outcome is None:
        return AuditResult(record, settings.seeds)
    return AuditResult(record, settings.seeds, outcome.queries, outcome.pictures)


def _audit_members(
    opened: OpenedMembers,
    settings: ThreatSettings,
    seed: int,
    store: Store,
    report: ProgressCallback,
    seconds: float,
) -> MembershipRecord:
    """Audit for membership within a number of seconds."""
    audit = MembershipAudit(
        opened.target,
        opened.rows,
        settings.of_membership(seed),
        store,
        seconds=seconds,
        report=report,
    )
    return audit.run(opened.release, opened.guard)


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
