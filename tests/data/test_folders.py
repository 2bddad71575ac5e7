"""Folders of images: which files are read, in which order, and what is refused."""

import shutil
import struct
import sys
import zlib
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
    dataset = load_dataset("folder", folder)
    np.testing.assert_array_equal(dataset.images, expected)
    assert dataset.notes == (
        "3 of 8 files are left out: 3 of no known image type (.csv, .db, .txt).",
    )


def test_broken_links_and_what_archives_add_are_counted_and_are_no_class(tree):
    folder, expected = tree
    (folder / "ash" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "ash" / "round").symlink_to(folder / "ash")
    for name in ("__MACOSX/ash/._a.png", "birch/__MACOSX/a.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("not an image")
    for loaded in (load_dataset("folder", folder), load_queries(folder)):
        assert loaded.names == ("ash", "birch")
        assert len(loaded.images) == len(expected)
        assert loaded.notes == (
            "4 of 9 files are left out: 2 in folders named __MACOSX, 1 linked to a folder above "
            "it, 1 linked to nothing.",
        )


def test_images_in_deeper_folders_are_of_the_outer_class(tree):
    folder, expected = tree
    deeper = save(folder / "ash" / "mountain" / "tall" / "z.jfif.png", pixels_of())
    for loaded in (load_dataset("folder", folder), load_queries(folder)):
        assert loaded.labels.tolist() == [0, 0, 0, 0, 1, 1]
        assert loaded.notes == (
            "1 of 6 images lie in folders inside class folders, and belong to the class of the "
            "outer folder.",
        )
    images = load_dataset("folder", folder).images
    np.testing.assert_array_equal(images[[0, 1, 2, 4, 5]], expected)
    np.testing.assert_array_equal(images[3], deeper)


def test_folders_that_hold_the_classes_are_refused_and_named(tree, tmp_path_factory):
    folder, _ = tree
    outer = tmp_path_factory.mktemp("deep") / "outer"
    splits = (outer / "Train", outer / "val")
    for split in splits:
        shutil.copytree(folder, split)
    for load in (lambda: load_dataset("folder", outer), lambda: load_queries(outer)):
        text = r"Train, val hold no image, .*such as .*outer/Train"
        with pytest.raises(InvalidOptionError, match=text):
            load()
    shutil.rmtree(outer / "val")
    (outer / "Train").rename(outer / "trees")
    with pytest.raises(InvalidOptionError, match=r"trees holds no image, .*outer/trees"):
        load_queries(outer)
    # Folders with names of splits are classes if they hold the images themselves.
    np.testing.assert_array_equal(load_queries(outer / "trees").labels, [0, 0, 0, 1, 1])
    shutil.copytree(folder / "ash", outer / "test")
    shutil.copytree(folder / "birch", outer / "train")
    shutil.rmtree(outer / "trees")
    assert load_queries(outer).names == ("test", "train")


def test_every_extension_of_a_format_is_read_in_any_case(tmp_path):
    for name, kind in (
        ("a.jfif", "JPEG"), ("b.JPE", "JPEG"), ("c.tga", "TGA"), ("d.pnm", "PPM"), ("e.dib", "DIB"),
        ("f.TIFF", "TIFF"), ("g.webp", "WEBP"), ("h.gif", "GIF"), ("i.pcx", "PCX"),
    ):  # fmt: skip
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / name, kind)
    queries = load_queries(tmp_path, channels=1)
    assert queries.images.shape == (9, 1, 8, 8)
    assert (255 * queries.images - 200).abs().max() < 2
    assert not any("left out" in note for note in queries.notes)


def test_vector_graphics_and_archives_are_left_out_by_name(tmp_path):
    save(tmp_path / "a.png", pixels_of())
    for suffix in (".eps", ".wmf", ".pdf", ".svg", ".psd", ".h5", ".mpg", ".zip"):
        (tmp_path / f"a{suffix}").write_text("not looked at")
    queries = load_queries(tmp_path)
    assert len(queries.images) == 1
    assert queries.notes[0].startswith("8 of 9 files are left out: 8 of no known image type (.eps,")
    # Nor is a file of such a type opened when it has another's name.
    Image.fromarray(pixels_of()).save(tmp_path / "b.png", "SGI")
    with pytest.raises(CorruptDataError, match=r"b\.png is not an image"):
        load_queries(tmp_path)


def test_several_frames_or_pages_are_refused_rather_than_cut_off(tree):
    folder, _ = tree
    frames = [Image.fromarray(pixels_of(channels=(3,))) for _ in range(3)]
    for name in ("c.tif", "c.gif", "c.webp", "c.png"):
        frames[0].save(folder / "ash" / name, save_all=True, append_images=frames[1:])
        for load in (lambda: load_dataset("folder", folder), lambda: load_queries(folder)):
            with pytest.raises(CorruptDataError, match=f"{name} must be one image, .* 3 frames"):
                load()
        (folder / "ash" / name).unlink()
        frames[0].save(folder / "ash" / name)
        load_queries(folder)
        (folder / "ash" / name).unlink()


def deep_png(color, planes):
    """A PNG of 16 bits per value."""
    rows = pixels_of(4, 6 * planes).astype(">u2") * 257

    def chunk(kind, content):
        checked = kind + content
        return len(content).to_bytes(4) + checked + zlib.crc32(checked).to_bytes(4)

    header = struct.pack(">IIBBBBB", 6, 4, 16, color, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


def deep_tiff():
    """An uncompressed TIFF of 16 bits per value, in color."""
    pixels = pixels_of(4, 18).astype("<u2").tobytes()
    values = {256: 6, 257: 4, 259: 1, 262: 2, 277: 3, 278: 4, 279: len(pixels)}
    tags = sorted([*values, 258, 273])
    offset = 8 + 2 + 12 * len(tags) + 4
    values |= {258: offset, 273: offset + 6}
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, values[tag])
        for tag in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<3H", 16, 16, 16) + pixels


def test_sixteen_bits_per_color_are_refused_rather_than_cut_off(tree):
    folder, _ = tree
    wide = pixels_of(4, 18).astype(">u2").tobytes()
    for name, content in {
        "deep.png": deep_png(2, 3),
        "alpha.png": deep_png(6, 4),
        "gray-alpha.png": deep_png(4, 2),
        "deep.tif": deep_tiff(),
        "deep.ppm": b"P6\n6 4\n65535\n" + wide,
        "ten.ppm": b"P6\n6 4\n1023\n" + wide,
        "text.ppm": b"P3\n1 1\n1023\n1 2 3\n",
    }.items():
        (folder / "ash" / name).write_bytes(content)
        Image.open(folder / "ash" / name).load()  # Pillow itself reads them
        with pytest.raises(CorruptDataError, match=rf"{name} must have 8 bits per value.*Convert"):
            load_queries(folder)
        (folder / "ash" / name).unlink()
    # Fewer bits are spread over all values.
    (folder / "ash" / "few.ppm").write_bytes(b"P6\n6 4\n15\n" + bytes([15]) * 72)
    assert load_queries(folder).images[3].min() == 1


def test_what_is_dropped_or_left_as_stored_is_counted(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    colors = Image.fromarray(pixels_of(8, 16, (3,)))
    colors.save(tmp_path / "a.jpg", exif=turned)
    colors.save(tmp_path / "b.mpo.jpg", "MPO", save_all=True, append_images=[colors])
    colors.convert("RGBA").save(tmp_path / "c.png")
    colors.convert("P").save(tmp_path / "d.png", transparency=3)
    colors.convert("P").save(tmp_path / "e.png", transparency=bytes(range(200)))
    colors.convert("L").save(tmp_path / "f.png")
    queries = load_queries(tmp_path)
    assert queries.images.shape == (6, 3, 8, 16)
    assert queries.notes == (
        "1 of 6 images is gray, and read in color.",
        "3 of 6 images are stored with transparency, which is dropped.",
        "1 of 6 images is marked as turned by EXIF, and read as stored.",
        "1 of 6 images is of several views, and read as the first.",
    )
    exact = np.asarray(colors).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(queries.images[2], exact, atol=1e-6)
    (gray,) = load_queries(tmp_path, channels=1).notes[:1]
    assert gray == "5 of 6 images are in color, and read in gray."


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
    text = r"ash/a\.png is \(4, 6\) and .*birch/b\.png is \(4, 7\)\. Scale all to one: --size"
    with pytest.raises(InvalidOptionError, match=text):
        load_dataset("folder", folder)


def test_a_class_without_an_image_is_refused_by_name(tree):
    folder, _ = tree
    (folder / "cedar").mkdir()
    (folder / "cedar" / "notes.txt").write_text("none yet")
    with pytest.raises(MissingDataError, match=r"'cedar' has no images\. .* end in \.apng, \.bmp"):
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
