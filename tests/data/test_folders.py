"""Folders of images: which files are read, in which order, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

from oneway.data import load_dataset, load_queries, scale_images
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
    MissingExtraError,
)

Image = pytest.importorskip("PIL.Image")
GENERATOR = np.random.default_rng(0)


def pixels_of(height=4, width=6, channels=()):
    return GENERATOR.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def tree(tmp_path):
    """Two classes of gray images: the pixels in the order in which they should be read."""
    order = ["ash/a.png", "ash/b.BMP", "ash/c.pgm", "birch/0.png", "birch/a.tif"]
    # Written last to first, so that the order of writing is not the order of reading.
    written = {name: save(tmp_path / name, pixels_of()) for name in reversed(order)}
    return tmp_path, np.stack([written[name] for name in order])


def test_classes_and_images_stand_in_the_order_of_their_names(tree, monkeypatch):
    folder, expected = tree
    listed = Path.iterdir  # in an order that is the file system's own
    for backwards in (False, True):
        monkeypatch.setattr(
            Path, "iterdir", lambda at, back=backwards: iter(sorted(listed(at), reverse=back))
        )
        dataset = load_dataset("folder", folder)
        np.testing.assert_array_equal(dataset.images, expected)
        assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
        assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int64)
        assert (dataset.name, dataset.is_test, dataset.num_classes) == ("folder", None, 2)
        assert dataset.names == ("ash", "birch")


def test_the_folder_may_be_named_by_a_path(tree):
    folder, expected = tree
    for path in (str(folder), folder.name):
        dataset = load_dataset("folder", folder.parent, path=path)
        np.testing.assert_array_equal(dataset.images, expected)


def test_files_that_are_no_images_and_hidden_ones_are_not_looked_at(tree):
    folder, expected = tree
    for name in ("ash/notes.txt", "ash/Thumbs.db", "ash/._a.png", "list.csv", ".cache/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not an image")
    np.testing.assert_array_equal(load_dataset("folder", folder).images, expected)


def test_colors_become_gray_by_the_weights_of_itu_r_601(tmp_path):
    colors = save(tmp_path / "ash" / "a.png", pixels_of(channels=(3,)))
    exact = colors @ np.array([0.299, 0.587, 0.114])
    gray = load_dataset("folder", tmp_path).images[0]
    assert np.abs(gray - exact).max() <= 0.51
    assert np.abs(colors.mean(-1) - exact).max() > 10  # so a plain mean would be seen


def test_every_mode_of_eight_bits_gives_the_gray_that_it_shows(tmp_path):
    # Black and white mean the same in every mode.
    gray = np.where(GENERATOR.random((4, 6)) < 0.5, 0, 255).astype(np.uint8)
    (tmp_path / "ash").mkdir()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        Image.fromarray(gray).convert("RGB").convert(mode).save(tmp_path / "ash" / "a.tif")
        np.testing.assert_array_equal(load_dataset("folder", tmp_path).images[0], gray, mode)


def test_more_than_eight_bits_are_refused_rather_than_cut_off(tree):
    folder, _ = tree
    for pixels in (np.uint16, np.int32, np.float32):
        save(folder / "ash" / "deep.tif", pixels_of().astype(pixels) * 200)
        for load in (lambda: load_dataset("folder", folder), lambda: load_queries(folder)):
            with pytest.raises(CorruptDataError, match=r"deep\.tif must have 8 bits.*Convert"):
                load()


def test_a_side_brings_images_of_any_size_to_one(tmp_path):
    shapes = [(4, 6), (8, 8), (3, 11)]
    images = [
        save(tmp_path / "ash" / f"{row}.png", pixels_of(*shape)) for row, shape in enumerate(shapes)
    ]
    for side in (2, 5):
        expected = np.concatenate([scale_images(image[None], side) for image in images])
        dataset = load_dataset("folder", tmp_path, side=side)
        np.testing.assert_array_equal(dataset.images, expected)


def test_images_of_several_sizes_are_refused_with_the_remedy(tree):
    folder, _ = tree
    save(folder / "birch" / "b.png", pixels_of(4, 7))
    text = r"ash/a\.png is \(4, 6\) and .*birch/b\.png is \(4, 7\)\. Pass a size"
    with pytest.raises(InvalidOptionError, match=text):
        load_dataset("folder", folder)


def test_a_class_without_an_image_is_refused_by_name(tree):
    folder, _ = tree
    (folder / "cedar").mkdir()
    (folder / "cedar" / "notes.txt").write_text("none yet")
    with pytest.raises(MissingDataError, match=r"'cedar' has no images \(\.bmp"):
        load_dataset("folder", folder)


def test_a_folder_without_folders_is_refused(tmp_path):
    save(tmp_path / "a.png", pixels_of())
    with pytest.raises(MissingDataError, match="a folder of images per class, but has no folders"):
        load_dataset("folder", tmp_path)


def test_a_file_that_cannot_be_decoded_is_refused_by_name(tree):
    folder, _ = tree
    path = folder / "birch" / "0.png"
    for damaged in (b"a page", b"", path.read_bytes()[:-40]):
        path.write_bytes(damaged)
        text = r"birch/0\.png is not an image that can be decoded.*Fetch it again"
        for load in (lambda: load_dataset("folder", folder), lambda: load_queries(folder)):
            with pytest.raises(CorruptDataError, match=text):
                load()


def test_an_image_of_more_pixels_than_memory_should_take_is_refused(tree, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(CorruptDataError, match=r"ash/a\.png .*DecompressionBombError"):
        load_dataset("folder", tree[0])


def test_progress_is_reported_until_all_is_done(tree):
    reports = []
    load_dataset("folder", tree[0], report=lambda *report: reports.append(report))
    stages, shares = zip(*reports, strict=True)
    assert set(stages) == {"decoding folder"}
    assert list(shares) == sorted(shares)
    assert shares[-1] == 1


def test_without_pillow_the_command_that_installs_it_is_named(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"'pillow'.*pip install 'oneway\[images\]'"):
        load_dataset("folder", tree[0])
