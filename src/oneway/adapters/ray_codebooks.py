"""Codebooks fitted to data sets of Ray Data, which may be larger than a machine.

Each block is summed up where it lies: the sample that
``defenses/codebook/sample.py`` keeps of it. Samples are merged as they come, in any order,
and the fit needs nothing else. Ray runs the task of a lost worker again, and a block that is summed
up twice has the same sample.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from oneway.adapters.ray import stacked
from oneway.checks import check_count, check_logits_to_fit
from oneway.defenses.codebook import Codebook, FitSettings, fit_codebook
from oneway.defenses.codebook.sample import MOST_ROWS, sample_rows
from oneway.errors import InvalidTensorError, UnknownNameError


def fit_dataset(
    dataset: Any, *, scores: str, settings: FitSettings | None = None, most_rows: int = MOST_ROWS
) -> Codebook:
    """Fit a codebook to the clean scores of a data set; certify it on other queries.

    The table is that of :func:`oneway.defenses.codebook.fit_codebook` on all rows, but that of each
    label ``most_rows`` are cut at most, and for the last bits: sums are added in another order,
    which may move an edge or a released value by 2^-11 of it.

    Memory of the caller: ``most_rows`` rows of each label, and a block. A block sends as many at
    most.

    Args:
        dataset: A ``ray.data.Dataset``.
        scores: The column with the logits, one vector per row.
        settings: How to fit, without images, groups or variants; None: the defaults.
        most_rows: Rows of a label that boxes are cut from, at most.

    Raises:
        UnknownNameError: The data set lacks the column.
        InvalidTensorError: The column holds something else than finite logits, or too few rows.
        InvalidOptionError: An option is outside its range.
    """
    check_count("most_rows", most_rows)
    columns = dataset.columns()
    if scores not in columns:
        raise UnknownNameError("column of the dataset", scores, columns)
    summaries = dataset.select_columns([scores]).map_batches(
        partial(summarize, scores=scores, most_rows=most_rows),
        batch_size=None,
        batch_format="numpy",
    )
    merged: Tensor | None = None
    for batch in summaries.iter_batches(batch_size=None, batch_format="numpy"):
        own = torch.from_numpy(stacked(batch[scores]))
        merged = own if merged is None else torch.cat([merged, own])
        merged = merged[torch.cat(sample_rows(merged, most_rows))]
    if merged is None:
        raise InvalidTensorError("the dataset must have rows, but has none. Pass one with scores.")
    return fit_codebook(merged, settings)


def summarize(batch: dict[str, Any], *, scores: str, most_rows: int) -> dict[str, Any]:
    """Return the rows of a block that its sample keeps, in a worker of Ray Data."""
    logits = torch.from_numpy(stacked(batch[scores]).copy())
    check_logits_to_fit(logits, f"logits of the column {scores}")
    return {scores: logits[torch.cat(sample_rows(logits, most_rows))].numpy()}
