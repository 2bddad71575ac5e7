"""Run membership attacks on a release, and grade them: an attack never learns the true members."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.contracts import MembershipKnowledge
from oneway.metrics.membership import (
    LOW_RATE,
    MembershipMeasures,
    area_under_curve,
    membership_measures,
    true_positive_rate,
)

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
    """

    attack: str
    scores: Tensor
    measures: MembershipMeasures
    game_area: float | None
    game_low: float | None


def grade_membership(
    knowledge: MembershipKnowledge,
    members: Tensor,
    counts: Tensor,
    floor: Sequence[GradedAttack] = (),
) -> list[GradedAttack]:
    """Run every membership attack that applies, in the order of the registry, and grade it.

    Args:
        knowledge: The attacker's data and access.
        members: ``(N)`` bool, the true members. No attack sees them.
        counts: ``(1 + R, N)`` resamples: see :func:`oneway.metrics.membership.resampled_counts`.
        floor: Attacks on the label alone, which whoever sees scores can run, too: the stack mixes
            them.
    """
    games = [knowledge.game(number) for number in knowledge.games]
    scores: dict[str, Tensor] = {}
    for name, attack in MEMBERSHIP_ATTACKS.items():
        own = attack(knowledge)
        if own is not None:
            theirs = [attack(game) for game, _ in games]
            scores[name] = torch.stack([own, *(each for each in theirs if each is not None)])
    known = torch.stack([members, *(inside for _, inside in games)])
    if len(games) > 1:
        mixed = [*scores.values(), *(each.scores for each in floor)]
        scores[STACK.name] = _stacked(knowledge, torch.stack(mixed, 1), known[1:])
    return [_graded(name, rows, known, counts) for name, rows in scores.items()]


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
