"""Copies of queries."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def query_bytes(queries: Tensor) -> Iterator[bytes]:
    """Yield what tells one of ``(N, ...)`` queries from others: its values in float32."""
    for query in queries.detach().cpu():
        # Adding 0 turns -0 into 0, which is the same value in other bytes.
        flat = query.to(torch.float32).flatten() + 0.0
        yield flat.numpy().tobytes()


def numbers_of_queries(queries: Tensor) -> Tensor:
    """Return ``(N)`` int64 numbers on the CPU: equal queries of ``(N, ...)`` have the same."""
    numbers = dict[bytes, int]()
    found = [
        numbers.setdefault(hashlib.sha256(query).digest(), len(numbers))
        for query in query_bytes(queries)
    ]
    return torch.tensor(found, dtype=torch.int64)


def first_copies(numbers: Tensor) -> Tensor:
    """Return the ``(M)`` int64 rows of distinct ``(N)`` numbers: of equal ones, the first."""
    seen = dict[int, int]()
    for row, number in enumerate(numbers.tolist()):
        seen.setdefault(number, row)
    return torch.tensor(list(seen.values()), dtype=torch.int64)
