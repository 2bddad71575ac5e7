"""Example queries of an audit: the first of each class, and the queries that were read best."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneway.audit.audit_target import Answers, AuditTarget
from oneway.audit.measures import SeedResult
from oneway.evaluation import AttackResult
from oneway.evaluation.pictures import SHOWN, pixels, shown_rows
from oneway.metrics import lowest_rows

WORST = 8
"""Number of shown queries that the strongest attacker reconstructs best."""


def examples_of(
    first: SeedResult, audited: AuditTarget, answers: Answers
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the queries that are shown, and pictures of them.

    Args:
        first: Attacks of the first seed.
        audited: Model, data and release.
        answers: Answers of the model and of the release.

    Returns:
        For the record: ``attackers``, the name of the attack of each view; ``shown`` and
        ``worst``, each a list of queries with their number, largest clean probability, and error
        in each view. And pictures, uint8, by view (``truth`` first), of the queries of both lists
        in this order; none for tables of records.
    """
    views = {
        "clean": min(first.clean_results.values(), key=lambda result: result.error),
        "static": first.results["static"],
        "strongest": first.strongest,
        "label": first.results["label-only"],
    }
    count, labels = len(audited.test), audited.labels
    shown = torch.arange(min(SHOWN, count)) if labels is None else shown_rows(labels).cpu()
    worst = lowest_rows(first.strongest.errors, WORST).cpu()
    confidence = answers.clean_test.amax(-1)
    record = {
        "attackers": {view: result.attack for view, result in views.items()},
        "shown": _facts(shown, confidence, views),
        "worst": _facts(worst, confidence, views),
    }
    if audited.test.ndim != 4 or audited.test.shape[1] not in (1, 3):
        return record, {}
    rows = torch.cat([shown, worst])
    images = {view: result.reconstructions for view, result in views.items()}
    images = {"truth": audited.test, **images}
    return record, {view: _levels(made[rows]) for view, made in images.items()}


def _facts(
    rows: Tensor, confidence: Tensor, views: dict[str, AttackResult]
) -> list[dict[str, Any]]:
    return [
        {
            "query": row,
            "confidence": float(confidence[row]),
            "errors": {view: float(result.errors[row]) for view, result in views.items()},
        }
        for row in rows.tolist()
    ]


def _levels(images: Tensor) -> Any:
    """Return ``(n, C, H, W)`` images in ``[0, 1]`` as uint8 arrays."""
    return (pixels(images) * 255).round().clip(0, 255).astype(np.uint8)
