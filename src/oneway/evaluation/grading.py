"""Grade attacks on a release: attacks propose reconstructions, and only this module grades."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from oneway.attacks import LabelOnly
from oneway.contracts import (
    AttackerKnowledge,
    AttackFunction,
    Candidate,
    Reconstructor,
    TrainDecoder,
)
from oneway.errors import InvalidOptionError
from oneway.evaluation.convergence import Convergence
from oneway.metrics import inversion_errors


@dataclass(frozen=True)
class AttackResult:
    """The result of an attack on the test queries.

    Attributes:
        attack: Registered name of the attack.
        reconstructor: Name of the reconstructor that was best on auxiliary rows which its fit left
            out.
        errors: ``(N)`` float64, each query's mean squared error per pixel.
        reconstructions: ``(N, C, H, W)`` reconstructions of the test queries.
        reconstructor_errors: Mean error over the test queries of every reconstructor, by name.
        own_reconstructions: ``(M, C, H, W)`` reconstructions of the held-out auxiliary images.
        candidates: Reconstructions by every reconstructor, for an attack that mixes them.
        convergence: Epochs of the attack's decoders, and whether twice as many gain nothing; None
            for an attack that trains no decoder.
    """

    attack: str
    reconstructor: str
    errors: Tensor
    reconstructions: Tensor
    reconstructor_errors: Mapping[str, float]
    own_reconstructions: Tensor | None = None
    candidates: tuple[Candidate, ...] = ()
    convergence: Convergence | None = None

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
    """Prepare an attack, and grade it on test queries that the attacker has never seen.

    Args:
        name: Registered name of the attack.
        attack: The attack.
        knowledge: The attacker's data and access.
        train: Trains a decoder.
        released: ``(N, K)`` released confidences of the test queries.
        images: ``(N, C, H, W)`` test queries. They grade the attack, and are repeated for a
            reconstructor that needs several answers; they never select.

    Returns:
        The result; None if the attack does not apply to this release.

    Raises:
        InvalidOptionError: The attack needs clean confidences or repeated answers, and there are
            none.
    """
    with torch.enable_grad():
        reconstructors = attack(knowledge, train)
    if not reconstructors:
        return None
    judging, held_out = knowledge.judging, knowledge.held_out
    held_out_images, held_out_released = knowledge.images[held_out], knowledge.released[held_out]
    if knowledge.candidates:
        # An attack that mixes reads reconstructions of the others, as many answers to each query.
        held_out_released = torch.stack([each.held_out for each in knowledge.candidates])
        released = torch.stack([each.queries for each in knowledge.candidates])
    asked = {label: each for label, each in reconstructors.items() if each.out_of_fold is None}
    tried = {
        label: each.out_of_fold
        for label, each in reconstructors.items()
        if each.out_of_fold is not None
    } | _reconstruct(asked, knowledge, held_out_released, held_out_images)
    made = _reconstruct(reconstructors, knowledge, released, images)
    # All judge by the same rows: the held-out ones, which come first, unless all know more.
    rows = min(map(len, tried.values()))
    truth = knowledge.images[judging[:rows]]
    choices = {
        label: float(inversion_errors(truth, guess[:rows]).mean()) for label, guess in tried.items()
    }
    best = min(choices, key=lambda label: choices[label])
    errors = {label: inversion_errors(images, guess) for label, guess in made.items()}
    means = {label: float(each.mean()) for label, each in errors.items()}
    count = len(held_out_images)
    others = tuple(
        Candidate(
            tried[label][:count],
            guess,
            tried[label] if len(tried[label]) == len(judging) > count else None,
        )
        for label, guess in made.items()
    )
    return AttackResult(name, best, errors[best], made[best], means, tried[best][:count], others)


def _reconstruct(
    reconstructors: Mapping[str, Reconstructor],
    knowledge: AttackerKnowledge,
    released: Tensor,
    images: Tensor,
) -> dict[str, Tensor]:
    """Return the reconstructions by each reconstructor, from as many answers as it needs.

    Reconstructors that need as many answers read the same ones, so that none is asked for twice.
    """
    made: dict[str, Tensor] = {}
    for repeats in dict.fromkeys(each.repeats for each in reconstructors.values()):
        alike = {
            name: each.reconstruct
            for name, each in reconstructors.items()
            if each.repeats == repeats
        }
        parts: dict[str, list[Tensor]] = {name: [] for name in alike}
        for answers in _answers(repeats, knowledge, released, images):
            for name, reconstruct in alike.items():
                parts[name].append(reconstruct(answers))
        made |= {name: torch.cat(each) for name, each in parts.items()}
    return {name: made[name] for name in reconstructors}


def _answers(
    repeats: int, knowledge: AttackerKnowledge, released: Tensor, images: Tensor
) -> Iterator[Tensor]:
    """Yield ``(R, M, ...)`` answers to the queries, in parts of at most ``ROWS`` queries."""
    if released.ndim > 2:
        yield from released.split(ROWS, 1)
    elif repeats == 1:
        yield from (rows.unsqueeze(0) for rows in released.split(ROWS))
    elif knowledge.query is None:
        raise InvalidOptionError(
            f"a reconstructor needs {repeats} answers to each query, but only recorded answers are "
            "at hand."
        )
    else:
        yield from (knowledge.query(rows, repeats) for rows in images.split(ROWS))


@dataclass(frozen=True)
class Baselines:
    """Per-query errors that every release is measured against, each ``(N)`` float64.

    Attributes:
        clean: Errors of the best attack on clean scores.
        label: Errors of the best attack on the label alone.
        prior: Errors of the mean auxiliary image.
        attackers: Names of the attacks on clean scores that took part.
    """

    clean: Tensor
    label: Tensor
    prior: Tensor
    attackers: tuple[str, ...] = ()


def take_baselines(
    clean_results: Mapping[str, AttackResult], auxiliary_images: Tensor, images: Tensor
) -> Baselines:
    """Take the baselines from the attacks on clean scores.

    Args:
        clean_results: Attacks on clean scores, by name, ``label-only`` among them.
        auxiliary_images: ``(N, C, H, W)`` auxiliary images, for their mean.
        images: ``(M, C, H, W)`` test queries.
    """
    best = min(clean_results.values(), key=lambda result: result.error)
    mean = auxiliary_images.mean(0, keepdim=True).expand_as(images)
    return Baselines(
        best.errors,
        clean_results[LabelOnly.name].errors,
        inversion_errors(images, mean),
        tuple(clean_results),
    )
