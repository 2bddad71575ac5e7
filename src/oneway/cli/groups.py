"""The person, account or device behind each query, from a file."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import take_array
from oneway.errors import CorruptDataError

if TYPE_CHECKING:
    from torch import Tensor

Groups = Annotated[
    Path | None,
    typer.Option(
        help="Person, account or device behind each query: .npy, .npz or .csv with `groups`."
    ),
]
DropCopies = Annotated[
    bool,
    typer.Option(
        "--drop-copies", help="Count copies of a query once: they are an artefact of the file."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="Key of the digests of fitted queries, a file. [a salt beside them]"),
]

WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""Texts that stand for a whole number of at most 63 bits, in its only spelling."""


def read_groups(path: Path | None, rows: int) -> "Tensor | None":
    """Return ``(N)`` int64 groups from a file; None without one.

    Whole numbers stay as they are, also where they are written as texts. Any other text becomes a
    number of 63 bits that depends on the text alone, so that files of different rows agree.

    Args:
        path: .npy, .npz with ``groups``, or .csv with a column ``groups``; whole numbers or texts.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: It does not hold one whole number or text per query.
    """
    import torch

    from oneway.data import read_npz
    from oneway.data.tables import read_table_file

    if path is None:
        return None
    is_table = path.suffix.lower() == ".csv"
    columns = read_table_file(path).columns if is_table else read_npz(path)
    values = take_array(dict[str, Any](columns), path, "groups")
    numbers = [_number(value) for value in values.tolist()] if values.ndim == 1 else []
    known = [number for number in numbers if number is not None]
    if len(known) != rows or len(numbers) != rows:
        raise CorruptDataError(
            f"groups in {path} must be {rows} whole numbers or texts, one per query, but are "
            f"{values.dtype} of shape {values.shape}, {len(numbers) - len(known)} of them neither. "
            "Write the person, account or device of each query, in the order of the queries."
        )
    return torch.tensor(known, dtype=torch.int64)


def _number(value: object) -> int | None:
    """Return the number of a group; None if it is neither a whole number nor a text."""
    if isinstance(value, str):
        if WHOLE.fullmatch(value):
            return int(value)  # a column of numbers is read as texts if one row is none
        return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> 1
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    return None
