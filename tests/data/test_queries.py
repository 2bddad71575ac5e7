"""Queries: every layout that images come in, and what is refused and how."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oneway.data import load_queries
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


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("shape", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_and_type_of_an_array_becomes_the_same_images(tmp_path, shape, expected, kind):
    pixels = pixels_of(*shape)
    stored = pixels if kind == np.uint8 else (pixels / 255).astype(kind)
    queries = load_queries(npz(tmp_path, images=stored))
    wanted = expected(pixels)
    assert queries.images.shape == wanted.shape
    if kind == np.float16:
        torch.testing.assert_close(queries.images, as_images(wanted), rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(queries.images, as_images(wanted), rtol=1e-7, atol=1e-7)
    assert queries.images.dtype == torch.float32
    assert (queries.labels, queries.names) == (None, None)


def test_bytes_are_divided_by_255_and_floats_left_as_they_are(tmp_path):
    ends = np.array([[[0, 255]]], np.uint8)
    assert load_queries(npz(tmp_path, images=ends)).images.flatten().tolist() == [0, 1]
    floats = np.array([[[0, 0.25, 1]]], np.float32)
    assert load_queries(npz(tmp_path, images=floats)).images.flatten().tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint16])
def test_labels_of_an_array_come_along_as_whole_numbers(tmp_path, kind):
    labels = np.array([3, 0, 3], kind)
    queries = load_queries(npz(tmp_path, images=pixels_of(3, 4, 4), labels=labels))
    assert queries.labels.dtype == torch.int64
    assert queries.labels.tolist() == [3, 0, 3]
    assert queries.names is None


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((5, 8), np.uint8), r"\(N, H, W\), .*but are uint8 of shape \(5, 8\)"),
        (np.zeros((5, 1, 1, 8, 8), np.uint8), r"of shape \(5, 1, 1, 8, 8\)"),
        (np.zeros((5, 8, 8), np.int64), "uint8 or floats .*but are int64"),
        (np.zeros((5, 8, 8), np.uint16), "but are uint16"),
        (np.zeros((5, 8, 8), bool), "but are bool"),
        (np.zeros((5, 8, 8), complex), "but are complex128"),
        (np.array(["a", "b"]), "but are <U1"),
        (np.full((5, 8, 8), 255.0), r"lie in \[0, 1\].*Divide .* or store uint8"),
        (np.full((5, 8, 8), -1e-3), r"lie in \[0, 1\]"),
        (np.full((5, 8, 8), np.nan), r"lie in \[0, 1\]"),
        (np.full((5, 8, 8), np.inf), r"lie in \[0, 1\]"),
    ],
    ids=[
        "flat", "five axes", "int64", "uint16", "bool", "complex", "texts", "0 to 255", "below 0",
        "no number", "infinite",
    ],
)  # fmt: skip
def test_arrays_that_are_no_images_are_refused_by_name_with_the_remedy(tmp_path, images, message):
    with pytest.raises(CorruptDataError, match=rf"images of .*some\.npz must .*{message}"):
        load_queries(npz(tmp_path, images=images))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(2, np.int64), r"shape \(3,\), one per image, but are int64 of shape \(2,\)"),
        (np.zeros((3, 1), np.int64), r"but are int64 of shape \(3, 1\)"),
        (np.zeros(3), "must be integers of at least 0 .*but are float64"),
        (np.array([0, -1, 2]), "integers of at least 0"),
        (np.array(["a", "b", "c"]), "but are <U1"),
    ],
    ids=["too few", "another shape", "floats", "below 0", "texts"],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, message):
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


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("1", "png", 1),
        ("L", "png", 1),
        ("LA", "png", 1),
        ("RGB", "png", 3),
        ("RGBA", "png", 3),
        ("P", "png", 3),
        ("CMYK", "tif", 3),
    ],
)
def test_the_first_image_decides_whether_all_are_in_color(tmp_path, mode, suffix, channels):
    ends = np.where(pixels_of(4, 6) < 128, 0, 255).astype(np.uint8)
    Image.fromarray(ends).convert("RGB").convert(mode).save(tmp_path / f"a.{suffix}")
    save(tmp_path / "b.png", pixels_of(4, 6, 3))
    images = load_queries(tmp_path).images
    assert images.shape == (2, channels, 4, 6)
    # Black and white mean the same in every mode.
    assert_loaded(images[:1], np.stack([ends] * channels)[None])


def test_a_size_brings_images_of_any_size_to_it_height_first(tmp_path):
    tall, wide = pixels_of(6, 4), pixels_of(3, 4, seed=1)
    save(tmp_path / "a.png", tall)
    save(tmp_path / "b.png", wide)
    images = load_queries(tmp_path, size=(3, 2)).images
    assert images.shape == (2, 1, 3, 2)
    # Each new pixel is the mean of the area that it covers.
    expected = tall.reshape(3, 2, 2, 2).mean((1, 3)), wide.reshape(3, 2, 2).mean(-1)
    assert (
        np.abs(255 * images[:, 0].numpy() - np.stack(expected)).max() <= 1.01
    )  # rounded in each direction
    assert load_queries(tmp_path, size=(3, 2), channels=3).images.shape == (2, 3, 3, 2)


def test_images_of_the_size_that_is_asked_for_are_left_as_they_are(tmp_path):
    pixels = save(tmp_path / "a.png", pixels_of(4, 6))
    assert_loaded(load_queries(tmp_path, size=(4, 6)).images, pixels[None, None])
    # One on its side has as many pixels, but not that size.
    assert load_queries(tmp_path, size=(6, 4)).images.shape == (1, 1, 6, 4)


def test_images_of_several_sizes_are_refused_with_the_remedy(tmp_path):
    save(tmp_path / "ash" / "a.png", pixels_of(4, 6))
    save(tmp_path / "birch" / "b.png", pixels_of(4, 7))
    text = r"ash/a\.png is \(4, 6\) and .*birch/b\.png is \(4, 7\)\. Pass a size"
    with pytest.raises(InvalidOptionError, match=text):
        load_queries(tmp_path)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_a_size_without_pixels_is_refused(tmp_path, size):
    save(tmp_path / "a.png", pixels_of(4, 6))
    with pytest.raises(InvalidOptionError, match="size must be at least 1 pixel each way"):
        load_queries(tmp_path, size=size)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_channels_other_than_gray_or_color_are_refused_before_anything_is_read(tmp_path, channels):
    with pytest.raises(InvalidOptionError, match=f"channels must be 1 or 3, but got {channels}"):
        load_queries(tmp_path / "absent", channels=channels)


def test_a_folder_of_images_and_folders_is_refused_with_the_remedy(tmp_path):
    save(tmp_path / "a.png", pixels_of(4, 6))
    save(tmp_path / "ash" / "b.png", pixels_of(4, 6))
    with pytest.raises(InvalidOptionError, match=r"images and folders\. Give one that holds"):
        load_queries(tmp_path)


def test_a_folder_without_images_is_refused_with_what_would_be_read(tmp_path):
    with pytest.raises(MissingDataError, match=r"holds no images \(\.bmp, .*\.webp\)"):
        load_queries(tmp_path)
    (tmp_path / "ash").mkdir()
    (tmp_path / "ash" / "notes.txt").write_text("none yet")
    with pytest.raises(MissingDataError, match="holds no images"):
        load_queries(tmp_path)


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_are_refused_rather_than_cut_off(tmp_path, kind, channels):
    save(tmp_path / "deep.tif", pixels_of(4, 6).astype(kind) * 200)
    with pytest.raises(CorruptDataError, match=r"deep\.tif must have 8 bits per value.*Convert"):
        load_queries(tmp_path, channels=channels)


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"a page", lambda _: b"", lambda content: content[:-40]],
    ids=["a page", "empty", "shortened"],
)
def test_a_file_that_cannot_be_decoded_is_refused_by_name(tmp_path, damage):
    save(tmp_path / "a.png", pixels_of(4, 6))
    save(tmp_path / "b.png", pixels_of(4, 6))
    (tmp_path / "b.png").write_bytes(damage((tmp_path / "b.png").read_bytes()))
    with pytest.raises(CorruptDataError, match=r"b\.png is not an image .*Fetch it again"):
        load_queries(tmp_path)


def test_an_image_of_more_pixels_than_memory_should_take_is_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png", pixels_of(4, 6))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(CorruptDataError, match=r"a\.png .*DecompressionBombError"):
        load_queries(tmp_path)


def test_progress_is_told_until_all_is_done(tmp_path):
    for row in range(4):
        save(tmp_path / f"{row}.png", pixels_of(4, 6))
    told = []
    load_queries(tmp_path, report=lambda stage, share: told.append((stage, share)))
    assert told == [(f"decoding {tmp_path.name}", share) for share in (0.25, 0.5, 0.75, 1)]


def test_without_pillow_the_command_that_installs_it_is_named_and_arrays_load(
    tmp_path, monkeypatch
):
    save(tmp_path / "images" / "a.png", pixels_of(4, 6))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"'pillow'.*pip install 'oneway\[images\]'"):
        load_queries(tmp_path / "images")
    assert load_queries(npz(tmp_path, images=pixels_of(3, 4, 4))).images.shape == (3, 1, 4, 4)
