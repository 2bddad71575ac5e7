"""Experiments spread over a Ray cluster.

Each seed of each data set is a task that runs its cells one by one, and writes each record when it
is done. A task that is tried again, and a rerun after an interruption, go on from there.
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
from oneway.evaluation.records import ReleaseRecord, write_records
from oneway.evaluation.store import Store


@dataclass(frozen=True)
class CellsJob:
    """One seed of one experiment, for whoever runs it.

    Attributes:
        cells: Its records and its store. On a cluster their paths must lead to one file system
            that all machines share; else each machine trains for itself, and an interrupted task
            begins again. Records come home either way.
        data_root: Folder with the data sets' files, on each machine.
        device: Device for training and queries.
        only: Releases that are wanted; None: all.
        report: Progress callback, in the process that runs the job.
    """

    cells: Cells
    data_root: Path | None
    device: torch.device
    only: Collection[str] | None = None
    report: ProgressCallback = no_progress

    def run(self) -> list[ReleaseRecord]:
        """Run what is missing; return all records."""
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
    """Run jobs as tasks of a Ray cluster, and give the records of each when it is done.

    The cluster is the one that Ray is connected to, or that ``RAY_ADDRESS`` names, or that runs
    on this machine; without any, one is started on this machine's cores. A task takes one core,
    and one GPU if its job's device is one.

    Args:
        jobs: Each with a record file of its own.
        retries: How often a task is tried again when its process or machine is lost. An error
            raised on purpose is not tried again.

    Yields:
        The number of a job, and its records, as the jobs finish.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidOptionError: Two jobs write one file, or ``retries`` is below 0.
        OnewayError: A job raised it; the other tasks are cancelled.
    """
    check_count("retries", retries, least=0)
    paths = [job.cells.path.resolve() for job in jobs]
    if len(set(paths)) < len(paths):
        raise InvalidOptionError(
            f"jobs must write a file each, but {len(paths) - len(set(paths))} share one. Give "
            "each seed and preset once."
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
        # On a machine that shares no file system, they were written elsewhere.
        write_records(paths[number], records)
        yield number, records
