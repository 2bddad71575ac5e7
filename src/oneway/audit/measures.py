"""What an audit measures besides the error: how like the truth, for whom, at what price."""

import dataclasses
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Any

import torch
from torch import Tensor

from oneway.audit.audit_target import Answers, AuditTarget
from oneway.audit.plan import SINGLE_QUERIES
from oneway.contracts import Defense
from oneway.defenses.identity import Identity
from oneway.errors import OnewayError
from oneway.evaluation import AttackResult, Baselines, Verdict
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import distortion_of
from oneway.evaluation.timing import query_times
from oneway.metrics import (
    FeatureRegression,
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
    reliability_bins,
    structural_similarity,
    top_accuracy,
    top_agreement,
)
from oneway.releases import release
from oneway.targets import DefendedTarget

GALLERY = 1000
"""True inputs among which a reconstruction is to find its own."""

BATCHED = 256
"""Most queries that are asked at once to count how many are answered a second."""


@dataclass(frozen=True)
class SeedResult:
    """One seed's attacks and what they come to.

    Attributes:
        seed: Seed of the attackers.
        clean_results: Attacks on clean scores, by name.
        results: Attacks on the release, by name.
        baselines: From the clean_results.
        verdict: On the release.
        held_out: ``(N)`` bool, the auxiliary rows that attackers chose on.
    """

    seed: int
    clean_results: Mapping[str, AttackResult]
    results: Mapping[str, AttackResult]
    baselines: Baselines
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
        seed: Seed of the attackers.
        summary: By whose reconstructions: ``released``, ``clean`` and ``label``.
        reidentified: Shares of re-identified queries, by attacker on the release.
        columns: By attacker on the release, columns of one value per test query.
    """

    seed: int
    summary: Mapping[str, Any]
    reidentified: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Tensor]]

    def queries(self, seed_results: Sequence[SeedResult]) -> dict[str, Any]:
        """Return columns with one value per seed, attacker and test query."""
        more = dict.fromkeys(name for own in self.columns.values() for name in own)
        found: dict[str, list[Any]] = {
            name: [] for name in ("seed", "attack", "query", "error", *more)
        }
        for one in seed_results:
            for name, result in one.results.items():
                count = len(result.errors)
                own = self.columns[name] if one.seed == self.seed else {}
                found["seed"] += [one.seed] * count
                found["attack"] += [name] * count
                found["query"] += range(count)
                found["error"] += result.errors.tolist()
                for column in more:
                    values = own.get(column)
                    found[column] += [None] * count if values is None else values.tolist()
        return found


def measure(one: SeedResult, audited: AuditTarget, images: Tensor, seed: int) -> Measures:
    """Compare reconstructions with the truth, and with what the baselines give.

    Queries are re-identified by every attacker, since the one of the lowest error need not be the
    one that tells them apart best; the rest is of the strongest.

    Args:
        one: A seed's attacks.
        audited: Model, data and release.
        images: ``(N, ...)`` the attacker's own; the embedder learns from them alone.
        seed: Seed of the galleries.
    """
    embedder = PrincipalComponents.fit(images)

    def ranks(results: Mapping[str, AttackResult]) -> dict[str, Tensor]:
        return {
            name: _ranks(result, audited.test, embedder, images[one.held_out], seed)
            for name, result in results.items()
        }

    released, clean = ranks(one.results), ranks(one.clean_results)
    best = min(one.clean_results.values(), key=lambda result: result.error)
    label = one.clean_results["label-only"]
    summary, columns = {}, {name: {"rank": each} for name, each in released.items()}
    for whose, result, known in (
        ("released", one.strongest, released),
        ("clean", best, clean),
        ("label", label, {label.attack: clean[label.attack]}),
    ):
        found, own = _likeness(result.reconstructions, audited)
        shares = {name: _shares(each) for name, each in known.items()}
        who = max(shares, key=lambda name: tuple(shares[name].values()))
        found |= {f"reidentified_{rank}": share for rank, share in shares[who].items()}
        summary[whose] = found | {"reidentified_by": who, "gallery": _gallery(audited.test)}
        if whose == "released":
            columns[result.attack] |= own
    reidentified = {name: _shares(each) for name, each in released.items()}
    return Measures(one.seed, summary, reidentified, columns)


def _gallery(test: Tensor) -> int:
    return min(GALLERY, len(test))


def _ranks(
    result: AttackResult, test: Tensor, embedder: PrincipalComponents, own: Tensor, seed: int
) -> Tensor:
    """Return ``(N)`` ranks of each query among the true inputs of a gallery."""
    made = result.own_reconstructions
    return reidentification_ranks(
        embedder,
        test,
        result.reconstructions,
        gallery=_gallery(test),
        generator=Stream(seed, "gallery").generator(),
        # How far a reconstruction is to be trusted, its maker has seen on images of its own.
        regression=None if made is None else FeatureRegression.fit(embedder, own, made),
    )


def _shares(ranks: Tensor) -> dict[str, float]:
    return {"rank_1": rank_share(ranks, 1), "rank_5": rank_share(ranks, 5)}


def _likeness(made: Tensor, audited: AuditTarget) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return how like the test queries reconstructions are; and the same query by query."""
    errors, own = inversion_errors(audited.test, made), dict[str, Tensor]()
    found: dict[str, Any] = {
        "error": float(errors.mean()),
        "error_worst_5_percent": lowest_share(errors, 0.05),
        "error_worst_1_percent": lowest_share(errors, 0.01),
    }
    if audited.test.ndim == 4:
        own["psnr"] = peak_signal_to_noise_ratio(audited.test, made)
        own["ssim"] = structural_similarity(audited.test, made)
        finite = own["psnr"][own["psnr"].isfinite()]
        found["psnr_decibels"] = float(finite.mean()) if len(finite) else None
        found["ssim"] = float(own["ssim"].mean())
    for column in audited.columns:
        block = (column.start, column.stop)
        if column.kind == "categorical":
            value = categorical_accuracy(audited.test, made, block)
        else:
            value = numeric_error(audited.test, made, block)
        found.setdefault("columns", {})[column.name] = {
            "kind": column.kind,
            "value": float(value.double().mean()),
        }
    return found, own


def utility(audited: AuditTarget, answers: Answers, defense: Defense) -> dict[str, Any]:
    """Return what the release costs its users, and its server.

    Args:
        audited: Model, data and release.
        answers: Answers of the model and of the release.
        defense: The audited defense.
    """
    trace = answers.trace
    clean, released = answers.clean_test, trace.released
    target = audited.target if audited.guarded is None else audited.guarded
    guard = DefendedTarget(target, defense)
    bare = DefendedTarget(audited.target, Identity())
    quality = _quality(clean, audited.labels)
    if audited.labels is not None:  # the model's own label may be another than the likeliest class
        quality["top_1"] = top_accuracy(release(trace.clean_logits), audited.labels, 1)
    return {
        "clean": quality,
        "released": _quality(released, audited.labels),
        "reliability": {
            "clean": _reliability(clean, audited.labels),
            "released": _reliability(released, audited.labels),
        },
        **distortion_of(trace, clean),
        "top_5_agreement": top_agreement(clean, released, min(5, clean.shape[-1])),
        "rank_correlation": rank_correlation(clean, released),
        "cost": {
            **_costs({"bare": bare, "guarded": guard}, audited.test),
            "peak_memory_mebibytes": _peak_memory(audited.test.device),
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


def _reliability(confidences: Tensor, labels: Tensor | None) -> list[dict[str, Any]] | None:
    """Return how often answers are right that say they are so sure; nothing without labels."""
    if labels is None:
        return None
    return [dataclasses.asdict(interval) for interval in reliability_bins(confidences, labels)]


def _costs(guards: Mapping[str, DefendedTarget], queries: Tensor) -> dict[str, Any]:
    """Return what answering takes each of them, and why it could not be measured, or None.

    This comes last, when all attacks are done: a target that fails now must not lose them.
    """
    found: dict[str, Any] = {name: dict.fromkeys(COSTS) for name in guards}
    failed = None
    for name, guard in guards.items():
        try:
            found[name] = _cost(guard, queries)
        except (OnewayError, RuntimeError) as error:
            # Other errors than our own may quote a query.
            detail = f": {error}" if isinstance(error, OnewayError) else ""
            failed = failed or f"{type(error).__name__} while {name} answers were timed{detail}"
    return {**found, "failed": failed}


COSTS = ("p50_milliseconds", "p99_milliseconds", "queries_per_second")


def _cost(guard: DefendedTarget, queries: Tensor) -> dict[str, float]:
    """Return milliseconds of one query, and how many are answered a second in batches."""
    batch = queries[:BATCHED]
    single = query_times(guard, queries[:1], SINGLE_QUERIES)
    median, late = median_high(single), single[int(0.99 * len(single))]
    rate = 1000 * len(batch) / median_high(query_times(guard, batch, 3))
    return dict(zip(COSTS, (median, late, rate), strict=True))


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that this process, or its GPU, has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)
