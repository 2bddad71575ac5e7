"""Run functions as tasks of a Ray cluster; a lost task is tried again."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from oneway.errors import OnewayError
from oneway.extras import load_extra

T = TypeVar("T")

RETRIES = 3
"""Attempts after the first, when a task's process or machine is lost."""


def run_tasks(
    tasks: Sequence[Callable[[], T]], devices: Sequence[torch.device], retries: int
) -> Iterator[tuple[int, T | OnewayError]]:
    """Run functions as tasks of a cluster.

    Args:
        tasks: Functions; the cluster gets a copy of each.
        devices: Device of each task.
        retries: Most attempts after the first, for each task.

    Yields:
        The number of a task, and its value or the error that it raised on purpose, in the order in
        which tasks end.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    # Usage statistics are off unless the user turns them on.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = load_extra("ray", extra="ray", purpose="running on a cluster")
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    waiting: dict[Any, int] = {}
    for number, (task, device) in enumerate(zip(tasks, devices, strict=True)):
        needed = {"num_cpus": 1, "num_gpus": 1 if device.type == "cuda" else 0}
        remote = ray.remote(_run_elsewhere).options(max_retries=retries, **needed)
        waiting[remote.remote(task, Path.cwd())] = number
    try:
        while waiting:
            (done, *_), _ = ray.wait(list(waiting))
            number = waiting.pop(done)
            yield number, ray.get(done)
    finally:
        # Nothing is left to cancel once the cluster is gone; to ask for it would start another.
        for task in waiting if ray.is_initialized() else ():
            ray.cancel(task, force=True)


def _run_elsewhere(task: Callable[[], T], folder: Path) -> T | OnewayError:
    """Run a task in a worker; return an error raised on purpose, so that it is not tried again.

    Args:
        task: Function to run.
        folder: Working folder of the task, if this machine has it.
    """
    with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
        try:
            return task()
        except OnewayError as error:
            return error
