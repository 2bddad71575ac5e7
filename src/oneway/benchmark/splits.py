"""The published splits of an experiment: what somebody needs who records scores for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from oneway.benchmark.recorded import row_keys
from oneway.benchmark.runner import split_data, trained_target
from oneway.benchmark.spec import ExperimentSpec
from oneway.data import Dataset, ProgressCallback
from oneway.defenses.identity import Identity
from oneway.evaluation import Store
from oneway.evaluation.records import weights_hash
from oneway.files import write_npz
from oneway.targets import DefendedTarget

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
