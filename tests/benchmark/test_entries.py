"""Entries: other people's releases are judged as ours are, recorded scores as their defense."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from benchmark.small import CPU, NONE, blobs, spec_of
from oneway.benchmark import Cells, summarise
from oneway.benchmark.entries import entered, read_entry, write_splits
from oneway.benchmark.recorded import RecordedScores
from oneway.data import no_progress, read_npz
from oneway.errors import (
    CorruptDataError,
    DefenseFailedError,
    InvalidOptionError,
    InvalidTensorError,
    MissingDataError,
    UnknownNameError,
)
from oneway.evaluation import Store

NAMES = ("label-only", "kernel-ridge", "static", "averaging", "optimising")
SPEC = dataclasses.replace(spec_of(NONE, names=NAMES), preset="small")

MODULE = """
from oneway.defenses.base import ScoreDefense
from oneway.options import option

class Coarse(ScoreDefense):
    step: float = option("Logits are rounded to multiples of it.", default=2.0, above=0)

    def transform(self, logits):
        scores = logits.log_softmax(-1)
        return (scores / self.step).round() * self.step

class Faulty(ScoreDefense):
    def transform(self, logits):
        raise RuntimeError("0.125")

class NoDefense:
    pass
"""

ENTRY = """
name = "somebody"
[[releases]]
name = "coarse"
defense = "somebodys_release:Coarse"
options = { step = 3.0 }
[[releases]]
name = "recorded"
recorded = "{data}-seed{seed}.npz"
"""


def data():
    return blobs(), None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An entry with a class, and the split with what that class releases."""
    folder = tmp_path_factory.mktemp("entry")
    (folder / "somebodys_release.py").write_text(MODULE, encoding="utf-8")
    (folder / "entry.toml").write_text(ENTRY, encoding="utf-8")
    sys.path.insert(0, str(folder))
    options = {"device": CPU, "report": no_progress}
    write_splits(SPEC, data, folder / "split.npz", Store(folder / "cache"), **options)
    yield folder
    sys.path.remove(str(folder))


def record(folder, **changes):
    """Record what the class would release."""
    split = read_npz(folder / "split.npz")
    kind = sys.modules["somebodys_release"].Coarse
    released = kind(step=3.0)(torch.from_numpy(split["logits"])).softmax(-1).numpy()
    arrays = {"keys": split["keys"], "target": split["target"], "confidences": released} | changes
    np.savez(folder / "small-seed0.npz", **arrays)
    return arrays


def entry_of(folder, spec=SPEC):
    return entered(spec, read_entry(folder / "entry.toml"), folder)


@pytest.fixture(scope="module")
def records(folder):
    __import__("somebodys_release")
    record(folder)
    cells = Cells(entry_of(folder), folder / "records.jsonl", Store(folder / "cache"))
    return {one.release: one for one in cells.run(data, device=CPU)}


def test_recorded_scores_are_judged_as_the_defense_that_made_them(records):
    coarse, recorded = records["coarse"], records["recorded"]
    assert set(records) == {"none", "coarse", "recorded"}
    assert set(coarse.errors) - set(recorded.errors) == {"optimising"}, "nobody can ask a file"
    common = {name: coarse.errors[name] for name in recorded.errors}
    assert common == pytest.approx(recorded.errors, rel=0.02)
    assert coarse.l1_mean == pytest.approx(recorded.l1_mean, abs=1e-5)
    assert coarse.errors != records["none"].errors
    assert coarse.matching
    assert not recorded.matching, "nobody can ask a file about candidates"
    assert records["recorded"].label_changes == records["coarse"].label_changes == 0


@pytest.mark.usefixtures("records")
def test_an_experiment_of_an_entry_differs_in_its_releases_alone(folder):
    spec = entry_of(folder)
    assert spec.name == "entry-somebody"
    assert dataclasses.replace(spec, name=SPEC.name, releases=SPEC.releases) == SPEC
    assert len(spec.releases[2].options["sha256"]) == 64
    record(folder, more=np.zeros(1))
    changed = entry_of(folder).releases[2].options
    assert changed["sha256"] != spec.releases[2].options["sha256"], "other scores, another record"


@pytest.mark.usefixtures("records")
def test_a_release_that_does_not_answer_is_refused_before_any_attack(folder):
    stages = []

    def refused(error, said):
        cells = Cells(entry_of(folder), folder / "other.jsonl", Store(folder / "cache"))
        with pytest.raises(error, match=said):
            cells.run(data, device=CPU, report=lambda stage, _: stages.append(stage))

    record(folder, target=np.array("0" * 64))
    refused(InvalidOptionError, "another classifier")
    split = record(folder)
    record(folder, **{name: split[name][:-1] for name in ("keys", "confidences")})
    refused(InvalidTensorError, "lacks 1 of 45 rows")
    record(
        folder,
        confidences=split["confidences"][:, :2] / split["confidences"][:, :2].sum(1, keepdims=True),
    )
    refused(InvalidTensorError, "over 3 classes")
    record(folder)
    entry = folder / "entry.toml"
    entry.write_text(ENTRY.replace(":Coarse", ":Faulty").replace("options = { step = 3.0 }", ""))
    refused(DefenseFailedError, "RuntimeError")
    entry.write_text(ENTRY)
    assert not [stage for stage in stages if stage.startswith(("defend", "none"))]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keys": np.zeros((105, 3), np.uint8)}, "keys of"),
        ({"confidences": np.zeros((7, 3))}, "a row of floating"),
        ({"confidences": np.ones((105, 3))}, "confidences of .*sum"),
        ({"confidences": np.full((105, 3), np.nan)}, "confidences of .*finite"),
    ],
)
@pytest.mark.usefixtures("records")
def test_files_that_hold_something_else_are_refused(folder, changes, said):
    record(folder, **changes)
    with pytest.raises((CorruptDataError, InvalidTensorError), match=said):
        entry_of(folder)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('name = "a"\n[[releases]]\nname = "b"', InvalidOptionError),
        ('name = "a"\n[[releases]]\nname = "b"\nrecorded = "gone.npz"', MissingDataError),
        ('name = "a"\n[[releases]]\nname = "b"\ndefense = "gone_module:A"', MissingDataError),
        ('name = "a"\n[[releases]]\nname = "b"\ndefense = "roundin"', UnknownNameError),
        (
            'name = "a"\n[[releases]]\nname = "b"\ndefense = "somebodys_release:NoDefense"',
            InvalidOptionError,
        ),
        (
            'name = "a"\n[[releases]]\nname = "b"\ndefense = "somebodys_release:Gone"',
            UnknownNameError,
        ),
        (
            'name = "a"\n[[releases]]\nname = "b"\ndefense = "somebodys_release:ScoreDefense"',
            InvalidOptionError,
        ),
        (
            'name = "a"\n[[releases]]\nname = "b"\nrecorded = "small-seed0.npz"\n'
            "options = { step = 1.0 }",
            InvalidOptionError,
        ),
        ('name = "a"\nreleases = []', InvalidOptionError),
        ('name = "a"\nrelease = 3', UnknownNameError),
        ("name = ", CorruptDataError),
    ],
)
def test_an_entry_that_cannot_be_judged_is_refused_before_anything_runs(folder, text, error):
    path = folder / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error):
        entered(SPEC, read_entry(path), folder)


def test_a_name_of_the_leaderboards_own_is_refused(folder):
    path = folder / "taken.toml"
    path.write_text('name = "a"\n[[releases]]\nname = "none"\ndefense = "rounding"', "utf-8")
    with pytest.raises(InvalidOptionError, match="name of a release of the leaderboard"):
        entered(SPEC, read_entry(path), folder)


def test_a_file_that_changed_after_it_was_entered_is_refused(records, folder):
    options = dict(records["recorded"].options)
    record(folder, more=np.ones(2))
    with pytest.raises(CorruptDataError, match="changed after it was entered"):
        RecordedScores(**options)


def test_seeds_of_recorded_scores_are_averaged_though_each_is_another_file(records):
    first = records["recorded"]
    spec = json.loads(json.dumps(first.spec)) | {"seed": 1}
    spec["releases"][2]["options"] = {"file": "small-seed1.npz", "sha256": "1" * 64}
    [summary] = summarise([first, dataclasses.replace(first, seed=1, spec=spec)])
    assert summary.seeds == (0, 1)
