"""Queries of an audit to look at: some of each class, and those that were read best."""

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
"""Queries that the strongest attacker reconstructs best: privacy is about them."""


def examples_of(
    one: SeedResult, audited: AuditTarget, answers: Answers
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return which queries are shown, and pictures of them.

    Args:
        one: The first seed's attacks.
        audited: Model, data and release.
        answers: Answers of the model and of the release.

    Returns:
        For the record: ``shown`` and ``worst``, each a list of queries with their number, the
        largest clean probability and the error of each who is looked at; and ``attackers``, who
        they are. And pictures, by who sees them (``truth`` first), of the queries of both lists in
        this order, uint8; none for records.
    """
    seen = {
        "clean": min(one.clean_results.values(), key=lambda result: result.error),
        "static": one.results["static"],
        "strongest": one.strongest,
        "label": one.results["label-only"],
    }
    count, labels = len(audited.test), audited.labels
    shown = torch.arange(min(SHOWN, count)) if labels is None else shown_rows(labels).cpu()
    worst = lowest_rows(one.strongest.errors, WORST).cpu()
    confidence = answers.clean_test.amax(-1)
    record = {
        "attackers": {name: result.attack for name, result in seen.items()},
        "shown": _facts(shown, confidence, seen),
        "worst": _facts(worst, confidence, seen),
    }
    if audited.test.ndim != 4 or audited.test.shape[1] not in (1, 3):
        return record, {}
    rows = torch.cat([shown, worst])
    images = {"truth": audited.test} | {name: one.reconstructions for name, one in seen.items()}
    return record, {name: _levels(made[rows]) for name, made in images.items()}


def _facts(rows: Tensor, confidence: Tensor, seen: dict[str, AttackResult]) -> list[dict[str, Any]]:
    return [
        {
            "query": row,
            "confidence": float(confidence[row]),
            "errors": {name: float(result.errors[row]) for name, result in seen.items()},
        }
        for row in rows.tolist()
    ]


def _levels(images: Tensor) -> Any:
    """Return images as a screen shows them."""
    return (pixels(images) * 255).round().clip(0, 255).astype(np.uint8)
