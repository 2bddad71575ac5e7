"""Faces of people: FaceScrub and CelebA, cropped as the papers on inversion crop them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oneway.data.folders import images_in, read_class_folders, stack_gray
from oneway.data.image_files import decode_image
from oneway.data.images import Dataset, Pixels, Source
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError

FACESCRUB_LISTS = ("facescrub_actors.txt", "facescrub_actresses.txt")
FACESCRUB_COLUMNS = ("name", "image_id", "face_id", "url", "bbox", "sha256")
FACESCRUB_FOLDERS = ("images", "actors/images", "actresses/images", "download")
FACESCRUB_ORIGIN = (
    f"{' and '.join(FACESCRUB_LISTS)} come on request from "
    "https://vintage.winklerbros.net/facescrub.html. Put them in the folder of the data set, and "
    "the originals that a downloader fetched at images/<name>/<name>_<image_id>.<extension>, "
    "with _ for blanks; or give a folder of ready crops that has one folder per person."
)

CELEBA_LIST = "identity_CelebA.txt"
CELEBA_IMAGES = "img_align_celeba"
CELEBA_LINES = 202_599
CELEBA_LIST_MD5 = "32bd1bd63d3c78cd57e08160ec5ed1e2"
"""MD5 of the complete official list, as torchvision publishes it."""
CELEBA_SIZE = (178, 218)
CELEBA_BOX = (35, 70, 35 + 108, 70 + 108)
CELEBA_ORIGIN = (
    f"{CELEBA_LIST} and {CELEBA_IMAGES}.zip come from "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html. Put the list and the unpacked folder "
    f"{CELEBA_IMAGES} side by side."
)


Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are just outside."""


@dataclass(frozen=True)
class _Face:
    """A line of a list of FaceScrub, and the file of its image."""

    name: str
    box: Box
    sha256: str
    path: Path


def load_facescrub(source: Source) -> Dataset:
    """Load faces of actors and actresses, the people sorted by name.

    Beside the official lists it reads the originals that they name, checks each by the list's
    SHA-256, and cuts out the official box. Missing originals are left out, since many can't be
    downloaded any more, and so are people without an original. Without a list it reads a folder of
    ready crops per person.
    """
    folder = source.locate(FACESCRUB_ORIGIN, subfolder="facescrub")
    lists = [folder / name for name in FACESCRUB_LISTS if (folder / name).is_file()]
    if not lists:
        if not any(path.is_dir() for path in folder.iterdir()):
            raise MissingDataError(
                f"{folder} holds neither the lists of FaceScrub nor a folder per person. "
                f"{FACESCRUB_ORIGIN}"
            )
        return read_class_folders(source, folder)
    if source.side is None:
        raise InvalidOptionError(
            f"the boxes of data set {source.name!r} differ in size. Pass a side to scale all "
            "faces to, such as 64."
        )
    listed = [face for path in lists for face in _read_facescrub_list(path, folder)]
    faces = [face for face in listed if face is not None]
    if not faces:
        raise MissingDataError(f"no image of the lists in {folder} is there. {FACESCRUB_ORIGIN}")
    names = sorted({face.name for face in faces})
    label_of = {name: label for label, name in enumerate(names)}
    faces.sort(key=lambda face: label_of[face.name])  # stable: within a person as listed
    images = stack_gray(source, [face.path for face in faces], lambda row: _decode_face(faces[row]))
    labels = np.array([label_of[face.name] for face in faces], np.int64)
    missing = len(listed) - len(faces)
    left_out = f"{missing} of {len(listed)} listed images are not there, and left out."
    notes = (left_out,) if missing else ()
    return Dataset(source.name, images, labels, None, len(names), tuple(names), notes)


def _read_facescrub_list(path: Path, folder: Path) -> list[_Face | None]:
    """Return the faces of a list; None for each whose image does not exist."""
    lines = _read_lines(path, FACESCRUB_ORIGIN)
    header = lines[0].split("\t") if lines else []
    if not set(FACESCRUB_COLUMNS) <= set(header):
        raise CorruptDataError(
            f"{path} must begin with the column names {', '.join(FACESCRUB_COLUMNS)} with tabs "
            f"between, but does not. {FACESCRUB_ORIGIN}"
        )
    faces: list[_Face | None] = []
    files: dict[str, dict[str, Path]] = {}
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        row = dict(zip(header, cells, strict=False))
        try:
            left, top, right, bottom = (int(edge) for edge in row["bbox"].split(","))
        except (KeyError, ValueError):
            left, top, right, bottom = 0, 0, 0, 0
        if len(cells) != len(header) or not (0 <= left < right and 0 <= top < bottom):
            raise CorruptDataError(
                f"line {number} of {path} must have {len(header)} columns with tabs between, and "
                f"a bbox left,top,right,bottom of at least a pixel, but has {len(cells)} columns "
                f"or another bbox. {FACESCRUB_ORIGIN}"
            )
        person = row["name"].replace(" ", "_")
        if person not in files:
            files[person] = _files_of(folder, person)
        # The file names of the two downloaders that are in use.
        url_hash = hashlib.sha1(row["url"].encode(), usedforsecurity=False).hexdigest()
        stems = (f"{person}_{row['image_id']}", row["image_id"], url_hash)
        image = next((files[person][stem] for stem in stems if stem in files[person]), None)
        box, sha256 = (left, top, right, bottom), row["sha256"].strip().lower()
        faces.append(None if image is None else _Face(row["name"], box, sha256, image))
    return faces


def _files_of(folder: Path, person: str) -> dict[str, Path]:
    """Return a person's images by their name without extension."""
    folders = [folder / images / person for images in FACESCRUB_FOLDERS]
    return {path.stem: path for place in folders if place.is_dir() for path in images_in(place)}


def _decode_face(face: _Face) -> Pixels:
    content = face.path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != face.sha256:
        raise CorruptDataError(
            f"{face.path} is not the image that FaceScrub lists: it has SHA-256 {got[:12]}…, not "
            f"{face.sha256[:12]}…. Fetch it again, or remove it to go on without it."
        )
    gray = decode_image(face.path, 1, content)
    height, width = gray.shape[1:]
    left, top, right, bottom = face.box
    if left >= width or top >= height:
        raise CorruptDataError(
            f"{face.path} is {width} x {height}, so nothing of it is in the box {face.box}."
        )
    return gray[:, top:bottom, left:right]


def load_celeba(source: Source) -> Dataset:
    """Load the aligned faces of CelebA, the middle 108 x 108 pixels of each.

    Labels are the identities in the order of their official numbers, which are the names.
    """
    folder = source.locate(CELEBA_ORIGIN, subfolder="celeba")
    for path in (folder / CELEBA_LIST, folder / CELEBA_IMAGES):
        if not path.exists():
            raise MissingDataError(f"{path} is not there. {CELEBA_ORIGIN}")
    files, identities = _read_celeba_list(folder / CELEBA_LIST)
    present = {path.name for path in (folder / CELEBA_IMAGES).iterdir()}
    missing = [name for name in files if name not in present]
    if missing:
        raise MissingDataError(
            f"{folder / CELEBA_IMAGES} lacks {len(missing)} of the {len(files)} images that "
            f"{CELEBA_LIST} names, the first of them {missing[0]}. {CELEBA_ORIGIN}"
        )
    numbers, labels = np.unique(identities, return_inverse=True)
    paths = [folder / CELEBA_IMAGES / name for name in files]
    images = stack_gray(source, paths, lambda row: _decode_celeba(paths[row]))
    names = tuple(str(number) for number in numbers.tolist())
    return Dataset(source.name, images, labels.astype(np.int64), None, len(names), names)


def _read_celeba_list(path: Path) -> tuple[list[str], list[int]]:
    """Return file names and identities of a list, checked by hash if the list is complete."""
    lines = _read_lines(path, CELEBA_ORIGIN)
    if len(lines) == CELEBA_LINES:
        got = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if got != CELEBA_LIST_MD5:
            raise CorruptDataError(
                f"{path} has as many lines as the published list, but MD5 {got}, not "
                f"{CELEBA_LIST_MD5}. {CELEBA_ORIGIN}"
            )
    cells = [line.split() for line in lines]
    for number, row in enumerate(cells, 1):
        if len(row) != 2 or not row[1].isdecimal():
            raise CorruptDataError(
                f"line {number} of {path} must be a file name and a number, but has {len(row)} "
                f"words or no number. {CELEBA_ORIGIN}"
            )
    if not cells:
        raise CorruptDataError(f"{path} is empty. {CELEBA_ORIGIN}")
    return [row[0] for row in cells], [int(row[1]) for row in cells]


def _decode_celeba(path: Path) -> Pixels:
    gray = decode_image(path, 1)
    height, width = gray.shape[1:]
    if (width, height) != CELEBA_SIZE:
        raise CorruptDataError(
            f"{path} must be an aligned image of {CELEBA_SIZE[0]} x {CELEBA_SIZE[1]} pixels, but "
            f"is {width} x {height}. {CELEBA_ORIGIN}"
        )
    left, top, right, bottom = CELEBA_BOX
    return gray[:, top:bottom, left:right]


def _read_lines(path: Path, origin: str) -> list[str]:
    """Return the lines of a text file, without empty ones at its end."""
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptDataError(f"{path} is not a text file in UTF-8. {origin}") from error
