"""Run an experiment cell by cell, here or on a Ray cluster: an interruption loses one at most."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneway.benchmark.runner import Experiment
from oneway.benchmark.spec import DataSpec, ExperimentSpec, cell_key
from oneway.benchmark.summary import outdated_attackers
from oneway.checks import check_count
from oneway.data import Dataset, ProgressCallback, load_dataset, no_progress, read_npz
from oneway.errors import InvalidOptionError, OnewayError
from oneway.evaluation.cluster import RETRIES, run_tasks
from oneway.evaluation.records import SCHEMA, ReleaseRecord
from oneway.evaluation.store import Store, read_json_lines, write_json_lines
from oneway.files import write_npz

Gallery = Mapping[str, Any]


def load_data(
    spec: DataSpec, data_root: Path | None, report: ProgressCallback = no_progress
) -> tuple[Dataset, Dataset | None]:
    """Load an experiment's data set, and its auxiliary data set if there is another.

    Args:
        spec: Names of the data sets.
        data_root: Folder with the data sets' files.
        report: Progress callback.

    Raises:
        MissingDataError: A file does not exist.
        CorruptDataError: A file has another content than the data set's.
    """
    side = spec.side or None
    dataset = load_dataset(spec.name, data_root, path=spec.path or None, side=side, report=report)
    if not spec.auxiliary_name:
        return dataset, None
    auxiliary = load_dataset(
        spec.auxiliary_name,
        data_root,
        path=spec.auxiliary_path or None,
        side=side,
        labelled=False,
        report=report,
    )
    return dataset, auxiliary


def gallery_path(store: Store, cell: str) -> Path:
    """Return the file of a record's pictures.

    Args:
        store: Store of trained networks.
        cell: Key of the record.
    """
    return store.root / "galleries" / f"{cell}.npz"


def stored_gallery(store: Store, cell: str) -> Gallery | None:
    """Return a record's pictures, ``truth`` first, then by attacker; None if there are none.

    Args:
        store: Store of trained networks.
        cell: Key of the record.
    """
    path = gallery_path(store, cell)
    return read_npz(path) if path.is_file() else None


@dataclass(frozen=True)
class Cells:
    """The records of an experiment with a seed, in a file.

    Attributes:
        spec: Spec of the experiment.
        path: File of the records, JSON Lines. A record in it stays until a new record of its
            release takes its place, even if it is stale or of other settings. Records of other
            experiments, and of releases that the experiment lacks, are dropped at the next write.
        store: Store of trained networks, and of reconstructions to draw.
    """

    spec: ExperimentSpec
    path: Path
    store: Store

    def finished(self) -> dict[str, ReleaseRecord]:
        """Return the records in the file that need no other run, by release.

        They are of these settings, and of today's attackers.
        """
        keys = {row.name: cell_key(self.spec, row) for row in self.spec.releases}
        records = {
            values["release"]: ReleaseRecord.from_json(values, f"line {number} of {self.path}")
            for number, values in enumerate(read_json_lines(self.path), start=1)
            if values.get("schema") == SCHEMA
            and values.get("cell") is not None
            and keys.get(values.get("release", "")) == values["cell"]
        }
        return {
            release: record
            for release, record in records.items()
            if not outdated_attackers(record, self.spec)
        }

    def left(self, only: Collection[str] | None = None) -> list[str]:
        """Return the releases without a record of today's attackers, in order.

        Args:
            only: Names of the releases that are wanted; None: all releases.
        """
        missing = self._missing(self.finished(), only, drawn=False)
        return [row.name for row in self.spec.releases if row.name in missing]

    def gallery(self, release: str) -> Gallery | None:
        """Return the pictures of a release, by attacker; None if there are none."""
        return stored_gallery(self.store, self._key(release))

    def run(
        self,
        data: Callable[[], tuple[Dataset, Dataset | None]],
        *,
        device: torch.device,
        only: Collection[str] | None = None,
        drawn: bool = False,
        report: ProgressCallback = no_progress,
    ) -> list[ReleaseRecord]:
        """Run the missing releases, write each record at once, and return all records in order.

        Args:
            data: Loads the data sets; called only if a release is missing.
            device: Device for training and queries.
            only: Names of the releases to run; None: all releases.
            drawn: Whether a release without stored reconstructions counts as missing.
            report: Progress callback.
        """
        records = self.finished()
        if self._missing(records, only, drawn=drawn):
            dataset, auxiliary = data()
            experiment = Experiment(
                self.spec,
                dataset,
                self.store,
                auxiliary_dataset=auxiliary,
                device=device,
                report=report,
            )
            # Changed data makes every record stale.
            records = {
                name: record
                for name, record in records.items()
                if record.provenance.data == experiment.data
            }
            missing = self._missing(records, only, drawn=drawn)
            idle = {row.name for row in self.spec.releases} - missing
            for outcome in experiment.run(idle):
                name = outcome.record.release
                write_npz(self._gallery_path(name), experiment.gallery(outcome))
                # An earlier record stays, with the times and the environment that it measured.
                records.setdefault(name, outcome.record)
                self.write(records.values())
        return self._ordered(records)

    def write(self, records: Iterable[ReleaseRecord]) -> None:
        """Write records into the file; each takes the place of the release's earlier record.

        Args:
            records: New records of the experiment.
        """
        spec = self.spec
        whose = {"schema": SCHEMA, "experiment": spec.name, "preset": spec.preset}
        rows = {
            values["release"]: values
            for values in read_json_lines(self.path)
            if whose.items() <= values.items() and values.get("seed") == spec.seed
        }
        rows |= {record.release: record.to_json() for record in records}
        write_json_lines(self.path, [rows[row.name] for row in spec.releases if row.name in rows])

    def _missing(
        self, records: Mapping[str, Any], only: Collection[str] | None, *, drawn: bool
    ) -> set[str]:
        """Return the releases to run, which have no record, or no pictures to draw."""
        return {
            row.name
            for row in self.spec.releases
            if (only is None or row.name in only)
            and (row.name not in records or (drawn and not self._gallery_path(row.name).is_file()))
        }

    def _ordered(self, records: Mapping[str, ReleaseRecord]) -> list[ReleaseRecord]:
        return [records[row.name] for row in self.spec.releases if row.name in records]

    def _gallery_path(self, release: str) -> Path:
        return gallery_path(self.store, self._key(release))

    def _key(self, release: str) -> str:
        row = next(row for row in self.spec.releases if row.name == release)
        return cell_key(self.spec, row)


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
