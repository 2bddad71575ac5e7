"""Grade attacks on a release: an attack proposes reconstructions, and is measured here alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.attacks import LabelOnly
from oneway.contracts import AttackerKnowledge, AttackFunction, Reconstructor, TrainDecoder
from oneway.errors import InvalidOptionError
from oneway.metrics import inversion_errors


@dataclass(frozen=True)
class AttackResult:
    """What one attacker achieved on the test queries.

    Attributes:
        attack: Its name.
        reconstructor: Which of its reconstructors was best on the held-out auxiliary rows.
        errors: ``(N)`` float64, each query's mean squared error per pixel.
        reconstructions: ``(N, C, H, W)`` what it made of the test queries.
        reconstructor_errors: Mean error over the test queries of every reconstructor, by name.
        own_reconstructions: ``(M, C, H, W)`` what it made of its own held-out images.
    """

    attack: str
    reconstructor: str
    errors: Tensor
    reconstructions: Tensor
    reconstructor_errors: Mapping[str, float]
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
    attack: AttackFunction,
    knowledge: AttackerKnowledge,
    train: TrainDecoder,
    released: Tensor,
    images: Tensor,
) -> AttackResult | None:
    """Let an attacker prepare, and grade it on test queries that it has never seen.

    Args:
        name: The attack's registered name.
        attack: The attack.
        knowledge: The attacker's data and access.
        train: Trains a decoder.
        released: ``(N, K)`` what the defended target answered to the test queries.
        images: ``(N, C, H, W)`` those queries. Used to grade, and to ask again for a reconstructor
            that needs several answers; never to choose.

    Returns:
        What it achieved; None if the attack does not apply to this release.
    """
    with torch.enable_grad():
        reconstructors = attack(knowledge, train)
    if not reconstructors:
        return None
    held_out = knowledge.held_out
    own = knowledge.images[held_out]
    tried = {
        reconstructor: _reconstruct(made, knowledge, knowledge.released[held_out], own)
        for reconstructor, made in reconstructors.items()
    }
    choices = {
        reconstructor: float(inversion_errors(own, guess).mean())
        for reconstructor, guess in tried.items()
    }
    best = min(choices, key=lambda reconstructor: choices[reconstructor])
    made = {
        reconstructor: _reconstruct(reconstructors[reconstructor], knowledge, released, images)
        for reconstructor in reconstructors
    }
    errors = {
        reconstructor: inversion_errors(images, guess) for reconstructor, guess in made.items()
    }
    means = {reconstructor: float(each.mean()) for reconstructor, each in errors.items()}
    return AttackResult(name, best, errors[best], made[best], means, tried[best])


def _reconstruct(
    reconstructor: Reconstructor, knowledge: AttackerKnowledge, released: Tensor, images: Tensor
) -> Tensor:
    """Return what a reconstructor makes of queries, asked as often as it needs."""
    if reconstructor.repeats == 1:
        parts = [reconstructor.reconstruct(rows.unsqueeze(0)) for rows in released.split(ROWS)]
    else:
        query = knowledge.query
        if query is None:
            raise InvalidOptionError(
                f"a reconstructor needs {reconstructor.repeats} answers to each query, but only "
                "recorded answers are at hand."
            )
        parts = [
            reconstructor.reconstruct(query(rows, reconstructor.repeats))
            for rows in images.split(ROWS)
        ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Baselines:
    """Per-query errors that every release is measured against, each ``(N)`` float64.

    Attributes:
        clean: Best attack on clean scores.
        label: Best attack given the label alone.
        prior: The mean of the auxiliary images.
    """

    clean: Tensor
    label: Tensor
    prior: Tensor


def take_baselines(
    clean_results: Mapping[str, AttackResult], auxiliary_images: Tensor, images: Tensor
) -> Baselines:
    """Take the baselines from the attacks on clean scores.

    Args:
        clean_results: By name, ``label-only`` among them.
        auxiliary_images: ``(N, C, H, W)`` the attacker's, for their mean.
        images: ``(M, C, H, W)`` the test queries.
    """
    best = min(clean_results.values(), key=lambda result: result.error)
    mean = auxiliary_images.mean(0, keepdim=True).expand_as(images)
    return Baselines(
        best.errors, clean_results[LabelOnly.name].errors, inversion_errors(images, mean)
    )
