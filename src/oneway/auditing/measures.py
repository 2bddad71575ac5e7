"""Measures of an audit: similarity, re-identification, utility and cost."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Any

import torch
from torch import Tensor

from oneway.auditing.audit_target import Answers, AuditTarget
from oneway.auditing.plan import SINGLE_QUERIES
from oneway.contracts import Defense
from oneway.defenses.identity import Identity
from oneway.errors import OnewayError
from oneway.evaluation import AttackResult, Baselines, Convergence, Verdict
from oneway.evaluation.convergence import least_by_name
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import distortion_of
from oneway.evaluation.timing import query_times
from oneway.metrics import (
    GALLERY,
    Embedder,
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

BATCHED = 256
"""Most queries of a batch that measures the queries per second."""


@dataclass(frozen=True)
class SeedResult:
    """The attacks of a seed and their verdict.

    Attributes:
        seed: Seed of the attackers.
        clean_results: Attacks on clean scores, by name.
        results: Attacks on the release, by name.
        baselines: Baselines, from ``clean_results``.
        verdict: Verdict on the release.
        held_out: ``(N)`` bool, the auxiliary rows that select epochs and decoders.
        left_out: Planned parts that are left out, since the target run time was over, in words.
    """

    seed: int
    clean_results: Mapping[str, AttackResult]
    results: Mapping[str, AttackResult]
    baselines: Baselines
    verdict: Verdict
    held_out: Tensor
    left_out: tuple[str, ...] = ()

    @property
    def strongest(self) -> AttackResult:
        """The result of the strongest attacker."""
        return self.results[self.verdict.strongest]

    def gains(self, result: AttackResult) -> Tensor:
        """Return how much an attack learns of each query beyond its label.

        Args:
            result: An attack of this seed, on clean scores or on the release.

        Returns:
            ``(N)`` float64: the label-only baseline's error less the attack's, of the same query.
            Below 0 where the label alone is the better guide.
        """
        return self.baselines.label - result.errors


def convergence_over(seeds: Sequence[Mapping[str, AttackResult]]) -> dict[str, Convergence]:
    """Return the least convergence of each attacker over all seeds, by name.

    Args:
        seeds: Results of the attackers of each seed, by name.
    """
    return least_by_name(
        {name: each.convergence for name, each in results.items() if each.convergence is not None}
        for results in seeds
    )


@dataclass(frozen=True)
class Measures:
    """Similarity of the reconstructions of a seed to the true inputs.

    Attributes:
        seed: Seed of the attackers.
        summary: Measures of the strongest attack on ``released`` and ``clean`` scores and on the
            ``label``.
        reidentified: Shares of re-identified queries, by attacker on the release.
        columns: By attacker on the release, columns with a value for each test query.
        embedder: Name of the embedder that re-identified queries.
    """

    seed: int
    summary: Mapping[str, Any]
    reidentified: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Tensor]]
    embedder: str

    def queries(self, seed_results: Sequence[SeedResult]) -> dict[str, Any]:
        """Return columns with a value for each seed, attacker and test query."""
        measured = dict.fromkeys(name for table in self.columns.values() for name in table)
        rows: dict[str, list[Any]] = {
            name: [] for name in ("seed", "attack", "query", "error", *measured)
        }
        for seed_result in seed_results:
            for name, result in seed_result.results.items():
                count = len(result.errors)
                table = self.columns[name] if seed_result.seed == self.seed else {}
                rows["seed"] += [seed_result.seed] * count
                rows["attack"] += [name] * count
                rows["query"] += range(count)
                rows["error"] += result.errors.tolist()
                for column in measured:
                    values = table.get(column)
                    rows[column] += [None] * count if values is None else values.tolist()
        return rows


def measure(
    first: SeedResult,
    audited: AuditTarget,
    images: Tensor,
    seed: int,
    embedder: Embedder | None = None,
) -> Measures:
    """Compare reconstructions with the true inputs.

    All attackers re-identify queries, since the attacker of the lowest error need not be the best
    at this. All other measures are of the strongest attacker.

    Args:
        first: Attacks of the first seed.
        audited: Model, data and release.
        images: ``(N, ...)`` auxiliary inputs of the attackers.
        seed: Seed of the galleries.
        embedder: Describes inputs for re-identification; None: principal components, fitted to
            ``images`` alone.

    Raises:
        InvalidTensorError: The embedder returns features of another type or shape, or NaN.
    """
    name_of_embedder = PRINCIPAL_COMPONENTS if embedder is None else _name(embedder)
    remembered = _Remembered(PrincipalComponents.fit(images) if embedder is None else embedder)
    held_out = images[first.held_out]

    def ranks(results: Mapping[str, AttackResult]) -> dict[str, Tensor]:
        return {
            name: _ranks(result, audited.test, remembered, held_out, seed)
            for name, result in results.items()
        }

    released, clean = ranks(first.results), ranks(first.clean_results)
    best = min(first.clean_results.values(), key=lambda result: result.error)
    label = first.clean_results["label-only"]
    summary, columns = {}, {name: {"rank": each} for name, each in released.items()}
    for source, result, ranks_by_attack in (
        ("released", first.strongest, released),
        ("clean", best, clean),
        ("label", label, {label.attack: clean[label.attack]}),
    ):
        measures, by_query = _similarity(result.reconstructions, audited)
        measures |= _largest_gains(first.gains(result))
        shares = {name: _shares(each) for name, each in ranks_by_attack.items()}
        attack = max(shares, key=lambda name: tuple(shares[name].values()))
        measures |= {f"reidentified_{rank}": share for rank, share in shares[attack].items()}
        summary[source] = measures | {"reidentified_by": attack, "gallery": _gallery(audited.test)}
        if source == "released":
            columns[result.attack] |= by_query
    reidentified = {name: _shares(each) for name, each in released.items()}
    return Measures(first.seed, summary, reidentified, columns, name_of_embedder)


PRINCIPAL_COMPONENTS = "principal components of the auxiliary rows"
"""Name of the embedder that an audit fits itself."""


def _name(embedder: Embedder) -> str:
    """Return the name of a function, or of an object's class."""
    return str(getattr(embedder, "__name__", type(embedder).__name__))


class _Remembered:
    """An embedder that describes each tensor once: all attackers share the true inputs."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._described = dict[int, tuple[Tensor, Tensor]]()

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(N, D)`` features; the same for the same tensor, which must not change."""
        if id(images) not in self._described:
            # The tensor is kept, too, so that no other tensor gets its identity.
            self._described[id(images)] = images, self._embedder(images)
        return self._described[id(images)][1]


def _gallery(test: Tensor) -> int:
    return min(GALLERY, len(test))


def _ranks(
    result: AttackResult, test: Tensor, embedder: Embedder, held_out: Tensor, seed: int
) -> Tensor:
    """Return ``(N)`` ranks of each query among the true inputs of a gallery."""
    made = result.own_reconstructions
    return reidentification_ranks(
        embedder,
        test,
        result.reconstructions,
        gallery=_gallery(test),
        generator=Stream(seed, "gallery").generator(),
        # The attacker knows from held-out images how well reconstructions render each feature.
        regression=None if made is None else FeatureRegression.fit(embedder, held_out, made),
    )


def _shares(ranks: Tensor) -> dict[str, float]:
    return {"rank_1": rank_share(ranks, 1), "rank_5": rank_share(ranks, 5)}


def _largest_gains(gains: Tensor) -> dict[str, float]:
    """Return the mean of the largest 5 % and 1 % of ``(N)`` gains beyond the label."""
    # Subtracted from 0 rather than negated: a table would show -0.0000 where nothing is gained.
    return {
        f"gain_largest_{percent}_percent": 0 - lowest_share(-gains, percent / 100)
        for percent in (5, 1)
    }


def _similarity(made: Tensor, audited: AuditTarget) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the similarity of reconstructions to the test queries: in summary, and by query."""
    errors, by_query = inversion_errors(audited.test, made), dict[str, Tensor]()
    summary: dict[str, Any] = {
        "error": float(errors.mean()),
        "error_worst_5_percent": lowest_share(errors, 0.05),
        "error_worst_1_percent": lowest_share(errors, 0.01),
    }
    if audited.test.ndim == 4:
        by_query["psnr"] = peak_signal_to_noise_ratio(audited.test, made)
        by_query["ssim"] = structural_similarity(audited.test, made)
        finite = by_query["psnr"][by_query["psnr"].isfinite()]
        summary["psnr_decibels"] = float(finite.mean()) if len(finite) else None
        summary["ssim"] = float(by_query["ssim"].mean())
    for column in audited.columns:
        block = (column.start, column.stop)
        if column.kind == "categorical":
            value = categorical_accuracy(audited.test, made, block)
        else:
            value = numeric_error(audited.test, made, block)
        summary.setdefault("columns", {})[column.name] = {
            "kind": column.kind,
            "value": float(value.double().mean()),
        }
    return summary, by_query


def utility(audited: AuditTarget, answers: Answers, defense: Defense) -> dict[str, Any]:
    """Return the costs of the release for its users and its server.

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
    """Return measures of confidences against true labels; all None without labels."""
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
    """Return the reliability bins of confidences; None without labels."""
    if labels is None:
        return None
    return [dataclasses.asdict(interval) for interval in reliability_bins(confidences, labels)]


def _costs(guards: Mapping[str, DefendedTarget], queries: Tensor) -> dict[str, Any]:
    """Return the time that each target takes to answer; ``failed`` says why it is not known.

    All attacks are done by now, so that a target that fails here must not end the audit.
    """
    costs: dict[str, Any] = {name: dict.fromkeys(COSTS) for name in guards}
    failed = None
    for name, guard in guards.items():
        try:
            costs[name] = _cost(guard, queries)
        except (OnewayError, RuntimeError) as error:
            # An error of another package may quote a query.
            detail = f": {error}" if isinstance(error, OnewayError) else ""
            failed = failed or f"{type(error).__name__} while {name} answers were timed{detail}"
    return {**costs, "failed": failed}


COSTS = ("p50_milliseconds", "p99_milliseconds", "queries_per_second")


def _cost(guard: DefendedTarget, queries: Tensor) -> dict[str, float]:
    """Return the milliseconds of a single query, and the queries per second in batches."""
    batch = queries[:BATCHED]
    single = query_times(guard, queries[:1], SINGLE_QUERIES)
    median, late = median_high(single), single[int(0.99 * len(single))]
    rate = 1000 * len(batch) / median_high(query_times(guard, batch, 3))
    return dict(zip(COSTS, (median, late, rate), strict=True))


def _peak_memory(device: torch.device) -> float | None:
    """Return the peak memory of this process, or of its GPU, in mebibytes; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)
