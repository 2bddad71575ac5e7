"""Grade attacks on a release. An attack proposes reconstructions; only this room measures them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.contracts import Attack, Candidate, Observations, TrainDecoder
from oneway.errors import InvalidOptionError
from oneway.metrics import closed_gap, inversion_errors

CLASS_LEVEL = frozenset({"class-representative"})
"""Attackers who look for a class and not for the query: to miss the query is no failure."""

TAIL_SHARE = 0.05
"""The least confident share of queries that is also judged by itself: the mean hides it."""


@dataclass(frozen=True)
class AttackResult:
    """What one attacker achieved on the test queries.

    Attributes:
        attack: Its name.
        candidate: Which of its candidates was best on the held-out auxiliary rows.
        errors: ``(N)`` float64, each query's mean squared error per pixel.
        reconstructions: ``(N, C, H, W)`` what it made of the test queries.
        candidate_errors: Mean error over the test queries of every candidate, by name.
    """

    attack: str
    candidate: str
    errors: Tensor
    reconstructions: Tensor
    candidate_errors: Mapping[str, float]

    @property
    def error(self) -> float:
        """Mean error over the test queries."""
        return float(self.errors.mean())


ROWS = 512
"""Queries that are reconstructed at once."""


@torch.no_grad()
def run_attack(
    name: str,
    attack: Attack,
    observations: Observations,
    train: TrainDecoder,
    released: Tensor,
    images: Tensor,
) -> AttackResult | None:
    """Let an attacker prepare, and grade it on test queries that it has never seen.

    Args:
        name: The attack's registered name.
        attack: The attack.
        observations: What the attacker has.
        train: How it trains a decoder.
        released: ``(N, K)`` what the defended target answered to the test queries.
        images: ``(N, C, H, W)`` those queries. Used to grade, and to ask again for a candidate
            that needs several answers; never to choose.

    Returns:
        What it achieved; None if the attack does not apply to this release.
    """
    with torch.enable_grad():
        candidates = attack(observations, train)
    if not candidates:
        return None
    held_out = observations.held_out
    own = observations.images[held_out]
    choices = {
        candidate: float(
            inversion_errors(
                own, _reconstruct(made, observations, observations.released[held_out], own)
            ).mean()
        )
        for candidate, made in candidates.items()
    }
    best = min(choices, key=lambda candidate: choices[candidate])
    made = {
        candidate: _reconstruct(candidates[candidate], observations, released, images)
        for candidate in candidates
    }
    errors = {candidate: inversion_errors(images, guess) for candidate, guess in made.items()}
    means = {candidate: float(each.mean()) for candidate, each in errors.items()}
    return AttackResult(name, best, errors[best], made[best], means)


def _reconstruct(
    candidate: Candidate, observations: Observations, released: Tensor, images: Tensor
) -> Tensor:
    """Return what a candidate makes of queries, asked as often as it needs."""
    if candidate.repeats == 1:
        parts = [candidate.reconstruct(some.unsqueeze(0)) for some in released.split(ROWS)]
    else:
        query = observations.query
        if query is None:
            raise InvalidOptionError(
                f"a candidate needs {candidate.repeats} answers to each query, but only recorded "
                "answers are at hand."
            )
        parts = [
            candidate.reconstruct(query(some, candidate.repeats)) for some in images.split(ROWS)
        ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Floors:
    """Per-query errors that every release is measured against, each ``(N)`` float64.

    Attributes:
        clean: Best attack on clean scores.
        label: Best attack given the label alone.
        prior: The mean of the auxiliary images.
    """

    clean: Tensor
    label: Tensor
    prior: Tensor


def take_floors(
    clean_results: Mapping[str, AttackResult], auxiliary_images: Tensor, images: Tensor
) -> Floors:
    """Take the floors from the attacks on clean scores.

    Args:
        clean_results: By name, ``label-only`` among them.
        auxiliary_images: ``(N, C, H, W)`` the attacker's, for their mean.
        images: ``(M, C, H, W)`` the test queries.
    """
    best = min(clean_results.values(), key=lambda result: result.error)
    mean = auxiliary_images.mean(0, keepdim=True).expand_as(images)
    return Floors(best.errors, clean_results["label-only"].errors, inversion_errors(images, mean))


@dataclass(frozen=True)
class Verdict:
    """What the attacks on one release come to.

    Attributes:
        adaptive_error: Lowest mean error over all attackers; each may fall back on the label.
        strongest: Who achieved it.
        closed_gap: G over all queries; None if clean scores tell no more than the label.
        closed_gap_tail: G over the least confident 5 % of queries, of the attacker who is
            strongest over all of them, or who falls back on the label.
        flags: What is suspicious about this evaluation, in words.
    """

    adaptive_error: float
    strongest: str
    closed_gap: float | None
    closed_gap_tail: float | None
    flags: tuple[str, ...]


def judge(
    results: Mapping[str, AttackResult], floors: Floors, clean_confidences: Tensor, flips: int
) -> Verdict:
    """Compare attackers with the floors.

    Args:
        results: By name; all of them count, and the strongest makes the headline.
        floors: Of the same queries.
        clean_confidences: ``(N, K)``, to find the least confident queries.
        flips: How many labels changed in what was released.
    """
    strongest = min(results, key=lambda name: results[name].error)
    tail_count = max(1, round(TAIL_SHARE * len(clean_confidences)))
    tail = clean_confidences.amax(-1).argsort(stable=True)[:tail_count]
    adaptive = results[strongest].error
    # Not the lowest of all on the tail: on a few queries a failed decoder may win by chance.
    fallback = results.get("label-only", results[strongest])
    tail_adaptive = min(
        float(result.errors[tail].mean()) for result in (results[strongest], fallback)
    )
    flags = []
    label_error = float(floors.label.mean())
    for name, result in results.items():
        # Two standard errors or one percent, so that a tie is not called a failure.
        slack = max(2 * _standard_error(result.errors - floors.label), 0.01 * label_error)
        measured = name != "label-only" and name not in CLASS_LEVEL
        if measured and result.error > label_error + slack:
            flags.append(f"{name} error above the label-only floor: that attack failed")
    if {"static", "retrained"} <= results.keys():
        gain = results["retrained"].errors - results["static"].errors
        if float(gain.mean()) > 2 * _standard_error(gain):
            flags.append("retrained is weaker than static: the retraining failed")
    if flips:
        flags.append(f"{flips} labels changed or tied in what was released")
    return Verdict(
        adaptive_error=adaptive,
        strongest=strongest,
        closed_gap=_gap(adaptive, float(floors.clean.mean()), label_error),
        closed_gap_tail=_gap(
            tail_adaptive, float(floors.clean[tail].mean()), float(floors.label[tail].mean())
        ),
        flags=tuple(flags),
    )


def _standard_error(differences: Tensor) -> float:
    """Return that of the mean; 0 of a single query, which has no spread."""
    count = len(differences)
    return float(differences.std()) / count**0.5 if count > 1 else 0.0


def _gap(adaptive: float, clean: float, label: float) -> float | None:
    try:
        return closed_gap(adaptive, clean, label)
    except InvalidOptionError:
        return None
