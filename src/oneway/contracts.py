"""The architecture on one page: who passes what to whom.

A :class:`Target` answers queries. A :class:`Defense` changes a target's logits before release; a
:class:`TrainedDefense` fits a state to data first. An attack sees what was released,
and proposes reconstructions; the audit grades them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn


@runtime_checkable
class Target(Protocol):
    """What answers queries: all that clients and attackers may see of a classifier."""

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with confidences.

        Args:
            images: ``(N, C, H, W)`` floating, in ``[0, 1]``.

        Returns:
            ``(N, K)`` probabilities, one row per image, without gradient.
        """
        ...


@runtime_checkable
class ScoredTarget(Target, Protocol):
    """A target whose logits are at hand, too: the defender's own model, before release."""

    def logits(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` logits, in nats, without gradient."""
        ...


@runtime_checkable
class FrameTarget(ScoredTarget, Protocol):
    """A target of tables that is asked with a pandas DataFrame.

    Attributes:
        feature_names: The columns that the model was fitted on, in order.
    """

    @property
    def feature_names(self) -> tuple[str, ...]: ...  # noqa: D102  described in the class

    def frame_logits(self, frame: Any) -> Tensor:
        """Return ``(N, K)`` float64 logits of a frame's rows, in nats: for the defender only.

        Args:
            frame: A DataFrame with the columns ``feature_names``, in any order. Not modified.

        Raises:
            InvalidTensorError: Columns are missing or too many, or cannot be used.
            TargetFailedError: The model raised.
        """
        ...

    def frame_confidences(self, frame: Any) -> Tensor:
        """Return ``(N, K)`` probabilities: the answers of an undefended API.

        Raises:
            OnewayError: See :meth:`frame_logits`.
        """
        ...


@runtime_checkable
class Defense(Protocol):
    """A release-time defense: clean logits in, logits to release out.

    Attributes:
        requires_input: Whether the defense needs the queries, not their logits alone.
        keeps_label: It promises that the arg max stays, strictly; a caller checks.
        deterministic: The same query always has the same answer.
    """

    @property
    def requires_input(self) -> bool: ...  # noqa: D102  described in the class

    @property
    def keeps_label(self) -> bool: ...  # noqa: D102  described in the class

    @property
    def deterministic(self) -> bool: ...  # noqa: D102  described in the class

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Change logits before release.

        Args:
            logits: ``(N, K)`` clean scores, float32 or float64, finite. Not modified.
            images: ``(N, ...)`` the queries that gave them; ignored unless ``requires_input``.

        Returns:
            ``(N, K)`` logits of the same type. No row depends on any other row.
        """
        ...


@runtime_checkable
class RepeatableDefense(Defense, Protocol):
    """A random defense that draws many answers to a query at once, cheaper than by calls."""

    def draws(self, logits: Tensor, images: Tensor | None, count: int) -> Tensor:
        """Return ``(count, N, K)`` independent answers, each as from ``__call__``."""
        ...


@runtime_checkable
class LookupDefense(Defense, Protocol):
    """A defense that finds its release in a table, without the logits that it would be made of."""

    def probabilities(self, logits: Tensor, *, decimals: int | None = None) -> Tensor:
        """Return what :func:`oneway.release` makes of the answer of ``__call__``, to the bit."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What a defender trains with, before anything is released.

    Attributes:
        target: The undefended classifier: ``(N, C, H, W)`` images to ``(N, K)`` logits. None if
            only its answers are at hand.
        private_images: ``(N, C, H, W)`` images that the target was trained on, in ``[0, 1]``; None
            if they are not at hand.
        private_labels: ``(N)`` int64, their classes; or None.
        auxiliary_images: ``(M, C, H, W)`` public images, disjoint from the private images.
        auxiliary_logits: ``(M, K)`` clean scores of the auxiliary images.
        calibration_images: ``(Q, C, H, W)`` queries that the operator has kept, like those that
            clients will ask. None: auxiliary images are used instead.
        calibration_logits: ``(Q, K)`` clean scores of the calibration images, or None.
        auxiliary_labels: ``(M)`` int64 true classes of the auxiliary images; None if unknown, or of
            other classes than the target's.
        calibration_labels: ``(Q)`` int64 true classes of the calibration images, or None.
    """

    target: nn.Module | None
    private_images: Tensor | None
    private_labels: Tensor | None
    auxiliary_images: Tensor
    auxiliary_logits: Tensor
    calibration_images: Tensor | None = None
    calibration_logits: Tensor | None = None
    auxiliary_labels: Tensor | None = None
    calibration_labels: Tensor | None = None

    @property
    def calibration(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, logits and true classes to fit a release to.

        They are the operator's queries, or else the auxiliary images.
        """
        if self.calibration_images is None or self.calibration_logits is None:
            return self.auxiliary_images, self.auxiliary_logits, self.auxiliary_labels
        return self.calibration_images, self.calibration_logits, self.calibration_labels


class TrainedDefense(Protocol):
    """The class of a defense with a state that is fitted once before release.

    Its constructor takes that state as ``state``. Options of the training and of the constructor
    are set side by side; no name is in both.

    Attributes:
        state_type: Class of the state; its instances have ``architecture``, the keyword arguments
            that build another.
        training: Class of the training's options, a frozen dataclass.
        fitted_to: The data that the state is fitted to, in words.
    """

    @property
    def state_type(self) -> type[nn.Module]: ...  # noqa: D102  described in the class

    @property
    def training(self) -> type[Any]: ...  # noqa: D102  described in the class

    @property
    def fitted_to(self) -> str: ...  # noqa: D102  described in the class

    def train(
        self,
        training_data: TrainingData,
        *,
        generator: Generator,
        on_epoch: Callable[[float], None] | None = None,
        **options: Any,
    ) -> tuple[nn.Module, Mapping[str, Any]]:
        """Fit the state; return it in eval mode, and JSON values to keep beside it.

        Args:
            training_data: What the defender has to train with.
            generator: On the CPU; gives the order of the rows. Initial weights come from
                PyTorch's global stream.
            on_epoch: Called with the share of the work that is done, from 0 to 1.
            **options: Options that ``training`` declares.

        Raises:
            InvalidOptionError: An option is outside its range, or data is missing.
            InvalidTensorError: Data has the wrong type, shape or content.
        """
        ...


Compute = Callable[[], Mapping[str, Tensor]]
"""Computes named tensors."""

JUDGING_ROWS = 4096
"""Most rows that attacks predict without the row itself; more would hardly judge them better."""


@dataclass(frozen=True)
class AttackerKnowledge:
    """What an attacker has: auxiliary images, and what an API answered about them.

    Attributes:
        images: ``(N, C, H, W)`` auxiliary images in ``[0, 1]``, disjoint from private and test.
        clean: ``(N, K)`` confidences of the undefended target, or None if it never saw them.
        released: ``(N, K)`` confidences of the target as it answers today.
        held_out: ``(N)`` bool, the rows kept from training, for choosing among decoders.
        query: Asks the API ``(M, C, H, W)`` images so many times each: ``(R, M, K)`` confidences.
            None if only recorded answers are at hand.
        random: Whether the API answers the same query differently each time.
        repeats: How often the attacker may ask the same query, several counts to choose from.
        simulated_defenses: The attacker's own copies of the defense, with a surrogate of its own
            and step sizes around the defender's. Empty if there are none.
        differentiable_logits: Target and defense as a function with a gradient: ``(M, C, H, W)``
            images to ``(M, K)`` defended logits. None if the attacker does not have the model
            itself.
        candidates: Reconstructions by each reconstructor of the attacks that ran before. Empty for
            the first attack.
        train_prior: Trains a generative prior of the auxiliary images. None if there is no time
            for one.
        report: Called with the share of a long computation that is done. It may raise, where the
            time is over.
        keep: Returns what a long computation returned before, or computes and keeps it.
    """

    images: Tensor
    clean: Tensor | None
    released: Tensor
    held_out: Tensor
    query: "Query | None" = None
    random: bool = False
    repeats: Sequence[int] = (10, 100)
    simulated_defenses: Sequence[Defense] = ()
    differentiable_logits: Callable[[Tensor], Tensor] | None = None
    candidates: "Sequence[Candidate]" = ()
    train_prior: "TrainPrior | None" = None
    report: Callable[[float], None] = lambda _: None
    keep: "Callable[[Compute], Mapping[str, Tensor]]" = lambda compute: compute()

    @property
    def available(self) -> frozenset[str]:
        """Names of the fields that hold something: neither None, False nor empty."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return frozenset(
            name
            for name, value in values.items()
            if not (value is None or value is False or (isinstance(value, Sequence) and not value))
        )

    @cached_property
    def judging(self) -> Tensor:
        """``(J)`` int64 numbers of the rows that judge attacks which can leave a single row out.

        All rows, the held-out ones first; at most ``JUDGING_ROWS``, or the held-out ones.
        """
        held_out, others = (rows.nonzero().flatten() for rows in (self.held_out, ~self.held_out))
        # In the order of the rows, the first could be of few classes.
        order = torch.randperm(len(others), generator=Generator().manual_seed(len(others)))
        more = order[: max(0, JUDGING_ROWS - len(held_out))].to(others.device)
        return torch.cat([held_out, others[more]])


@dataclass(frozen=True)
class MembershipKnowledge:
    """What an attacker has who asks which candidates a model was trained on.

    Every answer is a release. Q answers belong to each input: the first to the input itself, the
    others to jittered copies of it. Reference models 2i and 2i + 1 are a pair: each candidate was
    trained on by exactly one of the two.

    Attributes:
        inputs: ``(N, ...)`` candidates, in ``[0, 1]``.
        labels: ``(N)`` int64, their true classes.
        released: ``(N, Q, K)`` float64 confidences of the attacked model.
        population: ``(M, ...)`` inputs that no model was trained on: the attacker's own.
        population_labels: ``(M)`` int64.
        population_released: ``(M, Q, K)`` confidences of the attacked model.
        reference_released: ``(S, N, Q, K)`` confidences of S reference models.
        reference_members: ``(S, N)`` bool, the candidates that each was trained on.
        reference_population: ``(S, M, Q, K)`` confidences of the reference models.
        candidate_scores: ``(1 + G, A, N)`` scores by the A attacks before a stack: first on the
            attacked model, then in G games on reference models. None before a stack runs.
        candidate_members: ``(G, N)`` bool, the members of the model of each of these games.
    """

    inputs: Tensor
    labels: Tensor
    released: Tensor
    population: Tensor
    population_labels: Tensor
    population_released: Tensor
    reference_released: Tensor
    reference_members: Tensor
    reference_population: Tensor
    candidate_scores: Tensor | None = None
    candidate_members: Tensor | None = None

    @property
    def available(self) -> frozenset[str]:
        """What attacks may require: references, copies and candidate_scores."""
        present = {
            "references": len(self.reference_members) > 0,
            "copies": self.released.shape[1] > 1,
            "candidate_scores": self.candidate_scores is not None,
        }
        return frozenset(name for name, given in present.items() if given)

    @property
    def games(self) -> range:
        """Reference models that can stand for the attacked model: one of each pair, four at most.

        There are none unless another pair is left.
        """
        pairs = len(self.reference_members) // 2
        return range(0, 2 * min(pairs, 4) if pairs > 1 else 0, 2)

    def game(self, model: int) -> "tuple[MembershipKnowledge, Tensor]":
        """Return the knowledge with a reference model as the attacked model, and its members.

        The other model of the pair is left out, too: otherwise the number of reference models that
        were trained on a candidate would say whether this one was.

        Args:
            model: Number of the reference model.
        """
        rest = [
            number for number in range(len(self.reference_members)) if number // 2 != model // 2
        ]
        attacked = replace(
            self,
            released=self.reference_released[model],
            population_released=self.reference_population[model],
            reference_released=self.reference_released[rest],
            reference_members=self.reference_members[rest],
            reference_population=self.reference_population[rest],
            candidate_scores=None,
            candidate_members=None,
        )
        return attacked, self.reference_members[model]


Query = Callable[[Tensor, int], Tensor]
"""``(M, C, H, W)`` images and how often to ask each, to ``(R, M, K)`` confidences."""

TrainDecoder = Callable[[Tensor, Tensor, Tensor], nn.Module]
"""Trains decoders on ``(confidences, images, held_out)``; returns their mixture.

An attack takes one as an argument, so that it neither trains nor stores networks itself.
"""


class Prior(Protocol):
    """A generative model of inputs, or of inputs given confidences.

    Attributes:
        limit: Largest absolute value of a latent in a search.
    """

    @property
    def limit(self) -> float: ...  # noqa: D102  described in the class

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw ``(count, L)`` latents; the generator is on the CPU."""
        ...

    def __call__(self, latents: Tensor, confidences: Tensor | None = None) -> Tensor:
        """Map ``(N, L)`` latents, and the condition's ``(N, K)``, to ``(N, C, H, W)`` inputs."""
        ...

    def plausibility(self, latents: Tensor) -> Tensor:
        """Return ``(N)`` scores of ``(N, L)`` latents: the higher, the likelier their inputs."""
        ...


TrainPrior = Callable[[Tensor, Tensor | None, Tensor], Prior]
"""Trains a prior on ``(images, confidences, held_out)``; without confidences it has no condition.
"""

CopyInputs = Callable[[Tensor], Tensor]
"""``(N, ...)`` inputs to their copies in a gallery, same shape: exact ones, or noisy ones."""


@dataclass(frozen=True)
class Reconstructor:
    """One way of reconstructing that an attack proposes.

    Attributes:
        reconstruct: Maps ``(R, M, K)`` released confidences, R answers to each query, to
            ``(M, C, H, W)`` reconstructions. For an attack that mixes: maps ``(C, M, ...)``
            reconstructions by C candidates.
        repeats: R, how many answers to each query it needs.
        out_of_fold: ``(J, C, H, W)`` reconstructions of the judging images, or of the held-out ones
            alone, each by a fit without that image. None: ``reconstruct`` was fitted without the
            held-out rows, and answers these.
    """

    reconstruct: Callable[[Tensor], Tensor]
    repeats: int = 1
    out_of_fold: Tensor | None = None


@dataclass(frozen=True)
class Candidate:
    """Reconstructions by a reconstructor, for attacks that mix them.

    Attributes:
        held_out: ``(H, C, H, W)`` reconstructions of the held-out images.
        queries: ``(N, C, H, W)`` reconstructions of the test queries.
        out_of_fold: ``(J, C, H, W)`` reconstructions of the judging images, each by a fit without
            that image; None where only held-out images were left out of a fit.
    """

    held_out: Tensor
    queries: Tensor
    out_of_fold: Tensor | None = None


@dataclass(frozen=True)
class Matcher:
    """A way of finding the candidate behind a released vector.

    Attributes:
        ask: Maps ``(M, ...)`` candidates to ``(M, K)`` answers of the API, the mean of several
            where answers are random. No row depends on any other row.
        distances: Maps ``(N, K)`` released vectors and ``(M, K)`` answers to ``(N, M)`` distances;
            the candidate at the lowest distance is the attacker's answer.
        name: Name of the distance.
        repeats: Number of answers to each candidate.
    """

    ask: Callable[[Tensor], Tensor]
    distances: Callable[[Tensor, Tensor], Tensor]
    name: str
    repeats: int = 1


class AttackFunction(Protocol):
    """An adversary as a function. It proposes reconstructors; it never grades itself."""

    def __call__(
        self, knowledge: AttackerKnowledge, train: TrainDecoder
    ) -> Mapping[str, Reconstructor]:
        """Prepare the attack.

        Args:
            knowledge: The attacker's data and access.
            train: Trains a decoder.

        Returns:
            Reconstructors by name; more than one where the best of several counts, none where the
            attack does not apply to what the attacker knows.
        """
        ...
