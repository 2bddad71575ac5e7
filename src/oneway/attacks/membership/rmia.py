"""Robust membership inference: does the candidate beat random inputs in a likelihood ratio?"""

from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import MembershipAttack
from oneway.attacks.membership.scores import LEAST, true_label_probability
from oneway.contracts import MembershipKnowledge
from oneway.metrics.membership import area_under_curve

GAMMAS = (1.0, 1.25, 1.5, 2.0)
"""Ratios by which a candidate must exceed an input of the population."""

OFFLINE = 0.33
"""The slope a of the offline correction. Theirs."""


class OfflineRMIA(MembershipAttack):
    """Compare each candidate's likelihood ratio with those of the population.

    The score is the share of population inputs z with
    ``[p(x | model) / p(x)] / [p(z | model) / p(z)] >= gamma``. Only reference models that were not
    trained on x give p(x), by ``((1 + a) * mean + 1 - a) / 2``. The attacker chooses gamma in games
    against reference models; without games gamma is 2.

    Source:
        Zarifzadeh, Liu & Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024.
    """

    name: ClassVar = "offline-rmia"
    knows: ClassVar = "released scores, the true label, a population, and reference models"
    requires: ClassVar = frozenset({"references"})

    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return the share of population inputs that each candidate beats."""
        games = [knowledge.game(number) for number in knowledge.games]

        def power(gamma: float) -> float:
            areas = [area_under_curve(_shares(game, gamma), members) for game, members in games]
            return sum(areas)

        return _shares(knowledge, max(GAMMAS, key=power) if games else GAMMAS[-1])


def _shares(knowledge: MembershipKnowledge, gamma: float) -> Tensor:
    out = ~knowledge.reference_members
    theirs = true_label_probability(knowledge.reference_released, knowledge.labels).mean(-1)
    outside = (theirs * out).sum(0) / out.sum(0).clamp_min(1)
    own = true_label_probability(knowledge.released, knowledge.labels).mean(-1)
    labels = knowledge.population_labels
    reference = true_label_probability(knowledge.reference_population, labels).mean((0, -1))
    others = true_label_probability(knowledge.population_released, labels).mean(-1)
    ratio, population = own / _corrected(outside), others / _corrected(reference)
    beaten = torch.searchsorted(population.sort().values, ratio / gamma, right=True)
    return beaten.double() / len(population)


def _corrected(mean: Tensor) -> Tensor:
    return (((1 + OFFLINE) * mean + 1 - OFFLINE) / 2).clamp_min(LEAST)
