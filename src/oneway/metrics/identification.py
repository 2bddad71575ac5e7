"""Identification in a gallery, by distances: ties count in expectation."""

import torch
from torch import Tensor

from oneway.checks import check_count, name_of
from oneway.errors import InvalidTensorError


def expected_hits(distances: Tensor, places: Tensor, within: int = 1) -> Tensor:
    """Return each query's probability that its candidate is among the nearest ``within``.

    Candidates at equal distance are ranked at random. So if ``t`` candidates tie for the first
    rank, the right one among them, rank 1 counts ``1 / t``.

    Args:
        distances: ``(N, M)`` floating, without NaN: the distance of each query to each candidate.
            The lowest is the attacker's answer.
        places: ``(N)`` int64 in ``[0, M)``: the place of each query's right candidate.
        within: Ranks that count, at least 1: 1 for rank 1, 5 for rank 5.

    Returns:
        ``(N)`` float64, in ``[0, 1]``.

    Raises:
        InvalidTensorError: A tensor breaks the lines above.
        InvalidOptionError: ``within`` is below 1.
    """
    check_count("within", within)
    if distances.ndim != 2 or not distances.is_floating_point() or distances.isnan().any():
        raise InvalidTensorError(
            "distances must be floating of shape (N, M), without NaN, but got "
            f"{name_of(distances.dtype)} of shape {tuple(distances.shape)} with "
            f"{int(distances.isnan().sum())} NaN. Pass a distance for each query and candidate."
        )
    count, candidates = distances.shape
    if (
        places.dtype != torch.int64
        or places.shape != (count,)
        or not ((places >= 0) & (places < candidates)).all()
    ):
        raise InvalidTensorError(
            f"places must be int64 of shape ({count},) in [0, {candidates}), one per row of "
            f"distances, but got {name_of(places.dtype)} of shape {tuple(places.shape)}. Pass the "
            "column of each query's right candidate."
        )
    own = distances.gather(-1, places.unsqueeze(-1))
    nearer = (distances < own).sum(-1)
    tied = (distances == own).sum(-1)
    return ((within - nearer).double() / tied).clamp(0, 1)
