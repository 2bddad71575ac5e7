"""Reconstructions beside the truth, as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oneway.errors import InvalidOptionError
from oneway.extras import load_extra


def draw_reconstructions(rows: Mapping[str, NDArray[np.float32]], path: Path, title: str) -> None:
    """Draw one labelled strip of images per row.

    Args:
        rows: By label: ``(n, H, W)`` gray or ``(n, H, W, 3)`` images in ``[0, 1]``; the same n.
        path: File to write; its ending gives the format, such as ``.png`` or ``.pdf``.
        title: Written above.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidOptionError: No such format can be written.
    """
    new_figure = load_extra("matplotlib.figure", extra="demo", purpose="drawing figures").Figure
    count = len(next(iter(rows.values())))
    figure = new_figure(figsize=(1.7 + 0.76 * count, 0.5 + 0.76 * len(rows)), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise InvalidOptionError(
            f"a figure's file must end in one of {', '.join(sorted(known))}, but is {path.name}."
        )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    grid = figure.subplots(len(rows), 1, squeeze=False)
    for (label, images), axis in zip(rows.items(), grid[:, 0], strict=True):
        axis.imshow(_strip(images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10, parse_math=False)
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _strip(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay images side by side with a thin white gap."""
    gap = np.ones((images.shape[1], 2, *images.shape[3:]), images.dtype)
    parts = [part for image in images for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)
