"""Records as tables: for a terminal, for a page of Markdown, and for one of HTML."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from oneway.attacks import ATTACKS as REGISTERED

Record = Mapping[str, Any]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


COLUMNS: dict[str, Callable[[Record], str]] = {
    "release": lambda record: str(record["release"]),
    "accuracy": lambda record: f"{100 * record['accuracy']:.2f} %",
    "label_changes": lambda record: str(record["label_changes"]),
    "logit distortion": lambda record: _number(record["logit_distortion"], 3),
    "L1 of probabilities": lambda record: _number(record["l1_mean"], 4),
    "static error": lambda record: _number(record["errors"].get("static"), 4),
    "retrained error": lambda record: _number(record["errors"].get("retrained"), 4),
    "closed gap G": lambda record: _number(record["closed_gap"], 2),
    "G, least confident 5 %": lambda record: _number(record["closed_gap_least_confident"], 2),
    "ms per query": lambda record: _number(record["milliseconds_single_query"], 1),
}


LABEL_LEAKS = "No label-preserving release can help against attacks that read only the label."
"""What stands below whatever is reported."""

TABLE_WIDTH = 116
"""Columns that :func:`release_table` needs; a narrower console drops some."""


@dataclass(frozen=True)
class Listing:
    """A table, whatever it is shown on; a console of rich prints it as text.

    Attributes:
        title: Above it.
        columns: What each shows of a row, by header.
        rows: One for each line.
    """

    title: str
    columns: Mapping[str, Callable[[Any], str]]
    rows: Sequence[Any]

    def cells(self) -> list[list[str]]:
        """Return the text of every cell, row by row."""
        return [[show(row) for show in self.columns.values()] for row in self.rows]

    def text(self) -> Table:
        """Return it for a terminal.

        Headers wrap between words, never within one; numbers are never cut, and the first column,
        of names, is not wrapped at all: else rich would take room from it, the widest, in vain.
        """
        cells = self.cells()
        table = Table(
            title=escape(self.title), title_justify="left", header_style="bold", box=SIMPLE_HEAD
        )
        for position, column in enumerate(self.columns):
            widest = max(len(text) for text in (*column.split(), *(row[position] for row in cells)))
            first = position == 0
            table.add_column(
                column, justify="left" if first else "right", min_width=widest, no_wrap=first
            )
        for row in cells:
            table.add_row(*map(escape, row))
        return table

    __rich__ = text

    def markdown(self) -> str:
        """Return it as Markdown, without its title."""
        lines = ["| " + " | ".join(self.columns) + " |", "|" + " --- |" * len(self.columns)]
        lines += [
            "| " + " | ".join(text.replace("|", r"\|") for text in row) + " |"
            for row in self.cells()
        ]
        return "\n".join(lines) + "\n"


def release_table(records: Sequence[Record], title: str) -> Listing:
    """Return one row per release."""
    return Listing(title, COLUMNS, records)


def knows(attack: str) -> str:
    """Return what an attacker knows; empty for an attack that is not registered."""
    return REGISTERED[attack].knows if attack in REGISTERED else ""


ATTACKS: dict[str, Callable[[tuple[str, float]], str]] = {
    "attacker": lambda row: row[0],
    "what it knows": lambda row: knows(row[0]),
    "error": lambda row: _number(row[1], 4),
}


def attack_table(record: Record) -> Listing:
    """Return one row per attacker of one release."""
    return Listing("Inversion error per pixel", ATTACKS, list(record["errors"].items()))


def remarks(records: Sequence[Record]) -> list[str]:
    """Say in words what the table means, and what is suspicious about it."""
    first = records[0]
    baselines = first["baselines"]
    lines = [
        f"Baselines (mean squared error per pixel): best attack on clean scores "
        f"{baselines['clean']:.4f}, given the label alone {baselines['label']:.4f}, "
        f"mean image {baselines['prior']:.4f}.",
        "G: 0 = the defense hides nothing, 1 = scores tell no more than the label, below 0 = the "
        "release tells more than clean scores did. It is taken from the strongest attacker, who "
        "may always fall back on the label.",
    ]
    for record in records:
        lines += [f"Flag, {record['release']}: {flag}." for flag in record["flags"]]
    lines.append(
        f"{LABEL_LEAKS} Decoders were trained on up to {first['auxiliary']} queried images; "
        "a stronger one may exist."
    )
    if len({record["seed"] for record in records}) == 1:
        lines.append("One seed: a smoke run. Publish nothing from it without its spread.")
    return lines
