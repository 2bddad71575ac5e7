"""Queries: every layout that images come in, and what is refused and how."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oneway.data import load_dataset, load_queries, scale_images
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    MissingDataError,
    MissingExtraError,
)

Image = pytest.importorskip("PIL.Image")


def pixels_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return pixels


def npz(folder, **arrays):
    np.savez(folder / "some.npz", **arrays)
    return folder / "some.npz"


def as_images(pixels):
    """Return uint8 pixels ``(N, C, H, W)`` as they are to come back."""
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))


def assert_loaded(images, pixels):
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert torch.equal(images, as_images(pixels))


LAYOUTS = {
    "no channel": ((5, 4, 6), lambda stored: stored[:, None]),
    "one channel first": ((5, 1, 4, 6), lambda stored: stored),
    "three channels first": ((5, 3, 4, 6), lambda stored: stored),
    "one channel last": ((5, 4, 6, 1), lambda stored: stored.transpose(0, 3, 1, 2)),
    "three channels last": ((5, 4, 6, 3), lambda stored: stored.transpose(0, 3, 1, 2)),
    "other channels first": ((5, 7, 4, 6), lambda stored: stored),
    "first, and as wide as three": ((5, 3, 4, 3), lambda stored: stored),
    "one image": ((1, 4, 6), lambda stored: stored[:, None]),
}


def test_every_layout_and_type_of_an_array_becomes_the_same_images(tmp_path):
    for layout, (shape, expected) in LAYOUTS.items():
        pixels = pixels_of(*shape)
        wanted = expected(pixels)
        for kind in (np.uint8, np.float16, np.float32, np.float64):
            stored = pixels if kind == np.uint8 else (pixels / 255).astype(kind)
            queries = load_queries(npz(tmp_path, images=stored))
            assert queries.images.shape == wanted.shape, layout
            error = 1e-3 if kind == np.float16 else 1e-7
            torch.testing.assert_close(queries.images, as_images(wanted), rtol=error, atol=error)
            assert queries.images.dtype == torch.float32
            assert (queries.labels, queries.names) == (None, None)


def test_bytes_are_divided_by_255_and_floats_left_as_they_are(tmp_path):
    ends = np.array([[[0, 255]]], np.uint8)
    assert load_queries(npz(tmp_path, images=ends)).images.flatten().tolist() == [0, 1]
    floats = np.array([[[0, 0.25, 1]]], np.float32)
    assert load_queries(npz(tmp_path, images=floats)).images.flatten().tolist() == [0, 0.25, 1]


def test_labels_of_an_array_come_along_as_whole_numbers(tmp_path):
    for kind in (np.uint8, np.int32, np.int64, np.uint16):
        labels = np.array([3, 0, 3], kind)
        queries = load_queries(npz(tmp_path, images=pixels_of(3, 4, 4), labels=labels))
        assert queries.labels.dtype == torch.int64
        assert queries.labels.tolist() == [3, 0, 3]
        assert queries.names is None


def test_any_byte_order_and_width_of_floats_is_read(tmp_path):
    floats = np.array([[[0, 0.25, 1]]])
    for kind in (">f2", ">f4", ">f8", np.longdouble):
        queries = load_queries(npz(tmp_path, images=floats.astype(kind)))
        assert queries.images.flatten().tolist() == [0, 0.25, 1]


def test_masks_of_bool_are_black_and_white_and_those_of_bytes_are_asked_about(tmp_path):
    masks = pixels_of(5, 4, 4) > 127
    assert torch.equal(load_queries(npz(tmp_path, images=masks)).images[:, 0] > 0.5,
                       torch.from_numpy(masks))  # fmt: skip
    text = "all of their values are below 32. Scale them to 255, .* masks .* as bool"
    for load in (load_queries, lambda path: load_dataset("npz", path=str(path))):
        with pytest.raises(CorruptDataError, match=text):
            load(npz(tmp_path, images=masks.astype(np.uint8)))
        with pytest.raises(CorruptDataError, match=text):
            load(npz(tmp_path, images=16 * masks.astype(np.uint8)))
        load(npz(tmp_path, images=32 * masks.astype(np.uint8)))
        load(npz(tmp_path, images=0 * masks.astype(np.uint8)))


def test_a_layout_that_the_shape_leaves_open_is_told(tmp_path):
    for shape, open_ in (
        ((2, 3, 4, 3), True),
        ((2, 1, 28, 1), True),
        ((2, 7, 4, 6), True),
        ((2, 4, 8, 8), True),
        ((2, 3, 4, 5), False),
        ((2, 4, 5, 3), False),
        ((2, 4, 5), False),
    ):
        notes = load_queries(npz(tmp_path, images=pixels_of(*shape))).notes
        read = f"({', '.join(map(str, shape))}) are read as (N, C, H, W): {shape[1]} channels"
        assert (len(notes), read in "".join(notes)) == ((1, True) if open_ else (0, False)), shape


def test_labels_may_be_texts_and_classes_may_have_names(tmp_path):
    images = pixels_of(3, 4, 4)
    texts = np.array(["fox", "cat", "fox"])
    queries = load_queries(npz(tmp_path, images=images, labels=texts))
    assert (queries.names, queries.labels.tolist()) == (("cat", "fox"), [1, 0, 1])
    names = np.array(["fox", "dog", "cat"])
    queries = load_queries(npz(tmp_path, images=images, labels=texts, names=names))
    assert (queries.names, queries.labels.tolist()) == (("fox", "dog", "cat"), [0, 2, 0])
    numbers = np.array([2, 0, 2])
    queries = load_queries(npz(tmp_path, images=images, labels=numbers, names=names))
    assert (queries.names, queries.labels.tolist()) == (("fox", "dog", "cat"), [2, 0, 2])
    for labels, few in ((texts, ["fox", "dog"]), (numbers, ["fox", "dog"])):
        with pytest.raises(CorruptDataError, match=r"among its 2 names, but [12] of 3 are not"):
            load_queries(npz(tmp_path, images=images, labels=labels, names=np.array(few)))


def test_arrays_that_are_no_images_are_refused_by_name_with_the_remedy(tmp_path):
    for images, message in (
        (np.zeros((5, 8), np.uint8), r"\(N, H, W\), .*but are uint8 of shape \(5, 8\)"),
        (np.zeros((5, 1, 1, 8, 8), np.uint8), r"of shape \(5, 1, 1, 8, 8\)"),
        (np.zeros((5, 8, 8), np.int64), r"uint8, bool or floats .*but are int64 .*Divide"),
        (np.zeros((5, 8, 8), np.uint16), "but are uint16"),
        (np.zeros((5, 8, 8), ">u2"), "but are uint16"),
        (np.zeros((5, 8, 8, 4), np.uint8), r"1 or 3 channels .*alpha .*images\[\.\.\., :-1\]"),
        (np.zeros((5, 8, 8, 2)), r"1 or 3 channels .*alpha"),
        (np.zeros((5, 8, 8), complex), "but are complex128"),
        (np.array(["a", "b"]), "but are <U1"),
        (np.full((5, 8, 8), 255.0), r"lie in \[0, 1\].*Divide .* or store uint8"),
        (np.full((5, 8, 8), -1e-3), r"lie in \[0, 1\]"),
        (np.full((5, 8, 8), np.nan), "5 of 5 images hold NaN"),
        (np.full((5, 8, 8), np.inf), r"lie in \[0, 1\]"),
    ):
        with pytest.raises(CorruptDataError, match=rf"images of .*some\.npz must .*{message}"):
            load_queries(npz(tmp_path, images=images))


def test_labels_that_do_not_fit_are_refused(tmp_path):
    for labels, message in (
        (np.zeros(2, np.int64), r"shape \(3,\), one per image, but are int64 of shape \(2,\)"),
        (np.zeros((3, 1), np.int64), r"but are int64 of shape \(3, 1\)"),
        (np.zeros(3), "must be integers of at least 0, or texts, .*but are float64"),
        (np.array([0, -1, 2]), "integers of at least 0"),
        (np.array([b"a", b"b", b"c"]), "but are |S1"),
    ):
        with pytest.raises(CorruptDataError, match=rf"labels of .*some\.npz .*{message}"):
            load_queries(npz(tmp_path, images=pixels_of(3, 4, 4), labels=labels))


def test_a_file_without_images_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(CorruptDataError, match="an array named images, but holds x, y"):
        load_queries(npz(tmp_path, y=np.zeros(2), x=np.zeros(2)))
    np.save(tmp_path / "bare.npy", pixels_of(3, 4, 4))
    with pytest.raises(CorruptDataError, match="named images, but holds array"):
        load_queries(tmp_path / "bare.npy")


def test_a_path_with_nothing_there_is_refused_with_what_lies_beside_it(tmp_path):
    npz(tmp_path, images=pixels_of(3, 4, 4))
    with pytest.raises(MissingDataError, match=r"no file .*absent\.npz.*has some\.npz"):
        load_queries(tmp_path / "absent.npz")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "page.npz").write_text("a page")
    with pytest.raises(CorruptDataError, match=r"page\.npz is not an \.npy or \.npz file"):
        load_queries(tmp_path / "page.npz")


def test_a_flat_folder_is_its_images_in_the_order_of_their_names_without_labels(tmp_path):
    pixels = [save(tmp_path / name, pixels_of(4, 6, seed=row))
              for row, name in enumerate(("a.png", "b.BMP", "c.png"))]  # fmt: skip
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / ".hidden.png").write_text("not looked at")
    (tmp_path / ".cache").mkdir()
    queries = load_queries(tmp_path)
    assert_loaded(queries.images, np.stack(pixels)[:, None])
    assert (queries.labels, queries.names) == (None, None)


def test_folders_are_classes_numbered_by_their_sorted_names(tmp_path, monkeypatch):
    listed = Path.iterdir
    # A file system may list its entries in any order.
    monkeypatch.setattr(Path, "iterdir", lambda path: sorted(listed(path), reverse=True))
    order = [("birch", "1.png"), ("ash", "2.png"), ("birch", "0.png"), ("cedar", "3.png")]
    pixels = {
        place: save(tmp_path / place[0] / place[1], pixels_of(4, 6, seed=row))
        for row, place in enumerate(order)
    }
    queries = load_queries(tmp_path)
    assert_loaded(queries.images, np.stack([pixels[place] for place in sorted(order)])[:, None])
    assert queries.labels.tolist() == [0, 1, 1, 2]
    assert queries.labels.dtype == torch.int64
    assert queries.names == ("ash", "birch", "cedar")


def test_a_class_without_images_keeps_its_number(tmp_path):
    save(tmp_path / "birch" / "a.png", pixels_of(4, 6))
    (tmp_path / "ash").mkdir()
    queries = load_queries(tmp_path)
    assert queries.labels.tolist() == [1]
    assert queries.names == ("ash", "birch")


def test_color_images_are_decoded_in_color_channel_first(tmp_path):
    pixels = np.stack([save(tmp_path / f"{row}.png", pixels_of(4, 6, 3, seed=row))
                       for row in range(3)])  # fmt: skip
    assert_loaded(load_queries(tmp_path).images, pixels.transpose(0, 3, 1, 2))
    assert_loaded(load_queries(tmp_path, channels=3).images, pixels.transpose(0, 3, 1, 2))


def test_gray_is_asked_for_of_color_images_by_the_weights_of_itu_r_601(tmp_path):
    pixels = save(tmp_path / "a.png", pixels_of(4, 6, 3)).astype(float)
    exact = pixels @ np.array([0.299, 0.587, 0.114])
    gray = load_queries(tmp_path, channels=1).images
    assert gray.shape == (1, 1, 4, 6)
    assert np.abs(255 * gray[0, 0].numpy() - exact).max() <= 0.51


def test_color_is_asked_for_of_gray_images_as_three_channels_alike(tmp_path):
    pixels = save(tmp_path / "a.png", pixels_of(4, 6))
    assert_loaded(load_queries(tmp_path, channels=3).images, np.stack([pixels] * 3)[None])


def test_an_image_in_color_makes_all_be_read_in_color_wherever_it_stands(tmp_path):
    ends = np.where(pixels_of(4, 6) < 128, 0, 255).astype(np.uint8)
    for mode, suffix, channels in (
        ("1", "png", 1),
        ("L", "png", 1),
        ("LA", "png", 1),
        ("RGB", "png", 3),
        ("RGBA", "png", 3),
        ("P", "png", 3),
        ("CMYK", "tif", 3),
    ):
        folder = tmp_path / mode
        folder.mkdir()
        save(folder / "a.png", ends)
        Image.fromarray(ends).convert("RGB").convert(mode).save(folder / f"b.{suffix}")
        images = load_queries(folder).images
        assert images.shape == (2, channels, 4, 6), mode
        # Black and white mean the same in every mode.
        for row in range(2):
            assert_loaded(images[row : row + 1], np.stack([ends] * channels)[None])


def test_a_size_brings_images_of_any_size_to_it_as_data_sets_are_scaled(tmp_path):
    tall, wide = pixels_of(6, 4), pixels_of(3, 4, seed=1)
    save(tmp_path / "a.png", tall)
    save(tmp_path / "b.png", wide)
    size = (3, 2)  # height first
    expected = np.stack([scale_images(pixels[None], size) for pixels in (tall, wide)])
    assert_loaded(load_queries(tmp_path, size=size).images, expected)
    assert_loaded(load_queries(tmp_path, size=size, channels=3).images, expected.repeat(3, 1))


def test_images_of_the_size_that_is_asked_for_are_left_as_they_are(tmp_path):
    pixels = save(tmp_path / "a.png", pixels_of(4, 6))
    assert_loaded(load_queries(tmp_path, size=(4, 6)).images, pixels[None, None])
    # One on its side has as many pixels, but not that size.
    assert load_queries(tmp_path, size=(6, 4)).images.shape == (1, 1, 6, 4)


def test_images_of_several_sizes_are_refused_with_the_remedy(tmp_path):
    save(tmp_path / "ash" / "a.png", pixels_of(4, 6))
    save(tmp_path / "birch" / "b.png", pixels_of(4, 7))
    text = r"ash/a\.png is \(4, 6\) and .*birch/b\.png is \(4, 7\)\. Scale all to one: --size"
    with pytest.raises(InvalidOptionError, match=text):
        load_queries(tmp_path)


def test_sizes_and_channels_that_no_image_has_are_refused_before_anything_is_read(tmp_path):
    for channels in (0, 2, 4):
        with pytest.raises(InvalidOptionError, match=f"must be 1 or 3, but got {channels}"):
            load_queries(tmp_path / "absent", channels=channels)
    for size in ((0, 4), (4, 0), (-1, 4)):
        with pytest.raises(InvalidOptionError, match="must be at least 1 pixel"):
            load_queries(tmp_path / "absent", size=size)


def test_a_folder_of_images_and_folders_is_refused_with_the_remedy(tmp_path):
    save(tmp_path / "a.png", pixels_of(4, 6))
    save(tmp_path / "ash" / "b.png", pixels_of(4, 6))
    with pytest.raises(InvalidOptionError, match=r"images and folders\. Give one that holds"):
        load_queries(tmp_path)


def test_a_folder_without_images_is_refused_with_what_would_be_read(tmp_path):
    with pytest.raises(MissingDataError, match=r"has no images\. .*\.bmp, .*\.webp"):
        load_queries(tmp_path)
    (tmp_path / "ash").mkdir()
    (tmp_path / "ash" / "notes.txt").write_text("none yet")
    with pytest.raises(MissingDataError, match="has no images"):
        load_queries(tmp_path)


def test_progress_is_reported_until_all_is_done(tmp_path):
    for row in range(4):
        save(tmp_path / f"{row}.png", pixels_of(4, 6))
    reports = []
    load_queries(tmp_path, report=lambda *report: reports.append(report))
    assert reports == [(f"decoding {tmp_path.name}", share) for share in (0.25, 0.5, 0.75, 1)]


def test_without_pillow_the_command_that_installs_it_is_named_and_arrays_load(
    tmp_path, monkeypatch
):
    save(tmp_path / "images" / "a.png", pixels_of(4, 6))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"'pillow'.*pip install 'oneway\[images\]'"):
        load_queries(tmp_path / "images")
    assert load_queries(npz(tmp_path, images=pixels_of(3, 4, 4))).images.shape == (3, 1, 4, 4)
