"""Grade the attack ``matching``: the share of queries that it identifies in a gallery."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from oneway.attacks import Matching, Workload, identification_attacks
from oneway.contracts import AttackerKnowledge, CopyInputs
from oneway.data import Column
from oneway.evaluation.randomness import Stream
from oneway.metrics import GALLERY, deal_galleries, expected_hits

TRUE_INPUTS, NOISY_COPIES = "true inputs", "noisy copies"

COPY_NOISE = 0.05
"""Standard deviation of the noise of noisy copies, in units of an entry's range."""


@dataclass(frozen=True)
class MatchingResult:
    """The shares of queries that ``matching`` identifies in galleries of one kind.

    A tie counts in expectation: of ``t`` candidates that tie for the first rank, each is the
    attacker's answer with probability ``1 / t``.

    Attributes:
        rank_1: Share of queries whose own candidate is the nearest.
        rank_5: Share of queries whose own candidate is among the nearest five.
        gallery: Number of candidates in each gallery.
        chance: ``rank_1`` of an attacker who guesses.
        distance: Name of the distance that the attacker chose on its auxiliary inputs.
        repeats: Number of answers to each candidate.
        clean_rank_1: ``rank_1`` of the same attack on clean scores.
        clean_rank_5: ``rank_5`` of the same attack on clean scores.
        label_rank_1: ``rank_1`` of an attacker who compares labels alone.
        label_rank_5: ``rank_5`` of an attacker who compares labels alone.
    """

    rank_1: float
    rank_5: float
    gallery: int
    chance: float
    distance: str
    repeats: int
    clean_rank_1: float
    clean_rank_5: float
    label_rank_1: float
    label_rank_5: float


@dataclass(frozen=True)
class MatchedScores:
    """Scores by which queries are identified.

    Attributes:
        knowledge: The attacker's data and access to what answers with these scores. Random
            releases are asked through a random stream of their own.
        released: ``(N, K)`` scores of the test queries.
    """

    knowledge: AttackerKnowledge
    released: Tensor


@dataclass(frozen=True)
class Candidates:
    """The candidates of galleries of one kind.

    Attributes:
        inputs: ``(N, ...)`` the candidate of each test query.
        copied: Returns the attacker's own inputs, changed as the candidates are.
    """

    inputs: Tensor
    copied: CopyInputs


@dataclass(frozen=True)
class _Found:
    rank_1: float
    rank_5: float
    distance: str
    repeats: int
    answers: Tensor  # (N, K), about the candidate of each test query


class GalleryMatching:
    """Grades ``matching`` on releases of one model; clean scores and labels are graded once."""

    def __init__(
        self,
        queries: Tensor,
        clean: MatchedScores,
        seed: int,
        columns: Sequence[Column] = (),
    ) -> None:
        """Make the galleries; nothing is asked yet.

        Args:
            queries: ``(N, ...)`` test queries.
            clean: Clean scores, with the attacker's auxiliary inputs.
            seed: Seed of the galleries and of the noise.
            columns: What the entries of a record are; empty for images.
        """
        self.seed, self.clean = seed, clean
        self.candidates = {TRUE_INPUTS: Candidates(queries, torch.clone)}
        if not columns or any(column.kind == "numeric" for column in columns):

            def copied(inputs: Tensor, purpose: str = "own noisy copies") -> Tensor:
                return noisy_copies(inputs, columns, Stream(seed, purpose).generator())

            noisy = Candidates(copied(queries, NOISY_COPIES), copied)
            self.candidates[NOISY_COPIES] = noisy

    @property
    def gallery(self) -> int:
        """Number of candidates in each gallery."""
        return min(GALLERY, len(self.clean.released))

    def results(self, scores: MatchedScores) -> dict[str, MatchingResult]:
        """Return the result of each kind of gallery, by name.

        Args:
            scores: Released scores.

        Returns:
            Nothing where the attack does not apply, as to recorded scores.
        """
        baselines, results = self._baselines, dict[str, MatchingResult]()
        for name, found in self._find(scores).items():
            clean, label = baselines[name]
            results[name] = MatchingResult(
                rank_1=found.rank_1,
                rank_5=found.rank_5,
                gallery=self.gallery,
                chance=1 / self.gallery,
                distance=found.distance,
                repeats=found.repeats,
                clean_rank_1=clean.rank_1,
                clean_rank_5=clean.rank_5,
                label_rank_1=label[0],
                label_rank_5=label[1],
            )
        return results

    @cached_property
    def _baselines(self) -> dict[str, tuple[_Found, tuple[float, float]]]:
        """The shares on clean scores, and by the label alone, by kind of gallery."""
        labels = self.clean.released.argmax(-1)
        return {
            name: (found, self._shares(_other_label, labels, found.answers.argmax(-1)))
            for name, found in self._find(self.clean).items()
        }

    def _find(self, scores: MatchedScores) -> dict[str, _Found]:
        attack, results = identification_attacks()[Matching.name], dict[str, _Found]()
        for name, candidates in self.candidates.items():
            matcher = attack(scores.knowledge, candidates.copied)
            if matcher is not None:
                answers = matcher.ask(candidates.inputs)
                shares = self._shares(matcher.distances, scores.released, answers)
                results[name] = _Found(*shares, matcher.name, matcher.repeats, answers)
        return results

    def _shares(
        self, distances: Callable[[Tensor, Tensor], Tensor], released: Tensor, answers: Tensor
    ) -> tuple[float, float]:
        """Return the expected shares at rank 1 and rank 5.

        Args:
            distances: Returns distances of released vectors to answers.
            released: ``(N, ...)`` what was released about each test query.
            answers: ``(N, ...)`` what was answered about the candidate of each test query.
        """
        hits = {within: torch.zeros(len(released), dtype=torch.float64) for within in (1, 5)}
        generator = Stream(self.seed, "gallery").generator()
        for members, first in deal_galleries(len(released), self.gallery, generator):
            chosen = members.to(released.device)
            found = distances(released[chosen[first:]], answers[chosen])
            places = torch.arange(first, len(chosen), device=found.device)
            for within, values in hits.items():
                values[members[first:]] = expected_hits(found, places, within).cpu()
        return float(hits[1].mean()), float(hits[5].mean())


def _other_label(labels: Tensor, answers: Tensor) -> Tensor:
    return (labels.unsqueeze(-1) != answers).double()


def noisy_copies(inputs: Tensor, columns: Sequence[Column], generator: Generator) -> Tensor:
    """Return inputs with Gaussian noise on every pixel, or on every number of a record.

    Categories, and the numbers of missing values, stay.

    Args:
        inputs: ``(N, C, H, W)`` or ``(N, D)`` inputs in ``[0, 1]``. Not modified.
        columns: What the entries of a record are; empty: all entries get noise.
        generator: Source of the noise, on the CPU.

    Returns:
        The same shape, in ``[0, 1]``.
    """
    noise = COPY_NOISE * torch.randn(inputs.shape, generator=generator).to(inputs)
    if columns:
        applies = torch.zeros_like(inputs, dtype=torch.bool)
        for column in columns:
            if column.kind == "numeric":
                there = inputs[:, column.start + 1] < 0.5 if column.missing else True
                applies[:, column.start] = there
        noise = noise * applies
    return (inputs + noise).clamp(0, 1)


def matching_queries(workload: Workload) -> float:
    """Return the number of answers that grading takes: two galleries, of release and clean scores.

    Args:
        workload: Size of the evaluation; ``repeats`` is ``(1,)`` where answers are not random.
    """
    attack = identification_attacks()[Matching.name]
    once = dataclasses.replace(workload, repeats=(1,))
    return 2 * (attack.extra_queries(workload) + attack.extra_queries(once))
