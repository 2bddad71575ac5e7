"""What an audit measures besides the error: how like the truth, for whom, at what price."""

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high
from typing import Any

import torch
from torch import Tensor

from oneway.audit import AttackResult, Floors, Verdict
from oneway.benchmark.randomness import Stream
from oneway.benchmark.records import distortion_of
from oneway.benchmark.subject import Answers, Subject
from oneway.benchmark.timing import query_times
from oneway.confidences import release
from oneway.contracts import Defense
from oneway.defenses.identity import Identity
from oneway.metrics import (
    Calibration,
    PrincipalComponents,
    brier_score,
    categorical_accuracy,
    expected_calibration_error,
    failure_auroc,
    inversion_errors,
    lowest_share,
    negative_log_likelihood,
    numeric_error,
    peak_signal_to_noise_ratio,
    rank_correlation,
    rank_share,
    reidentification_ranks,
    structural_similarity,
    top_accuracy,
    top_agreement,
)
from oneway.targets import DefendedTarget

GALLERY = 1000
"""True inputs among which a reconstruction is to find its own."""

SINGLE_QUERIES, BATCHED = 200, 256


@dataclass(frozen=True)
class Round:
    """One seed's attacks and what they come to.

    Attributes:
        seed: Of the attackers.
        baseline: Attacks on clean scores, by name.
        results: Attacks on the release, by name.
        floors: From the baseline.
        verdict: On the release.
        held_out: ``(N)`` bool, the auxiliary rows that attackers chose on.
    """

    seed: int
    baseline: Mapping[str, AttackResult]
    results: Mapping[str, AttackResult]
    floors: Floors
    verdict: Verdict
    held_out: Tensor

    @property
    def strongest(self) -> AttackResult:
        """What the strongest attacker achieved."""
        return self.results[self.verdict.strongest]


@dataclass(frozen=True)
class Measures:
    """How like the truth the reconstructions of one seed are.

    Attributes:
        seed: Of the attackers.
        summary: By whose reconstructions: ``released``, ``clean`` and ``label``.
        columns: One value per test query, of the strongest attacker on the release.
    """

    seed: int
    summary: Mapping[str, Any]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def queries(self, rounds: Sequence[Round]) -> dict[str, Any]:
        """Return columns with one value per seed, attacker and test query."""
        found: dict[str, list[Any]] = {
            name: [] for name in ("seed", "attack", "query", "error", *self.columns)
        }
        for one in rounds:
            for name, result in one.results.items():
                count = len(result.errors)
                own = one.seed == self.seed and name == one.verdict.strongest
                found["seed"] += [one.seed] * count
                found["attack"] += [name] * count
                found["query"] += range(count)
                found["error"] += result.errors.tolist()
                for column, values in self.columns.items():
                    found[column] += values.tolist() if own else [None] * count
        return found


def measure(one: Round, subject: Subject, images: Tensor, seed: int) -> Measures:
    """Compare the strongest reconstructions with the truth, and with what the floors give.

    Args:
        one: A seed's attacks.
        subject: What is audited.
        images: ``(N, ...)`` the attacker's own; the embedder learns from them alone.
        seed: Of the galleries that are drawn.
    """
    best = min(one.baseline.values(), key=lambda result: result.error)
    embedder = PrincipalComponents.fit(images)
    whose = {
        "released": one.strongest,
        "clean": best,
        "label": one.baseline["label-only"],
    }
    own_images = images[one.held_out]
    summary, columns = {}, dict[str, Tensor]()
    gallery = min(GALLERY, len(subject.test))
    for name, result in whose.items():
        made, own_made = result.reconstructions, result.own_reconstructions
        errors = inversion_errors(subject.test, made)
        found: dict[str, Any] = {
            "error": float(errors.mean()),
            "error_worst_5_percent": lowest_share(errors, 0.05),
            "error_worst_1_percent": lowest_share(errors, 0.01),
        }
        ranks = reidentification_ranks(
            embedder,
            subject.test,
            made,
            gallery=gallery,
            generator=Stream(seed, "gallery").generator(),
            # How far a reconstruction is to be trusted, its maker has seen on images of its own.
            calibration=None
            if own_made is None
            else Calibration.fit(embedder, own_images, own_made),
        )
        own = {"rank": ranks}
        found["reidentified_rank_1"] = rank_share(ranks, 1)
        found["reidentified_rank_5"] = rank_share(ranks, 5)
        found["gallery"] = gallery
        if subject.test.ndim == 4:
            own["psnr"] = peak_signal_to_noise_ratio(subject.test, made)
            own["ssim"] = structural_similarity(subject.test, made)
            finite = own["psnr"][own["psnr"].isfinite()]
            found["psnr_decibels"] = float(finite.mean()) if len(finite) else None
            found["ssim"] = float(own["ssim"].mean())
        for column in subject.columns:
            block = (column.start, column.stop)
            if column.kind == "categorical":
                value = categorical_accuracy(subject.test, made, block)
            else:
                value = numeric_error(subject.test, made, block)
            found.setdefault("columns", {})[column.name] = {
                "kind": column.kind,
                "value": float(value.double().mean()),
            }
        summary[name] = found
        if name == "released":
            columns = own
    return Measures(one.seed, summary, columns)


def utility(subject: Subject, answers: Answers, defense: Defense) -> dict[str, Any]:
    """Return what the release costs its users, and its server.

    Args:
        subject: What is audited.
        answers: What was answered.
        defense: What stands before the clients.
    """
    trace = answers.trace
    clean, released = release(trace.clean_logits), trace.released
    asked = subject.target if subject.guarded is None else subject.guarded
    guard = DefendedTarget(asked, defense)
    bare = DefendedTarget(subject.target, Identity())
    return {
        "clean": _quality(clean, subject.labels),
        "released": _quality(released, subject.labels),
        **distortion_of(trace, clean),
        "top_5_agreement": top_agreement(clean, released, min(5, clean.shape[-1])),
        "rank_correlation": rank_correlation(clean, released),
        "cost": {
            "bare": _cost(bare, subject.test),
            "guarded": _cost(guard, subject.test),
            "peak_memory_mebibytes": _peak_memory(subject.test.device),
        },
    }


def _quality(confidences: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Return what true labels say of confidences; nothing without them."""
    names = ("top_1", "top_5", "negative_log_likelihood", "expected_calibration_error")
    if labels is None:
        return dict.fromkeys((*names, "brier_score", "failure_auroc"))
    return {
        "top_1": top_accuracy(confidences, labels, 1),
        "top_5": top_accuracy(confidences, labels, min(5, confidences.shape[-1])),
        "negative_log_likelihood": negative_log_likelihood(confidences, labels),
        "expected_calibration_error": expected_calibration_error(confidences, labels),
        "brier_score": brier_score(confidences, labels),
        "failure_auroc": failure_auroc(confidences, labels),
    }


def _cost(guard: DefendedTarget, queries: Tensor) -> dict[str, float]:
    """Return milliseconds of one query, and how many are answered a second in batches."""
    batch = queries[:BATCHED]
    single = query_times(guard, queries[:1], SINGLE_QUERIES)
    return {
        "p50_milliseconds": median_high(single),
        "p99_milliseconds": single[int(0.99 * len(single))],
        "queries_per_second": 1000 * len(batch) / median_high(query_times(guard, batch, 3)),
    }


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that this process, or its GPU, has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)
