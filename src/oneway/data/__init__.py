"""Data sets, queries, tables and splits; the only package that downloads."""

from oneway.data.arrays import read_npz
from oneway.data.datasets import DATASETS, load_dataset
from oneway.data.images import Dataset, ProgressCallback, no_progress, scale_images
from oneway.data.queries import image_tensor, load_queries
from oneway.data.splits import (
    Splits,
    check_disjoint,
    check_split_size,
    image_hashes,
    split_dataset,
)
from oneway.data.tables import Column, RecordEncoding, load_records

__all__ = [
    "DATASETS",
    "Column",
    "Dataset",
    "ProgressCallback",
    "RecordEncoding",
    "Splits",
    "check_disjoint",
    "check_split_size",
    "image_hashes",
    "image_tensor",
    "load_dataset",
    "load_queries",
    "load_records",
    "no_progress",
    "read_npz",
    "scale_images",
    "split_dataset",
]
