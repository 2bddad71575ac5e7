"""Arrays in .npz files: what is taken as a data set, what is refused, and how they are read."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from laws import looped
from oneway.data import load_dataset, read_npz
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
LABELS = np.random.default_rng(1).permutation(np.arange(10) % 3).astype(np.uint8)


class Trap:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@looped("save", [np.save, np.savez], ids=["npy", "npz"])
def test_pickled_objects_are_refused_and_never_unpickled(tmp_path, save):
    path = tmp_path / "objects"
    sprung = tmp_path / f"sprung by {save.__name__}"
    with path.open("wb") as file:
        save(file, np.array([Trap(sprung)], dtype=object))
    with pytest.raises(CorruptDataError, match=r"not an \.npy or \.npz file of plain arrays"):
        read_npz(path)
    with pytest.raises(CorruptDataError, match=r"store texts with `\.astype\(str\)`"):
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
        MissingDataError, match=r"no file .*images\.npz\. Check the path\. .*has scores\.npy"
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


@looped(
    "write",
    [truncated, damaged, zip_of_text, Path.touch, lambda path: path.write_text("a page")],
    ids=["truncated", "damaged", "zip of text", "empty", "a page"],
)
def test_a_file_that_is_not_npz_is_refused(tmp_path, write):
    path = tmp_path / "images.npz"
    write(path)
    with pytest.raises(CorruptDataError, match=r"images\.npz is not an \.npy or \.npz file"):
        read_npz(path)


def load(folder, **arrays):
    np.savez(folder / "some.npz", **arrays)
    return load_dataset("npz", folder, path="some.npz")


@looped("channel", [False, True], ids=["no channel axis", "one channel"])
def test_every_array_comes_back(tmp_path, channel):
    dataset = load(
        tmp_path,
        images=IMAGES[:, None] if channel else IMAGES,
        labels=LABELS,
        names=["ash", "birch", "cedar"],
        is_test=(LABELS == 1).astype(np.uint8),
        files=np.arange(4),
    )
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    np.testing.assert_array_equal(dataset.is_test, LABELS == 1)
    assert (dataset.labels.dtype, dataset.is_test.dtype) == (np.int64, np.bool_)
    assert dataset.names == ("ash", "birch", "cedar")
    assert (dataset.name, dataset.num_classes) == ("npz", 3)


def test_images_alone_are_all_of_one_class(tmp_path):
    dataset = load(tmp_path, images=IMAGES)
    assert dataset.labels.tolist() == [0] * len(IMAGES)
    assert dataset.labels.dtype == np.int64
    assert (dataset.is_test, dataset.names, dataset.num_classes) == (None, None, 1)


def test_the_path_may_be_absolute_with_or_without_a_data_root(tmp_path):
    np.savez(tmp_path / "some.npz", images=IMAGES)
    for root in (None, tmp_path / "elsewhere"):
        dataset = load_dataset("npz", root, path=str(tmp_path / "some.npz"))
        np.testing.assert_array_equal(dataset.images, IMAGES)


def test_no_path_is_refused(tmp_path):
    with pytest.raises(InvalidOptionError, match="'npz' needs a path, but got none"):
        load_dataset("npz", tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"no file .*some\.npz"):
        load_dataset("npz", tmp_path, path="some.npz")


@looped(
    ("changed", "text"),
    [
        ({"images": IMAGES / 255}, r"uint8 of shape .* but are float64 of shape \(10, 28, 28\)"),
        ({"images": IMAGES[0]}, r"but are uint8 of shape \(28, 28\)"),
        ({"images": np.stack([IMAGES] * 3, 1)}, r"but are uint8 of shape \(10, 3, 28, 28\)"),
        ({"images": np.stack([IMAGES] * 3, 3)}, r"but are uint8 of shape \(10, 28, 28, 3\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"uint8 of shape \(0, 28, 28\)"),
        ({"images": IMAGES[:, :, :0]}, r"uint8 of shape \(10, 28, 0\)"),
        ({"labels": LABELS[:-1]}, r"labels .* shape \(10,\), .* but are uint8 of shape \(9,\)"),
        ({"labels": LABELS[:, None]}, r"labels .* but are uint8 of shape \(10, 1\)"),
        ({"labels": LABELS.astype(float)}, "labels .* integers .* but are float64"),
        ({"labels": LABELS == 0}, "labels .* integers .* but are bool"),
        ({"labels": LABELS + 1}, "3 classes stand between 1 and 3.*return_inverse"),
        ({"labels": LABELS * 2}, "3 classes stand between 0 and 4.*auxiliary"),
        ({"labels": LABELS.astype(int) - 1}, "labels .* integers of at least 0"),
        ({"labels": np.array(["a", "b", "c"])[LABELS], "names": ["a", "b"]}, "3 of 10 are not"),
        ({"labels": LABELS % 2, "names": ["a", "b", "c"]}, "3 names, .* images of 2 classes"),
        ({"names": ["ash", "birch"]}, "must be among its 2 names, but 3 of 10 are not"),
        ({"names": [1, 2, 3]}, "names .* texts, .* but are int64"),
        ({"names": ["ash", "ash", "fir"]}, "names .* different texts"),
        ({"is_test": LABELS[1:] == 1}, r"is_test .* bool of shape \(10,\), .* shape \(9,\)"),
        ({"is_test": LABELS}, "is_test .* must be bool .* but is uint8"),
        ({"is_test": (LABELS == 1).astype(float)}, "is_test .* must be bool .* but is float64"),
    ],
)
def test_arrays_that_make_no_data_set_are_refused_with_the_reason(tmp_path, changed, text):
    with pytest.raises(CorruptDataError, match=text):
        load(tmp_path, **({"images": IMAGES, "labels": LABELS} | changed))


@looped(
    ("arrays", "held"), [({"pixels": IMAGES, "labels": LABELS}, "labels, pixels"), ({}, "nothing")]
)
def test_a_file_without_images_is_refused_with_what_it_holds(tmp_path, arrays, held):
    with pytest.raises(CorruptDataError, match=rf"an array named images, but holds {held}\."):
        load(tmp_path, **arrays)


@looped("changed", [{}, {"labels": LABELS * 2}, {"labels": LABELS.astype(float)}])
def test_labels_that_are_not_wanted_are_not_looked_at(tmp_path, changed):
    arrays = {"images": IMAGES, "labels": LABELS, "names": ["ash", "birch"]} | changed
    np.savez(tmp_path / "some.npz", **arrays)
    dataset = load_dataset("npz", tmp_path, path="some.npz", labelled=False)
    np.testing.assert_array_equal(dataset.images, IMAGES)
    assert dataset.labels.tolist() == [0] * len(IMAGES)
    assert (dataset.names, dataset.num_classes) == (None, 1)


def test_an_auxiliary_set_is_without_the_people_of_the_private_one(tmp_path):
    images = 16 * np.arange(4 * 4, dtype=np.uint8).reshape(4, 2, 2)
    marks = np.array([True, False, True, False])
    np.savez(tmp_path / "faces.npz", images=images, labels=np.array([7, 7, 9, 3]), disjoint=marks)
    dataset = load_dataset("npz", tmp_path, path="faces.npz", labelled=False)
    assert np.array_equal(dataset.images, images[[0, 2]])
    assert np.array_equal(dataset.labels, [0, 0])
    assert dataset.notes == ("2 of 4 images are not marked as disjoint, and left out.",)
    assert dataset.num_classes == 1


def test_a_private_set_is_read_whole_whatever_is_marked(tmp_path):
    images = 32 * np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2)
    marks = np.array([True, False])
    np.savez(tmp_path / "faces.npz", images=images, labels=np.array([0, 1]), disjoint=marks)
    assert len(load_dataset("npz", tmp_path, path="faces.npz").images) == 2


@looped("marks", [np.zeros(2, np.bool_), np.ones(3, np.bool_), np.array([0.5, 1])])
def test_marks_that_say_nothing_are_refused(tmp_path, marks):
    np.savez(tmp_path / "faces.npz", images=np.zeros((2, 2, 2), np.uint8), disjoint=marks)
    with pytest.raises(CorruptDataError, match=r"disjoint of .* must be bool of shape \(2,\)"):
        load_dataset("npz", tmp_path, path="faces.npz", labelled=False)
