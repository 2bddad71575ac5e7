"""How long a target takes to answer."""

import time

import torch
from torch import Tensor

from oneway.targets import DefendedTarget


def query_times(guard: DefendedTarget, queries: Tensor, repeats: int) -> list[float]:
    """Return the milliseconds from queries to released confidences, from least to most.

    Args:
        guard: Target that answers.
        queries: ``(N, ...)``, asked all at once.
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
    """Wait until a GPU has done what it was given, so that a clock reads true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
