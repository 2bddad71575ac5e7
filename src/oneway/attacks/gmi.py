"""Generative model inversion: search a prior's latents for an image of each class."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Prior, Query, Reconstructor, TrainDecoder

SEED = 2020
"""Seed of latents and mutations: an attack has no other source of randomness."""

STARTS = 5
"""Searches per class, of which the best by its own measure counts, as published."""

LIKELIHOOD = 100.0
"""Weight of the class's log confidence beside the prior's plausibility, as published."""

POOL = 1024
"""Draws that all classes choose the starts of black-box searches from."""

BUDGET = 960
"""Queries of a black-box search, beside those of the pool."""

STEPS, RATE, MOMENTUM = 1500, 0.02, 0.9
"""Steps of a gradient search, their size and Nesterov momentum, as published."""

OFFSPRING = 16
"""Mutants of a generation, of which half are parents of the next."""

SIGMA = 0.5
"""Standard deviation of the first mutations."""

SPHERE = 32
"""Points around a latent whose labels say where the class ends, as published."""

RADIUS, GROWTH = 0.5, 1.3
"""Radius of the first sphere, and its growth once every point on it has the label."""


class GMI(InversionAttack):
    """Search the latents of a generative prior for the image that scores highest in each class.

    Such an image stands for a class, not for the query. The error per query of the images says
    nothing about a release. What counts is how many of the images an independent judge takes for
    the class, beside a search that reads labels alone: no release that keeps the label can stop
    that one.

    Three searches are reconstructors. ``"scores"`` is a black-box evolution strategy on released
    confidences. ``"labels"`` reads labels alone. ``"gradient"`` is GMI's own search; it runs where
    model and defense have a gradient, and then sees the release. GMI as published attacks
    the undefended model: pass its logits to ``search_by_gradient``. No release changes that
    attack, and its result is no score of a release.

    Source:
        Zhang, Jia, Pei, Wang, Li & Song, "The Secret Revealer", CVPR 2020. Labels alone: Kahla,
        Chen, Just & Jia, "Label-Only Model Inversion Attacks via Boundary Repulsion", CVPR 2022.
    """

    name: ClassVar = "gmi"
    knows: ClassVar = "scores of images that a generative prior makes: one image per class"
    requires: ClassVar = frozenset({"query", "train_prior"})
    trains_decoders: ClassVar = False
    reads_query: ClassVar = False
    by_default: ClassVar = False

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Train a prior and search for every class; see :meth:`InversionAttack.run`."""
        assert knowledge.query is not None  # noqa: S101  required
        assert knowledge.train_prior is not None  # noqa: S101  required
        prior = knowledge.train_prior(knowledge.images, None, knowledge.held_out)
        classes = knowledge.released.shape[-1]
        generator = torch.Generator().manual_seed(SEED)
        found = {
            name: search(prior, knowledge.query, classes, generator, budget=BUDGET)
            for name, search in (("scores", search_by_scores), ("labels", search_by_labels))
        }
        if knowledge.differentiable_logits is not None:
            logits_of = knowledge.differentiable_logits
            found["gradient"] = search_by_gradient(
                prior, logits_of, classes, generator, steps=STEPS, rate=RATE
            )
        return {name: _reconstructor(prior, each.best) for name, each in found.items()}


@torch.no_grad()
def _reconstructor(prior: Prior, latents: Tensor) -> Reconstructor:
    images = prior(latents)
    return Reconstructor(lambda released: images[released[0].argmax(-1)])


@dataclass(frozen=True)
class Found:
    """Ends of the searches for each class.

    Attributes:
        latents: ``(K, S, L)`` latents.
        values: ``(K, S)`` measures by which the search for a class chooses among its S ends.
    """

    latents: Tensor
    values: Tensor

    @property
    def best(self) -> Tensor:
        """The ``(K, L)`` latents of the highest value of each class."""
        return self.latents[torch.arange(len(self.values)), self.values.argmax(-1)]


def search_by_gradient(
    prior: Prior,
    logits_of: Callable[[Tensor], Tensor],
    classes: int,
    generator: Generator,
    *,
    steps: int,
    rate: float,
) -> Found:
    """Follow GMI's gradient: plausibility plus 100 times the log confidence of the class.

    Args:
        prior: The prior.
        logits_of: Maps ``(N, C, H, W)`` images to ``(N, K)`` logits, with a gradient.
        classes: Number of classes, K.
        generator: Source of the first latents, on the CPU.
        steps: Steps of Nesterov's gradient ascent.
        rate: Size of the steps. GMI takes .01 on MNIST and .02 on faces.

    Returns:
        Latents of the last step; their value is the log confidence of the class.
    """
    owners = torch.arange(classes).repeat_interleave(STARTS)
    latents = prior.draw(len(owners), generator).clamp(-prior.limit, prior.limit)
    latents = latents.detach().requires_grad_()
    owners = owners.to(latents.device)
    optimizer = torch.optim.SGD([latents], lr=rate, momentum=MOMENTUM, nesterov=True)
    for _ in range(steps):
        with torch.enable_grad():
            error = functional.cross_entropy(logits_of(prior(latents)), owners, reduction="sum")
            loss = LIKELIHOOD * error - prior.plausibility(latents).sum()
            # The gradient in the latents alone: networks get none.
            (latents.grad,) = torch.autograd.grad(loss, latents)
        optimizer.step()
        with torch.no_grad():
            latents.clamp_(-prior.limit, prior.limit)
    with torch.no_grad():
        logs = logits_of(prior(latents)).log_softmax(-1)
    values = logs.gather(-1, owners.unsqueeze(-1))
    return Found(latents.detach().view(classes, STARTS, -1), values.view(classes, STARTS))


@torch.no_grad()
def search_by_scores(
    prior: Prior, query: Query, classes: int, generator: Generator, *, budget: int
) -> Found:
    """Maximise GMI's objective on released confidences, without gradients.

    An evolution strategy with weighted recombination and cumulative step-size adaptation. All
    searches run side by side, so that a generation is a single call of the service.

    Args:
        prior: The prior.
        query: Queries the service.
        classes: Number of classes, K.
        generator: Source of first latents and mutations, on the CPU.
        budget: Most queries of each of the ``5 K`` searches.

    Returns:
        The best mutant of each search; its value is the objective.

    Source:
        Hansen & Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies",
        Evolutionary Computation 9(2), 2001, without the covariance matrix.
    """
    owners = torch.arange(classes).repeat_interleave(STARTS)
    pool, confidences = _pool(prior, query, generator)
    objective = _objective(prior, pool, confidences)
    values, chosen = objective.topk(STARTS, dim=0)
    mean, highest = pool[chosen.T.flatten()], values.T.flatten()
    owners, best = owners.to(mean.device), mean.clone()
    size, half = mean.shape[-1], OFFSPRING // 2
    ranks = torch.arange(1, half + 1, device=mean.device)
    weights = math.log(half + 0.5) - ranks.log()
    weights = weights / weights.sum()
    effective = float(1 / weights.square().sum())
    decay = (effective + 2) / (size + effective + 5)
    damping = 1 + decay + 2 * max(0.0, math.sqrt((effective - 1) / (size + 1)) - 1)
    expected = math.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))
    sigma, path = mean.new_full((len(mean), 1, 1), SIGMA), torch.zeros_like(mean)
    for _ in range(budget // OFFSPRING):
        noise = torch.randn(len(mean), OFFSPRING, size, generator=generator).to(mean)
        mutants = (mean.unsqueeze(1) + sigma * noise).clamp(-prior.limit, prior.limit)
        flat = mutants.flatten(0, 1)
        values = _objective(prior, flat, query(prior(flat), 1)[0])
        values = values.gather(-1, owners.repeat_interleave(OFFSPRING).unsqueeze(-1))
        values, order = values.view(-1, OFFSPRING).sort(-1, descending=True)
        kept = mutants.gather(1, order[:, :half, None].expand(-1, -1, size))
        better = values[:, 0] > highest
        best[better], highest[better] = kept[better, 0], values[better, 0]
        step = torch.einsum("w,pwl->pl", weights, kept - mean.unsqueeze(1))
        mean = mean + step
        path = (1 - decay) * path + math.sqrt(decay * (2 - decay) * effective) * step / sigma[:, 0]
        sigma *= (decay / damping * (path.norm(dim=-1) / expected - 1)).exp()[:, None, None]
    return Found(best.view(classes, STARTS, -1), highest.view(classes, STARTS))


@torch.no_grad()
def search_by_labels(
    prior: Prior, query: Query, classes: int, generator: Generator, *, budget: int
) -> Found:
    """Move latents away from the boundary of the class, by labels alone.

    Around each latent lies a sphere. Points on it with another label push the latent away. Once
    there are none, the sphere grows. The search reads the arg max of each answer and nothing else.

    Args:
        prior: The prior.
        query: Queries the service.
        classes: Number of classes, K.
        generator: Source of first latents and directions, on the CPU.
        budget: Most queries of each of the ``5 K`` searches.

    Returns:
        The centers of the largest spheres within the class; their value is the radius, 0 where
        there was none. A class that no draw has starts anywhere.

    Source:
        Kahla, Chen, Just & Jia, CVPR 2022. The first radius is ours, since latents are clamped.
    """
    pool, confidences = _pool(prior, query, generator)
    labels = confidences.argmax(-1)
    # Draws of the class first, in the order of the pool.
    own = labels.unsqueeze(0) == torch.arange(classes, device=labels.device).unsqueeze(1)
    chosen = own.int().sort(dim=-1, descending=True, stable=True).indices[:, :STARTS]
    latents = pool[chosen.flatten()]
    owners = torch.arange(classes, device=labels.device).repeat_interleave(STARTS)
    best, reached = latents.clone(), latents.new_zeros(len(latents))
    radius = latents.new_full((len(latents),), RADIUS)
    for _ in range(budget // (SPHERE + 1)):
        directions = torch.randn(len(latents), SPHERE, latents.shape[-1], generator=generator)
        directions = functional.normalize(directions.to(latents), dim=-1)
        points = latents.unsqueeze(1) + radius[:, None, None] * directions
        outside = _labels(prior, query, points.flatten(0, 1)).view(-1, SPHERE) != owners[:, None]
        away = -(outside.unsqueeze(-1) * directions).mean(1)
        free = ~outside.any(-1)
        grown = free & (radius > reached)
        best[grown], reached[grown] = latents[grown], radius[grown]
        radius = torch.where(free, radius * GROWTH, radius)
        moved = latents + (radius / 3).clamp_max(3).unsqueeze(-1) * away
        moved = moved.clamp(-prior.limit, prior.limit)
        inside = _labels(prior, query, moved) == owners
        latents = torch.where(inside.unsqueeze(-1), moved, latents)
    return Found(best.view(classes, STARTS, -1), reached.view(classes, STARTS))


def _pool(prior: Prior, query: Query, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return ``(P, L)`` latents to start from, and the ``(P, K)`` confidences of their images."""
    latents = prior.draw(POOL, generator).clamp(-prior.limit, prior.limit)
    return latents, query(prior(latents), 1)[0]


def _objective(prior: Prior, latents: Tensor, confidences: Tensor) -> Tensor:
    """Return GMI's ``(N, K)`` objective of ``(N, L)`` latents in each class."""
    smallest = torch.finfo(confidences.dtype).tiny
    logs = confidences.clamp_min(smallest).log().to(latents)
    return LIKELIHOOD * logs + prior.plausibility(latents).unsqueeze(-1)


def _labels(prior: Prior, query: Query, latents: Tensor) -> Tensor:
    return query(prior(latents.clamp(-prior.limit, prior.limit)), 1)[0].argmax(-1)
