"""Data sets, splits and checksums; the only room that downloads."""

from oneway.data.arrays import read_npz
from oneway.data.datasets import DATASETS, load_dataset
from oneway.data.images import Dataset, scale_images
from oneway.data.source import Report, silent
from oneway.data.splits import (
    Splits,
    check_disjoint,
    image_hashes,
    split_dataset,
)

__all__ = [
    "DATASETS",
    "Dataset",
    "Report",
    "Splits",
    "check_disjoint",
    "image_hashes",
    "load_dataset",
    "read_npz",
    "scale_images",
    "silent",
    "split_dataset",
]
