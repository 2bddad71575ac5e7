"""Entries: releases of other people, judged as oneway's own are; and the splits to enter with."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneway.benchmark.recorded import row_keys
from oneway.benchmark.runner import split_data, trained_target
from oneway.benchmark.spec import ExperimentSpec, read_toml
from oneway.data import Dataset, ProgressCallback
from oneway.defenses.identity import Identity
from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError
from oneway.evaluation import Store
from oneway.evaluation.records import weights_hash
from oneway.evaluation.settings import ReleaseSpec
from oneway.files import write_npz
from oneway.parsing import build_from
from oneway.targets import DefendedTarget

ENTRY = "entry-"
"""What the names of experiments with the releases of an entry begin with."""

RECORDED = "oneway.benchmark.recorded:RecordedScores"


@dataclass(frozen=True)
class EnteredRelease:
    """A release of an entry: a defense, or scores that were recorded.

    Attributes:
        name: Its name in tables.
        defense: A registered name, or ``module:Class`` of a subclass of ``BaseDefense``.
        options: Options of the defense.
        recorded: File with recorded scores; ``{data}`` and ``{seed}`` stand for those of the split.
    """

    name: str
    defense: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    recorded: str = ""

    def __post_init__(self) -> None:
        """Refuse a release that is neither, or both, or options of recorded scores.

        Raises:
            InvalidOptionError: It is.
        """
        if self.recorded and self.options:
            raise InvalidOptionError(
                f"release {self.name!r} of an entry is recorded and has options, which recorded "
                "scores do not take. Leave `options` out."
            )
        if bool(self.defense) == bool(self.recorded):
            raise InvalidOptionError(
                f"release {self.name!r} of an entry must have either `defense` or `recorded`."
            )

    def released(self, data: str, seed: int, folder: Path) -> ReleaseSpec:
        """Return the release as an experiment has it, for a split.

        Args:
            data: Preset of the leaderboard.
            seed: Seed of the split.
            folder: What the path of recorded scores is relative to.

        Raises:
            MissingDataError: There are no recorded scores for the split.
            OnewayError: The release cannot be built.
        """
        if not self.recorded:
            return ReleaseSpec(self.name, self.defense, self.options)
        file = folder / self.recorded.replace("{data}", data).replace("{seed}", str(seed))
        if not file.is_file():
            raise MissingDataError(
                f"release {self.name!r} has no recorded scores {file}. Record them for this split, "
                "or choose others by --data and --seed."
            )
        digest = sha256(file.read_bytes()).hexdigest()
        return ReleaseSpec(self.name, RECORDED, {"file": str(file), "sha256": digest})


@dataclass(frozen=True)
class Entry:
    """The releases of somebody, from a file.

    Attributes:
        name: Whose they are, which files and tables name.
        releases: The releases.
    """

    name: str
    releases: tuple[EnteredRelease, ...]

    def __post_init__(self) -> None:
        """Refuse an entry of nothing.

        Raises:
            InvalidOptionError: There is no release.
        """
        if not self.releases:
            raise InvalidOptionError("an entry must have at least one release. Add [[releases]].")


def read_entry(path: Path) -> Entry:
    """Read an entry from a TOML file.

    Raises:
        MissingDataError: There is no such file.
        CorruptDataError: It is not TOML.
        UnknownNameError: A key is unknown.
        InvalidOptionError: A value is missing, or of another type.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no entry {path}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptDataError(f"{path} cannot be read ({type(error).__name__}).") from error
    return build_from(Entry, read_toml(content, str(path)), str(path))


def entered(spec: ExperimentSpec, entry: Entry, folder: Path) -> ExperimentSpec:
    """Return an experiment with an entry's releases in place of its own, all else the same.

    Args:
        spec: A leaderboard, with its preset and seed.
        entry: The entry.
        folder: Folder of the entry's file.

    Raises:
        InvalidOptionError: A release has the name of a release of the leaderboard.
        OnewayError: A release cannot be built.
    """
    taken = {row.name for row in spec.releases}
    for row in entry.releases:
        if row.name in taken:
            raise InvalidOptionError(
                f"release {row.name!r} of an entry has the name of a release of the leaderboard, "
                "beside which it is shown. Choose another name."
            )
    rows = [row.released(spec.preset, spec.seed, folder) for row in entry.releases]
    releases = (spec.releases[0], *rows)
    return dataclasses.replace(spec, name=f"{ENTRY}{entry.name}", releases=releases)


SPLITS = ("auxiliary", "calibration", "queries")
"""Parts of the published splits: what attackers have, what a release may be fitted to, and what is
graded."""


def write_splits(
    spec: ExperimentSpec,
    data: Callable[[], tuple[Dataset, Dataset | None]],
    path: Path,
    store: Store,
    *,
    device: torch.device,
    report: ProgressCallback,
) -> None:
    """Write what somebody needs who records scores: inputs, clean scores, and which row is whose.

    The file holds ``images`` ``(N, C, H, W)`` float32, ``logits`` ``(N, K)``, ``split`` ``(N)``
    with names in :data:`SPLITS`, ``keys``, and ``target``, the hash of the classifier. No label of
    a query is in it.

    Args:
        spec: The experiment, with its seed.
        data: Loads its data sets.
        path: Where to.
        store: Store of trained networks.
        device: Device for training.
        report: Progress callback.
    """
    splits = split_data(spec, *data()).to(device)
    target = trained_target(spec, splits, store, report)
    parts = (splits.auxiliary_images, splits.calibration_images, splits.test_images)
    images = torch.cat(parts)
    logits = DefendedTarget(target, Identity()).trace(images).clean_logits
    write_npz(
        path,
        {
            "images": images.cpu().numpy(),
            "logits": logits.cpu().numpy(),
            "split": np.repeat(SPLITS, [len(part) for part in parts]),
            "keys": row_keys(images),
            "target": np.array(weights_hash(target.module)),
        },
    )
