"""The board of releases against three threats, and its picture, are of the stored records."""

import re
from pathlib import Path

import pytest
import torch

from benchmark_files import benchmark_module
from oneway.evaluation.records import numerics_of
from oneway.evaluation.store import read_json_lines

ROOT = Path(__file__).parents[2]
STORED = ROOT / "results" / "bench-threats-board.jsonl"
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def threats():
    pytest.importorskip("sklearn")
    return benchmark_module("threats")


def differ(one, other):
    """Whether cells have other words, or numbers that no other rounding explains."""
    if not isinstance(one, str):
        return one != (other and pytest.approx(other, rel=1e-4, abs=1e-6))
    numbers = [[float(each) for each in NUMBER.findall(cell)] for cell in (one, other)]
    words = {NUMBER.sub("#", cell) for cell in (one, other)}
    return len(words) > 1 or numbers[0] != pytest.approx(numbers[1], abs=0.011)


def test_the_board_is_composed_of_the_stored_records(threats):
    records = read_json_lines(ROOT / "results" / "bench-threats.jsonl")
    made, stored = list(threats.board(records)), read_json_lines(STORED)
    assert len(made) == len(stored) > 80
    for one, other in zip(made, stored, strict=True):
        assert one.keys() == other.keys()
        different = [name for name in one if differ(one[name], other[name])]
        assert different == [], (one["data"], one["release"])


def test_records_are_of_the_releases_that_bear_their_names(threats):
    options = {spec.name: spec.options for spec in threats.RELEASES}
    for row in read_json_lines(ROOT / "results" / "bench-threats.jsonl"):
        assert row["options"] == options.get(row["release"], {}), row["release"]


def test_what_older_attackers_or_other_options_made_is_measured_again(threats):
    """A record is let go if its attackers or its options are not today's."""
    today = numerics_of(threats.ATTACKERS)
    rows = read_json_lines(ROOT / "results" / "bench-threats.jsonl")[:3]
    kept = [{**row, "numerics": today} for row in rows]
    older = {**kept[0], "numerics": {**kept[0]["numerics"], "kernel-ridge": 1}}
    stored = [*kept, older, {**kept[1], "options": {"decimals": 9}}]
    assert threats.of_today(stored) == kept


def test_older_records_stay_until_their_target_is_measured_again(threats):
    older = [{"data": "digits", "fit": "overfitted", "seed": seed} for seed in (0, 0, 1)]
    renewed = {**older[0], "release": "top 1"}
    assert threats.with_older([], older) == older
    assert threats.with_older([renewed], older) == [renewed, older[2]]


def test_the_board_names_the_oldest_attackers_of_a_release_and_of_its_baselines(threats):
    records = read_json_lines(ROOT / "results" / "bench-threats.jsonl")
    case = [row for row in records if (row["data"], row["fit"]) == ("digits", "overfitted")]
    for changed, versions, oldest in (
        ("top 1", {"cell-means": 1, "kernel-ridge": 1}, {"cell-means": 1, "kernel-ridge": 1}),
        ("clean scores", {"kernel-ridge": 2}, {"cell-means": 0, "kernel-ridge": 2}),
        ("label only", None, {"cell-means": 0, "kernel-ridge": 0}),
    ):
        rows = [
            dict(row) for row in case if row["release"] in ("clean scores", "label only", "top 1")
        ]
        row = next(row for row in rows if row["release"] == changed)
        row.pop("numerics")
        row |= {} if versions is None else {"numerics": versions}
        made = next(row for row in threats.board(rows) if row["release"] == "top 1")
        assert oldest.items() <= made["numerics"].items(), changed


def test_a_release_is_not_put_beside_baselines_of_another_target(threats):
    known = read_json_lines(ROOT / "results" / "bench-threats.jsonl")[0]
    for factor, refused in ((1, False), (1 + 1e-9, False), (1.01, True)):
        value = torch.tensor([factor * known["inversion"]["value"]], dtype=torch.float64)
        reached = {"inversion": threats.Reached("clean scores", value)}
        if refused:
            with pytest.raises(SystemExit, match="another --out"):
                threats.check_target(known, reached)
        else:
            threats.check_target(known, reached)


def test_a_release_without_all_seeds_stands_beside_the_same_seeds_of_its_baselines(threats):
    records = read_json_lines(ROOT / "results" / "bench-threats.jsonl")
    case = [row for row in records if (row["data"], row["fit"]) == ("digits", "overfitted")]
    rare = [row for row in case if row["release"] != "top 1" or row["seed"] == 0]
    [row] = [row for row in threats.board(rare) if row["release"] == "top 1"]
    alone = [row for row in case if row["seed"] == 0]
    assert row == next(row for row in threats.board(alone) if row["release"] == "top 1")
    assert row["seeds"] == 1


def test_the_picture_is_of_the_board(threats, tmp_path):
    threats.draw(tmp_path / "threats.svg", read_json_lines(STORED))
    drawn, shown = (
        re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "threats.svg", ROOT / "docs" / "images" / "threats.svg")
    )
    assert drawn == shown
    assert "MemGuard" in drawn
