"""What holds for every data set: its name, where it is read from, and its size."""

import numpy as np
import pytest

from laws import looped
from oneway.data import DATASETS, load_dataset, scale_images
from oneway.errors import InvalidOptionError, MissingDataError, UnknownNameError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)


@looped(("name", "nearest"), [("mnits", "mnist"), ("digit", "digits")])
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    text = f"unknown data set '{name}'. Did you mean '{nearest}'.*Known: celeba, digits, .*mnist"
    with pytest.raises(UnknownNameError, match=text):
        load_dataset(name)


@looped("name", DATASETS)
def test_a_side_below_one_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(InvalidOptionError, match=r"sides .* at least 1 pixel, but got 0"):
        load_dataset(name, tmp_path / "absent", side=0)


@looped("name", ["digits", "mnist"])
def test_a_path_is_refused_where_the_place_is_known(tmp_path, name):
    with pytest.raises(InvalidOptionError, match=f"'{name}' takes no path, but got 'here'"):
        load_dataset(name, tmp_path, path="here")


READ_FROM_FOLDERS = {
    "celeba": "mmlab.ie.cuhk.edu.hk",
    "facescrub": "vintage.winklerbros.net",
    "folder": "a folder of images per class",
    "qmnist": "facebookresearch/qmnist",
}


@looped(("name", "origin"), READ_FROM_FOLDERS.items())
def test_without_a_folder_the_source_is_named(name, origin):
    with pytest.raises(MissingDataError, match=f"'{name}' is not downloaded.*{origin}"):
        load_dataset(name)


@looped(("name", "origin"), READ_FROM_FOLDERS.items())
@looped("path", [None, "deeper"])
def test_a_folder_that_is_not_there_is_named_with_the_source(tmp_path, name, origin, path):
    root = tmp_path / "absent"
    with pytest.raises(MissingDataError, match=f"but .*/absent.* is none.*{origin}") as caught:
        load_dataset(name, root, path=path)
    assert str(root / (path or "")) in str(caught.value)


@looped("side", [2, 3, 6, 9])
def test_a_side_scales_the_images_and_leaves_the_rest(tmp_path, side):
    labels = np.array([0, 1, 2, 1, 0])
    is_test = labels == 0
    np.savez(tmp_path / "some.npz", images=IMAGES, labels=labels, is_test=is_test)
    stored = load_dataset("npz", tmp_path, path="some.npz")
    scaled = load_dataset("npz", tmp_path, path="some.npz", side=side)
    np.testing.assert_array_equal(stored.images, IMAGES)
    np.testing.assert_array_equal(scaled.images, scale_images(IMAGES, side))
    for name in ("name", "num_classes", "names"):
        assert getattr(scaled, name) == getattr(stored, name)
    np.testing.assert_array_equal(scaled.labels, labels)
    np.testing.assert_array_equal(scaled.is_test, is_test)
