"""Files cut short are read whole or refused; files that cannot be written leave nothing behind."""

import json
import resource
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch

from oneway.data import load_queries, read_npz
from oneway.data.mnist import read_idx
from oneway.defenses import load_module, save_module
from oneway.defenses.codebook import CodebookRelease, FitSettings
from oneway.errors import OnewayError
from oneway.evaluation.store import read_json_lines, write_json_lines, write_queries
from oneway.files import atomic_file, read_tensors, write_npz, write_tensors
from oneway.inversion import Inverter
from oneway.report.figure import draw_reconstructions
from oneway.report.page.certificate import certificate_page
from oneway.report.page.render import write_page
from optional import later

Image = later("PIL.Image")
ARRAYS = {"images": np.random.default_rng(0).integers(2, 256, (6, 5, 4), dtype=np.uint8)}


def fitted():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(120, 3, generator=generator)
    return CodebookRelease.fit(
        logits, generator=generator, settings=FitSettings(min_members=5), held_out=0.5
    )


@pytest.fixture(scope="module")
def writers():
    """What writes each kind of file, by its suffix."""
    book, network = fitted(), Inverter(3, (1, 8, 8), width=2)
    picture = {"truth": ARRAYS["images"][:, None] / 255}
    return {
        "npz": lambda path: write_npz(path, ARRAYS),
        "tensors": lambda path: write_tensors(path, {"a": torch.ones(9)}, {"b": [1, 2]}),
        "network": lambda path: save_module(path, network, "inverter", {}),
        "codebook": book.save,
        "jsonl": lambda path: write_json_lines(path, [{"a": 1}, {"b": ["text"] * 9}]),
        "parquet": lambda path: write_queries(path, {"a": list(range(99))}),
        "png": lambda path: draw_reconstructions(picture, path.with_suffix(".png"), "title"),
        "html": lambda path: write_page(path, certificate_page(book.certificate, "guard")),
    }


def npy(path):
    with path.open("wb") as file:
        np.save(file, ARRAYS["images"])


def idx(path):
    images = ARRAYS["images"]
    path.write_bytes(
        b"\0\0\x08\x03" + b"".join(s.to_bytes(4) for s in images.shape) + images.tobytes()
    )


def image(kind):
    def write(path):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(ARRAYS["images"][0]).convert("RGB").save(path, kind)

    return write


IMAGE_KINDS = ("BMP", "GIF", "JPEG", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")


def test_a_file_cut_short_anywhere_is_read_as_it_was_or_refused(writers, tmp_path):
    readers = {
        "npz": (writers["npz"], lambda path: read_npz(path)["images"].tolist()),
        "npy": (npy, lambda path: read_npz(path)["array"].tolist()),
        "idx": (idx, lambda path: read_idx(path).tolist()),
        "tensors": (writers["tensors"], lambda path: read_tensors(path, "thing", "Remedy.")[1]),
        "network": (writers["network"], lambda path: load_module(path).kind),
        "jsonl": (writers["jsonl"], read_json_lines),
    }
    for kind in IMAGE_KINDS:
        read = (image(kind), lambda path: load_queries(path.parent).images.tolist())
        readers[f"images/{kind}.{kind.lower()}"] = read
    for kind, (write, read) in readers.items():
        path = tmp_path / kind
        path.parent.mkdir(exist_ok=True)
        write(path)
        whole, content = read(path), path.read_bytes()
        lengths = {*range(0, 40, 8), *range(0, len(content), len(content) // 9), len(content) - 1}
        for length in sorted(lengths):
            path.write_bytes(content[:length])
            with suppress(OnewayError):
                got = read(path)
                # JSON Lines that end with a line are whole lines.
                assert got == whole or (kind == "jsonl" and got == whole[: len(got)]), (
                    kind,
                    length,
                )
        path.unlink()


def test_a_header_that_claims_what_no_memory_holds_is_refused(tmp_path):
    for shape, text in (
        ((10**14,), "holds, or claims to hold, more numbers than memory"),  # no address space
        ((10**12,), r"(holds, or claims|is not an \.npy)"),
        ((2**40, 2**30), r"(holds, or claims|is not an \.npy)"),  # more than 64 bits count
    ):
        with (tmp_path / "huge.npy").open("wb") as file:
            header = {"descr": "<f8", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        with pytest.raises(OnewayError, match=rf"huge\.npy {text}"):
            read_npz(tmp_path / "huge.npy")


def test_json_of_a_hundred_thousand_brackets_is_refused(tmp_path):
    from safetensors.torch import save_file

    path, deep = tmp_path / "deep", "[" * 100_000
    save_file({"a": torch.zeros(1)}, path, metadata={"oneway": deep})
    for read in (CodebookRelease.load, load_module):
        with pytest.raises(OnewayError, match="RecursionError"):
            read(path)
    path.write_text(json.dumps({"a": 1}) + "\n" + deep)
    with pytest.raises(OnewayError, match=r"line 2 of .* is not JSON"):
        read_json_lines(path)


@contextmanager
def files_of_at_most(size):
    """Let no file grow beyond so many bytes, as a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(writers, tmp_path):
    for kind, write in writers.items():
        folder = tmp_path / kind
        path = folder / f"file.{kind}"
        write(path)
        (made,) = folder.iterdir()
        length = made.stat().st_size
        made.write_text("old")
        for size in (0, length // 2, length - 1):
            with files_of_at_most(size), pytest.raises(OSError):  # noqa: PT011  of any kind
                write(path)
            assert [each.name for each in folder.iterdir()] == [made.name], (kind, size)
            assert made.read_text() == "old", (kind, size)
        with files_of_at_most(length):
            write(path)
        assert made.stat().st_size == length


def test_what_fails_when_it_comes_to_the_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"), atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert list(tmp_path.iterdir()) == []
