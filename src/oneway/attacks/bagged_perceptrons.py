"""Bagged multilayer perceptrons from released scores to principal components of the inputs."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.inversion.input_transforms import INPUT_TRANSFORMS

FOLDS = 5
"""Networks; each leaves another fifth of the rows out, and the mean of all answers a query."""

TRANSFORM = "within-label"
"""Key of ``INPUT_TRANSFORMS``: how the networks read scores."""

UNITS = 384
"""Units of each of the two hidden layers."""

COMPONENTS = 60
"""Principal components of the inputs that the networks predict; the rest keeps its mean."""

MEASURED = 2000
"""Most rows of which principal components are taken."""

STEPS, EPOCHS, BATCH = 5000, 160, 64
"""Most steps and epochs of a training, and rows of a step: more where there would be more steps in
forty epochs."""

LEAST_EPOCHS = 40
"""Epochs of a training on many rows."""

CHECKPOINTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
"""Shares of a training after which a network is judged by the rows that it left out."""

PATIENCE = 3
"""Checkpoints in a row that are worse than an earlier one, after which a training ends."""

RATE, DECAY, DROPOUT, NOISE, AVERAGING = 2e-3, 0.02, 0.35, 0.05, 0.98
"""First step size of AdamW, its weight decay, the share of units that are dropped, the deviation of
the noise on features (whose deviation is 1), and the decay per step of the averaged weights."""

TINY = 1e-20
"""Least variance of a direction, which inputs without any variance get."""

ROWS = 4096
"""Queries that are answered at once."""


class BaggedPerceptrons(InversionAttack):
    """Train multilayer perceptrons on different folds of the rows, and answer with their mean.

    A single decoder overfits the attacker's few thousand rows, and errs in a way of its own. The
    mean of five networks that saw different rows errs less. They predict principal components of
    the inputs, so that they cost as little for large images as for small ones. The rows that each
    network left out choose the number of epochs, and end trainings that only learn by heart.

    Source:
        Breiman, "Bagging Predictors", Machine Learning 24, 1996.
    """

    name: ClassVar = "bagged-perceptrons"
    knows: ClassVar = "released scores of its own images, read by the mean of several perceptrons"
    trains_decoders: ClassVar = False
    reports: ClassVar = True
    left_out: ClassVar[Literal["early", "late"] | None] = "late"

    def multiplications(self, workload: Workload) -> float:
        """Return those of all steps of all networks, forwards and backwards."""
        kept = workload.auxiliary * (FOLDS - 1) // FOLDS
        shown = kept * _schedule(kept)[1]
        weights = UNITS * (UNITS + min(workload.entries, COMPONENTS))
        # A small batch takes about twice as long for each number as the product of two matrices.
        return FOLDS * weights * (2 * 3 * shown + workload.auxiliary + workload.test)

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Train all networks; see :meth:`InversionAttack.run`."""
        kept = knowledge.keep(partial(_fit, knowledge))
        released, shape = knowledge.released, knowledge.images.shape[1:]
        basis = _Basis(kept["mean"], kept["directions"], float(kept["scale"]))
        networks = [Perceptron(released.shape[-1], len(basis.directions)) for _ in range(FOLDS)]
        for fold, network in enumerate(networks):
            network.load_state_dict(
                {
                    name.removeprefix(f"{fold}."): values
                    for name, values in kept.items()
                    if name.startswith(f"{fold}.")
                }
            )
            network.to(released.device).eval().requires_grad_(requires_grad=False)
        folds = _folds(len(released)).to(released.device)
        made = released.new_zeros(len(released), len(basis.directions))
        for fold, network in enumerate(networks):
            made[folds == fold] = network(released[folds == fold])
        own = basis.restore(made[knowledge.judging]).view(-1, *shape)
        answer = partial(_answer, networks, basis, shape)
        return {"mean": Reconstructor(answer, out_of_fold=own)}


def _fit(knowledge: AttackerKnowledge) -> dict[str, Tensor]:
    """Train all networks; return their tensors and those of the basis, by name."""
    released, inputs = knowledge.released, knowledge.images.flatten(1)
    basis = _Basis.of(inputs)
    aims, folds = basis.project(inputs), _folds(len(released)).to(released.device)
    lives = [
        _train(released, aims, folds == fold, fold, partial(_report, knowledge, fold))
        for fold in range(FOLDS)
    ]
    # A training that ended early has nothing better to offer than its last network.
    errors = [
        sum(life[min(place, len(life) - 1)].error for life in lives)
        for place in range(len(CHECKPOINTS))
    ]
    best = errors.index(min(errors))
    kept = {
        "mean": basis.mean,
        "directions": basis.directions.contiguous(),
        "scale": torch.tensor(basis.scale, dtype=torch.float64),
    }
    for fold, life in enumerate(lives):
        for name, values in life[min(best, len(life) - 1)].network.state_dict().items():
            kept[f"{fold}.{name}"] = values
    return kept


def _answer(
    networks: Sequence[nn.Module], basis: "_Basis", shape: Sequence[int], released: Tensor
) -> Tensor:
    """Return ``(M, ...)`` reconstructions from ``(1, M, K)`` released confidences."""
    parts = [
        basis.restore(torch.stack([network(rows) for network in networks]).mean(0))
        for rows in released[0].split(ROWS)
    ]
    return torch.cat(parts).view(-1, *shape)


class Perceptron(nn.Module):
    """A multilayer perceptron from confidences to components of the inputs."""

    def __init__(self, classes: int, components: int) -> None:
        """Build an untrained network.

        Args:
            classes: Number of classes, K.
            components: Number of components, C.
        """
        super().__init__()
        self.transform = INPUT_TRANSFORMS[TRANSFORM](classes)
        last = nn.Linear(UNITS, components)
        # Untrained, it answers with the mean input: where scores tell nothing, that is the best.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*_hidden(self.transform.features), *_hidden(UNITS), last)

    def forward(self, confidences: Tensor) -> Tensor:
        """Map ``(N, K)`` confidences to ``(N, C)`` components."""
        components: Tensor = self.layers(self.transform(confidences))
        return components


@dataclass(frozen=True)
class _Basis:
    """Principal components of the inputs.

    Attributes:
        mean: ``(D)`` mean input.
        directions: ``(C, D)`` orthonormal directions.
        scale: Deviation of the inputs in the first direction.
    """

    mean: Tensor
    directions: Tensor
    scale: float

    @classmethod
    def of(cls, inputs: Tensor) -> "_Basis":
        """Take the components of ``(N, D)`` inputs."""
        mean = inputs.mean(0)
        chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(len(inputs)))
        few = (inputs[chosen[:MEASURED].to(inputs.device)] - mean).double()
        # Of the smaller of the two matrices of products.
        wide = few.shape[1] > len(few)
        values, vectors = torch.linalg.eigh(few @ few.mT if wide else few.mT @ few)
        count = min(COMPONENTS, len(values))
        values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
        # Directions without variance are no directions; where all inputs are equal, one is kept.
        used = values >= 1e-9 * values[0]
        values, vectors = values[used].clamp_min(TINY), vectors[:, used]
        found = (vectors.mT @ few / values.sqrt().unsqueeze(-1)) if wide else vectors.mT
        scale = math.sqrt(float(values[0]) / len(few))
        return cls(mean, found.to(inputs.dtype), scale)

    def project(self, inputs: Tensor) -> Tensor:
        """Return the ``(N, C)`` components of ``(N, D)`` inputs."""
        return (inputs - self.mean) @ self.directions.mT / self.scale

    def restore(self, components: Tensor) -> Tensor:
        """Return the ``(N, D)`` inputs in ``[0, 1]`` of ``(N, C)`` components."""
        return (self.mean + self.scale * components @ self.directions).clamp(0, 1)


def _folds(count: int) -> Tensor:
    """Return ``(count)`` int64: the fold of each row, at random, the same each time."""
    # In the order of the rows, a fold could consist of the same classes.
    return torch.randperm(count, generator=torch.Generator().manual_seed(count)) % FOLDS


def _schedule(rows: int) -> tuple[int, int]:
    """Return the rows of a step and the epochs of a training."""
    batch = max(BATCH, -(-LEAST_EPOCHS * rows // STEPS))
    epochs = min(EPOCHS, STEPS * batch // max(1, rows))
    return batch, max(1, epochs)


@dataclass(frozen=True)
class _Checkpoint:
    """A network during its training.

    Attributes:
        network: Network from confidences to components, with averaged weights.
        error: Sum of its squared errors on the rows that its training left out.
    """

    network: nn.Module
    error: float


def _report(knowledge: AttackerKnowledge, fold: int, share: float) -> None:
    """Report that a share of the training of a fold is done."""
    knowledge.report((fold + share) / FOLDS)


@torch.enable_grad()
def _train(
    released: Tensor,
    aims: Tensor,
    outside: Tensor,
    seed: int,
    report: Callable[[float], None],
) -> list[_Checkpoint]:
    """Train a network; return it at each checkpoint, until those only become worse.

    Args:
        released: ``(N, K)`` released confidences.
        aims: ``(N, C)`` components of their inputs.
        outside: ``(N)`` bool, the rows that judge the network and are not trained on.
        seed: Seed of weights, order, noise and dropped units.
        report: Called with the share that is done.
    """
    device = released.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        perceptron = Perceptron(released.shape[-1], aims.shape[1]).to(device)
        perceptron.transform.fit(released[~outside])
        features, targets = perceptron.transform(released[~outside]), aims[~outside]
        network = perceptron.layers
        averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
        batch, epochs = _schedule(len(features))
        steps = epochs * (len(features) // batch or 1)
        slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        marks, kept = [math.ceil(share * steps) for share in CHECKPOINTS], list[_Checkpoint]()
        for step, rows in enumerate(_batches(len(features), batch, steps, device), 1):
            if step % 50 == 1:
                report(step / steps)
            shown = features[rows]
            made = network(shown + NOISE * torch.randn_like(shown))
            optimizer.zero_grad()
            nn.functional.mse_loss(made, targets[rows]).backward()
            optimizer.step()
            slower.step()
            averaged.update_parameters(network)
            for _ in range(marks.count(step)):
                life = copy.deepcopy(perceptron).eval().requires_grad_(requires_grad=False)
                life.layers.load_state_dict(averaged.module.state_dict())
                missed = life(released[outside]) - aims[outside]
                kept.append(_Checkpoint(life, float(missed.square().sum())))
            errors = [each.error for each in kept]
            if len(errors) > PATIENCE and min(errors[-PATIENCE:]) > min(errors):
                break
    return kept


def _hidden(inputs: int) -> list[nn.Module]:
    """Return the modules of a hidden layer."""
    return [nn.Linear(inputs, UNITS), nn.LayerNorm(UNITS), nn.GELU(), nn.Dropout(DROPOUT)]


def _batches(count: int, batch: int, steps: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the row numbers of each step; each epoch has an order of its own."""
    made = 0
    while made < steps:
        order = torch.randperm(count).to(device)
        for rows in order.split(batch)[: max(1, count // batch)]:
            if made < steps:
                made += 1
                yield rows
