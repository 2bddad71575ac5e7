"""Reference models of a membership audit: the attacker's own, trained on halves of candidates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.contracts import Target
from oneway.data import ProgressCallback, check_disjoint
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError
from oneway.evaluation import Store
from oneway.evaluation.randomness import Stream
from oneway.evaluation.store import fingerprint
from oneway.targets import DefendedTarget, TorchTarget
from oneway.targets.augmentation import jitter

LEAST_CANDIDATES, LEAST_POPULATION = 50, 50
"""Least rows on each side, and of the population."""

HIDDEN = 256
"""Hidden units of the attacker's own network."""

MOST_EPOCHS, BATCH, LEARNING_RATE = 200, 50, 1e-3


@dataclass(frozen=True)
class Candidates:
    """Rows that may have been trained on, and rows that were not.

    Attributes:
        inputs: ``(N, ...)`` in ``[0, 1]``: members first, then non-members.
        labels: ``(N)`` int64, their true classes.
        members: ``(N)`` bool.
        population: ``(M, ...)`` the attacker's own rows, which no model was trained on.
        population_labels: ``(M)`` int64.
    """

    inputs: Tensor
    labels: Tensor
    members: Tensor
    population: Tensor
    population_labels: Tensor

    @classmethod
    def of(
        cls,
        members: tuple[Tensor, Tensor],
        non_members: tuple[Tensor, Tensor],
        population: tuple[Tensor, Tensor],
    ) -> "Candidates":
        """Put rows together, each given with its labels, after checks.

        Raises:
            InvalidOptionError: There are too few rows.
            OverlappingSplitsError: Two of the three share rows.
        """
        given = {"members": members, "non-members": non_members, "attacker's data": population}
        for name, (rows, _) in given.items():
            least = LEAST_POPULATION if rows is population[0] else LEAST_CANDIDATES
            if len(rows) < least:
                raise InvalidOptionError(
                    f"a membership audit needs at least {least} rows of {name}, but got "
                    f"{len(rows)}. Pass more."
                )
        check_disjoint({name: rows for name, (rows, _) in given.items()})
        return cls(
            torch.cat([members[0], non_members[0]]),
            torch.cat([members[1], non_members[1]]),
            torch.arange(len(members[0]) + len(non_members[0])) < len(members[0]),
            *population,
        )


class ReferenceNetwork(nn.Module):
    """The attacker's own network: one hidden layer."""

    def __init__(self, inputs: int, classes: int, hidden: int = HIDDEN) -> None:
        """Build an untrained network for inputs of so many entries."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``(N, K)`` logits of ``(N, ...)`` inputs."""
        logits: Tensor = self.layers(inputs)
        return logits


TrainReference = Callable[[Tensor, Tensor, int], nn.Module]
"""Trains a reference model on ``(N, ...)`` inputs and ``(N)`` labels, with K classes."""


def train_reference(
    inputs: Tensor, labels: Tensor, classes: int, *, loss: float, generator: Generator
) -> nn.Module:
    """Train the attacker's own network until it fits as closely as the attacked model.

    Args:
        inputs: ``(N, ...)`` in ``[0, 1]``.
        labels: ``(N)`` int64.
        classes: K.
        loss: Mean cross entropy of the attacked model on its members: training ends below it, or
            after 200 epochs.
        generator: On the CPU; gives the order of the rows. Initial weights come from PyTorch's
            global stream.

    Returns:
        The network, in eval mode.
    """
    network = ReferenceNetwork(inputs[0].numel(), classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(MOST_EPOCHS):
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            if float(functional.cross_entropy(network(inputs), labels)) <= loss:
                break
    return network.eval()


def halves(candidates: int, models: int, generator: Generator) -> Tensor:
    """Return ``(S, N)`` bool: each candidate is in exactly one half of every pair of models.

    Args:
        candidates: N.
        models: S, even.
        generator: On the CPU.
    """
    orders = [torch.randperm(candidates, generator=generator) for _ in range(models // 2)]
    firsts = torch.zeros(models // 2, candidates, dtype=torch.bool)
    for half, order in zip(firsts, orders, strict=True):
        half[order[: candidates // 2]] = True
    return torch.stack([firsts, ~firsts], 1).flatten(0, 1)


@dataclass(frozen=True)
class Answers:
    """Clean scores of one model.

    Attributes:
        module: The network itself; None if only answers are at hand.
        candidates: ``(N, Q, K)`` logits.
        population: ``(M, Q, K)`` logits.
    """

    module: nn.Module | None
    candidates: Tensor
    population: Tensor


@dataclass(frozen=True)
class Queries:
    """Q queries about each row: the row itself first, then jittered copies, the same for all.

    Attributes:
        candidates: ``(N, Q, ...)``.
        population: ``(M, Q, ...)``.
    """

    candidates: Tensor
    population: Tensor

    @classmethod
    def of(cls, rows: Candidates, copies: int) -> "Queries":
        """Draw so many jittered copies of each row, always the same."""
        generator = torch.Generator().manual_seed(0)

        def copied(inputs: Tensor) -> Tensor:
            return torch.stack([inputs, *(jitter(inputs, generator) for _ in range(copies))], 1)

        return cls(copied(rows.inputs), copied(rows.population))

    def ask(self, target: Target) -> Answers:
        """Return a target's clean scores of all queries."""
        bare = DefendedTarget(target, Identity())

        def asked(inputs: Tensor) -> Tensor:
            return bare.trace(inputs.flatten(0, 1)).clean_logits.view(*inputs.shape[:2], -1)

        module = target.module if isinstance(target, TorchTarget) else None
        return Answers(module, asked(self.candidates), asked(self.population))


@dataclass(frozen=True)
class References:
    """Trains reference models, and keeps each in the store.

    Attributes:
        rows: Candidates and population.
        models: S, even.
        seed: Seed of halves and trainings.
        store: Store of trained networks.
        train: The attacker's own training; None: :func:`train_reference`, which is stored.
    """

    rows: Candidates
    models: int
    seed: int
    store: Store
    train: TrainReference | None = None

    @property
    def members(self) -> Tensor:
        """``(S, N)`` bool, the candidates that each model is trained on."""
        generator = Stream(self.seed, "halves of candidates").generator()
        return halves(len(self.rows.inputs), self.models, generator)

    def answers(
        self, queries: Queries, classes: int, loss: float, report: ProgressCallback
    ) -> Sequence[Answers]:
        """Train all models, and return their clean scores.

        Args:
            queries: Queries about all rows.
            classes: K.
            loss: Mean cross entropy of the attacked model on its members.
            report: Progress callback.
        """
        found = []
        for number, inside in enumerate(self.members):
            report("train reference models", number / self.models)
            inputs, labels = self.rows.inputs[inside], self.rows.labels[inside]
            network = self._network(number, inputs, labels, classes, loss)
            found.append(queries.ask(TorchTarget(network)))
        report("train reference models", 1.0)
        return found

    def _network(
        self, number: int, inputs: Tensor, labels: Tensor, classes: int, loss: float
    ) -> nn.Module:
        stream = Stream(self.seed, f"reference model {number}")
        if self.train is not None:
            train = self.train
            return stream.call(lambda: train(inputs, labels, classes), inputs.device)
        spec = {
            "seed": stream.seed,
            "classes": classes,
            "loss": loss,
            "network": [HIDDEN, MOST_EPOCHS, BATCH, LEARNING_RATE],
            "data": fingerprint(inputs, labels),
        }

        def fresh() -> dict[str, Tensor]:
            network = train_reference(
                inputs, labels, classes, loss=loss, generator=stream.generator()
            )
            return dict(network.state_dict())

        state = self.store.tensors(
            "reference-model", spec, lambda: stream.call(fresh, inputs.device)
        )
        network = ReferenceNetwork(inputs[0].numel(), classes)
        network.load_state_dict(state)
        return network.eval()
