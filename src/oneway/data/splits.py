"""Private, auxiliary and test splits that share no image."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.data.datasets import Dataset
from oneway.errors import CorruptDataError, InvalidOptionError, OverlappingSplitsError

CANVAS_MULTIPLE = 16
"""Images are padded with black until both sides are a multiple of this: 28x28 to 32x32."""


@dataclass(frozen=True)
class Splits:
    """Whose images are whose. All are ``(N, 1, H, W)`` float32 in ``[0, 1]``.

    Attributes:
        private_images: What the target was trained on. No attacker has them.
        private_labels: ``(N)`` int64.
        auxiliary_images: What attackers and the defender have.
        auxiliary_labels: ``(N)`` int64; no attack uses them.
        test_images: The queries that attacks are graded on.
        test_labels: ``(N)`` int64.
        num_classes: K.
    """

    private_images: Tensor
    private_labels: Tensor
    auxiliary_images: Tensor
    auxiliary_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int

    def to(self, device: torch.device) -> "Splits":
        """Return the same splits on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
        return replace(self, **moved)


def split_dataset(
    dataset: Dataset, *, private: int, auxiliary: int, test: int, seed: int
) -> Splits:
    """Draw three disjoint splits, each with every class in its share.

    An image that occurs more than once in the data set is used once. Test images come from the
    official test set where there is one.

    Args:
        dataset: What to split.
        private: How many images train the target.
        auxiliary: How many the attackers have.
        test: How many the attacks are graded on.
        seed: Of the draw.

    Raises:
        InvalidOptionError: There are not so many images, or a split would lack a class.
    """
    if min(private, auxiliary, test) < 1:
        raise InvalidOptionError(
            "each split must have at least 1 image, but private, auxiliary and test are "
            f"{private}, {auxiliary} and {test}."
        )
    first = np.unique(image_hashes(dataset.images), return_index=True)[1]
    unique = np.zeros(len(dataset.images), np.bool_)
    unique[first] = True
    generator = np.random.default_rng(seed)
    if dataset.is_test is None:
        pool = _stratified(dataset.labels, np.flatnonzero(unique), generator)
        tests, rest = pool[:test], pool[test:]
    else:
        tests = _stratified(dataset.labels, np.flatnonzero(unique & dataset.is_test), generator)
        rest = _stratified(dataset.labels, np.flatnonzero(unique & ~dataset.is_test), generator)
    if len(tests) < test or len(rest) < private + auxiliary:
        raise InvalidOptionError(
            f"data set {dataset.name!r} has {len(tests)} distinct images for test and "
            f"{len(rest)} besides, but {test} and {private} + {auxiliary} were asked for."
        )
    rows = {
        "test": tests[:test],
        "private": rest[:private],
        "auxiliary": rest[private : private + auxiliary],
    }
    for name, chosen in rows.items():
        missing = dataset.num_classes - len(np.unique(dataset.labels[chosen]))
        if missing:
            raise InvalidOptionError(
                f"the {name} split of {len(chosen)} images would have none of {missing} of the "
                f"{dataset.num_classes} classes. Ask for more images."
            )
    tensors = {name: _to_images(dataset.images[chosen]) for name, chosen in rows.items()}
    check_disjoint(tensors)
    labels = {name: torch.from_numpy(dataset.labels[chosen]) for name, chosen in rows.items()}
    return Splits(
        private_images=tensors["private"],
        private_labels=labels["private"],
        auxiliary_images=tensors["auxiliary"],
        auxiliary_labels=labels["auxiliary"],
        test_images=tensors["test"],
        test_labels=labels["test"],
        num_classes=dataset.num_classes,
    )


def _stratified(
    labels: NDArray[np.int64], rows: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Order ``rows`` at random so that every run of them has each class in its share."""
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
    """Return the SHA-256 of each image's bytes, ``(N)`` strings."""
    return np.array([hashlib.sha256(row.tobytes()).hexdigest() for row in images])


def check_disjoint(splits: Mapping[str, Tensor]) -> None:
    """Refuse splits that share an image.

    Args:
        splits: ``(N, ...)`` images by the name of their split.

    Raises:
        OverlappingSplitsError: Two splits share images; the message says which and how many.
    """
    seen: dict[str, set[str]] = {
        name: set(image_hashes(images.cpu().numpy())) for name, images in splits.items()
    }
    names = list(seen)
    for position, name in enumerate(names):
        for other in names[position + 1 :]:
            shared = len(seen[name] & seen[other])
            if shared:
                raise OverlappingSplitsError(
                    f"the {name} and {other} splits share {shared} images (by SHA-256), so an "
                    "attack would be graded on what it was trained on. Remove them from one."
                )
