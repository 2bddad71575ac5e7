"""Scores and queries in .npy and .parquet files: the same results, in little memory."""

import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import oneway
from oneway.cli.main import app
from oneway.data.mapped import map_npy, spool_parquet
from oneway.defenses.codebook import certify
from oneway.errors import CorruptDataError
from oneway.interface import read_scores
from oneway.metrics import intervals
from optional import later

ROWS, WIDTH = 4000, 1500


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same scores and queries in files of each kind."""
    folder, draw = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    scores = (draw.normal(size=(ROWS, 4)) * 3).astype(np.float32)
    queries = draw.random((ROWS, 1, 1, WIDTH), np.float32)
    np.save(folder / "scores.npy", scores)
    np.save(folder / "queries.npy", queries)
    np.savez(folder / "scores.npz", logits=scores)
    arrow, parquet = later("pyarrow"), later("pyarrow.parquet")
    lists = arrow.FixedSizeListArray.from_arrays(scores.ravel(), 4)
    ragged = arrow.array([row.tolist() for row in scores])
    parquet.write_table(arrow.table({"logits": lists}), folder / "scores.parquet")
    parquet.write_table(arrow.table({"logits": ragged}), folder / "lists.parquet")
    return folder


def test_all_files_hold_the_same_scores(stored):
    wanted = read_scores(stored / "scores.npz").logits
    for name, outputs in (
        ("scores.npy", "logits"),
        ("scores.parquet", None),
        ("lists.parquet", None),
    ):
        assert torch.equal(read_scores(stored / name, outputs=outputs).logits, wanted), name
    # What is written to a mapped array never reaches its file.
    mapped = read_scores(stored / "scores.npy", outputs="logits").logits
    mapped.zero_()
    assert torch.equal(read_scores(stored / "scores.npy", outputs="logits").logits, wanted)


def test_commands_take_parquet_and_mapped_queries(stored, tmp_path):
    guard = tmp_path / "guard.safetensors"
    for command in (
        ["codebook", str(stored / "scores.parquet"), "--out", str(guard)],
        ["certify", str(guard), str(stored / "scores.npy"), "--outputs", "logits"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    same = oneway.fit_codebook(stored / "scores.npz")
    assert oneway.CodebookRelease.load(guard).state.digest() == same.state.digest()


def test_what_no_parquet_file_of_scores_is_is_refused(tmp_path):
    arrow, parquet = later("pyarrow"), later("pyarrow.parquet")
    path = tmp_path / "bad.parquet"
    for rows in ([[1.0, 2.0], [3.0]], [[1.0, 2.0], None], [[1.0, None], [2.0, 3.0]], [[], []]):
        parquet.write_table(
            arrow.table({"logits": arrow.array(rows, arrow.list_(arrow.float64()))}), path
        )
        with pytest.raises(CorruptDataError, match="lists of numbers"):
            spool_parquet(path, ("logits",))
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(CorruptDataError, match=r"no \.parquet file"):
        spool_parquet(path, ("logits",))
    assert map_npy(path) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's limit on data")
def test_certifying_mapped_queries_takes_a_fraction_of_their_memory(stored, monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS_AT_ONCE", 2**14)  # the same for any number of queries
    scores = read_scores(stored / "scores.npz").logits
    guard = oneway.fit_codebook(scores, outputs="logits")
    small = np.load(stored / "queries.npy", mmap_mode="r")[:400].copy()
    certify(guard.state, scores[:400], torch.from_numpy(small))  # loads what is loaded once
    size = (stored / "queries.npy").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    # The mapping counts as data that may be written: it is allowed once, and 60 % of it besides.
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(1.6 * size), before[1]))
    try:
        queries = torch.from_numpy(map_npy(stored / "queries.npy"))
        found = certify(guard.state, scores, queries)
        with pytest.raises((MemoryError, RuntimeError)):
            torch.cat([queries.flatten(1), queries.flatten(1)])
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert found.error is not None
