"""Folders of images: which files are read, and as which classes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oneway.data.image_files import (
    ImageHeader,
    accepted,
    decode_image,
    image_extensions,
    read_header,
    stack_images,
)
from oneway.data.images import Dataset, Pixels, Source
from oneway.errors import InvalidOptionError, MissingDataError

ARCHIVED = "__MACOSX"
"""The folder that macOS adds to archives; it holds no images, but files with their names."""

MOST_SUFFIXES = 5
"""Extensions that a note lists."""

SPLIT_NAMES = frozenset(
    {"dev", "test", "testing", "train", "training", "val", "valid", "validation"}
)
"""Names of folders that are splits of a data set rather than classes."""


@dataclass(frozen=True)
class FoundImages:
    """The image files of a folder.

    Attributes:
        paths: The files, class by class, each class sorted by name.
        labels: ``(N)`` int64, the number of each file's class folder; None if there are none.
        names: The class folders, sorted; None if there are none.
        notes: What was left out, and images in deeper folders: sentences with counts.
    """

    paths: list[Path]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...] | None
    notes: tuple[str, ...]


class _Walk:
    """Collects image files, and counts what it leaves out.

    Hidden files and folders, which systems put beside images, are not counted.
    """

    def __init__(self) -> None:
        self.extensions = image_extensions()
        self.left_out: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()

    def images_in(self, folder: Path, above: tuple[Path, ...] | None = ()) -> list[Path]:
        """Return the image files of a folder, sorted by name.

        Args:
            folder: The folder.
            above: Folders that it was reached through. None: do not look into its folders.
        """
        found: list[Path] = []
        for path in _visible(folder):
            if path.is_dir():
                if above is not None:
                    found += self.below(path, (*above, folder.resolve()))
            elif self._is_image(path):
                found.append(path)
        return found

    def note(self, count: int) -> list[str]:
        """Return the sentence about what was left out beside ``count`` images, if anything was."""
        if not self.left_out and not self.unknown:
            return []
        kinds = [f"{number} {kind}" for kind, number in sorted(self.left_out.items())]
        if self.unknown:
            suffixes = ", ".join(sorted(self.unknown)[:MOST_SUFFIXES])
            kinds.append(f"{self.unknown.total()} of no known image type ({suffixes})")
        out = self.left_out.total() + self.unknown.total()
        return [f"{out} of {count + out} files {_are(out)} left out: {', '.join(kinds)}."]

    def below(self, folder: Path, above: tuple[Path, ...]) -> list[Path]:
        """Return the image files below a folder, unless it holds none of its own."""
        if folder.name == ARCHIVED:
            inside = sum(path.is_file() for path in folder.rglob("*"))
            self.left_out[f"in folders named {ARCHIVED}"] += inside
            return []
        if folder.resolve() in above:
            self.left_out["linked to a folder above it"] += 1
            return []
        return self.images_in(folder, above)

    def _is_image(self, path: Path) -> bool:
        if not path.is_file():
            kind = "linked to nothing" if path.is_symlink() else "that are no regular files"
            self.left_out[kind] += 1
            return False
        suffix = path.suffix.lower()
        if suffix not in self.extensions:
            self.unknown[suffix or "no extension"] += 1
            return False
        return True


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without those of its folders."""
    return _Walk().images_in(folder, None)


def find_images(folder: Path) -> FoundImages:
    """Find the image files of a folder, or of a folder of class folders.

    A class folder may hold folders: their images are of its class.

    Raises:
        InvalidOptionError: The folder holds images beside folders, or its folders are splits of a
            data set, or a single folder that holds the class folders.
        MissingExtraError: Pillow, which says which files are images, is not installed.
    """
    walk = _Walk()
    direct = walk.images_in(folder, None)
    below = {
        path: walk.below(path, (folder.resolve(),)) for path in _visible(folder) if path.is_dir()
    }
    members = {path: found for path, found in below.items() if path.name != ARCHIVED}
    if direct and members:
        raise InvalidOptionError(
            f"{folder} holds images and folders. Give one that holds images, or a folder of "
            "images per class."
        )
    if not members:
        return FoundImages(direct, None, None, tuple(walk.note(len(direct))))
    nested = {
        path: [image for image in found if image.parent != path] for path, found in members.items()
    }
    _refuse_wrapped(folder, members, nested)
    paths = [path for found in members.values() for path in found]
    labels = np.repeat(np.arange(len(members)), [len(found) for found in members.values()])
    notes = walk.note(len(paths))
    deeper = sum(map(len, nested.values()))
    if deeper:
        notes.append(
            f"{deeper} of {len(paths)} images lie in folders inside class folders, and belong to "
            "the class of the outer folder."
        )
    empty = [path.name for path, found in members.items() if not found]
    if empty:
        notes.append(f"{len(empty)} of {len(members)} classes have no images: {', '.join(empty)}.")
    names = tuple(path.name for path in members)
    return FoundImages(paths, labels.astype(np.int64), names, tuple(notes))


def look_at_images(paths: Sequence[Path], channels: int | None) -> tuple[int, tuple[str, ...]]:
    """Read what image files say before their pixels are decoded.

    Args:
        paths: The files.
        channels: 1 or 3. None: 3 if an image is in color.

    Returns:
        The number of channels to decode to; and what will be converted or dropped, as sentences
        with counts.

    Raises:
        CorruptDataError: A file is not one image of 8 bits per value.
    """
    headers = [read_header(path) for path in paths]
    gray = sum(header.gray for header in headers)
    if channels is None:
        channels = 1 if gray == len(headers) else 3
    notes = (
        _count(headers, lambda header: channels == 3 and header.gray, "gray, and read in color"),
        _count(
            headers, lambda header: channels == 1 and not header.gray, "in color, and read in gray"
        ),
        _count(headers, lambda header: header.alpha, "stored with transparency, which is dropped"),
        _count(
            headers, lambda header: header.turned, "marked as turned by EXIF, and read as stored"
        ),
        _count(headers, lambda header: header.views > 1, "of several views, and read as the first"),
    )
    return channels, tuple(note for note in notes if note)


def _count(
    headers: Sequence[ImageHeader], is_such: Callable[[ImageHeader], bool], what: str
) -> str:
    """Return the sentence that says how many images are such; "" if none are."""
    count = sum(map(is_such, headers))
    return f"{count} of {len(headers)} images {_are(count)} {what}." * bool(count)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted by name, without what is hidden."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _refuse_wrapped(
    folder: Path, members: dict[Path, list[Path]], nested: dict[Path, list[Path]]
) -> None:
    """Refuse folders that are no classes, but hold the class folders."""
    if any(len(nested[path]) < len(found) for path, found in members.items()):
        return
    inner = {image.relative_to(path).parts[0] for path in nested for image in nested[path]}
    splits = all(path.name.lower() in SPLIT_NAMES for path in members)
    if len(inner) > 1 and (splits or len(members) == 1):
        raise InvalidOptionError(
            f"the folders of {folder} are classes, but {', '.join(path.name for path in members)} "
            f"hold{'s' * (len(members) == 1)} no image, only folders that do. Pass one that holds "
            f"the classes, such as {next(iter(members))}."
        )


def load_folder(source: Source) -> Dataset:
    """Load a folder that holds a folder of images per class.

    Classes are numbered by their sorted names, and images of a class are in the order of theirs.
    """
    origin = "Name one that holds a folder of images per class."
    return read_class_folders(source, source.locate(origin))


def read_class_folders(source: Source, folder: Path) -> Dataset:
    """Read a folder per class.

    Raises:
        MissingDataError: There is no class, or a class without an image.
        CorruptDataError: A file cannot be decoded.
        InvalidOptionError: Images differ in size, and no side is given; or see ``find_images``.
        MissingExtraError: Pillow is not installed.
    """
    found = find_images(folder)
    if found.labels is None or found.names is None:
        raise MissingDataError(
            f"{folder} must hold a folder of images per class, but has no folders."
        )
    sizes = np.bincount(found.labels, minlength=len(found.names))
    if not sizes.all():
        name = found.names[int(sizes.argmin())]
        raise MissingDataError(
            f"each folder in {folder} is a class, but {name!r} has no images. Remove it, or put "
            f"some there. {accepted()}"
        )
    _, notes = look_at_images(found.paths, 1)
    images = stack_gray(source, found.paths, lambda row: decode_image(found.paths[row], 1))
    return Dataset(
        source.name,
        images,
        found.labels,
        None,
        len(found.names),
        found.names,
        (*found.notes, *notes),
    )


def stack_gray(source: Source, paths: Sequence[Path], decode: Callable[[int], Pixels]) -> Pixels:
    """Return the ``(N, H, W)`` images of a data set, scaled to the side of its source.

    Args:
        source: Gives the side, the name, and the callback for progress.
        paths: The files.
        decode: Returns the image of a row, ``(1, H, W)``.

    Raises:
        CorruptDataError: A file is not one image of 8 bits per value.
        InvalidOptionError: Images differ in size, and no side is given.
        MissingDataError: ``paths`` is empty.
    """
    stacked = stack_images(
        paths,
        decode,
        name=f"data set {source.name!r}",
        stage=f"decoding {source.name}",
        size=source.side,
        report=source.report,
    )
    return stacked[:, 0]
