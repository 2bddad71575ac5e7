"""Reference models of a membership audit: the attacker's own, trained on halves of candidates."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from oneway.auditing.deadline import NO_DEADLINE, Deadline
from oneway.contracts import Target
from oneway.data import ProgressCallback, check_disjoint
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError
from oneway.evaluation import Store
from oneway.evaluation.convergence import OutOfTimeError
from oneway.evaluation.randomness import Stream
from oneway.evaluation.records import weights_hash
from oneway.evaluation.store import fingerprint
from oneway.targets import DefendedTarget, TorchTarget
from oneway.targets.augmentation import jitter

LEAST_CANDIDATES, LEAST_POPULATION = 50, 50
"""Least rows on each side, and of the population."""

HIDDEN = 256
"""Hidden units of the attacker's own network."""

MOST_EPOCHS, BATCH, LEARNING_RATE = 200, 50, 1e-3

ASKED_AT_ONCE = 512
"""Rows that a reference model answers at once."""


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


def own_architecture(target: Target, rows: Tensor) -> nn.Module | None:
    """Return an untrained network of the attacked model's own architecture.

    Args:
        target: The attacked model.
        rows: ``(N, ...)`` inputs, at least 2.

    Returns:
        A copy whose weights are drawn anew from PyTorch's global stream. None where the model is no
        PyTorch module that answers inputs like these with ``(N, K)`` logits in their type, where it
        cannot be copied, or where a layer has no ``reset_parameters``, as in TorchScript, or one
        that leaves weights as they are, as under ``spectral_norm``.
    """
    if not isinstance(target, TorchTarget) or target.outputs != "logits":
        return None
    if target.dtype != rows.dtype:
        return None
    try:
        network = copy.deepcopy(target.module)
    except (RuntimeError, TypeError):  # weights within a graph, or a lock: some have no copy
        return None
    layers = [each for each in network.modules() if list(each.parameters(recurse=False))]
    resets = [getattr(each, "reset_parameters", None) for each in layers]
    if not layers or not all(map(callable, resets)):
        return None
    with torch.no_grad():
        answer = network(rows[:2])
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        return None
    weights = list(network.parameters())
    with torch.no_grad():
        for each in weights:  # what no layer draws anew is then seen
            each.fill_(torch.nan)
    for reset in resets:
        if callable(reset):
            reset()
    if any(bool(each.isnan().any()) for each in weights):
        return None
    return network.requires_grad_(True)


def train_reference(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    *,
    loss: float,
    generator: Generator,
    network: nn.Module | None = None,
    deadline: Deadline = NO_DEADLINE,
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
        network: An untrained network; None: one hidden layer.
        deadline: When it must be trained.

    Returns:
        The network, in eval mode.

    Raises:
        OutOfTimeError: The deadline came first.
    """
    if network is None:
        network = ReferenceNetwork(inputs[0].numel(), classes).to(inputs.device)
    fused = inputs.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=fused)
    for _ in range(MOST_EPOCHS):
        network.train()
        for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
            if len(rows) < 2:  # normalization over a batch needs two rows
                continue
            deadline.check()
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        network.eval()
        if reference_loss(network, inputs, labels) <= loss:
            break
    return network.eval()


@torch.no_grad()
def reference_loss(network: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the mean cross entropy of ``(N, K)`` logits.

    Args:
        network: Maps ``(n, ...)`` inputs to ``(n, K)`` logits; in eval mode.
        inputs: ``(N, ...)``.
        labels: ``(N)`` int64.
    """
    logits = torch.cat([network(part) for part in inputs.split(ASKED_AT_ONCE)])
    return float(functional.cross_entropy(logits, labels))


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
        target: The attacked model, whose architecture they have where it can be trained anew.
        rows: Candidates and population.
        models: S, even.
        seed: Seed of halves and trainings.
        store: Store of trained networks: an interrupted audit trains only those that it lacks.
        train: The attacker's own training; None: :func:`train_reference`, which is stored.
    """

    target: Target
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
        self,
        queries: Queries,
        classes: int,
        loss: float,
        report: ProgressCallback,
        deadline: Deadline = NO_DEADLINE,
    ) -> Sequence[Answers]:
        """Train the models in pairs, and return their clean scores.

        Args:
            queries: Queries about all rows.
            classes: K.
            loss: Mean cross entropy of the attacked model on its members.
            report: Progress callback.
            deadline: No pair is begun that would likely be late, and one that is late is left out.
        """
        found: list[Answers] = []
        longest = 0.0
        for first in range(0, self.models, 2):
            begin = time.perf_counter()
            if longest > deadline.left():
                break
            report("train reference models", first / self.models)
            try:
                networks = [
                    self._network(number, classes, loss, deadline) for number in (first, first + 1)
                ]
            except OutOfTimeError:
                break
            found += [queries.ask(TorchTarget(network)) for network in networks]
            longest = max(longest, time.perf_counter() - begin)
        report("train reference models", 1.0)
        return found

    def _network(self, number: int, classes: int, loss: float, deadline: Deadline) -> nn.Module:
        inside = self.members[number]
        inputs, labels = self.rows.inputs[inside], self.rows.labels[inside]
        stream = Stream(self.seed, f"reference model {number}")
        if self.train is not None:
            train = self.train
            return stream.call(lambda: train(inputs, labels, classes), inputs.device)

        def untrained() -> nn.Module:
            network = own_architecture(self.target, inputs)
            if network is None:
                network = ReferenceNetwork(inputs[0].numel(), classes)
            return network.to(inputs.device)

        network = stream.call(untrained, inputs.device)
        spec = {
            "seed": stream.seed,
            "classes": classes,
            "loss": loss,
            "network": [str(network), weights_hash(network)],
            "training": [MOST_EPOCHS, BATCH, LEARNING_RATE],
            "data": fingerprint(inputs, labels),
        }

        def fresh() -> dict[str, Tensor]:
            trained = train_reference(
                inputs,
                labels,
                classes,
                loss=loss,
                generator=stream.generator(),
                network=network,
                deadline=deadline,
            )
            # Copies, since a file holds no tensors that share memory, as tied weights do.
            return {name: each.clone() for name, each in trained.state_dict().items()}

        state = self.store.tensors(
            "reference-model", spec, lambda: stream.call(fresh, inputs.device)
        )
        network.load_state_dict(state)
        return network.eval()
