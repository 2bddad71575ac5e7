"""Run membership attacks on a release, and grade them: an attack never learns the true members."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.contracts import MembershipKnowledge
from oneway.evaluation.convergence import IsLate, never_late
from oneway.metrics.membership import (
    LOW_RATE,
    MembershipMeasures,
    area_under_curve,
    membership_measures,
    true_positive_rate,
)

ALWAYS = ("label-gap", "true-label-confidence")
"""Attackers that no lack of time leaves out: they take milliseconds."""

STACK = MEMBERSHIP_ATTACKS["membership-stack"]


@dataclass(frozen=True)
class GradedAttack:
    """A membership attack on a release.

    Attributes:
        attack: Registered name.
        scores: ``(1 + G, N)`` scores of the candidates: on the attacked model, then in games.
        measures: Measures on the candidates and on their resamples.
        game_area: Mean area under the ROC curve of games against reference models; None without.
        game_low: Mean true positive rate at 1 % there.
        seconds: Time that the attack took, games among it.
    """

    attack: str
    scores: Tensor
    measures: MembershipMeasures
    game_area: float | None
    game_low: float | None
    seconds: float = 0.0


def grade_membership(
    knowledge: MembershipKnowledge,
    members: Tensor,
    counts: Tensor,
    floor: Sequence[GradedAttack] = (),
    attacks: Collection[str] = (*MEMBERSHIP_ATTACKS,),
    is_late: IsLate = never_late,
) -> list[GradedAttack]:
    """Run membership attacks that apply, in the order of the registry, and grade them.

    Args:
        knowledge: The attacker's data and access.
        members: ``(N)`` bool, the true members. No attack sees them.
        counts: ``(1 + R, N)`` resamples: see :func:`oneway.metrics.membership.resampled_counts`.
        floor: Attacks on the label alone, which whoever sees scores can run, too: the stack mixes
            them.
        attacks: Names of the attacks.
        is_late: Says before each attack whether the time is over; then only those of ``ALWAYS`` are
            run.
    """
    games = [knowledge.game(number) for number in knowledge.games]
    known = torch.stack([members, *(inside for _, inside in games)])
    graded: list[GradedAttack] = []

    def grade(name: str, run: Callable[[], Tensor | None]) -> None:
        if name not in attacks or (name not in ALWAYS and is_late()):
            return
        begin = time.perf_counter()
        scores = run()
        if scores is not None:
            measured = _graded(name, scores, known, counts)
            graded.append(replace(measured, seconds=time.perf_counter() - begin))

    for name, attack in MEMBERSHIP_ATTACKS.items():
        grade(name, partial(_played, attack, knowledge, [game for game, _ in games]))
    if len(games) > 1:
        mixed = torch.stack([each.scores for each in (*graded, *floor)], 1)
        grade(STACK.name, lambda: _stacked(knowledge, mixed, known[1:]))
    return graded


def _played(
    attack: MembershipAttack, knowledge: MembershipKnowledge, games: Sequence[MembershipKnowledge]
) -> Tensor | None:
    """Return an attack's scores on the attacked model and in games; None if it does not apply."""
    own = attack(knowledge)
    if own is None:
        return None
    theirs = [attack(game) for game in games]
    return torch.stack([own, *(each for each in theirs if each is not None)])


def _stacked(knowledge: MembershipKnowledge, scores: Tensor, members: Tensor) -> Tensor:
    """Return ``(1 + G, N)`` scores of the stack; in each game it is fitted to the other games."""
    answers = []
    for place in range(len(scores)):
        others = [game for game in range(len(members)) if game != place - 1]
        shown = replace(
            knowledge,
            candidate_scores=scores[[place, *(game + 1 for game in others)]],
            candidate_members=members[others],
        )
        answers.append(STACK.run(shown))
    return torch.stack(answers)


def _graded(name: str, scores: Tensor, members: Tensor, counts: Tensor) -> GradedAttack:
    games = list(zip(scores[1:], members[1:], strict=True))
    areas = [area_under_curve(*game) for game in games]
    lows = [true_positive_rate(*game, LOW_RATE) for game in games]
    return GradedAttack(
        name,
        scores,
        membership_measures(scores[0], members[0], counts),
        sum(areas) / len(areas) if games else None,
        sum(lows) / len(lows) if games else None,
    )
