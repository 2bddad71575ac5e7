"""The attacker with a gallery, who asks the service about each candidate and compares answers."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.averaging import mean_answer
from oneway.attacks.base import IdentificationAttack, Workload
from oneway.contracts import AttackerKnowledge, CopyInputs, Matcher, Query
from oneway.inversion import INPUT_TRANSFORMS
from oneway.metrics import expected_hits

ROWS = 512
"""Candidates that are asked at once."""

CHOOSING_ROWS = 256
"""Most auxiliary rows that choose the distance."""

TRANSFORMS = ("standardized", "within-label")
"""Input transforms whose features are compared, besides the confidences themselves."""

LAST_DIGITS = 1e-9
"""Weight of the L1 distance beside a distance of features: it only separates what they merge."""


class Matching(IdentificationAttack):
    """Rank candidates by the distance of their answers to the released vector.

    It trains nothing. The distance is the one of three that identifies most of the attacker's own
    auxiliary inputs among each other: L2 of standardized logs, L2 of the scores within their label,
    or L1 of probabilities. Each is 0 for equal vectors alone, so that the attack is optimal where a
    release is deterministic and the gallery holds exact copies: it errs only among candidates with
    the same answer.
    """

    name: ClassVar = "matching"
    knows: ClassVar = "a gallery of candidates, the query among them: it asks about each of them"

    def extra_queries(self, workload: Workload) -> float:
        """Return the number of answers: R to each candidate and to the rows that choose."""
        asked = workload.test + min(workload.auxiliary, CHOOSING_ROWS)
        return asked * max(workload.repeats, default=1)

    def run(self, knowledge: AttackerKnowledge, copied: CopyInputs) -> Matcher:
        """Choose the distance on auxiliary inputs; see :meth:`IdentificationAttack.run`."""
        repeats = max(knowledge.repeats, default=1) if knowledge.random else 1
        assert knowledge.query is not None  # noqa: S101  required
        ask = partial(_answers, knowledge.query, repeats)
        own = knowledge.released[:CHOOSING_ROWS]
        answers = ask(copied(knowledge.images[:CHOOSING_ROWS]))
        places = torch.arange(len(own), device=own.device)

        def share(distance: Distance) -> tuple[float, ...]:
            found = distance(own, answers)
            return tuple(float(expected_hits(found, places, within).mean()) for within in (1, 5))

        distances = _distances(knowledge.released)
        best = max(distances, key=lambda name: share(distances[name]))  # the first of equals
        return Matcher(ask, distances[best], best, repeats)


Distance = Callable[[Tensor, Tensor], Tensor]
"""``(N, K)`` released vectors and ``(M, K)`` answers, to ``(N, M)`` float64 distances."""


def _distances(released: Tensor) -> dict[str, Distance]:
    """Return the distances by name, the most robust first, fitted to the attacker's own rows."""
    features = {}
    for name in TRANSFORMS:
        transform = INPUT_TRANSFORMS[name](released.shape[-1]).to(released.device)
        transform.fit(released)
        features[name] = partial(_feature_distance, transform)
    return {**features, "L1": _absolute_distance}


def _absolute_distance(released: Tensor, answers: Tensor) -> Tensor:
    return torch.cdist(released.double(), answers.double(), p=1)


def _feature_distance(
    transform: Callable[[Tensor], Tensor], released: Tensor, answers: Tensor
) -> Tensor:
    # By matrix products, equal answers would not be at equal distances.
    exact = "donot_use_mm_for_euclid_dist"
    parts = transform(released.double()), transform(answers.double())
    distance = torch.cdist(*parts, compute_mode=exact)
    return distance + LAST_DIGITS * _absolute_distance(released, answers)


def _answers(query: Query, repeats: int, candidates: Tensor) -> Tensor:
    """Return ``(M, K)`` answers about candidates, each the mean of ``repeats``."""
    parts = [query(rows, repeats) for rows in candidates.split(ROWS)]
    # A mean of logs changes the last digits, by which equal answers are known.
    return torch.cat([rows[0] if repeats == 1 else mean_answer(rows) for rows in parts])
