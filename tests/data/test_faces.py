"""FaceScrub and CelebA from small trees in their official layouts."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from data.copies import copy_of
from laws import looped
from oneway.data import faces, load_dataset, scale_images
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError

Image = pytest.importorskip("PIL.Image")
GENERATOR = np.random.default_rng(0)


def noise(height, width, *channels):
    return GENERATOR.integers(0, 256, (height, width, *channels), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@dataclass
class Entry:
    """One line of a list, and where its image lies; a box is (left, top, right, bottom)."""

    person: str
    image_id: int
    pixels: np.ndarray
    box: tuple[int, int, int, int]
    place: str

    @property
    def face(self):
        left, top, right, bottom = self.box
        return self.pixels[top:bottom, left:right]


def url_of(entry):
    return f"https://example.org/{entry.image_id}.jpg"


def sha1_of_url(image_id):
    return hashlib.sha1(f"https://example.org/{image_id}.jpg".encode()).hexdigest()  # noqa: S324


def write_list(path, entries, folder):
    lines = ["name\timage_id\tface_id\turl\tbbox\tsha256"]
    for entry in entries:
        file = save(folder / entry.place, entry.pixels)
        box = ",".join(map(str, entry.box))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        cells = (entry.person, entry.image_id, entry.image_id + 900, url_of(entry), box, digest)
        lines.append("\t".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


ACTORS = [
    Entry("Zed Oak", 1, noise(20, 30), (3, 5, 15, 17), "images/Zed_Oak/Zed_Oak_1.png"),
    Entry("Zed Oak", 20, noise(9, 9), (0, 0, 9, 9), "actors/images/Zed_Oak/Zed_Oak_20.png"),
    Entry("Bo Elm", 3, noise(12, 12), (2, 1, 10, 11), f"download/Bo_Elm/{sha1_of_url(3)}.png"),
]
ACTRESSES = [
    Entry("Ann León", 4, noise(16, 8), (1, 6, 7, 12), "actresses/images/Ann_León/4.png"),
]
BY_NAME = [ACTRESSES[0], ACTORS[2], ACTORS[0], ACTORS[1]]


@pytest.fixture
def facescrub(tmp_path):
    write_list(tmp_path / "facescrub_actors.txt", ACTORS, tmp_path)
    write_list(tmp_path / "facescrub_actresses.txt", ACTRESSES, tmp_path)
    return tmp_path


def scaled(entries, side):
    return np.concatenate([scale_images(entry.face[None], side) for entry in entries])


def test_facescrub_is_the_boxes_of_both_lists_by_the_name_of_the_person(facescrub):
    dataset = load_dataset("facescrub", facescrub, side=6)
    np.testing.assert_array_equal(dataset.images, scaled(BY_NAME, 6))
    assert dataset.labels.tolist() == [0, 1, 2, 2]
    assert dataset.names == ("Ann León", "Bo Elm", "Zed Oak")
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int64)
    assert (dataset.name, dataset.is_test, dataset.num_classes) == ("facescrub", None, 3)


@looped("box", [(0, 0, 4, 4), (7, 2, 11, 6), (26, 16, 30, 20)])
def test_a_box_is_cut_to_the_pixel(tmp_path, box):
    left, top, right, bottom = box
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    entry = Entry("Bo Elm", 1, pixels, box, "images/Bo_Elm/Bo_Elm_1.png")
    write_list(tmp_path / "facescrub_actors.txt", [entry], tmp_path)
    face = load_dataset("facescrub", tmp_path, side=4).images
    assert (face == 255).all()
    # And it is all of the rectangle: one pixel more on any side would be dark.
    pixels[top:bottom, left:right] = 100
    pixels[[top, bottom - 1], left:right] = 50
    pixels[top:bottom, [left, right - 1]] = 50
    write_list(tmp_path / "facescrub_actors.txt", [entry], tmp_path)
    face = load_dataset("facescrub", tmp_path, side=4).images[0]
    assert face.tolist() == [[50] * 4, [50, 100, 100, 50], [50, 100, 100, 50], [50] * 4]


def test_a_box_that_reaches_over_the_edge_ends_there(tmp_path):
    entry = Entry("Bo Elm", 1, noise(8, 8), (4, 2, 12, 10), "images/Bo_Elm/Bo_Elm_1.png")
    write_list(tmp_path / "facescrub_actors.txt", [entry], tmp_path)
    face = load_dataset("facescrub", tmp_path, side=3).images
    np.testing.assert_array_equal(face, scale_images(entry.pixels[None, 2:8, 4:8], 3))


def test_a_box_outside_the_image_is_refused_by_name(tmp_path):
    entry = Entry("Bo Elm", 1, noise(8, 8), (8, 0, 12, 4), "images/Bo_Elm/Bo_Elm_1.png")
    write_list(tmp_path / "facescrub_actors.txt", [entry], tmp_path)
    with pytest.raises(CorruptDataError, match=r"Bo_Elm_1\.png is 8 x 8, so nothing"):
        load_dataset("facescrub", tmp_path, side=3)


@looped("where", ["facescrub", "other"])
def test_facescrub_may_have_a_folder_of_its_own(tmp_path, where):
    folder = tmp_path / where
    folder.mkdir()
    write_list(folder / "facescrub_actors.txt", ACTORS, folder)
    path = None if where == "facescrub" else where
    dataset = load_dataset("facescrub", tmp_path, path=path, side=6)
    np.testing.assert_array_equal(dataset.images, scaled(BY_NAME[1:], 6))


def test_originals_that_are_not_there_are_left_out_and_so_are_people_without_one(facescrub):
    for gone in (ACTORS[0], ACTORS[2]):
        (facescrub / gone.place).unlink()
    dataset = load_dataset("facescrub", facescrub, side=6)
    np.testing.assert_array_equal(dataset.images, scaled([ACTRESSES[0], ACTORS[1]], 6))
    assert (dataset.labels.tolist(), dataset.names) == ([0, 1], ("Ann León", "Zed Oak"))
    left_out = f"2 of {len(ACTORS + ACTRESSES)} listed images are not there, and left out."
    assert dataset.notes == (left_out,)


def test_no_original_at_all_is_refused_with_the_layout_and_the_source(facescrub):
    for gone in ACTORS + ACTRESSES:
        (facescrub / gone.place).unlink()
    text = r"no image of the lists .*winklerbros.*images/<name>/<name>_<image_id>"
    with pytest.raises(MissingDataError, match=text):
        load_dataset("facescrub", facescrub, side=6)


def test_an_original_that_the_list_does_not_mean_is_refused_by_name(facescrub):
    save(facescrub / ACTORS[1].place, ACTORS[1].pixels ^ 1)
    text = r"Zed_Oak_20\.png is not the image that FaceScrub lists: .* remove it to go on"
    with pytest.raises(CorruptDataError, match=text):
        load_dataset("facescrub", facescrub, side=6)


def test_boxes_need_a_side(facescrub):
    with pytest.raises(InvalidOptionError, match=r"boxes of data set 'facescrub' .* Pass a side"):
        load_dataset("facescrub", facescrub)


def spoiled(text, number, old, new):
    lines = text.split("\n")
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new)
    return "\n".join(lines)


@looped(
    ("number", "old", "new", "expected"),
    [
        (1, "\tbbox", "\tbox", "must begin with the column names name, image_id"),
        (3, "0,0,9,9", "0,0,9", "line 3 of .* bbox"),
        (3, "0,0,9,9", "0,0,9,9,9", "line 3 of .* bbox"),
        (3, "0,0,9,9", "0,0,9,x", "line 3 of .* bbox"),
        (3, "0,0,9,9", "9,0,0,9", "line 3 of .* bbox"),
        (3, "0,0,9,9", "0,9,9,9", "line 3 of .* bbox"),
        (3, "0,0,9,9", "-1,0,9,9", "line 3 of .* bbox"),
        (3, "0,0,9,9", "0,0,9,9\t7", "line 3 of .* must have 6 columns .* has 7"),
        (4, "\t903\t", "\t", "line 4 of .* must have 6 columns .* has 5"),
    ],
)
def test_a_spoiled_list_is_refused_with_the_line(facescrub, number, old, new, expected):
    facescrub = copy_of(facescrub)
    path = facescrub / "facescrub_actors.txt"
    path.write_text(spoiled(path.read_text("utf-8"), number, old, new), "utf-8")
    with pytest.raises(CorruptDataError, match=expected):
        load_dataset("facescrub", facescrub, side=6)


@looped("content", [b"", b"name\timage_id\xff"], ids=["empty", "not UTF-8"])
def test_a_file_that_is_no_list_is_refused(facescrub, content):
    (facescrub / "facescrub_actors.txt").write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"facescrub_actors\.txt (must begin|is not a text)"):
        load_dataset("facescrub", facescrub, side=6)


def test_ready_crops_are_read_as_they_are(tmp_path):
    crops = [noise(7, 7) for _ in range(3)]
    for name, pixels in zip(("Ann_Ash/2.png", "Ann_Ash/3.png", "Bo_Elm/1.png"), crops, strict=True):
        save(tmp_path / "facescrub" / name, pixels)
    dataset = load_dataset("facescrub", tmp_path)
    np.testing.assert_array_equal(dataset.images, crops)
    assert dataset.labels.tolist() == [0, 0, 1]
    assert (dataset.name, dataset.names) == ("facescrub", ("Ann_Ash", "Bo_Elm"))


def test_a_folder_with_neither_lists_nor_people_is_refused_with_the_source(tmp_path):
    text = r"neither the lists of FaceScrub nor a folder per person.*winklerbros"
    with pytest.raises(MissingDataError, match=text):
        load_dataset("facescrub", tmp_path)


IDENTITIES = {"000001.jpg": 2880, "000002.jpg": 17, "000003.jpg": 10177, "000004.jpg": 17}


@pytest.fixture
def celeba(tmp_path):
    for name in IDENTITIES:
        save(tmp_path / "img_align_celeba" / name, noise(218, 178, 3))
    lines = [f"{name} {identity}\n" for name, identity in IDENTITIES.items()]
    (tmp_path / "identity_CelebA.txt").write_text("".join(lines))
    return tmp_path


def test_celeba_is_labelled_by_identity_in_the_order_of_their_numbers(celeba):
    dataset = load_dataset("celeba", celeba)
    assert dataset.images.shape == (4, 108, 108)
    assert dataset.labels.tolist() == [1, 0, 2, 0]
    assert dataset.names == ("17", "2880", "10177")
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int64)
    assert (dataset.name, dataset.is_test, dataset.num_classes) == ("celeba", None, 3)


@looped("side", [None, 54, 64])
def test_celeba_is_the_gray_middle_of_each_image_scaled(celeba, side):
    expected = []
    for name in IDENTITIES:
        with Image.open(celeba / "img_align_celeba" / name) as image:
            colors = np.asarray(image).astype(float)
        gray = (colors @ [0.299, 0.587, 0.114])[70:178, 35:143]
        expected.append(np.floor(gray + 0.5).astype(np.uint8))
    expected = np.stack(expected)
    if side is not None:
        expected = scale_images(expected, side)
    got = load_dataset("celeba", celeba, side=side).images
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_celeba_is_cut_to_the_pixel(celeba):
    # Saved as PNG under the name of a JPEG, so that no pixel changes; a bright frame just
    # outside the crop, a dark one just inside.
    pixels = np.full((218, 178), 255, np.uint8)
    pixels[70:178, 35:143] = 10
    pixels[71:177, 36:142] = 99
    Image.fromarray(pixels).save(celeba / "img_align_celeba" / "000003.jpg", format="png")
    image = load_dataset("celeba", celeba).images[2]
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (edge == 10).all()
    assert (image[1:-1, 1:-1] == 99).all()


def test_celeba_may_have_a_folder_of_its_own(celeba):
    (celeba / "celeba").mkdir()
    for name in ("identity_CelebA.txt", "img_align_celeba"):
        (celeba / name).rename(celeba / "celeba" / name)
    assert load_dataset("celeba", celeba, side=2).labels.tolist() == [1, 0, 2, 0]
    assert len(load_dataset("celeba", path=str(celeba / "celeba"), side=2).images) == 4


@looped("name", ["identity_CelebA.txt", "img_align_celeba"])
def test_a_missing_part_of_celeba_is_named_with_its_source(celeba, name):
    celeba = copy_of(celeba)
    (celeba / name).rename(celeba / "away")
    with pytest.raises(MissingDataError, match=f"{name} is not there.*mmlab"):
        load_dataset("celeba", celeba)


def test_missing_images_of_celeba_are_counted_and_the_first_is_named(celeba):
    for name in ("000002.jpg", "000004.jpg"):
        (celeba / "img_align_celeba" / name).unlink()
    with pytest.raises(MissingDataError, match=r"lacks 2 of the 4 .* first of them 000002\.jpg"):
        load_dataset("celeba", celeba)


def test_an_image_of_celeba_that_is_not_aligned_is_refused_by_name(celeba):
    save(celeba / "img_align_celeba" / "000002.jpg", noise(178, 218, 3))
    with pytest.raises(CorruptDataError, match=r"000002\.jpg must be .* 178 x 218 .* 218 x 178"):
        load_dataset("celeba", celeba)


def test_a_list_as_long_as_the_full_one_must_be_it(celeba, monkeypatch):
    monkeypatch.setattr(faces, "CELEBA_LINES", 4)
    path = celeba / "identity_CelebA.txt"
    with pytest.raises(CorruptDataError, match=f"MD5 .* not {faces.CELEBA_LIST_MD5}"):
        load_dataset("celeba", celeba)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(faces, "CELEBA_LIST_MD5", md5)
    assert len(load_dataset("celeba", celeba, side=2).images) == 4


@looped("line", ["000005.jpg", "000005.jpg x", "000005.jpg 1 2", "000005.jpg -1"])
def test_a_line_that_is_not_a_file_and_a_number_is_refused(celeba, line):
    path = celeba / "identity_CelebA.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(CorruptDataError, match=r"line 5 of .*must be a file name and a number"):
        load_dataset("celeba", celeba)


def test_an_empty_list_of_celeba_is_refused(celeba):
    (celeba / "identity_CelebA.txt").write_text("")
    with pytest.raises(CorruptDataError, match=r"identity_CelebA\.txt is empty"):
        load_dataset("celeba", celeba)
