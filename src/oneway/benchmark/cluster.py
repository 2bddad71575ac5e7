"""Experiments and audits spread over a Ray cluster: tasks, each tried again if it is lost.

Each seed of each data set is a task that runs its cells one by one, and writes each record when it
is done; each part of an audit is one, which keeps the networks that it trains. A task that is tried
again, and a rerun after an interruption, go on from there.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from oneway.benchmark.audit_parts import AuditParts, Found, Groundwork
from oneway.benchmark.audit_settings import AuditSettings
from oneway.benchmark.model_audit import Spread
from oneway.benchmark.reproduce import Cells, load_data
from oneway.benchmark.store import Store, write_records
from oneway.benchmark.subject import Subject
from oneway.checks import check_count
from oneway.data import Report, silent
from oneway.errors import InvalidOptionError, OnewayError
from oneway.extras import load_extra

T = TypeVar("T")

RETRIES = 3
"""How often a task is tried again when its process or machine is lost."""


@dataclass(frozen=True)
class CellsJob:
    """One seed of one experiment, for whoever runs it.

    Attributes:
        cells: Its records and its store. On a cluster their paths must lead to one file system
            that all machines share; else each machine trains for itself, and an interrupted task
            begins again. Records come home either way.
        data_root: Folder with the data sets' files, on each machine.
        device: Where networks are trained and queried.
        only: Releases that are wanted; None: all.
        report: Told of progress, in the process that runs the job.
    """

    cells: Cells
    data_root: Path | None
    device: torch.device
    only: Collection[str] | None = None
    report: Report = silent

    def run(self) -> list[dict[str, Any]]:
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
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
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
    for number, records in _run_all(tasks, devices, retries):
        if isinstance(records, OnewayError):
            raise records
        # On a machine that shares no file system, they were written elsewhere.
        write_records(paths[number], records)
        yield number, records


@dataclass(frozen=True)
class AuditJob:
    """An audit whose parts may run elsewhere.

    Attributes:
        subject: Opens the model and loads the data, on whichever machine runs a part. It is sent
            there by value: a function of an installed module, or a partial of one.
        store: Where trained networks are kept; as in :class:`CellsJob`.
        settings: How the audit is run.
        seed: The first of the seeds.
        device: Where networks are trained and queried.
        report: Told of progress, in the process that runs a part.
    """

    subject: Callable[[], Subject]
    store: Store
    settings: AuditSettings
    seed: int
    device: torch.device
    report: Report = silent

    def run(self, part: str, groundwork: Groundwork) -> Found:
        """Run one part of the audit."""
        parts = AuditParts(self.subject(), self.store, self.settings, self.seed, self.report)
        return parts.run(part, groundwork)


def audit_on_ray(
    job: AuditJob, *, retries: int = RETRIES, finished: Callable[[str], None] | None = None
) -> Spread:
    """Return what runs the parts of an audit as tasks of a Ray cluster, for ``ModelAudit.run``.

    The cluster is that of :func:`run_on_ray`. All parts run at once, so that no seed is left out
    for lack of time; the plan is that of one machine.

    Args:
        job: The audit.
        retries: How often a task is tried again when its process or machine is lost.
        finished: Told of each part that is done.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidOptionError: ``retries`` is below 0.
    """
    check_count("retries", retries, least=0)
    sent = dataclasses.replace(job, store=Store(job.store.root.resolve()))

    def spread(groundwork: Groundwork, parts: Sequence[str]) -> Iterator[Found | OnewayError]:
        tasks = [partial(sent.run, part, groundwork) for part in parts]
        found = dict[int, Found | OnewayError]()
        given = 0
        for number, one in _run_all(tasks, [job.device] * len(parts), retries):
            found[number] = one
            if finished is not None:
                finished(parts[number])
            while given in found:
                yield found.pop(given)
                given += 1

    return spread


def _run_all(
    tasks: Sequence[Callable[[], T]], devices: Sequence[torch.device], retries: int
) -> Iterator[tuple[int, T | OnewayError]]:
    """Run functions as tasks of a cluster; give the number and the outcome of each when it is done.

    Args:
        tasks: Sent by value.
        devices: What each computes on.
        retries: How often each is tried again.
    """
    # Whoever wants to tell Ray's makers what they run may say so.
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
        for task in waiting:
            ray.cancel(task, force=True)


def _run_elsewhere(task: Callable[[], T], folder: Path) -> T | OnewayError:
    """Run a task in a worker; an error raised on purpose is an answer, and is not tried again.

    Args:
        task: What to run.
        folder: Where its relative paths begin, if this machine has it.
    """
    with contextlib.chdir(folder) if folder.is_dir() else contextlib.nullcontext():
        try:
            return task()
        except OnewayError as error:
            return error
