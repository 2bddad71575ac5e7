"""Data sets, splits and checksums; the only room that downloads."""

from oneway.data.datasets import DATASETS, Dataset, load_dataset, read_npz
from oneway.data.splits import (
    Splits,
    check_disjoint,
    image_hashes,
    split_dataset,
)

__all__ = [
    "DATASETS",
    "Dataset",
    "Splits",
    "check_disjoint",
    "image_hashes",
    "load_dataset",
    "read_npz",
    "split_dataset",
]
