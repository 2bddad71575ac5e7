"""Reconstructions beside the truth, as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oneway.errors import MissingExtraError


def draw_reconstructions(rows: Mapping[str, NDArray[np.float32]], path: Path, title: str) -> None:
    """Draw one labelled strip of images per row.

    Args:
        rows: By label: ``(n, H, W)`` gray or ``(n, H, W, 3)`` images in ``[0, 1]``; the same n.
        path: File to write; its ending gives the format, such as ``.png`` or ``.pdf``.
        title: Written above.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="demo", purpose="drawing figures") from error
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(2.6 + 0.72 * count, 0.55 + 0.76 * len(rows)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    grid = figure.subplots(len(rows), 1, squeeze=False)
    for (label, images), axis in zip(rows.items(), grid[:, 0], strict=True):
        axis.imshow(_strip(images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _strip(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay images side by side with a thin white gap."""
    gap = np.ones((images.shape[1], 2, *images.shape[3:]), images.dtype)
    parts = [part for image in images for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)
