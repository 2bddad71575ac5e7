"""Errors of a reconstructed record, column by column.

A record is a row of encoded columns: a numeric column is a position in ``[0, 1]``, a categorical
column a one-hot block of positions. A block is ``(start, stop)``, as in a slice.
"""

import torch
from torch import Tensor

from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.metrics.inputs import check_pairs

Block = tuple[int, int]


def categorical_accuracy(records: Tensor, reconstructions: Tensor, block: Block) -> Tensor:
    """Return, for each record, the chance that the reconstruction names the right category.

    Args:
        records: ``(N, features)`` true records, one-hot in ``block``.
        reconstructions: Same shape; the largest entry of the block names the category.
        block: Positions of the column.

    Returns:
        ``(N)`` float64: 1 if the true category is the only largest entry, 0 if it is not
        among the largest. Among ``m`` that tie, ``1 / m``: a block of equal entries is a guess,
        not the first category.

    Raises:
        InvalidTensorError: The shapes differ, or ``records`` are not one-hot there.
        InvalidOptionError: ``block`` is not inside the record.
    """
    start, stop = _check(records, reconstructions, block)
    true, guess = records[:, start:stop], reconstructions[:, start:stop]
    one_hot = ((true == 0) | (true == 1)).all(-1) & (true.sum(-1) == 1)
    if not one_hot.all():
        raise InvalidTensorError(
            f"records must be one-hot in block ({start}, {stop}), but {int((~one_hot).sum())} of "
            f"{len(records)} rows are not, row {int((~one_hot).nonzero()[0])} first. Pass the "
            "columns of this record layout; a numeric column has `numeric_error`."
        )
    largest = guess == guess.amax(-1, keepdim=True)
    named = (largest & (true == 1)).any(-1)
    return named.double() / largest.sum(-1)


def numeric_error(records: Tensor, reconstructions: Tensor, block: Block) -> Tensor:
    """Return, for each record, the absolute error of a numeric column.

    Args:
        records: ``(N, features)`` true records, in ``[0, 1]`` at ``block``.
        reconstructions: Same shape.
        block: Position of the column; or two positions, the number and whether it is missing (a
            reconstruction above 0.5 says so).

    Returns:
        ``(N)`` float64, in units of the column's range. Where only one of record and
        reconstruction has a value: 1, the whole range. Where neither has: 0.

    Raises:
        InvalidTensorError: The shapes differ, ``records`` leave ``[0, 1]`` there, or their second
            position is neither 0 nor 1.
        InvalidOptionError: ``block`` is not inside the record, or longer than two positions.
    """
    start, stop = _check(records, reconstructions, block)
    if stop - start > 2:
        raise InvalidOptionError(
            f"block of a numeric column must be one position, or two if values are missing, but "
            f"got ({start}, {stop}). A categorical column has `categorical_accuracy`."
        )
    true = records[:, start]
    outside = (true < 0) | (true > 1)
    if outside.any():
        raise InvalidTensorError(
            f"records must lie in [0, 1] at position {start}, but {int(outside.sum())} of "
            f"{len(records)} rows do not, row {int(outside.nonzero()[0])} first. Encode them first."
        )
    error = (true.double() - reconstructions[:, start].double()).abs()
    if stop - start == 1:
        return error
    flags = records[:, start + 1]
    unclear = (flags != 0) & (flags != 1)
    if unclear.any():
        raise InvalidTensorError(
            f"records must be 0 or 1 at position {start + 1}, which says whether a value is "
            f"missing, but {int(unclear.sum())} of {len(records)} rows are not. Encode them first."
        )
    missing, guess = flags == 1, reconstructions[:, start + 1] > 0.5
    return torch.where(missing | guess, (missing != guess).double(), error)


def _check(records: Tensor, reconstructions: Tensor, block: Block) -> Block:
    check_pairs(records, reconstructions)
    if records.ndim != 2:
        raise InvalidTensorError(
            f"records must have shape (N, features), but got {tuple(records.shape)}."
        )
    start, stop = block
    if not 0 <= start < stop <= records.shape[1]:
        raise InvalidOptionError(
            f"block must be (start, stop) with 0 <= start < stop <= {records.shape[1]}, the "
            f"features of a record, but got ({start}, {stop})."
        )
    return start, stop
