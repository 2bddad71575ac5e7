"""Scores in .npy and .parquet files, mapped or read in batches: the same, in little memory."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import oneway
from invoking import invoke
from oneway.data.mapped import map_npy, spool_parquet
from oneway.defenses.codebook import CodebookRelease, FitSettings, certify
from oneway.errors import CorruptDataError
from oneway.interface import read_scores
from optional import later

ROWS = 4000


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same scores in files of each kind."""
    folder, draw = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    scores = (draw.normal(size=(ROWS, 4)) * 3).astype(np.float32)
    np.save(folder / "scores.npy", scores)
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


def test_commands_take_parquet_and_mapped_scores(stored, tmp_path):
    guard = tmp_path / "guard.safetensors"
    for command in (
        ["codebook", str(stored / "scores.parquet"), "--out", str(guard)],
        ["certify", str(guard), str(stored / "scores.npy"), "--outputs", "logits"],
    ):
        done = invoke(*command)
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
    with pytest.raises(CorruptDataError, match=r"column named scores, .* logits\. .* as \.npy"):
        spool_parquet(path, ("scores",))
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(CorruptDataError, match=r"no \.parquet file"):
        spool_parquet(path, ("logits",))
    assert map_npy(path) is None


def memory(field):
    """This process's memory in bytes: VmRSS, now, or VmHWM, at its peak."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of a peak"
)
def test_fitting_and_certifying_mapped_queries_copies_them_nowhere(tmp_path):
    generator, path = torch.Generator().manual_seed(0), tmp_path / "queries.npy"
    scores = torch.randn(800, 3, generator=generator)
    shape = 800, 1, 150, 160
    stored = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for part in stored:
        part[:] = torch.rand(shape[1:], generator=generator)
    stored.flush()
    del stored
    settings = FitSettings(max_boxes=4, image_weight=1.0)
    book = CodebookRelease.fit(
        scores, torch.rand(800, 1, 1, 1), generator=generator, settings=settings
    )

    def peak_over_size(run):
        queries = torch.from_numpy(map_npy(path))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        run(queries)
        return (memory("VmHWM") - before) / path.stat().st_size

    # What is read of the mapped file counts once, and a copy once more. Between them lies what the
    # allocator keeps, a quarter to a half of so small a file.
    assert peak_over_size(lambda queries: certify(book.state, scores, queries)) < 1.8
    fit = {"generator": generator, "settings": settings}
    assert peak_over_size(lambda queries: CodebookRelease.fit(scores, queries, **fit)) < 1.8
    assert peak_over_size(lambda queries: queries.clone().sum()) > 1.8
