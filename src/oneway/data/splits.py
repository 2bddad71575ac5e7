"""Draw private, auxiliary and test splits that share no image."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import check_count
from oneway.data.images import Dataset
from oneway.errors import CorruptDataError, InvalidOptionError, OverlappingSplitsError

CANVAS_MULTIPLE = 16
"""Images are padded with black until both sides are a multiple of this: 28x28 to 32x32."""


@dataclass(frozen=True)
class Splits:
    """The splits of a data set. All images are ``(N, 1, H, W)`` float32 in ``[0, 1]``.

    Attributes:
        private_images: The target's training images. No attacker has them.
        private_labels: ``(N)`` int64.
        auxiliary_images: The images of attackers and defender.
        auxiliary_labels: ``(N)`` int64; no attack uses them. Labels of another auxiliary data set
            have nothing to do with the classes of the other splits.
        test_images: The queries that attacks are graded on.
        test_labels: ``(N)`` int64.
        num_classes: K of the private and test labels.
        calibration_images: Queries of the operator, to fit a release to: similar to the test
            images, and none of them. Empty if there are none.
        calibration_labels: ``(Q)`` int64.
    """

    private_images: Tensor
    private_labels: Tensor
    auxiliary_images: Tensor
    auxiliary_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    calibration_images: Tensor
    calibration_labels: Tensor

    def to(self, device: torch.device) -> "Splits":
        """Return the same splits on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)


def split_dataset(
    dataset: Dataset,
    *,
    private: int | float,
    auxiliary: int | float,
    test: int | float,
    seed: int,
    auxiliary_dataset: Dataset | None = None,
    calibration: int | float = 0,
) -> Splits:
    """Draw disjoint splits, each with every class in its share.

    A size is a number of images (int), or a share above 0 and up to 1 (float) of the distinct
    images that the split is drawn from, rounded down.

    An image that occurs more than once in a data set is used once. Test images come from the
    official test set if there is one. If ``auxiliary_dataset`` is given, all auxiliary images come
    from it, at random whatever their classes. Private and test images depend neither on it, nor
    on the number of calibration images.

    Args:
        dataset: The data set to split.
        private: Size of the split that trains the target.
        auxiliary: Size of the attackers' split.
        test: Size of the split of queries that attacks are graded on.
        seed: Seed of the draw.
        auxiliary_dataset: The source of auxiliary images. None: ``dataset``.
        calibration: Size of the split of the operator's queries, from ``dataset``; 0: none.

    Raises:
        InvalidOptionError: A share is not above 0 and up to 1, there are too few images, a split
            would lack a class, or the auxiliary images have another size.
        OverlappingSplitsError: An auxiliary image is also a private or a test image.
    """
    tests, pool = _pools(dataset, np.random.default_rng(seed))
    others = None if auxiliary_dataset is None else np.flatnonzero(_first_copies(auxiliary_dataset))
    asked = _split_size("test", test, tests)
    rest, tests = (pool[asked:] if dataset.is_test is None else pool), tests[:asked]
    wanted = _split_size("auxiliary", auxiliary, pool if others is None else others)
    shared = wanted if others is None else 0
    counts = [
        _split_size("private", private, pool),
        shared,
        _split_size("calibration", calibration, pool),
    ]
    if len(tests) < asked or len(rest) < sum(counts):
        needed = " + ".join(str(count) for count in counts if count)
        raise InvalidOptionError(
            f"data set {dataset.name!r} has {len(tests)} distinct images for test and "
            f"{len(rest)} for other splits, but {asked} and {needed} are needed. Ask for fewer."
        )
    kept, own, queries = np.split(rest[: sum(counts)], np.cumsum(counts)[:2])
    rows = {
        "test": (dataset, tests),
        "private": (dataset, kept),
        "auxiliary": (dataset, own)
        if auxiliary_dataset is None or others is None
        else (auxiliary_dataset, _draw(auxiliary_dataset.name, others, wanted, seed)),
        "calibration": (dataset, queries),
    }
    tensors = {name: _to_images(of.images[chosen]) for name, (of, chosen) in rows.items()}
    canvases = [tuple(tensors[name].shape[2:]) for name in ("private", "auxiliary")]
    if canvases[0] != canvases[1]:
        raise InvalidOptionError(
            f"auxiliary images must have the size of the private ones, {canvases[0]} after "
            f"padding, but are {canvases[1]}. Load both data sets with the same side."
        )
    check_disjoint(tensors)
    for name in ("test", "private", "auxiliary")[: 3 if shared else 2]:
        _check_classes(name, dataset, rows[name][1])
    labels = {name: torch.from_numpy(of.labels[chosen]) for name, (of, chosen) in rows.items()}
    return Splits(
        private_images=tensors["private"],
        private_labels=labels["private"],
        auxiliary_images=tensors["auxiliary"],
        auxiliary_labels=labels["auxiliary"],
        test_images=tensors["test"],
        test_labels=labels["test"],
        num_classes=dataset.num_classes,
        calibration_images=tensors["calibration"],
        calibration_labels=labels["calibration"],
    )


def _pools(
    dataset: Dataset, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to take test images from, and those for other splits, in drawn order.

    Both are the same rows where there is no official test set.
    """
    unique = _first_copies(dataset)
    if dataset.is_test is None:
        pool = _stratified(dataset.labels, np.flatnonzero(unique), generator)
        return pool, pool
    tests = _stratified(dataset.labels, np.flatnonzero(unique & dataset.is_test), generator)
    rest = _stratified(dataset.labels, np.flatnonzero(unique & ~dataset.is_test), generator)
    return tests, rest


def check_split_size(name: str, size: int | float, least: int = 1) -> None:
    """Refuse the size of a split unless it is a number of images or a share of them.

    Raises:
        InvalidOptionError: A whole number is below ``least``, a share is not above 0 and up to 1,
            or the size is no number.
    """
    if not isinstance(size, float):
        check_count(name, size, least)
    elif not 0 < size <= 1:
        raise InvalidOptionError(
            f"{name} must be a number of images, or a share above 0 and up to 1, but got {size}."
        )


def _split_size(name: str, size: int | float, pool: NDArray[np.int64]) -> int:
    """Return the number of images of a split that is drawn from a pool."""
    check_split_size(name, size, least=0 if name == "calibration" else 1)
    count = int(size * len(pool)) if isinstance(size, float) else size
    if isinstance(size, float) and not count:
        raise InvalidOptionError(
            f"{name} would have no image: it is {size:g} of {len(pool)}. Ask for more."
        )
    return count


def _check_classes(name: str, dataset: Dataset, rows: NDArray[np.int64]) -> None:
    """Refuse a split without an image of some class."""
    missing = dataset.num_classes - len(np.unique(dataset.labels[rows]))
    if missing:
        raise InvalidOptionError(
            f"the {name} split of {len(rows)} images would have none of {missing} of the "
            f"{dataset.num_classes} classes. Ask for more images."
        )


def _first_copies(dataset: Dataset) -> NDArray[np.bool_]:
    """Mark the first copy of each image."""
    unique = np.zeros(len(dataset.images), np.bool_)
    unique[np.unique(image_hashes(dataset.images), return_index=True)[1]] = True
    return unique


def _draw(name: str, distinct: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw distinct images at random, from a random stream that no other draw uses."""
    if len(distinct) < count:
        raise InvalidOptionError(
            f"the auxiliary data set {name!r} has {len(distinct)} distinct images, but "
            f"{count} are needed. Ask for fewer."
        )
    (generator,) = np.random.default_rng(seed).spawn(1)
    return generator.permutation(distinct)[:count]


def _stratified(
    labels: NDArray[np.int64], rows: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Order ``rows`` at random so that any run of them has each class in its share."""
    rows = generator.permutation(rows)
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        members = np.flatnonzero(labels[rows] == label)
        place[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return rows[np.argsort(place, kind="stable")]


def _to_images(pixels: NDArray[np.uint8]) -> Tensor:
    if pixels.ndim != 3:
        raise CorruptDataError(f"images must have shape (N, H, W), but got {pixels.shape}.")
    margins = [(-side % CANVAS_MULTIPLE) for side in pixels.shape[1:]]
    around = [(margin // 2, margin - margin // 2) for margin in margins]
    padded = np.pad(pixels, [(0, 0), *around])
    return torch.from_numpy(padded).unsqueeze(1).float() / 255


def image_hashes(images: NDArray[np.generic]) -> NDArray[np.str_]:
    """Return the SHA-256 of each image's bytes, ``(N)`` strings; of floats, as float32.

    Adding 0 turns -0 into 0, which is the same value in other bytes.
    """
    are_floats = images.dtype.kind == "f"
    rows = (row.astype(np.float32) + np.float32(0) if are_floats else row for row in images)
    return np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in rows])


def check_disjoint(splits: Mapping[str, Tensor]) -> None:
    """Refuse splits that share an image, or a record.

    Args:
        splits: ``(N, C, H, W)`` or ``(N, H, W)`` images, or ``(N, D)`` records, by the name of
            their split.

    Raises:
        OverlappingSplitsError: Two splits share rows; the message says which and how many.
    """
    seen: dict[str, set[str]] = {
        name: set(image_hashes(images.cpu().float().numpy())) for name, images in splits.items()
    }
    names = list(seen)
    for position, name in enumerate(names):
        for other in names[position + 1 :]:
            shared = len(seen[name] & seen[other])
            if shared:
                rows = "records" if splits[name].ndim == 2 else "images"
                raise OverlappingSplitsError(
                    f"the {name} and {other} splits share {shared} {rows} (by SHA-256), so an "
                    "attack would be graded on what it was trained on. Remove them from one."
                )
