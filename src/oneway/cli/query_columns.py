"""What a file says of each query: who is behind it, and a sensitive value."""

import hashlib
import re
from collections.abc import Sequence
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
Sensitive = Annotated[
    Path | None,
    typer.Option(
        help="A sensitive value of each query, such as a diagnosis: .npy, or .npz or .csv with "
        "`sensitive`. The certificate states how well an answer reveals it."
    ),
]

KINDS = {int: "whole numbers", bool: "truth values", str: "texts"}
"""What a file may say, by Python's type."""

WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read_groups(path: Path | None, rows: int) -> "Tensor | None":
    """Return ``(N)`` int64 groups from a file; None without one.

    Whole numbers stay as they are, also where they are texts. Another text becomes a number of 63
    bits that depends on the text alone, so that files of different rows agree.

    Args:
        path: .npy, .npz with ``groups``, or .csv with a column ``groups``; whole numbers or texts.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: It does not hold one whole number or text per query.
    """
    import torch

    if path is None:
        return None
    remedy = "Write the person, account or device of each query"
    values = _read(path, "groups", (int, str), rows, remedy)
    return torch.tensor([_number(value) for value in values], dtype=torch.int64)


def read_sensitive(path: Path | None, rows: int) -> "Tensor | None":
    """Return ``(N)`` int64 numbers of sensitive values from a file; None without one.

    Args:
        path: .npy, .npz with ``sensitive``, or .csv with a column ``sensitive``; whole numbers,
            truth values or texts.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: It does not hold one such value per query.
    """
    import torch

    if path is None:
        return None
    remedy = "Write one for each query, and a text for those that are missing"
    values = _read(path, "sensitive", (int, bool, str), rows, remedy)
    numbers = dict[int | str, int]()
    found = [numbers.setdefault(value, len(numbers)) for value in values]
    return torch.tensor(found, dtype=torch.int64)


def _read(
    path: Path, name: str, kinds: Sequence[type], rows: int, remedy: str
) -> Sequence[int | str]:
    """Return the values of an array or a column, one per query.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: It does not hold one value of these kinds per query.
    """
    from oneway.data import read_npz
    from oneway.data.tables import read_table_file

    is_table = path.suffix.lower() == ".csv"
    columns = read_table_file(path).columns if is_table else read_npz(path)
    values = take_array(dict[str, Any](columns), path, name)
    read = values.tolist() if values.shape == (rows,) else []
    missing = [row for row, each in enumerate(read) if each in (None, "") or each != each]
    if missing:
        raise CorruptDataError(
            f"{name} in {path} must say something of each of {rows} queries, but is missing in "
            f"{len(missing)} rows, row {missing[0]} first, counted from 0. {remedy}."
        )
    known = [each for each in read if type(each) in kinds and not _is_large(each)]
    if len(known) != rows:
        words = " or ".join(KINDS[kind] for kind in kinds)
        raise CorruptDataError(
            f"{name} in {path} must be {rows} {words}, one per query, but is {values.dtype} of "
            f"shape {values.shape}, with {len(known)} such values. {remedy}, in the order of the "
            "queries."
        )
    return known


def _is_large(value: int | str) -> bool:
    return isinstance(value, int) and abs(value) >= 2**63


def _number(value: int | str) -> int:
    """Return the number of a group."""
    if isinstance(value, str):
        if WHOLE.fullmatch(value):
            return int(value)  # a column of numbers is read as texts if one row is none
        return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> 1
    return value
