"""Pictures of reconstructions: files of the right format and size that show the images."""

import sys

import numpy as np
import pytest
from PIL import Image

from oneway.errors import InvalidOptionError, MissingExtraError
from oneway.report.figure import DOTS_PER_INCH, SIDE, draw_reconstructions

LEVELS = [64, 128, 192]


def gray_rows(rows=2, count=3):
    """Rows of images that are each one level of gray."""
    strip = np.stack([np.full((16, 16), level / 255, np.float32) for level in LEVELS[:count]])
    return {f"row {place}": strip for place in range(rows)}


def drawn(folder, rows, title="title"):
    draw_reconstructions(rows, folder / "figure.png", title)
    with Image.open(folder / "figure.png") as image:
        return np.asarray(image)


def count_of(pixels, color):
    return int((pixels == color).all(-1).sum())


def test_a_png_of_sensible_size_is_written_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "figure.png"
    draw_reconstructions(gray_rows(), path, "What scores give away")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 2 * DOTS_PER_INCH < image.size[0] < 8 * DOTS_PER_INCH
        assert 1 * DOTS_PER_INCH < image.size[1] < 4 * DOTS_PER_INCH
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]


def test_a_picture_grows_with_its_images(tmp_path):
    high, wide, _ = drawn(tmp_path, gray_rows(rows=2, count=1)).shape
    more_high, _, _ = drawn(tmp_path, gray_rows(rows=6, count=1)).shape
    _, more_wide, _ = drawn(tmp_path, gray_rows(rows=2, count=3)).shape
    assert more_high >= high + 4 * SIDE
    assert more_wide >= wide + 2 * SIDE


def test_every_image_is_shown_with_its_values_whole_and_unstretched(tmp_path):
    pixels = drawn(tmp_path, gray_rows(rows=4))
    assert [count_of(pixels, [level] * 3) for level in LEVELS] == [
        pytest.approx(4 * SIDE**2, rel=0.01)
    ] * 3
    dim = drawn(tmp_path, {"dim": np.full((3, 16, 8), 64, np.uint8)})
    assert count_of(dim, [64] * 3) == pytest.approx(3 * SIDE * SIDE / 2, rel=0.01)
    red = np.zeros((2, 16, 16, 3), np.float32)
    red[..., 0] = 1
    assert count_of(drawn(tmp_path, {"red": red}), [255, 0, 0]) == 2 * SIDE**2


def test_labels_are_text_though_they_look_like_formulas(tmp_path):
    strip = gray_rows()["row 0"]
    short = drawn(tmp_path, {"a": strip}, "t")
    long = drawn(tmp_path, {"eta $x^{$ and more\n0.1234": strip}, "costs $x^{$")
    assert long.shape[1] > short.shape[1]
    beside = long[-SIDE:, : long.shape[1] - short.shape[1]]
    assert beside.min() < 64, "the label is drawn beside its images"


def test_the_ending_gives_the_format_and_an_unknown_one_is_refused(tmp_path):
    for name, start in (("figure.pdf", b"%PDF"), ("figure.PNG", b"\x89PNG")):
        draw_reconstructions(gray_rows(), tmp_path / name, "title")
        assert (tmp_path / name).read_bytes().startswith(start)
        (tmp_path / name).unlink()
    for name in ("figure.svg", "figure"):
        with pytest.raises(InvalidOptionError, match=rf"\.png or \.pdf, but is {name}\."):
            draw_reconstructions(gray_rows(), tmp_path / name, "title")
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_the_command_that_installs_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"'pillow'.*pip install 'oneway\[audit\]'"):
        draw_reconstructions(gray_rows(), tmp_path / "figure.png", "title")
    assert list(tmp_path.iterdir()) == []
