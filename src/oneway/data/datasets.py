"""Data sets by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from oneway.data.arrays import load_npz
from oneway.data.faces import load_celeba, load_facescrub
from oneway.data.folders import load_folder
from oneway.data.images import (
    Dataset,
    ProgressCallback,
    Source,
    check_size,
    no_progress,
    scale_images,
)
from oneway.data.mnist import load_digits, load_mnist, load_qmnist
from oneway.errors import UnknownNameError

DATASETS: dict[str, Callable[[Source], Dataset]] = {
    "celeba": load_celeba,
    "digits": load_digits,
    "facescrub": load_facescrub,
    "folder": load_folder,
    "mnist": load_mnist,
    "npz": load_npz,
    "qmnist": load_qmnist,
}
"""The loaders by name."""


def load_dataset(
    name: str,
    data_root: Path | None = None,
    *,
    path: str | None = None,
    side: int | None = None,
    labelled: bool = True,
    report: ProgressCallback = no_progress,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of ``DATASETS``.
        data_root: A folder that holds its files. None: bundled, or downloaded to the user's
            cache folder with a hash check, or below ``path`` alone.
        path: The file or folder to read, relative to ``data_root`` or absolute. None: where the
            data set usually is in ``data_root``; digits and mnist take no path.
        side: Scale every image to ``side`` x ``side`` by area averaging. None: as stored.
        labelled: Whether labels are wanted. An .npz file that only serves as an auxiliary set
            may hold labels that are not class indices: pass False.
        report: Receives the progress.

    Raises:
        UnknownNameError: There is no data set of that name.
        InvalidOptionError: The data set takes no path or needs one, or the side is less than 1, or
            images differ in size and there is no side.
        MissingDataError: A file does not exist, and could not be downloaded.
        CorruptDataError: A file has another form, or the pixels are not those of the published
            data set.
        MissingExtraError: A package that carries, downloads or decodes the data is not
            installed.
    """
    UnknownNameError.check("data set", name, DATASETS)
    if side is not None:
        check_size(side)
    dataset = DATASETS[name](Source(name, data_root, path, side, labelled, report))
    if side is None:
        return dataset
    return replace(dataset, images=scale_images(dataset.images, side))
