"""Pages that hold measurements: their tables are blocks made from records, between two comments.

``<!-- measured: KIND ARGUMENTS -->`` begins a block, ``<!-- end of measured -->`` ends it. Kinds:

- ``experiment NAME PRESET``: every release of an experiment. An experiment may have no preset.
- ``leaderboard PRESET ...``: L1 and G of every release and of every entry's on the leaderboard's
  splits, three columns per preset; a line for each release after the first line of the comment
  shows these alone.
- ``splits PRESET ...``: hashes of the inputs and the classifier of each seed of the leaderboard.
- ``defenses PRESET ...``: G of every defense, over all of its releases.
- ``defense NAME`` and ``attacker NAME``: a defense or an attacker on all stored experiments.
- ``lines FILE``: a file of JSON Lines, a row per line that has all fields; each line after the
  first line of the comment is a column, ``HEADING: FIELD FORMAT``. A field ``FIELD_half_width``
  follows its value, after ±.
- ``audit FILE``: what the record of an audit says.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from oneway.attacks import ATTACKS
from oneway.auditing import AuditRecord
from oneway.benchmark import Summary, bundled_spec, summarise
from oneway.benchmark.entries import ENTRY
from oneway.benchmark.summary import outdated_attackers
from oneway.errors import CorruptDataError, MissingDataError, UnknownNameError
from oneway.evaluation import ReleaseRecord, read_records
from oneway.evaluation.records import outdated
from oneway.evaluation.store import read_json_lines
from oneway.report.audit import is_stale, verdict
from oneway.report.experiments import (
    COLUMNS,
    LEADERBOARD,
    by_experiment,
    command_of,
    experiment_name,
    split_sizes,
    spread,
    summary_table,
)
from oneway.report.sentences import MARK, NOT_TRAINED_OUT, OLDER, STALE_AUDIT, baselines_sentence
from oneway.report.table import Column, Listing

RECORDS = "*-seed*.jsonl"
"""Names of the files with records of experiments."""

BEGIN, END = "<!-- measured: ", "<!-- end of measured -->"
BLOCK = re.compile(rf"({re.escape(BEGIN)}(.*?)\s*-->\n)(.*?)({re.escape(END)})", re.DOTALL)

Preset = tuple[str, str]
"""Name of an experiment and of its preset, which may be empty."""


@dataclass(frozen=True)
class Measurements:
    """Stored measurements.

    Attributes:
        folder: Folder of the records.
        records: Records of experiments, of all files.
        experiments: Releases over their seeds, by experiment and preset.
    """

    folder: Path
    records: Sequence[ReleaseRecord]
    experiments: Mapping[Preset, Sequence[Summary]]

    @classmethod
    def read(cls, folder: Path) -> "Measurements":
        """Read all records of experiments in a folder.

        Raises:
            MissingDataError: There are none.
            CorruptDataError: A line is not a record of this version's form.
        """
        records = [r for file in sorted(folder.glob(RECORDS)) for r in read_records(file)]
        if not records:
            raise MissingDataError(
                f"{folder} holds no records named EXPERIMENT-PRESET-seedN.jsonl. Make some with "
                f"`oneway reproduce table1 --out {folder}`."
            )
        groups = by_experiment(records)
        return cls(folder, records, {key: summarise(group) for key, group in groups.items()})

    def rows(self) -> Iterator[tuple[Preset, Summary]]:
        """Yield every release of every experiment."""
        for key, summaries in self.experiments.items():
            for summary in summaries:
                yield key, summary


def renew_blocks(page: str, measurements: Measurements, where: str) -> str:
    """Return a page with its blocks made from measurements.

    Raises:
        CorruptDataError: A block has no end, or lacks an argument.
        UnknownNameError: There is no such kind of block.
        MissingDataError: A block's file does not exist.
    """
    if not page.count(BEGIN) == page.count(END) == len(BLOCK.findall(page)):
        raise CorruptDataError(f"{where}: each `{BEGIN}... -->` must have an end, `{END}`.")

    def made(block: re.Match[str]) -> str:
        first, *lines = block[2].splitlines()
        kind, _, given = first.partition(" ")
        UnknownNameError.check(f"kind of measured block of {where}", kind, KINDS)
        if not given.strip():
            raise CorruptDataError(f"{where}: a measured block {kind!r} must name what it shows.")
        return block[1] + KINDS[kind](measurements, given.split(), lines) + block[4]

    return BLOCK.sub(made, page)


# --- Kinds of blocks ------------------------------------------------------------------------------


def _experiment(measurements: Measurements, words: list[str], _: list[str]) -> str:
    experiment, preset = words[0], " ".join(words[1:])
    summaries = measurements.experiments.get((experiment, preset))
    if summaries is None:
        made = f"`{command_of(experiment, preset)}` makes it"
        return f"Not measured by today's attackers: there is no record; {made}.\n"
    table = summary_table(summaries)
    first = summaries[0].values
    baselines = (spread(first.get(f"baseline {name}"), 4) for name in ("clean", "label", "prior"))
    below = [baselines_sentence(*baselines), *table.footnotes]
    return table.markdown() + "".join(f"\n{line}\n" for line in below)


def _leaderboard(measurements: Measurements, words: list[str], lines: list[str]) -> str:
    boards = {
        preset: {s.release: s for s in measurements.experiments.get((LEADERBOARD, preset), ())}
        for preset in words
    }
    listed = [row.name for preset in words for row in bundled_spec(LEADERBOARD, preset).releases]
    for (experiment, preset), summaries in measurements.experiments.items():
        if (
            preset in words
            and experiment.startswith(ENTRY)
            and _judged_on(measurements, experiment, preset)
            <= _judged_on(measurements, LEADERBOARD, preset)
        ):
            own = [summary for summary in summaries if summary.record.defense != "none"]
            named = {f"{s.release} ({experiment.removeprefix(ENTRY)})": s for s in own}
            boards[preset].update(named)
            listed += named
    releases = list(dict.fromkeys(lines or listed))
    columns: dict[str, Callable[[str], str]] = {"release": str}
    for preset, board in boards.items():
        for title, heading in (
            (f"L1, {preset}", "L1 of probabilities"),
            (f"G, {preset}", "closed gap G"),
            (f"tail, {preset}", "G, least confident 5 %"),
        ):
            columns[title] = _cell(board, heading)
    table = Listing("Leaderboard", columns, releases)
    return table.markdown() + _footnote(table)


def _judged_on(measurements: Measurements, experiment: str, preset: str) -> set[Any]:
    """Return seeds, with hashes of inputs and classifier, that an experiment has records of."""
    return {
        (record.seed, record.provenance.data, record.provenance.model)
        for record in measurements.records
        if (record.experiment, record.preset) == (experiment, preset)
    }


def _splits(measurements: Measurements, words: list[str], _: list[str]) -> str:
    """Return what the splits of leaderboards are: hashes of their inputs and of the classifier."""
    found = {
        (record.preset, record.seed, record.provenance.data, str(record.provenance.model))
        for record in measurements.records
        if record.experiment == LEADERBOARD
        and record.preset in words
        and not outdated_attackers(record)
    }
    columns = {
        "data": Column(lambda split: split[0]),
        "seed": Column(lambda split: split[1]),
        "SHA-256 of inputs and labels": Column(lambda split: split[2]),
        "of the classifier": Column(lambda split: split[3]),
    }
    return Listing("Splits", columns, sorted(found)).markdown()


def _cell(board: Mapping[str, Summary], heading: str) -> Callable[[str], str]:
    """Return the column of a value: with its mark, and with a note where there is one seed."""

    def text(release: str) -> str:
        summary = board.get(release)
        if summary is None:
            return f"- {MARK}"
        told = COLUMNS[heading](summary)
        return (
            told
            + " (one seed)" * (len(summary.seeds) == 1)
            + f" {MARK}" * bool(summary.outdated and heading != "L1 of probabilities")
        )

    return text


def _defenses(measurements: Measurements, words: list[str], _: list[str]) -> str:
    rows: dict[str, dict[str, list[Summary]]] = {}
    for (experiment, preset), summary in measurements.rows():
        if experiment == LEADERBOARD and preset in words and "closed_gap" in summary.values:
            rows.setdefault(summary.record.defense, {}).setdefault(preset, []).append(summary)

    def gap(preset: str) -> Callable[[str], str]:
        def text(defense: str) -> str:
            found = rows[defense].get(preset, [])
            if not found:
                return f"- {MARK}"
            gaps = [summary.values["closed_gap"].mean for summary in found]
            low, high = (f"{round(end(gaps), 2) + 0.0:.2f}" for end in (min, max))
            marked = f" {MARK}" * any(summary.outdated for summary in found)
            return (low if low == high else f"{low} to {high}") + marked

        return text

    columns = {"defense": lambda name: f"[{name}]({name}.md)"}
    columns |= {f"G, {preset}": gap(preset) for preset in words}
    table = Listing("Defenses", columns, list(rows))
    return table.markdown() + _footnote(table)


DEFENSE_COLUMNS = {
    "L1": "L1 of probabilities",
    "G": "closed gap G",
    "G, tail": "G, least confident 5 %",
    "static": "static error",
    "retrained": "retrained error",
    "adaptive": "adaptive error",
}


BOARD = "bench-threats-board.jsonl"
"""The record of releases against three threats."""

THREAT_COLUMNS = {
    "release": Column(itemgetter("release")),
    "target": Column(itemgetter("data")),
    "L1": Column(itemgetter("l1"), ".3f"),
    "G, inversion": Column(itemgetter("G_inversion")),
    "G, membership (AUC)": Column(itemgetter("G_membership")),
    "G, stealing": Column(itemgetter("G_stealing")),
    "seeds": Column(itemgetter("seeds")),
}
"""Columns of releases against three threats on the page of a defense."""


def _defense(measurements: Measurements, words: list[str], _: list[str]) -> str:
    found = [row for row in measurements.rows() if row[1].record.defense == words[0]]
    board = read_json_lines(measurements.folder / BOARD)
    on_board = [row for row in board if row["defense"] == words[0]]
    parts = []
    if found:
        parts.append(_on_leaderboards(found))
    if on_board:
        table = Listing("Against three threats", THREAT_COLUMNS, on_board)
        parts.append(
            "[Against three threats](../threats.md), on small networks of their own: two attackers "
            "for inversion, 4 reference models for membership, thieves with 200 queries; 95 % "
            f"intervals.\n\n{table.markdown()}"
        )
    return "\n".join(parts) or "Not measured in the stored records.\n"


def _on_leaderboards(found: Sequence[tuple[Preset, Summary]]) -> str:
    columns = {"release": _of_summary("release"), "data": _data}
    columns |= {title: _of_summary(heading) for title, heading in DEFENSE_COLUMNS.items()}
    table = Listing("Releases", {**columns, "seeds": _seeds}, found)
    note = (
        "Means with 95 % intervals over so many seeds of splits, target, defense and attackers; a "
        "row with one seed is not to be quoted. [What the columns mean]"
        "(../explanation/measuring.md)."
    )
    return f"{table.markdown()}{_footnote(table)}\n{note}\n\n{_sources(found)}"


SHOWN = (
    "none",
    "rounding, 2 decimals",
    "codebook, 20 members",
    "adversarial noise, .1",
    "adversarial noise, .4",
    "adversarial noise",
    "Gaussian noise, 1 nat, label kept",
    "Dirichlet noise, 100, label kept",
    "one-parameter, 100",
    "MID, beta 0.005",
    "PPF, label kept",
)
"""Releases that an attacker's block shows."""


def _identified(measurements: Measurements) -> str:
    """Return the shares of queries that are identified in galleries, for some releases."""
    shares = {"true inputs, %": "matching true inputs", "noisy copies, %": "matching noisy copies"}
    found = [
        row
        for row in measurements.rows()
        if row[1].release in SHOWN and any(name in row[1].values for name in shares.values())
    ]
    if not found:
        return "Not measured in the stored records.\n"
    columns = {"release": _of_summary("release"), "data": _data}
    columns |= {
        title: lambda row, name=name: spread(row[1].values.get(name), 1, 100)  # type: ignore[misc]
        for title, name in shares.items()
    }
    table = Listing("Releases", {**columns, "seeds": _seeds}, found)
    note = "Queries identified at rank 1, means with 95 % intervals over so many seeds."
    return f"{table.markdown()}{_footnote(table)}\n{note}\n\n{_sources(found)}"


def _attacker(measurements: Measurements, words: list[str], _: list[str]) -> str:
    if ATTACKS[words[0]].threat == "identification":
        return _identified(measurements)
    name = f"error {words[0]}"
    attacked = [row for row in measurements.rows() if name in row[1].values]
    found = [row for row in attacked if row[1].release in SHOWN]
    if not found:
        return "Not measured in the stored records.\n"
    strongest = sum(
        summary.values[name].mean <= summary.values["adaptive_error"].mean * 1.0005
        for _, summary in attacked
    )
    share = (
        f"The strongest of all, on average over seeds, on {strongest} of {len(attacked)} releases."
    )
    columns = {"release": _of_summary("release"), "data": _data}
    errors = {
        "its error": name,
        "the strongest's": "adaptive_error",
        "E_clean": "baseline clean",
        "E_label": "baseline label",
    }
    columns |= {title: _error(value) for title, value in errors.items()}
    table = Listing("Releases", {**columns, "seeds": _seeds}, found)
    note = (
        "Mean squared errors per pixel, means with 95 % intervals over so many seeds; a lower one "
        "is a better attack."
    )
    return f"{share}\n\n{table.markdown()}{_footnote(table)}\n{note}\n\n{_sources(found)}"


def _lines(measurements: Measurements, words: list[str], lines: list[str]) -> str:
    path = measurements.folder / words[0]
    rows = read_json_lines(path)
    if not rows:
        raise MissingDataError(f"a measured block shows {path}, but there is no such record.")
    columns, fields = dict[str, Column](), set[str]()
    for line in lines:
        heading, _, shown = line.rpartition(": ")
        field, _, format_ = shown.partition(" ")
        columns[heading] = Column(partial(_with_half_width, field, format_))
        fields.add(field)
    shown_rows = [row for row in rows if fields <= row.keys()]
    if not shown_rows or "" in columns:
        raise CorruptDataError(
            f"columns must be HEADING: FIELD FORMAT, with fields of {path}, but are {lines}."
        )
    named = [str(row["commit"]).split(", ") for row in shown_rows if row.get("commit")]
    commits = sorted({commit for row in named for commit in row})
    code = f"commit {', '.join(commits)}" if commits else "older code, of which no commit is stored"
    older = any(outdated(row.get("numerics", {}), ()) for row in shown_rows)
    measured = OLDER.capitalize() if older else "Measured"
    return f"{Listing(path.stem, columns, shown_rows).markdown()}\n{measured}: {code}.\n"


def _with_half_width(field: str, format_: str, row: Mapping[str, Any]) -> str | None:
    """Return a field's value as text, with half the width of its interval if the row has it."""
    numbers = (row[field], row.get(f"{field}_half_width"))
    return " ± ".join(format(each, format_) for each in numbers if each is not None) or None


def _audit(measurements: Measurements, words: list[str], _: list[str]) -> str:
    path = measurements.folder / words[0]
    if not path.is_file():
        raise MissingDataError(f"a measured block shows {path}, but there is no such record.")
    record = AuditRecord.from_json(json.loads(path.read_text("utf-8")), str(path)).inversion
    if record is None:
        raise MissingDataError(f"a measured block shows inversion, of which {path} has nothing.")
    lines = verdict(record)
    if is_stale(record):
        lines.insert(0, STALE_AUDIT)
    return "".join(f"> - {line}\n" for line in lines)


KINDS: dict[str, Callable[[Measurements, list[str], list[str]], str]] = {
    "experiment": _experiment,
    "leaderboard": _leaderboard,
    "splits": _splits,
    "defenses": _defenses,
    "defense": _defense,
    "attacker": _attacker,
    "lines": _lines,
    "audit": _audit,
}
"""Makers of blocks, from measurements, the words after the kind, and the lines below."""


# --- Parts of blocks ------------------------------------------------------------------------------


def _of_summary(heading: str) -> Callable[[tuple[Preset, Summary]], str]:
    return lambda row: COLUMNS[heading](row[1])


def _error(value: str) -> Callable[[tuple[Preset, Summary]], str]:
    return lambda row: spread(row[1].values.get(value), 4)


def _data(row: tuple[Preset, Summary]) -> str:
    return experiment_name(*row[0])


def _seeds(row: tuple[Preset, Summary]) -> str:
    return str(len(row[1].seeds))


def _footnote(table: Listing) -> str:
    """Return the meaning of the mark, below a table with one."""
    marked = any(MARK in cell for row in table.cells() for cell in row)
    return f"\n{NOT_TRAINED_OUT}\n" if marked else ""


def _sources(rows: Sequence[tuple[Preset, Summary]]) -> str:
    """Return data, command and machine of each experiment, a line each."""
    lines = {}
    for key, summary in rows:
        data, machine = summary.record.spec["data"], summary.environments[0]
        lines[key] = (
            f"- {experiment_name(*key)}: {split_sizes(data)}; `{command_of(*key)}`; "
            f"{machine.processor}, {machine.cores} cores, {machine.threads} used, torch "
            f"{machine.torch}\n"
        )
    return "".join(lines.values())
