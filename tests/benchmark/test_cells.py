"""Cells: each record is written when it is done, kept while its settings stay, and never redone."""

import dataclasses
import shutil
import types
from collections import Counter

import numpy as np
import pytest
import torch

from benchmark.small import (
    CPU,
    LABEL,
    NOISE,
    NONE,
    PlannedError,
    blobs,
    experiment,
    interrupting,
    lasting,
    spec_of,
)
from laws import looped
from oneway.attacks import ATTACKS, Static
from oneway.benchmark import Cells, cells, load_data
from oneway.benchmark.spec import DataSpec
from oneway.errors import CorruptDataError, MissingDataError
from oneway.evaluation import Store, read_records, write_records
from oneway.evaluation.settings import ReleaseSpec
from oneway.evaluation.store import write_json_lines

NOISY = ReleaseSpec("noise", "adversarial-noise", NOISE, attackers=("label-only", "static"))
SPEC = spec_of(NONE, NOISY, LABEL, names=("label-only", "static"))
NAMES = [row.name for row in SPEC.releases]


def data():
    return blobs(), None


def refuse():
    raise AssertionError("data was loaded, though there was nothing to run")


def run(folder, spec=SPEC, data=data, **options):
    cells = Cells(spec, folder / "records.jsonl", Store(folder / "cache"))
    return cells.run(data, device=CPU, **options)


def kept(folder):
    return read_records(folder / "records.jsonl")


def as_read(records):
    """What must be the same in every run, as it comes back from a file."""
    return [lasting(record) for record in records]


def galleries(folder):
    return sorted((folder / "cache" / "galleries").glob("*.npz"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    return types.SimpleNamespace(folder=folder, records=run(folder))


@pytest.fixture
def done(whole, tmp_path):
    """A copy of that run's folder, for a test to change."""
    shutil.copytree(whole.folder, tmp_path / "done")
    return tmp_path / "done"


def test_records_are_written_in_the_order_of_the_spec_and_returned(whole):
    assert [record.release for record in whole.records] == NAMES
    assert kept(whole.folder) == whole.records
    assert len(galleries(whole.folder)) == len(NAMES)
    assert not list(whole.folder.rglob(".partial-*"))


def test_a_second_run_loads_and_trains_nothing_and_changes_no_byte(done, trainings):
    files = [path for path in sorted(done.rglob("*")) if path.is_file()]
    before = [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert run(done, data=refuse) == kept(done)
    assert trainings == Counter()
    after = [path for path in sorted(done.rglob("*")) if path.is_file()]
    assert [(path, path.read_bytes(), path.stat().st_mtime_ns) for path in after] == before


def test_an_interrupted_run_keeps_every_finished_cell_and_goes_on(whole, tmp_path):
    finished = []
    for place, name in enumerate(NAMES):
        with pytest.raises(PlannedError):
            run(tmp_path, report=interrupting(f"defend: {name}"))
        before, finished = finished, kept(tmp_path)
        assert [record.release for record in finished] == NAMES[:place]
        assert finished[: len(before)] == before  # to the clock
    records = run(tmp_path)
    assert records[: len(finished)] == finished
    assert kept(tmp_path) == records
    assert as_read(records) == as_read(whole.records)


def test_a_run_that_fails_while_a_cell_is_written_loses_that_one_alone(
    whole, tmp_path, monkeypatch
):
    calls = []

    def fail(path, lines):
        calls.append(path)
        if len(calls) == 2:
            raise PlannedError
        write_json_lines(path, lines)

    monkeypatch.setattr(cells, "write_json_lines", fail)
    with pytest.raises(PlannedError):
        run(tmp_path)
    assert [record.release for record in kept(tmp_path)] == NAMES[:1]
    records = run(tmp_path)
    assert as_read(records) == as_read(whole.records)


def test_an_added_release_leaves_the_others_as_they_are(done, trainings):
    before = kept(done)
    more = ReleaseSpec(
        "more", "label-only", {"confidence": 0.75}, attackers=("label-only", "static")
    )
    spec = dataclasses.replace(SPEC, releases=(NONE, more, NOISY, LABEL))
    records = run(done, spec)
    assert [record.release for record in records] == ["none", "more", "noise", "label"]
    assert [record for record in kept(done) if record.release != "more"] == before
    assert trainings == Counter()  # its static decoder is there already


def test_a_changed_release_is_run_anew_and_the_others_stay(done):
    before = {record.release: record for record in kept(done)}
    moved = dataclasses.replace(NOISY, options=NOISE | {"step_size": 0.25})
    records = run(done, dataclasses.replace(SPEC, releases=(NONE, moved, LABEL)))
    after = {record.release: record for record in records}
    assert after["noise"].options["step_size"] == 0.25
    assert after["noise"].cell != before["noise"].cell
    assert {**after, "noise": None} == {**before, "noise": None}
    assert kept(done) == records


def test_a_setting_of_the_whole_experiment_makes_every_record_stale(done):
    other = dataclasses.replace(SPEC, target=dataclasses.replace(SPEC.target, width=2))
    cells = Cells(other, done / "records.jsonl", Store(done / "cache"))
    assert cells.finished() == {}
    assert all(cells.gallery(name) is None for name in NAMES)


def test_a_release_that_is_gone_is_dropped_when_something_else_is_written(done):
    fewer = dataclasses.replace(SPEC, releases=(NONE, LABEL))
    assert [record.release for record in run(done, fewer, data=refuse)] == ["none", "label"]
    assert [record.release for record in kept(done)] == NAMES  # nothing was written


def test_only_what_is_wanted_is_run_and_other_records_stay(tmp_path):
    [first] = run(tmp_path, only={"none"})
    assert [record.release for record in kept(tmp_path)] == ["none"]
    records = run(tmp_path, only={"label"})
    assert [record.release for record in records] == ["none", "label"]
    assert kept(tmp_path)[0] == first
    assert len(galleries(tmp_path)) == 2


def test_a_figures_run_draws_again_what_is_missing_and_keeps_the_tables_records(done, trainings):
    before = (done / "records.jsonl").read_bytes()
    for path in galleries(done):
        path.unlink()
    records = run(done, only={"none", "noise"}, drawn=True)
    assert (done / "records.jsonl").read_bytes() == before
    assert [record.release for record in records] == NAMES
    assert len(galleries(done)) == 2
    assert trainings == Counter()
    run(done, only={"none", "noise"}, drawn=True, data=refuse)


def test_galleries_hold_what_attackers_made_of_the_shown_queries(whole):
    cells = Cells(SPEC, whole.folder / "records.jsonl", Store(whole.folder / "cache"))
    run_again = experiment(whole.folder / "cache", SPEC)
    for outcome in run_again.run():
        gallery = cells.gallery(outcome.record.release)
        drawn = run_again.gallery(outcome)
        assert gallery.keys() == drawn.keys() == {"truth", *outcome.results}
        for name, images in drawn.items():
            np.testing.assert_array_equal(gallery[name], images)


def test_records_of_two_seeds_are_kept_apart_by_their_cells(whole):
    other = dataclasses.replace(SPEC, seed=1)
    cells = Cells(other, whole.folder / "records.jsonl", Store(whole.folder / "cache"))
    assert cells.finished() == {}


def test_a_stale_record_stays_until_a_new_one_takes_its_place(done, monkeypatch):
    before = {record.release: record for record in kept(done)}
    label = ATTACKS["label-only"].numerics
    assert before["noise"].numerics == {"label-only": label, "static": 1, "retrained": 1}
    assert run(done, data=refuse) == list(before.values())
    monkeypatch.setattr(Static, "numerics", 2)
    renewed = run(done, only={"noise"})
    assert [record.release for record in renewed] == ["noise"]
    assert renewed[0].numerics == {"label-only": label, "static": 2, "retrained": 1}
    after = {record.release: record for record in kept(done)}
    assert list(after) == NAMES
    assert after["noise"] == renewed[0] != before["noise"]
    assert {**after, "noise": None} == {**before, "noise": None}
    assert [record.release for record in run(done)] == NAMES
    assert all(record.numerics["static"] == 2 for record in kept(done))


def test_a_record_without_versions_is_run_anew(done, trainings):
    before = kept(done)
    old = [dataclasses.replace(record, numerics={}) for record in before]
    write_records(done / "records.jsonl", old)
    assert Cells(SPEC, done / "records.jsonl", Store(done / "cache")).finished() == {}
    assert as_read(run(done)) == as_read(before)
    assert trainings == Counter()


def test_records_of_other_settings_stay_until_they_are_replaced(done):
    before = {record.release: record for record in kept(done)}
    other = dataclasses.replace(SPEC, target=dataclasses.replace(SPEC.target, width=2))
    run(done, other, only={"label"})
    after = {record.release: record for record in kept(done)}
    assert {**after, "label": None} == {**before, "label": None}
    assert after["label"].cell != before["label"].cell


def test_a_file_of_something_else_holds_no_finished_cell(whole, tmp_path):
    none = whole.records[0].to_json()
    others = [{}, {"release": "none"}, {"release": "else"}, none | {"schema": 1}]
    write_json_lines(tmp_path / "records.jsonl", [*others, none | {"cell": "another"}])
    cells = Cells(SPEC, tmp_path / "records.jsonl", Store(tmp_path))
    assert cells.finished() == {}


def test_a_finished_cell_that_is_no_record_is_refused_with_line_and_remedy(whole, tmp_path):
    values = [record.to_json() for record in whole.records[:2]]
    del values[1]["errors"]
    write_json_lines(tmp_path / "records.jsonl", values)
    cells = Cells(SPEC, tmp_path / "records.jsonl", Store(tmp_path))
    refusal = r"^line 2 of .*records\.jsonl must be .*'errors'.*Make it again"
    with pytest.raises(CorruptDataError, match=refusal):
        cells.finished()


@looped("text", ['{"release": "no', "[1]\n"])
def test_a_file_that_is_no_list_of_records_is_refused_with_line_and_name(tmp_path, text):
    (tmp_path / "records.jsonl").write_text('{"a": 1}\n' + text, encoding="utf-8")
    with pytest.raises(CorruptDataError, match=r"line 2 of .*records\.jsonl is not .*Take it out"):
        run(tmp_path, data=refuse)


def test_data_are_loaded_as_the_spec_says(tmp_path):
    images = blobs()
    np.savez(tmp_path / "private.npz", images=images.images, labels=images.labels)
    np.savez(tmp_path / "other.npz", images=blobs(seed=1).images, labels=["a"] * 420)
    spec = DataSpec(name="npz", private=9, auxiliary=9, test=9, path="private.npz", side=8)
    dataset, auxiliary = load_data(spec, tmp_path)
    assert dataset.images.shape == (420, 8, 8)
    assert dataset.num_classes == 3
    assert auxiliary is None
    both = dataclasses.replace(spec, auxiliary_name="npz", auxiliary_path="other.npz", side=0)
    dataset, auxiliary = load_data(both, tmp_path)
    np.testing.assert_array_equal(dataset.images, images.images)
    np.testing.assert_array_equal(auxiliary.images, blobs(seed=1).images)
    missing = dataclasses.replace(both, auxiliary_path="absent.npz")
    with pytest.raises(MissingDataError, match=r"absent\.npz.*other\.npz, private\.npz"):
        load_data(missing, tmp_path)


def test_two_data_sets_run_as_one_experiment(tmp_path, trainings):
    other = blobs(rows=90, seed=5)
    [record] = run(tmp_path, data=lambda: (blobs(), other), only={"none"})
    assert record.auxiliary == 60
    assert trainings["target"] == 1
    assert torch.isfinite(torch.tensor(record.errors["static"]))


def test_records_of_other_data_are_run_anew_when_there_is_something_to_run(done):
    before = {record.release: record for record in kept(done)}
    write_records(done / "records.jsonl", [before["none"], before["noise"]])
    records = run(done, data=lambda: (blobs(seed=1), None))
    after = {record.release: record for record in records}
    assert len({record.provenance.data for record in records}) == 1
    assert after["none"].provenance.data != before["none"].provenance.data
    assert after["noise"].errors != before["noise"].errors


def test_who_attacks_the_undefended_release_is_in_every_key(done):
    """All baselines come from it."""
    before = {record.release: record.cell for record in kept(done)}
    first = dataclasses.replace(NONE, attackers=("label-only", "static"))
    records = run(done, dataclasses.replace(SPEC, releases=(first, NOISY, LABEL)))
    assert all(record.cell != before[record.release] for record in records)


def test_a_record_says_the_options_that_were_left_at_their_defaults(whole):
    noise = next(record for record in whole.records if record.release == "noise")
    assert noise.options == {**NOISE, "norm": "inf"}
    assert noise.effective_options == {
        **noise.options,
        "update": "project",
        "margin": 1e-3,
        "search": "sign",
        "start_radius": None,
        "decay": None,
        "coarse_steps": None,
    }
