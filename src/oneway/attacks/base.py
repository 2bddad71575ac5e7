"""Base classes of attacks, which declare their name, knowledge, needs and costs.

Audits, experiments, tables and pages read these declarations, and name no attack themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor

from oneway.contracts import (
    AttackerKnowledge,
    CopyInputs,
    Matcher,
    MembershipKnowledge,
    Reconstructor,
    TrainDecoder,
)
from oneway.errors import InvalidOptionError

Threat = Literal["inversion", "identification", "membership", "stealing"]
"""An attacker's goal: the query itself, which of several candidates the query is, whether a row was
trained on, or the model."""


@dataclass(frozen=True)
class Workload:
    """The size of an evaluation, from which an attack computes its costs.

    Attributes:
        auxiliary: Number of auxiliary rows that the attacker has.
        test: Number of test queries that the attack is graded on.
        repeats: Numbers of answers to the same query that a repeating attack tries.
        entries: Number of entries of an input, such as pixels.
    """

    auxiliary: int
    test: int
    repeats: tuple[int, ...]
    entries: int = 1


class Attack(ABC):
    """An adversary that declares itself; ``name`` is its key in ``ATTACKS``.

    Attributes:
        name: The name that commands, experiments and records use.
        threat: Goal of the attacker.
        knows: Knowledge of the attacker in words, for tables.
        requires: Fields of :class:`AttackerKnowledge` without which the attack does not apply.
        numerics: Version of the attack's results. Raise it when a change of code changes them:
            records that an older version made are then stale.
    """

    name: ClassVar[str]
    threat: ClassVar[Threat]
    knows: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()
    numerics: ClassVar[int] = 1

    def applies(self, available: Collection[str]) -> bool:
        """Say whether the attack applies to a release.

        Args:
            available: Fields of :class:`AttackerKnowledge` that attackers of the release have.
        """
        return self.requires <= set(available)

    def extra_queries(self, workload: Workload) -> float:  # noqa: ARG002  others need it
        """Return the number of answers that the attack needs beyond one answer per row.

        Other work is counted as the number of answers that would take as long.

        Args:
            workload: Size of the evaluation.
        """
        return 0


class InversionAttack(Attack):
    """An adversary that reconstructs queries from released confidences.

    A subclass writes :meth:`run`, and declares what differs from the defaults here. No attack
    grades itself.

    Attributes:
        adaptive: Whether the attacker knows that there is a defense. A defense is meant to mislead
            attackers without this knowledge, so that their failure raises no flag.
        improves_on: Name of the attack that this attack must not fall behind. If this attack is
            weaker, its training failed, and a flag is raised.
        reads_query: Whether reconstructions are of the query. False for an attack that answers
            every query of a class alike: its high error says nothing, and audits leave it out.
        by_default: Whether audits run the attack, and experiments that name no attacks. False if
            its answers are not of the query, or if it costs much and was not measured to win beside
            all attackers by default.
        attacks_clean_scores: Whether the attack also runs on clean scores, which gives the clean
            baseline. False where it does not apply to clean scores, or equals another attack there.
        trains_decoders: Whether the attack trains decoders.
        falls_back: Whether the attack that trains decoders also runs where there is no time for
            them. It then gets a decoder that answers with the mean input.
        mixes: Whether the attack mixes the reconstructions of the attacks before it. It then gets
            them as ``candidates``, and its reconstructors map candidates instead of confidences.
        reports: Whether the attack takes long without decoders, so that it tells its progress and
            keeps what it trained.
        left_out: When an audit that is short of time leaves the attack out: ``"early"``, before
            seeds and input transforms; ``"late"``, after them; None, never.
    """

    threat: ClassVar[Threat] = "inversion"
    adaptive: ClassVar[bool] = True
    improves_on: ClassVar[str | None] = None
    reads_query: ClassVar[bool] = True
    by_default: ClassVar[bool] = True
    attacks_clean_scores: ClassVar[bool] = True
    trains_decoders: ClassVar[bool] = True
    falls_back: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    reports: ClassVar[bool] = False
    left_out: ClassVar[Literal["early", "late"] | None] = "late"

    @property
    def needs_decoders(self) -> bool:
        """Whether the attack is left out where there is no time for decoders."""
        return self.trains_decoders and not self.falls_back

    def model_selections(self, workload: Workload) -> int:  # noqa: ARG002  others need it
        """Return the number of model selections, each over all decoders.

        Args:
            workload: Size of the evaluation.
        """
        return int(self.trains_decoders)

    def multiplications(self, workload: Workload) -> float:  # noqa: ARG002  others need it
        """Return the number of float64 multiplications that the attack takes without decoders.

        Args:
            workload: Size of the evaluation.
        """
        return 0

    @abstractmethod
    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Prepare the attack.

        Args:
            knowledge: The attacker's data and access, with all fields that ``requires`` names.
            train: Trains a decoder on confidences, images and held-out rows.

        Returns:
            At least one reconstructor, by name. Of several, the best on held-out rows is graded.
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
            InvalidOptionError: The attack needs clean confidences, and the attacker never saw any;
                or it returned no reconstructor.
        """
        available = knowledge.available
        if not self.applies(available | {"clean"}):
            return {}
        if not self.applies(available):
            raise InvalidOptionError(
                f"the {self.name} attacker needs clean confidences of the auxiliary images, but "
                "there are none. Pass them, or leave this attacker out."
            )
        reconstructors = self.run(knowledge, train)
        kinds = {type(each) for each in (reconstructors or {}).values()}
        if kinds != {Reconstructor}:
            raise InvalidOptionError(
                f"run of the {self.name} attacker must return at least one Reconstructor, by name, "
                "but returned none or something else. Name in `requires` what it does not run "
                "without."
            )
        return reconstructors


class IdentificationAttack(Attack):
    """An adversary that finds the query behind a released vector in a gallery of candidates.

    A subclass writes :meth:`run`. No attack grades itself: an evaluation compares the distances of
    the right candidate and of the others.
    """

    threat: ClassVar[Threat] = "identification"
    requires: ClassVar[frozenset[str]] = frozenset({"query"})

    @abstractmethod
    def run(self, knowledge: AttackerKnowledge, copied: CopyInputs) -> Matcher:
        """Prepare the attack.

        Args:
            knowledge: The attacker's data and access, with all fields that ``requires`` names.
            copied: Returns the attacker's own inputs as they would stand in the gallery: exact, or
                as noisy as its candidates.

        Returns:
            The matcher that is graded.
        """

    @final
    def __call__(self, knowledge: AttackerKnowledge, copied: CopyInputs) -> Matcher | None:
        """Prepare the attack if it applies.

        Args:
            knowledge: The attacker's data and access.
            copied: Returns the attacker's own inputs as they would stand in the gallery.

        Returns:
            The matcher; None where the attack does not apply.
        """
        return self.run(knowledge, copied) if self.applies(knowledge.available) else None


class MembershipAttack(Attack):
    """An adversary that scores candidates: the higher, the likelier a member of the training set.

    A subclass writes :meth:`run`. No attack grades itself, and none learns the true members.

    Attributes:
        requires: Of ``"references"``, ``"copies"`` and ``"candidate_scores"``, what the attack
            does not run without: see :class:`MembershipKnowledge`.
    """

    threat: ClassVar[Threat] = "membership"

    @abstractmethod
    def run(self, knowledge: MembershipKnowledge) -> Tensor:
        """Return ``(N)`` finite float64 scores of the candidates.

        Args:
            knowledge: The attacker's data and access, with all that ``requires`` names.
        """

    @final
    def __call__(self, knowledge: MembershipKnowledge) -> Tensor | None:
        """Return ``(N)`` float64 scores of the candidates; None where the attack does not apply.

        Args:
            knowledge: The attacker's data and access.
        """
        if not self.applies(knowledge.available):
            return None
        return self.run(knowledge).double().nan_to_num(0.0)
