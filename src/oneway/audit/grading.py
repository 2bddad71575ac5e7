"""Grade attacks on a release. An attack proposes reconstructions; only this room measures them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.contracts import Attack, Candidate, Observations, TrainDecoder
from oneway.errors import InvalidOptionError
from oneway.metrics import inversion_errors


@dataclass(frozen=True)
class AttackResult:
    """What one attacker achieved on the test queries.

    Attributes:
        attack: Its name.
        candidate: Which of its candidates was best on the held-out auxiliary rows.
        errors: ``(N)`` float64, each query's mean squared error per pixel.
        reconstructions: ``(N, C, H, W)`` what it made of the test queries.
        candidate_errors: Mean error over the test queries of every candidate, by name.
        own_reconstructions: ``(M, C, H, W)`` what it made of its own held-out images.
    """

    attack: str
    candidate: str
    errors: Tensor
    reconstructions: Tensor
    candidate_errors: Mapping[str, float]
    own_reconstructions: Tensor | None = None

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
    tried = {
        candidate: _reconstruct(made, observations, observations.released[held_out], own)
        for candidate, made in candidates.items()
    }
    choices = {
        candidate: float(inversion_errors(own, guess).mean()) for candidate, guess in tried.items()
    }
    best = min(choices, key=lambda candidate: choices[candidate])
    made = {
        candidate: _reconstruct(candidates[candidate], observations, released, images)
        for candidate in candidates
    }
    errors = {candidate: inversion_errors(images, guess) for candidate, guess in made.items()}
    means = {candidate: float(each.mean()) for candidate, each in errors.items()}
    return AttackResult(name, best, errors[best], made[best], means, tried[best])


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
