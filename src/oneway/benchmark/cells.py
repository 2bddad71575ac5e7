"""Run an experiment cell by cell, so that an interrupted run loses at most one."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneway.benchmark.runner import Experiment
from oneway.benchmark.spec import DataSpec, ExperimentSpec, cell_key
from oneway.data import Dataset, ProgressCallback, load_dataset, no_progress, read_npz
from oneway.evaluation.records import SCHEMA, ReleaseRecord, write_records
from oneway.evaluation.store import Store, read_json_lines
from oneway.files import write_npz

Gallery = Mapping[str, Any]


def load_data(
    spec: DataSpec, data_root: Path | None, report: ProgressCallback = no_progress
) -> tuple[Dataset, Dataset | None]:
    """Load an experiment's data set, and its auxiliary one if that is another.

    Raises:
        MissingDataError: A file is not there.
        CorruptDataError: A file is something else.
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
    """Return where the pictures of a record are kept.

    Args:
        store: Beside the trained networks.
        cell: The record's key.
    """
    return store.root / "galleries" / f"{cell}.npz"


def stored_gallery(store: Store, cell: str) -> Gallery | None:
    """Return what a record's attackers made of the shown queries, ``truth`` first, if it is there.

    Args:
        store: Beside the trained networks.
        cell: The record's key.
    """
    path = gallery_path(store, cell)
    return read_npz(path) if path.is_file() else None


@dataclass(frozen=True)
class Cells:
    """Records of one experiment and one seed, in a file of their own.

    Attributes:
        spec: The experiment.
        path: The file, JSON Lines; what it holds of another experiment is dropped.
        store: Keeps trained networks, and reconstructions to draw.
    """

    spec: ExperimentSpec
    path: Path
    store: Store

    def finished(self) -> dict[str, ReleaseRecord]:
        """Return the records that are there, by release; what the file holds besides is dropped."""
        keys = {row.name: cell_key(self.spec, row) for row in self.spec.releases}
        return {
            values["release"]: ReleaseRecord.from_json(values, f"line {number} of {self.path}")
            for number, values in enumerate(read_json_lines(self.path), start=1)
            if values.get("schema") == SCHEMA
            and values.get("cell") is not None
            and keys.get(values.get("release", "")) == values["cell"]
        }

    def gallery(self, release: str) -> Gallery | None:
        """Return what a release's attackers made of the shown queries, if it is there."""
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
        """Run what is missing, writing each record when it is done; return all, in order.

        Args:
            data: Loads the data sets; called only if there is something to run.
            device: Device for training and queries.
            only: Releases that are wanted; None: all.
            drawn: Whether their reconstructions must be there, too.
            report: Progress callback.
        """
        records = self.finished()
        if self._missing(records, only, drawn):
            dataset, auxiliary = data()
            experiment = Experiment(
                self.spec,
                dataset,
                self.store,
                auxiliary_dataset=auxiliary,
                device=device,
                report=report,
            )
            # A file of the data that was changed makes every record of it stale.
            records = {
                name: record
                for name, record in records.items()
                if record.provenance.data == experiment.data
            }
            missing = self._missing(records, only, drawn)
            idle = {row.name for row in self.spec.releases} - missing
            for outcome in experiment.run(idle):
                name = outcome.record.release
                write_npz(self._gallery_path(name), experiment.gallery(outcome))
                # A record that is there stays: its times and environment were measured then.
                records.setdefault(name, outcome.record)
                write_records(self.path, self._ordered(records))
        return self._ordered(records)

    def _missing(
        self, records: Mapping[str, Any], only: Collection[str] | None, drawn: bool
    ) -> set[str]:
        """Return the releases that are wanted and have no record, or no gallery to draw."""
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
