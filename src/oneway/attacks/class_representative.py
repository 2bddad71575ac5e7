"""Inversion by optimisation: search for an input that the target takes for each class."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Query, Reconstructor, TrainDecoder

SEED = 2015
"""Seed of the perturbations: an attack has no other source of randomness."""

ITERATIONS = 60
"""Most steps per class (alpha). The paper takes 5000, with the exact gradient."""

PATIENCE = 10
"""Number of the last costs that a step must improve on (beta). The paper takes 100."""

ENOUGH = -math.log(0.99)
"""Cost that ends the search (gamma), at a confidence of 0.99, as in the paper."""

STEP = 0.1
"""Distance that a step moves the pixel that moves most (lambda)."""

PAIRS = 24
"""Perturbations per gradient; the API is queried with both signs of each."""

RADIUS = 0.2
"""Standard deviation of a perturbation."""

GRID = 8
"""Most points a side of the grid on which perturbations are drawn; they are interpolated."""


Costs = Callable[[Tensor, Tensor], Tensor]
"""``(M, C, H, W)`` images and ``(M)`` labels to ``(M)`` costs: minus the log of the confidence."""

Gradients = Callable[[Tensor, Tensor], Tensor]
"""``(M, C, H, W)`` images and ``(M)`` labels to gradients of the costs, ``(M, C, H, W)``."""


class ClassRepresentative(InversionAttack):
    """Search for the image of each class that scores highest; answer with the image of the label.

    This image stands for a class, not for the query. Its error per query does not say how much of
    a query leaks, and is no reason to call a release safe. The attack is here because "model
    inversion" often means this attack. Ten classes cost at most 29,410 queries. The perturbations
    are drawn from a generator seeded with ``SEED``, so that the same answers give the same images.

    Source:
        Fredrikson, Jha & Ristenpart, "Model Inversion Attacks that Exploit Confidence
        Information and Basic Countermeasures", CCS 2015, Algorithm 1, from an image of zeros
        and without the denoising. The paper follows the gradient of a known network, as
        :class:`WhiteBoxClassRepresentative` does; here it is estimated from scores. The paper's
        cost is ``1 - confidence``. Its logarithm has the same direction and the same stop rule, and
        still changes where the confidence is too small to change ``1 - confidence`` in float32.
    """

    name: ClassVar = "class-representative"
    knows: ClassVar = "scores of images it makes up: one image per class, not the query"
    requires: ClassVar = frozenset({"query"})
    numerics: ClassVar = 2
    trains_decoders: ClassVar = False
    reads_query: ClassVar = False
    by_default: ClassVar = False

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Search for representatives; see :meth:`InversionAttack.run`."""
        assert knowledge.query is not None  # noqa: S101  required
        costs = partial(_costs_by_query, knowledge.query)
        generator = torch.Generator().manual_seed(SEED)
        return _answer_by_label(knowledge, costs, partial(estimate_gradients, costs, generator))


class WhiteBoxClassRepresentative(InversionAttack):
    """The search of :class:`ClassRepresentative` along the exact gradient of the model.

    The attacker has the model itself. Without a defense this is the attack as published; with a
    defense the gradient is that of model and defense, straight through what has none. Whoever has
    the model can leave the defense out, so that the result of this attack scores no release.

    Source:
        Fredrikson, Jha & Ristenpart, CCS 2015, Algorithm 1, with the differences that
        :class:`ClassRepresentative` names. Each step is scaled, since the gradient vanishes at a
        confidence near 0 or 1.
    """

    name: ClassVar = "class-representative-white-box"
    knows: ClassVar = "the model itself: one image per class along its gradient, not the query"
    requires: ClassVar = frozenset({"differentiable_logits"})
    trains_decoders: ClassVar = False
    reads_query: ClassVar = False
    by_default: ClassVar = False

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Search for representatives; see :meth:`InversionAttack.run`."""
        assert knowledge.differentiable_logits is not None  # noqa: S101  required
        costs = partial(_costs_by_model, knowledge.differentiable_logits)
        return _answer_by_label(knowledge, costs, partial(_exact_gradients, costs))


def _answer_by_label(
    knowledge: AttackerKnowledge, costs: Costs, gradients: Gradients
) -> Mapping[str, Reconstructor]:
    """Return a reconstructor that answers each query with the representative of its label."""
    representatives = find_representatives(
        costs, gradients, torch.zeros_like(knowledge.images[0]), knowledge.released.shape[-1]
    )
    return {
        "representative": Reconstructor(lambda released: representatives[released[0].argmax(-1)])
    }


def find_representatives(
    costs_of: Costs, gradients_of: Gradients, start: Tensor, classes: int
) -> Tensor:
    """Minimise the cost of each class over images in ``[0, 1]``.

    Args:
        costs_of: Returns costs of images.
        gradients_of: Returns gradients of the costs; only their direction counts.
        start: ``(C, H, W)`` image where every search begins.
        classes: Number of classes, K.

    Returns:
        ``(K, C, H, W)`` the image of the lowest cost of each class.
    """
    current = start.repeat(classes, 1, 1, 1)
    best = current.clone()
    running = torch.arange(classes, device=start.device)
    costs = costs_of(current[running], running).detach().unsqueeze(0)
    lowest = costs[0].clone()
    for _ in range(ITERATIONS):
        gradients = gradients_of(current[running], running)
        largest = gradients.abs().amax((1, 2, 3), keepdim=True)
        steps = STEP * gradients / torch.where(largest > 0, largest, 1)
        current[running] = (current[running] - steps).clamp(0, 1)
        latest = costs[-1].clone()
        latest[running] = costs_of(current[running], running).detach()
        costs = torch.cat([costs, latest.unsqueeze(0)])
        better = latest < lowest
        best[better], lowest[better] = current[better], latest[better]
        running = running[~is_over(costs[:, running])]
        if not len(running):
            break
    return best


def is_over(costs: Tensor) -> Tensor:
    """Return which searches end, as ``(K)`` bool, given their costs so far.

    A search ends at a cost of at most ``ENOUGH``. It also ends where the latest cost is no lower
    than the highest of the ``PATIENCE`` costs before it, once there are so many.

    Args:
        costs: ``(i + 1, K)`` costs of the start and of all ``i`` steps.
    """
    latest, earlier = costs[-1], costs[:-1][-PATIENCE:]
    enough = latest <= ENOUGH
    if len(earlier) < PATIENCE:
        return enough
    return enough | (latest >= earlier.amax(0))


def _costs_by_query(query: Query, images: Tensor, labels: Tensor) -> Tensor:
    """Return ``(M)`` costs, from the scores that an API answers."""
    confidences = query(images, 1)[0].gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -confidences.clamp_min(torch.finfo(confidences.dtype).tiny).log()


def _costs_by_model(
    differentiable_logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    """Return ``(M)`` costs, with a gradient in the images."""
    return functional.cross_entropy(differentiable_logits(images), labels, reduction="none")


def _exact_gradients(costs_of: Costs, images: Tensor, labels: Tensor) -> Tensor:
    """Return each image's gradient of its cost."""
    with torch.enable_grad():
        variable = images.detach().clone().requires_grad_()
        (gradients,) = torch.autograd.grad(costs_of(variable, labels).sum(), variable)
    return gradients


def estimate_gradients(
    costs_of: Costs, generator: Generator, images: Tensor, labels: Tensor
) -> Tensor:
    """Return each image's gradient of its smoothed cost, up to a factor.

    Smooth perturbations span few dimensions, so that few perturbations are needed. Clamping images
    to 0 and 1 halves an entry's share of the difference there, and leaves its sign.

    Args:
        costs_of: Returns costs of images.
        generator: Source of the perturbations, on the CPU.
        images: ``(M, C, H, W)`` in ``[0, 1]``.
        labels: ``(M)`` int64.
    """
    channels, height, across = images.shape[1:]
    coarse = torch.randn(PAIRS, channels, min(GRID, height), min(GRID, across), generator=generator)
    noise = functional.interpolate(coarse, (height, across), mode="bilinear").to(images)
    shifted = images.unsqueeze(1).unsqueeze(0) + RADIUS * torch.stack([noise, -noise]).unsqueeze(1)
    owners = labels.repeat_interleave(PAIRS).repeat(2)
    costs = costs_of(shifted.clamp(0, 1).flatten(0, 2), owners)
    above, below = costs.view(2, len(images), PAIRS)
    return torch.einsum("kp,pchw->kchw", (above - below).to(images), noise)
