"""Every pointer of the paper's map leads somewhere: to a file, a name in it, a record, a test."""

import re

import pytest

from fences import ROOT
from oneway.evaluation.store import read_json_lines
from oneway.report.measured import Measurements

PAGE = (ROOT / "docs/paper-map.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.partition("\n## ")[0].splitlines()
    if line.startswith("| ") and "---" not in line
][1:]
PATH = re.compile(r"`([\w.*-]+/[\w/.*-]*|[\w-]+\.py)`(?:: `(\w+)`)?(?:, `([A-Z]\w+)`)?")
RECORD = re.compile(r'(?P<experiment>\S+) (?P<preset>\w+) "(?P<release>[^"]+)" (?P<value>.+)')
BENCH = re.compile(r"(?P<file>bench-\S+\.jsonl) (?P<part>.+)")
WORDS = {"-", "every table", "not measured", "drawn where the command is run"}


@pytest.fixture(scope="module")
def measurements():
    return Measurements.read(ROOT / "results")


def dead_paths(cell, folder):
    """Return the pointers of a cell to files, and names in them, that do not exist."""
    dead = []
    for path, *names in PATH.findall(cell):
        found = sorted(folder.glob(path))
        text = "".join(each.read_text(encoding="utf-8") for each in found if each.is_file())
        dead += [] if found else [path]
        named = [name for name in names if name]
        dead += [f"{path}: {name}" for name in named if not re.search(rf"\b{name}\b", text)]
    return dead


def is_dead_number(pointer, measurements):
    """Say whether a pointer to a number leads to no record."""
    if bench := BENCH.fullmatch(pointer):
        rows = read_json_lines(ROOT / "results" / bench["file"])
        return all(row["part"] != bench["part"] for row in rows)
    if not (found := RECORD.fullmatch(pointer)):
        return True
    summaries = measurements.experiments.get((found["experiment"], found["preset"]), ())
    values = [each.values for each in summaries if each.release == found["release"]]
    return not values or found["value"] not in values[0]


def test_every_pointer_to_code_and_tests_leads_to_a_file_and_a_name():
    assert len(ROWS) > 20
    for paper, code, test, _ in ROWS:
        assert PATH.search(code), paper
        assert PATH.search(test), paper
        assert dead_paths(code, ROOT / "src/oneway") == [], paper
        assert dead_paths(test, ROOT) == [], paper


def test_every_pointer_to_a_number_leads_to_a_record(measurements):
    for paper, _, _, number in ROWS:
        pointers = re.findall(r"`([^`]+)`", number)
        assert pointers or number in WORDS or number.startswith("["), paper
        assert [each for each in pointers if is_dead_number(each, measurements)] == [], paper


def test_a_dead_pointer_is_found(measurements):
    assert dead_paths("`attacks/statics.py`", ROOT / "src/oneway") == ["attacks/statics.py"]
    assert dead_paths("`attacks/static.py`: `Statics`", ROOT / "src/oneway") != []
    for pointer in (
        'table1-mnist cpu "none" error statics',
        'table1-mnist cpu "nothing" accuracy',
        'table1-mnist gpu "none" accuracy',
        "bench-paper-readings.jsonl nothing",
        "table1",
    ):
        assert is_dead_number(pointer, measurements), pointer
