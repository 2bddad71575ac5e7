"""Figures: that one is written, of what size and format, and that it shows the images."""

import re
import struct
import sys

import numpy as np
import pytest

from oneway.errors import InvalidOptionError, MissingExtraError
from oneway.report import draw_reconstructions

INCH = 150
LEVELS = [64, 128, 192]


def gray_rows(rows=2, count=3):
    """Rows of images that are each one level of gray."""
    strip = np.stack([np.full((16, 16), level / 255, np.float32) for level in LEVELS[:count]])
    return {f"row {place}": strip for place in range(rows)}


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def levels_in(path):
    """How many pixels the picture has of each gray level."""
    image = pytest.importorskip("matplotlib.image").imread(path)[..., :3]
    pixels = (255 * image).round().astype(np.int64)
    gray = pixels[(pixels == pixels[..., :1]).all(-1)][:, 0]
    return np.bincount(gray, minlength=256)


@pytest.fixture(autouse=True)
def _needs_matplotlib(request):
    if "without_matplotlib" not in request.fixturenames:
        pytest.importorskip("matplotlib")


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def test_a_png_of_sensible_size_is_written_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "figure.png"
    draw_reconstructions(gray_rows(), path, "What scores give away")
    across, high = png_size(path)
    assert 2 * INCH < across < 8 * INCH
    assert 1 * INCH < high < 4 * INCH
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["figure.png"]


@pytest.mark.parametrize(("more", "axis"), [({"count": 3}, 0), ({"rows": 6}, 1)])
def test_a_figure_grows_with_its_images(tmp_path, more, axis):
    sizes = {"rows": 2, "count": 1}
    draw_reconstructions(gray_rows(**sizes), tmp_path / "few.png", "title")
    draw_reconstructions(gray_rows(**sizes | more), tmp_path / "more.png", "title")
    few, many = png_size(tmp_path / "few.png"), png_size(tmp_path / "more.png")
    assert many[axis] > few[axis] + INCH
    assert many[1 - axis] == pytest.approx(few[1 - axis], abs=0.2 * INCH)


def test_every_image_is_shown_alike_and_with_its_own_values(tmp_path):
    draw_reconstructions(gray_rows(rows=4), tmp_path / "figure.png", "title")
    found = levels_in(tmp_path / "figure.png")[LEVELS]
    assert found.min() > 4 * (0.3 * INCH) ** 2  # in each row, at least 0.3 inches wide and high
    assert found.max() < 1.2 * found.min()


def test_values_are_not_stretched_to_the_range_of_a_row(tmp_path):
    rows = {"dim": np.full((3, 16, 16), 64 / 255, np.float32)}
    draw_reconstructions(rows, tmp_path / "figure.png", "title")
    assert levels_in(tmp_path / "figure.png")[64] > 3 * (0.3 * INCH) ** 2


def test_color_images_are_drawn_in_color(tmp_path):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    red = np.zeros((2, 16, 16, 3), np.float32)
    red[..., 0] = 1
    draw_reconstructions({"red": red}, tmp_path / "figure.png", "title")
    pixels = matplotlib_image.imread(tmp_path / "figure.png")[..., :3]
    assert (pixels == [1, 0, 0]).all(-1).sum() > 2 * (0.3 * INCH) ** 2


def test_one_image_of_one_row_can_be_drawn(tmp_path):
    draw_reconstructions(gray_rows(rows=1, count=1), tmp_path / "figure.png", "t")
    assert levels_in(tmp_path / "figure.png")[LEVELS[0]] > (0.3 * INCH) ** 2


def test_labels_are_text_though_they_look_like_formulas(tmp_path):
    rows = {"eta $ 0.1": gray_rows()["row 0"], "eta $x^{$": gray_rows()["row 0"]}
    draw_reconstructions(rows, tmp_path / "figure.png", "costs $x^{$")
    assert png_size(tmp_path / "figure.png")


@pytest.mark.parametrize(("name", "start"), [("figure.pdf", b"%PDF"), ("figure.PNG", b"\x89PNG")])
def test_the_ending_gives_the_format(tmp_path, name, start):
    draw_reconstructions(gray_rows(), tmp_path / name, "title")
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["figure.xyz", "figure"])
def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(InvalidOptionError, match=rf"pdf, .*png.*but is {re.escape(name)}\."):
        draw_reconstructions(gray_rows(), tmp_path / name, "title")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_command_that_installs_it_is_given(tmp_path):
    with pytest.raises(MissingExtraError, match=r"'matplotlib'.*pip install 'oneway\[demo\]'"):
        draw_reconstructions(gray_rows(), tmp_path / "figure.png", "title")
    assert list(tmp_path.iterdir()) == []
