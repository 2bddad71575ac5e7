"""`oneway leaderboard` as a user runs it, on a small file whose presets are data sets."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmark.small import blobs, lasting
from cli.test_reproduce import TINY, refused
from oneway.benchmark import bundled_spec
from oneway.evaluation import read_records, write_records
from report.page.reading import assert_stands_alone

BOARD = (
    TINY.replace('name = "tiny"', 'name = "board"')
    + """
[[releases]]
name = "rounding, 1 decimal"
defense = "rounding"
options = { decimals = 1 }
"""
)


@pytest.fixture(scope="module")
def board(oneway, tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    (folder / "board.toml").write_text(BOARD, encoding="utf-8")
    options = ("--out", folder / "out", "--cache", folder / "cache", "--seed", 0, "--seed", 1)
    arguments = ("leaderboard", folder / "board.toml", "--data", "small", *options)
    result = oneway(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return folder, arguments, result


def test_every_release_of_every_seed_has_a_record_and_there_is_a_page(board):
    folder, _, result = board
    for seed in (0, 1):
        records = read_records(folder / "out" / f"board-small-seed{seed}.jsonl")
        assert [record.release for record in records] == ["none", "noise", "rounding, 1 decimal"]
        assert {record.seed for record in records} == {seed}
    page = assert_stands_alone((folder / "out" / "board-small.html").read_text(encoding="utf-8"))
    assert len(page.every("img")) >= 40
    assert "Only 2 seeds were run: do not quote" in result.stdout
    assert "rounding, 1 decimal" in result.stdout


def test_a_rerun_takes_the_records_that_are_there(board, oneway, monkeypatch):
    _, arguments, first = board
    monkeypatch.setattr(
        "oneway.benchmark.load_data", lambda *_: pytest.fail("nothing is left to run")
    )
    again = oneway(*arguments)
    assert again.exit_code == 0
    assert again.stdout == first.stdout
    told = json.loads(oneway(*arguments, "--json").stdout)
    names = ("none", "noise", "rounding, 1 decimal")
    assert [(one["seed"], one["release"]) for one in told] == list(itertools.product((0, 1), names))


def test_what_is_left_is_said_by_seed_and_nothing_is_run(board, oneway, tmp_path, monkeypatch):
    folder, arguments, _ = board
    monkeypatch.setattr("oneway.benchmark.load_data", lambda *_: pytest.fail("it began to run"))
    assert "0 cells left" in oneway(*arguments, "--left").stdout
    assert not any(json.loads(oneway(*arguments, "--left", "--json").stdout).values())
    first, second = (f"board-small-seed{seed}.jsonl" for seed in (0, 1))
    records = read_records(folder / "out" / first)
    numerics = dict.fromkeys(records[1].numerics, 0)
    write_records(tmp_path / first, [records[0], replace(records[1], numerics=numerics)])
    shown = oneway(*arguments, "--out", tmp_path, "--left").stdout
    assert f"{first}: 2 of 3 left: noise; rounding, 1 decimal" in shown
    assert f"{second}: 3 of 3 left: none; noise; rounding, 1 decimal" in shown
    assert "5 cells left" in shown
    wanted = oneway(*arguments, "--out", tmp_path, "--left", "--release", "none").stdout
    assert f"{first}: 0 of 1 left\n" in wanted
    assert "1 cell left" in wanted


def test_the_frontier_is_said_and_drawn_where_there_are_gaps(board, oneway, tmp_path):
    folder, arguments, _ = board
    out, gaps = tmp_path / "out", {"none": 0.0, "noise": 0.25, "rounding, 1 decimal": 0.75}
    for seed in (0, 1):
        name = f"board-small-seed{seed}.jsonl"
        records = read_records(folder / "out" / name)
        planted = [
            replace(record, closed_gap=gaps[record.release], attack_failed=False)
            for record in records
        ]
        write_records(out / name, planted)
    result = oneway(*arguments, "--out", out)
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"Wrote {out}/board-small.html and board-small.svg" in result.stdout
    assert result.stdout.count("On the frontier of G against") == 2
    picture = ElementTree.parse(out / "board-small.svg").getroot()  # noqa: S314  our own file
    assert "rounding, 1 decimal" in "".join(picture.itertext())
    write_records(out / name, [replace(record, closed_gap=None) for record in planted])
    assert "board-small.svg" not in oneway(*arguments, "--out", out).stdout
    assert not (out / "board-small.svg").exists(), "the picture of other records is removed"


def test_without_images_the_page_is_the_same_but_for_them(board, oneway):
    folder, arguments, _ = board
    page = folder / "out" / "board-small.html"
    before = page.read_text(encoding="utf-8")
    assert oneway(*arguments, "--no-images").exit_code == 0
    after = assert_stands_alone(page.read_text(encoding="utf-8"))
    assert after.every("img") == []
    tables = [
        [one.text() for one in found.every("table") if not one.has("pictures")]
        for found in (assert_stands_alone(before), after)
    ]
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_on_a_cluster_each_seed_is_a_task_and_the_records_are_the_same(oneway, tmp_path):
    images = blobs()
    np.savez(tmp_path / "blobs.npz", images=images.images, labels=images.labels)
    own = BOARD.replace('name = "digits"', 'name = "npz"\npath = "blobs.npz"')
    own = own.replace("[surrogate]", "[surrogate]\nhidden_layers_removed = 1")
    (tmp_path / "board.toml").write_text(own, encoding="utf-8")
    options = ("--data", "small", "--seed", 0, "--seed", 1, "--data-root", tmp_path)
    records = []
    for executor in ("local", "ray"):
        folder = tmp_path / executor
        paths = ("--out", folder / "out", "--cache", folder / "cache")
        result = oneway(
            "leaderboard", tmp_path / "board.toml", *options, *paths, "--executor", executor
        )
        assert result.exit_code == 0, (result.output, result.exception)
        assert result.stderr.count(" of 2 done: ") == (2 if executor == "ray" else 0)
        found = [read_records(folder / "out" / f"board-small-seed{seed}.jsonl") for seed in (0, 1)]
        records.append([[lasting(record) for record in some] for some in found])
    assert records[0] == records[1]
    assert [len(some) for some in records[0]] == [3, 3]


def test_zeros_have_no_logit_distortion(board):
    folder = board[0]
    records = read_records(folder / "out" / "board-small-seed0.jsonl")
    rounded = next(record for record in records if record.defense == "rounding")
    assert rounded.logit_distortion is None
    assert rounded.l1_mean > 0
    assert all(r.logit_distortion is not None for r in records if r is not rounded)


def test_unknown_names_are_refused_before_any_work(oneway, tmp_path):
    refused(oneway("leaderboard", "--executor", "rai", "--out", tmp_path), "executor", "ray")
    refused(oneway("leaderboard", "--data", "facez"), "preset", "faces")
    refused(
        oneway("leaderboard", "--release", "rounding", "--out", tmp_path / "out"), "release", "none"
    )
    assert not (tmp_path / "out").exists()


def test_the_bundled_board_has_rounding_and_prototypes_and_several_data_sets():
    for data in ("faces", "mnist", "digits"):
        spec = bundled_spec("leaderboard", data)
        defenses = {row.defense for row in spec.releases}
        assert {"none", "label-only", "rounding", "prototypes", "adversarial-noise"} <= defenses
        assert {"standardized", "within-label", "leading", "faithful"} == set(
            spec.attackers.input_transforms
        )
        assert re.fullmatch(r"\w+", spec.preset)


def test_an_entry_of_a_class_and_of_recorded_scores_stands_beside_the_leaderboard(
    board, oneway, tmp_path, monkeypatch
):
    folder, *_ = board
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(
        "from oneway.defenses.rounding import Rounding\n\n\nclass Theirs(Rounding):\n    pass\n",
        encoding="utf-8",
    )
    own = ["--cache", folder / "cache", "--seed", 0, "--no-images"]
    board_file = ["leaderboard", folder / "board.toml", "--data", "small"]
    wrote = oneway(*board_file, *own, "--splits", tmp_path / "splits")
    assert wrote.exit_code == 0, (wrote.output, wrote.exception)
    split = np.load(tmp_path / "splits" / "small-seed0.npz")
    top = np.eye(split["logits"].shape[1])[split["logits"].argmax(1)] * 0.5 + 0.5 / 3
    released = top / top.sum(1, keepdims=True)
    np.savez("small-seed0.npz", keys=split["keys"], target=split["target"], confidences=released)
    (tmp_path / "entry.toml").write_text(
        'name = "them"\n[[releases]]\nname = "theirs"\ndefense = "theirs:Theirs"\n'
        'options = { decimals = 1 }\n[[releases]]\nname = "labels"\n'
        'recorded = "{data}-seed{seed}.npz"\n',
        encoding="utf-8",
    )
    shutil.copytree(folder / "out", tmp_path / "out")
    entry = ["--entry", tmp_path / "entry.toml", "--out", tmp_path / "out"]
    result = oneway(*board_file, *own, *entry)
    assert result.exit_code == 0, (result.output, result.exception)
    mine = read_records(tmp_path / "out" / "entry-them-small-seed0.jsonl")
    ours = read_records(tmp_path / "out" / "board-small-seed0.jsonl")
    assert [record.release for record in mine] == ["none", "theirs", "labels"]
    same = next(record for record in ours if record.release == "rounding, 1 decimal")
    assert mine[1].errors == same.errors, "the same release is judged alike, whoever's it is"
    for name in ("rounding, 1 decimal", "theirs", "labels"):
        assert name in result.stdout
    others = [replace(each.provenance, model="another classifier") for each in ours]
    write_records(
        tmp_path / "out" / "board-small-seed0.jsonl",
        [replace(each, provenance=other) for each, other in zip(ours, others, strict=True)],
    )
    again = oneway(*board_file, *own, *entry)
    assert again.exit_code == 0, (again.output, again.exception)
    assert "rounding, 1 decimal" not in again.stdout, "of another classifier"
    assert "theirs" in again.stdout
