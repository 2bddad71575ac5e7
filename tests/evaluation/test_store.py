"""The store: what comes back is what went in, once, whole or not at all."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ArrowInvalid, parquet

from laws import looped
from networks import inverter, same_bits, target
from oneway.defenses.codebook import Codebook
from oneway.defenses.codebook.boxes import DIGITS
from oneway.defenses.codebook.release import FORMAT
from oneway.errors import MissingExtraError
from oneway.evaluation import Store, write_queries
from oneway.evaluation.store import RECIPES, fingerprint, spec_key, write_json_lines
from oneway.targets import TargetNetwork

SPEC = {"role": "some", "seed": 0, "training": {"epochs": 2, "rate": 0.1}}


class Trainer:
    """Counts how often it is called."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return inverter(seed=self.calls), {"calls": self.calls}


def test_a_spec_is_trained_once(tmp_path):
    train = Trainer()
    first = Store(tmp_path).network("inverter", SPEC, train)
    again = Store(tmp_path).network("inverter", SPEC, train)
    assert train.calls == 1
    assert same_bits(first.module, again.module)
    assert first.facts["calls"] == again.facts["calls"] == 1
    assert first.facts["spec"] == SPEC  # kept beside its result


def test_tensors_of_a_spec_are_computed_once_and_come_back_bit_for_bit(tmp_path):
    calls = []

    def compute():
        calls.append(None)
        return {"scores": torch.tensor([[0.1, float("nan")]]), "labels": torch.arange(3)}

    first = Store(tmp_path).tensors("some", SPEC, compute)
    again = Store(tmp_path).tensors("some", SPEC, compute)
    assert len(calls) == 1
    for told in (first, again):
        assert told.keys() == {"scores", "labels"}
        assert torch.equal(told["scores"].view(torch.int32), compute()["scores"].view(torch.int32))
        assert torch.equal(told["labels"], torch.arange(3))
    calls.clear()
    Store(tmp_path).tensors("other", SPEC, compute)
    Store(tmp_path).tensors("some", SPEC | {"seed": 1}, compute)
    assert len(calls) == 2


@looped(
    "other",
    [
        SPEC | {"seed": 1},
        SPEC | {"role": "other"},
        SPEC | {"training": SPEC["training"] | {"epochs": 3}},
        SPEC | {"data": fingerprint(torch.zeros(2))},
    ],
    ids=["seed", "role", "nested option", "data"],
)
def test_another_spec_is_trained_anew_and_keeps_the_first(tmp_path, other):
    store, train = Store(tmp_path / spec_key(other)), Trainer()
    assert store.network("inverter", SPEC, train).facts["calls"] == 1
    assert store.network("inverter", other, train).facts["calls"] == 2
    assert store.network("inverter", SPEC, train).facts["calls"] == 1


def test_one_spec_of_two_kinds_is_two_networks(tmp_path):
    store = Store(tmp_path)
    store.network("inverter", SPEC, Trainer())
    stored = store.network("target", SPEC, lambda: (target(), {}))
    assert isinstance(stored.module, TargetNetwork)


VALUES = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=5))
def test_a_key_does_not_depend_on_the_order_of_a_spec(spec):
    assert spec_key(reordered(spec)) == spec_key(spec)


@given(st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=2, max_size=8))
def test_different_specs_have_different_keys(specs):
    different = {json.dumps(spec, sort_keys=True) for spec in specs}
    assert len({spec_key(spec) for spec in specs}) == len(different)


def test_the_recipe_is_part_of_every_key(monkeypatch):
    before = spec_key(SPEC)
    monkeypatch.setattr("oneway.evaluation.store.RECIPE", -1)
    assert spec_key(SPEC) != before


def test_codebooks_of_another_format_are_fitted_anew():
    """A change of the table's tensors, or of what they hold, raises the recipe."""
    tensors = {name: str(value.dtype) for name, value in Codebook(2, 2, 1, 2).state_dict().items()}
    wanted = dict.fromkeys(("edges", "offsets", "values"), "torch.float64")
    whole = ("assignment", "classes", "groups", "labels", "members", "shared")
    wanted |= dict.fromkeys(whole, "torch.int64")
    assert (tensors, DIGITS, FORMAT) == (wanted, 12, 2)
    assert RECIPES == {"codebook": 3, "decoy-codebook": 3}


def test_a_fingerprint_is_of_type_shape_and_every_byte():
    rows = torch.arange(6, dtype=torch.float32)
    changed = rows.clone()
    changed[5] = torch.nextafter(changed[5], torch.tensor(9.0))
    prints = [
        fingerprint(rows),
        fingerprint(rows.reshape(2, 3)),
        fingerprint(rows.view(torch.int32)),
        fingerprint(changed),
        fingerprint(rows[:3], rows[3:]),
        fingerprint(rows[3:], rows[:3]),
        fingerprint(rows > 2),
    ]
    assert len(set(prints)) == len(prints)
    strided = torch.stack([rows, rows], 1)[:, 0]
    assert not strided.is_contiguous()
    assert fingerprint(strided) == fingerprint(rows.clone().requires_grad_()) == fingerprint(rows)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_training_that_fails_leaves_no_file_and_is_done_anew(tmp_path):
    def fail():
        raise KeyError("planned")

    store = Store(tmp_path)
    with pytest.raises(KeyError, match="planned"):
        store.network("inverter", SPEC, fail)
    assert files_in(tmp_path) == []
    assert store.network("inverter", SPEC, Trainer()).facts["calls"] == 1


MOMENTS = ("train", "write", "rename")
KILLED = """
import os, signal, sys
from pathlib import Path
from oneway.evaluation import store
from oneway import files
from oneway.inversion import Inverter

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def half(state, path, metadata):
    save_file(state, path, metadata)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    die()

def use(moment):
    def train():
        if moment == "train":
            die()
        return Inverter(3, (1, 8, 8), width=4), {}

    if moment == "write":
        files.save_file = half
    if moment == "rename":
        Path.replace = die
    store.Store(Path(sys.argv[1]) / moment).network("inverter", {"seed": 0}, train)

save_file = files.save_file
for moment in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        use(moment)
        os._exit(0)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes and signals")
def test_a_process_that_is_killed_leaves_no_file_under_the_name(tmp_path):
    """One process imports all that it takes; a copy of it dies at each moment."""
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, "-c", KILLED, str(tmp_path), *MOMENTS],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,  # against a hang alone: a busy machine takes minutes to import torch
        check=False,
    )
    killed = [f"{moment} {-signal.SIGKILL}" for moment in MOMENTS]
    assert done.stdout.splitlines() == killed, done.stderr
    assert list(tmp_path.rglob("*.safetensors")) == []
    for moment in MOMENTS:
        train = Trainer()
        stored = Store(tmp_path / moment).network("inverter", {"seed": 0}, train)
        assert train.calls == 1
        assert same_bits(stored.module, inverter(seed=1))


def test_records_are_one_json_object_per_line(tmp_path):
    records = [{"a": 1, "b": [0.1, None]}, {"a": "é"}]
    write_json_lines(tmp_path / "new" / "records.jsonl", records)
    lines = (tmp_path / "new" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


@looped("value", [float("nan"), float("inf"), object()])
def test_records_that_are_not_json_are_not_written_even_in_part(tmp_path, value):
    write_json_lines(tmp_path / "records.jsonl", [{"a": 1}])
    with pytest.raises((ValueError, TypeError), match="JSON"):
        write_json_lines(tmp_path / "records.jsonl", [{"a": 2}, {"a": value}])
    assert (tmp_path / "records.jsonl").read_text() == '{"a": 1}\n'
    assert files_in(tmp_path) == ["records.jsonl"]


COLUMNS = {
    "seed": [0, 0, 1, 2**40],
    "attacker": ["static", "retrained", "é", ""],
    "error": [0.1, 1 / 3, None, 2.0**-60],
    "rank": [None, 3, None, 0],
    "flipped": [True, False, None, True],
    "never": [None] * 4,
}


def test_queries_come_back_with_their_numbers_texts_and_gaps(tmp_path):
    path = tmp_path / "new" / "queries.parquet"
    write_queries(path, COLUMNS)
    table = parquet.read_table(path)
    assert table.to_pydict() == COLUMNS
    assert table.column_names == list(COLUMNS)
    kinds = {name: str(table.schema.field(name).type) for name in COLUMNS}
    assert kinds["rank"] == "int64"  # a gap makes no float of a count
    assert kinds["error"] == "double"
    assert files_in(tmp_path) == ["queries.parquet"]
    assert path.stat().st_mode & 0o777 == 0o644


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=False), st.none() | st.integers(-(2**63), 2**63 - 1)
        ),
        max_size=6,
    )
)
def test_numbers_and_gaps_come_back_to_the_last_digit(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("queries") / "queries.parquet"
    columns = {"error": [row[0] for row in rows], "rank": [row[1] for row in rows]}
    write_queries(path, columns)
    assert parquet.read_table(path).to_pydict() == columns


@looped(
    "columns",
    [{"a": [1, 2], "b": [1]}, {"a": [1, "one"]}, {"a": [1, object()]}],
    ids=["of two lengths", "of two kinds", "of no kind"],
)
def test_columns_that_are_no_table_are_not_written_even_in_part(tmp_path, columns):
    path = tmp_path / "queries.parquet"
    write_queries(path, {"a": [1]})
    with pytest.raises(ArrowInvalid):
        write_queries(path, columns)
    assert parquet.read_table(path).to_pydict() == {"a": [1]}
    assert files_in(tmp_path) == ["queries.parquet"]


def test_writing_queries_that_fails_on_the_way_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "queries.parquet"
    write_queries(path, {"a": [1]})

    def half(_, where):
        where.write_bytes(b"PAR1")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write_table", half)
        with pytest.raises(OSError, match="no space left"):
            write_queries(path, {"a": [2]})
    assert parquet.read_table(path).to_pydict() == {"a": [1]}
    assert files_in(tmp_path) == ["queries.parquet"]


def test_without_pyarrow_the_command_that_installs_it_is_named_and_nothing_written(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"'pyarrow'.*pip install 'oneway\[audit\]'"):
        write_queries(tmp_path / "queries.parquet", {"a": [1]})
    assert files_in(tmp_path) == []
