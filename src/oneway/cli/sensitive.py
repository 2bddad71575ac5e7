"""Options that codebooks are fitted and certified with: a sensitive value, and a worst case."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import take_array
from oneway.errors import CorruptDataError

if TYPE_CHECKING:
    from torch import Tensor

Sensitive = Annotated[
    Path | None,
    typer.Option(
        help="A sensitive value of each query, such as a diagnosis: .npy, or .npz or .csv with "
        "`sensitive`. The certificate states how well an answer reveals it."
    ),
]
MaxL1Worst = Annotated[
    float | None,
    typer.Option(help="Cap on each answer's L1 distance of probabilities: its share is certified."),
]


def read_sensitive(path: Path | None, rows: int) -> "Tensor | None":
    """Return ``(N)`` int64 numbers of sensitive values from a file; None without one.

    Args:
        path: .npy, .npz with ``sensitive``, or .csv with a column ``sensitive``: whole numbers,
            truth values or texts.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: It does not hold one such value per query.
    """
    import numpy as np
    import torch

    from oneway.data import read_npz
    from oneway.data.tables import read_table_file

    if path is None:
        return None
    is_table = path.suffix.lower() == ".csv"
    columns = dict[str, Any](read_table_file(path).columns if is_table else read_npz(path))
    values = take_array(columns, path, "sensitive")
    cells = values.tolist()
    if values.shape != (rows,) or not all(isinstance(cell, int | str) for cell in cells):
        raise CorruptDataError(
            f"sensitive values in {path} must be {rows} whole numbers, truth values or texts, one "
            f"per query, but are {values.dtype} of shape {values.shape}. Write one for each query, "
            "in the order of the queries, and a text for those that are missing."
        )
    return torch.from_numpy(np.unique(values.astype(str), return_inverse=True)[1].astype(np.int64))
