"""Scores of changed copies of queries, from a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

Variants = Annotated[
    Path | None,
    typer.Option(
        help="Scores of changed copies of each query, such as frames of a video: .npy, or .npz "
        "with `logits` or `confidences`, of shape (queries, copies, classes). The certificate "
        "states what several answers tell."
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Instead of --variants, of a model: answers to each query, its own among them. It is "
        "asked about turned, shifted and noisy copies.",
    ),
]


def read_variants(path: Path | None, outputs: str | None) -> "Tensor | None":
    """Return ``(N, m, K)`` logits of m changed copies of each query; None without a file.

    Raises:
        CorruptDataError: It holds no scores.
        InvalidOptionError: ``outputs`` is missing for an .npy file.
        InvalidTensorError: The scores are not what their name says, or of another shape.
    """
    from oneway.data import read_npz
    from oneway.interface.models import scores_to_logits

    if path is None:
        return None
    arrays = read_npz(path)
    shapes = {name: array.shape for name, array in arrays.items() if array.ndim == 3}
    rows = {
        name: array.reshape(-1, array.shape[-1]) if name in shapes else array
        for name, array in arrays.items()
    }
    scores = scores_to_logits(rows, path, outputs)
    named = next(name for name in ("logits", "confidences", "array") if name in arrays)
    return scores.view(shapes.get(named, scores.shape))
