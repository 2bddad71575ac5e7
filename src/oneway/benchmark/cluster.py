"""Experiments on a Ray cluster.

Each seed of each data set is a task that runs its cells in turn, and writes each record at once. A
task that is tried again, and a rerun after an interruption, run only what is missing.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from oneway.benchmark.cells import Cells, load_data
from oneway.checks import check_count
from oneway.data import ProgressCallback, no_progress
from oneway.errors import InvalidOptionError, OnewayError
from oneway.evaluation.cluster import RETRIES, run_tasks
from oneway.evaluation.records import ReleaseRecord
from oneway.evaluation.store import Store


@dataclass(frozen=True)
class CellsJob:
    """An experiment with a seed, to run here or on a cluster.

    Attributes:
        cells: Records and store. On a cluster their paths should be on a file system that all
            machines share. Otherwise each machine trains its own networks, and an interrupted task
            begins again. Records come back in both cases.
        data_root: Folder with the data sets' files, on each machine.
        device: Device for training and queries.
        only: Names of the releases to run; None: all releases.
        report: Progress callback, in the process that runs the job.
    """

    cells: Cells
    data_root: Path | None
    device: torch.device
    only: Collection[str] | None = None
    report: ProgressCallback = no_progress

    def run(self) -> list[ReleaseRecord]:
        """Run the missing releases; return all records."""
        spec = self.cells.spec
        return self.cells.run(
            lambda: load_data(spec.data, self.data_root, self.report),
            device=self.device,
            only=self.only,
            report=self.report,
        )


def run_on_ray(
    jobs: Sequence[CellsJob], *, retries: int = RETRIES
) -> Iterator[tuple[int, list[ReleaseRecord]]]:
    """Run jobs as tasks of a Ray cluster, and yield the records of each finished job.

    The cluster is that of Ray's connection, of ``RAY_ADDRESS``, or of this machine. Without a
    cluster, Ray starts a cluster on this machine's cores. A task takes a core, and a GPU if its
    job's device is a GPU.

    Args:
        jobs: Jobs with distinct record files.
        retries: Most attempts after the first, when a task's process or machine is lost. A task
            that raises a :class:`OnewayError` is not tried again.

    Yields:
        The number of a job, and its records, as the jobs finish.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidOptionError: Two jobs write one file, or ``retries`` is below 0.
        OnewayError: A job failed; the other tasks are cancelled.
    """
    check_count("retries", retries, least=0)
    paths = [job.cells.path.resolve() for job in jobs]
    if len(set(paths)) < len(paths):
        raise InvalidOptionError(
            f"jobs must write distinct files, but {len(paths) - len(set(paths))} share a file. "
            "Pass each seed and preset once."
        )
    tasks = [
        dataclasses.replace(
            job, cells=Cells(job.cells.spec, path, Store(job.cells.store.root.resolve()))
        ).run
        for job, path in zip(jobs, paths, strict=True)
    ]
    devices = [job.device for job in jobs]
    for number, records in run_tasks(tasks, devices, retries):
        if isinstance(records, OnewayError):
            raise records
        # A machine that shares no file system has written its records elsewhere.
        jobs[number].cells.write(records)
        yield number, records
