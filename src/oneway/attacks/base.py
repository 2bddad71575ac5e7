"""What an attack says of itself, so that audits, experiments, tables and pages need only ask it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.errors import InvalidOptionError

Threat = Literal["inversion", "membership", "stealing"]
"""What an attacker is after: the query itself, whether a row was trained on, or the model."""


@dataclass(frozen=True)
class Workload:
    """How much there is to attack, from which an attack tells what it costs.

    Attributes:
        auxiliary: Auxiliary rows that the attacker has.
        test: Test queries that it is graded on.
        repeats: How often the attacker may ask the same query, several counts to choose from.
    """

    auxiliary: int
    test: int
    repeats: tuple[int, ...]


class Attack(ABC):
    """An adversary that declares itself; ``name`` is its key in ``ATTACKS``.

    Attributes:
        name: The name that commands, experiments and records use.
        threat: Goal of the attacker.
        knows: The attacker's knowledge in words, for tables.
        requires: Fields of :class:`AttackerKnowledge` without which the attack does not apply.
    """

    name: ClassVar[str]
    threat: ClassVar[Threat]
    knows: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()

    def applies(self, available: Collection[str]) -> bool:
        """Say whether the attack applies to a release.

        Args:
            available: Fields of :class:`AttackerKnowledge` that attackers of the release have.
        """
        return self.requires <= set(available)


class InversionAttack(Attack):
    """An adversary that reconstructs queries from released confidences.

    A subclass writes :meth:`run`, and declares what differs from the defaults here. It never
    grades itself.

    Attributes:
        adaptive: It knows that there is a defense. An attacker that does not is what a defense is
            meant to mislead, so that its failure is no flag.
        improves_on: The attack that this one must not fall behind; if it does, its training
            failed, and a flag is raised.
        reads_query: Its reconstructions are of the query. False for an attack that answers every
            query of a class alike: then a high error says nothing, and audits leave it out.
        attacks_clean_scores: It takes part in the attack on clean scores, which gives the clean
            baseline. False where it does not apply to them, or equals another attack there.
        left_out: When an audit that is short of time leaves it out: ``"early"``, before seeds and
            input transforms; ``"late"``, after them; None, never.
    """

    threat: ClassVar[Threat] = "inversion"
    adaptive: ClassVar[bool] = True
    improves_on: ClassVar[str | None] = None
    reads_query: ClassVar[bool] = True
    attacks_clean_scores: ClassVar[bool] = True
    left_out: ClassVar[Literal["early", "late"] | None] = "late"

    def model_selections(self, workload: Workload) -> int:  # noqa: ARG002  others need it
        """Return how many model selections the attack holds, each over all decoders."""
        return 1

    def extra_queries(self, workload: Workload) -> float:  # noqa: ARG002  others need it
        """Return what the attack asks beyond one answer per row, in single answers' time."""
        return 0

    @abstractmethod
    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Prepare the attack.

        Args:
            knowledge: What the attacker has; all of ``requires`` is there.
            train: Trains a decoder on confidences, images and held-out rows.

        Returns:
            At least one reconstructor, by name; more where the best on held-out rows counts.
        """

    @final
    def __call__(
        self, knowledge: AttackerKnowledge, train: TrainDecoder
    ) -> Mapping[str, Reconstructor]:
        """Prepare the attack if it applies.

        Args:
            knowledge: The attacker's data and access.
            train: Trains a decoder on confidences, images and held-out rows.

        Returns:
            Reconstructors by name; none where the attack does not apply.

        Raises:
            InvalidOptionError: The attack needs clean confidences, and the attacker never saw any.
        """
        available = knowledge.available
        if not self.applies(available | {"clean"}):
            return {}
        if not self.applies(available):
            raise InvalidOptionError(
                f"the {self.name} attacker needs clean confidences of the auxiliary images, but "
                "there are none. Pass them, or leave this attacker out."
            )
        return self.run(knowledge, train)
