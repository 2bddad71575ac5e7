"""Example queries of an audit: one of each class, and those that leak most beyond the label."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneway.auditing.audit_target import Answers, AuditTarget
from oneway.auditing.measures import SeedResult
from oneway.evaluation import AttackResult
from oneway.evaluation.pictures import SHOWN, pixels, shown_rows
from oneway.metrics import lowest_rows

WORST = 8
"""Most shown queries of those for which the release reveals most beyond the label."""


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
        ``worst``, each a list of queries with their number, largest clean probability, error in
        each view, and gain beyond the label: how far the strongest attacker's error, and that of
        the best attack on clean scores, lie below the label-only error of the same query. ``worst``
        holds the largest gains of the strongest attacker, above 0 only. And pictures, uint8, by
        view (``truth`` first), of the queries of both lists in this order; none for tables of
        records.
    """
    views = {
        "clean": min(first.clean_results.values(), key=lambda result: result.error),
        # Without time for decoders there is no static attacker.
        **({"static": first.results["static"]} if "static" in first.results else {}),
        "strongest": first.strongest,
        "label": first.clean_results["label-only"],
    }
    count, labels = len(audited.test), audited.labels
    shown = torch.arange(min(SHOWN, count)) if labels is None else shown_rows(labels).cpu()
    gains = {view: first.gains(views[view]).cpu() for view in ("strongest", "clean")}
    worst = lowest_rows(-gains["strongest"], WORST)
    worst = worst[gains["strongest"][worst] > 0]
    confidence = answers.clean_test.amax(-1)
    record = {
        "attackers": {view: result.attack for view, result in views.items()},
        "shown": _facts(shown, confidence, views, gains),
        "worst": _facts(worst, confidence, views, gains),
    }
    if audited.test.ndim != 4 or audited.test.shape[1] not in (1, 3):
        return record, {}
    rows = torch.cat([shown, worst])
    images = {view: result.reconstructions for view, result in views.items()}
    images = {"truth": audited.test, **images}
    return record, {view: _levels(made[rows]) for view, made in images.items()}


def _facts(
    rows: Tensor,
    confidence: Tensor,
    views: dict[str, AttackResult],
    gains: dict[str, Tensor],
) -> list[dict[str, Any]]:
    return [
        {
            "query": row,
            "confidence": float(confidence[row]),
            "errors": {view: float(result.errors[row]) for view, result in views.items()},
            "gains": {view: float(gain[row]) for view, gain in gains.items()},
        }
        for row in rows.tolist()
    ]


def _levels(images: Tensor) -> Any:
    """Return ``(n, C, H, W)`` images in ``[0, 1]`` as uint8 arrays."""
    return (pixels(images) * 255).round().clip(0, 255).astype(np.uint8)
