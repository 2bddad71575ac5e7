"""Time the answers of a target."""

import time

import torch
from torch import Tensor

from oneway.targets import DefendedTarget


def query_times(guard: DefendedTarget, queries: Tensor, repeats: int) -> list[float]:
    """Return the milliseconds from queries to released confidences, from least to most.

    Args:
        guard: Target to time.
        queries: ``(N, ...)`` a batch of queries.
        repeats: Number of calls.
    """
    taken = []
    for _ in range(repeats):
        synchronize(queries.device)
        begin = time.perf_counter()
        guard(queries)
        synchronize(queries.device)
        taken.append(1000 * (time.perf_counter() - begin))
    return sorted(taken)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work, so that times are right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
