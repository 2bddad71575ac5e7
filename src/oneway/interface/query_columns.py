"""What is known of each query: who is behind it, and a sensitive value."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneway.data import read_npz
from oneway.data.tables import read_table_file
from oneway.errors import CorruptDataError
from oneway.interface.models import take_array

KINDS = {int: "whole numbers", bool: "truth values", str: "texts"}
"""What a file may say, by Python's type."""

WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read_groups(groups: Any, rows: int) -> Tensor | None:
    """Return ``(N)`` int64 groups; None without them.

    Whole numbers stay as they are, also where they are texts. Another text becomes a number of 63
    bits that depends on the text alone, so that files of different rows agree.

    Args:
        groups: ``(N)`` whole numbers or texts as an array, a tensor or a list; or an .npy file, an
            .npz file with ``groups``, or a .csv file with a column ``groups``.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: There is not one whole number or text per query.
    """
    if groups is None:
        return None
    remedy = "Write the person, account or device of each query"
    values = _read(groups, "groups", (int, str), rows, remedy)
    return torch.tensor([_number(value) for value in values], dtype=torch.int64)


def read_sensitive(sensitive: Any, rows: int) -> Tensor | None:
    """Return ``(N)`` int64 numbers of sensitive values; None without them.

    Args:
        sensitive: ``(N)`` whole numbers, truth values or texts as an array, a tensor or a list; or
            an .npy file, an .npz file with ``sensitive``, or a .csv file with a column
            ``sensitive``.
        rows: N, number of queries.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: There is not one such value per query.
    """
    if sensitive is None:
        return None
    remedy = "Write one for each query, and a text for those that are missing"
    values = _read(sensitive, "sensitive", (int, bool, str), rows, remedy)
    numbers = dict[int | str, int]()
    found = [numbers.setdefault(value, len(numbers)) for value in values]
    return torch.tensor(found, dtype=torch.int64)


def _read(
    source: Any, name: str, kinds: Sequence[type], rows: int, remedy: str
) -> Sequence[int | str]:
    """Return the values of an array or a column, one per query.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: There is not one value of these kinds per query.
    """
    where = name
    if isinstance(source, str | Path):
        path, where = Path(source), f"{name} in {source}"
        is_table = path.suffix.lower() == ".csv"
        columns = read_table_file(path).columns if is_table else read_npz(path)
        values = take_array(dict[str, Any](columns), path, name)
    else:
        values = np.asarray(source)
    read = values.tolist() if values.shape == (rows,) else []
    missing = [row for row, each in enumerate(read) if each in (None, "") or each != each]
    if missing:
        raise CorruptDataError(
            f"{where} must say something of each of {rows} queries, but is missing in "
            f"{len(missing)} rows, row {missing[0]} first, counted from 0. {remedy}."
        )
    known = [each for each in read if type(each) in kinds and not _is_large(each)]
    if len(known) != rows:
        words = " or ".join(KINDS[kind] for kind in kinds)
        raise CorruptDataError(
            f"{where} must be {rows} {words}, one per query, but is {values.dtype} of "
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
