"""Tables are laid out alike everywhere: every cell, in order, and nothing taken for markup."""

import dataclasses
import io
import json
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from oneway.attacks import ATTACKS
from oneway.auditing import AuditRecord
from oneway.defenses import ReleaseCandidate
from oneway.report.audit import attackers_table
from oneway.report.candidates import candidates_table
from oneway.report.table import Column, Listing
from planted_records import release_record

LENET = Path(__file__).parents[2] / "results" / "audit-lenet-adversarial-noise.json"

COLUMNS = {
    "release name": Column(itemgetter(0)),
    "error": Column(itemgetter(1), ".4f", "the lower, the more was read."),
    "share, %": Column(itemgetter(2), lambda share: f"{100 * share:.1f}"),
    "plain": lambda row: str(row[1]),
}
ROWS = [("none", 0.12344, 0.5), ("noise [bold] | [/] eta", None, None)]
CELLS = [["none", "0.1234", "50.0", "0.12344"], ["noise [bold] | [/] eta", "-", "-", "None"]]


def rendered(table):
    console = Console(file=io.StringIO(), width=10)
    console.print(table, crop=False)
    return console.file.getvalue()


def markdown_rows(text):
    rows = [line.strip().strip("|").split(" | ") for line in text.splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_layout_has_every_cell_in_order(count):
    listing = Listing("some title [red]", COLUMNS, ROWS[:count])
    assert listing.cells() == CELLS[:count]
    header, rule, *rows = markdown_rows(listing.markdown().replace(r"\|", "¦"))
    assert header == list(COLUMNS)
    assert rule == ["---"] * len(COLUMNS)
    assert [[cell.replace("¦", "|") for cell in row] for row in rows] == CELLS[:count]
    lines = rendered(listing).splitlines()
    assert lines[0].strip() == "some title [red]"
    for cells in CELLS[:count]:
        assert any(" ".join(cells) == " ".join(line.split()) for line in lines), cells
    for heading in COLUMNS:
        assert all(word in "\n".join(lines) for word in heading.split())


def test_a_narrow_terminal_shows_every_cell_after_its_heading():
    console = Console(file=io.StringIO(), width=24, force_terminal=True, color_system=None)
    console.print(Listing("some title [red]", COLUMNS, ROWS), crop=False)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "some title [red]"
    assert max(map(len, lines)) <= 24
    begins = [lines.index(cells[0]) for cells in CELLS]
    for begin, cells in zip(begins, CELLS, strict=True):
        for line, heading, text in zip(
            lines[begin + 1 :], list(COLUMNS)[1:], cells[1:], strict=False
        ):
            assert " ".join(line.split()) == f"{heading} {text}"


def test_a_terminal_a_little_too_narrow_leaves_out_spare_columns_and_names_them():
    listing = Listing("some title [red]", COLUMNS, ROWS, (), ("plain", "share, %"))
    for width, left_out in ((70, ""), (50, "plain"), (40, "plain; share, %")):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        console.print(listing, crop=False)
        lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
        dropped = left_out.count(";") + bool(left_out)
        assert " ".join(CELLS[0][: len(COLUMNS) - dropped]) in lines, width
        sentence = f"A wider terminal also shows: {left_out}."
        assert (sentence in " ".join(lines)) == bool(dropped), width
    assert len(markdown_rows(listing.markdown())[0]) == len(COLUMNS)


def test_the_meaning_of_a_column_is_a_note():
    assert Listing("t", COLUMNS, ROWS).notes() == ["error: the lower, the more was read."]


def test_a_choice_is_marked_among_candidates_and_not_where_it_is_none_of_them():
    """A codebook's tensors cannot be compared, so that equal figures alone mark nothing."""
    shared = {"min_members": 5, "center": "mean", "seed": 0, "held_out": 0.25, "level": None}
    figures = {"certified": 0.1, "alone": 0.0, "bits": 1.0, "cells": 3, "hidden": 0.1}
    one, other, left_out = (
        ReleaseCandidate("codebook", dict(shared), torch.zeros(2), l1, **figures)
        for l1 in (0.1, 0.1, 0.2)
    )
    marked = candidates_table([one, other], other)
    assert [row[0] for row in marked.cells()] == ["codebook", "codebook *"]
    below = "All codebooks: min_members 5, center mean, seed 0, held_out 0.25, level None."
    assert marked.footnotes == ["*: recommended.", below]
    assert candidates_table([one, other], left_out).footnotes == [below]


def test_attackers_are_rows_with_what_they_know():
    errors = {"label-only": 0.0911, "static": 0.0822, "mine": 0.5}
    rows = attackers_table(release_record(errors=errors)).cells()
    assert [row[:2] for row in rows] == [[name, f"{error:.4f}"] for name, error in errors.items()]
    assert rows[-1][-1] == ""
    assert "the baseline" in rows[0][-1]
    ranks = {name: {"rank_1": error / 2} for name, error in errors.items()}
    audited = AuditRecord.from_json(json.loads(LENET.read_text("utf-8")), LENET.name).inversion
    ranked = attackers_table(dataclasses.replace(audited, errors=errors, reidentified=ranks))
    assert [row[2] for row in ranked.cells()] == [f"{error / 2:.4f}" for error in errors.values()]
    every = attackers_table(release_record(errors=dict.fromkeys(ATTACKS, 0.1))).cells()
    assert all(row[-1] for row in every), "every registered attacker says what it knows"
