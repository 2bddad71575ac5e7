"""Inversion by optimisation: search for an input that the target takes for each class."""

from collections.abc import Mapping
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

ENOUGH = 0.01
"""Cost that ends the search (gamma), at a confidence of 0.99, as in the paper."""

STEP = 0.1
"""Distance that a step moves the pixel that moves most (lambda)."""

PAIRS = 24
"""Perturbations per gradient; the API is queried with both signs of each."""

RADIUS = 0.2
"""Standard deviation of a perturbation."""

GRID = 8
"""Most points a side of the grid on which perturbations are drawn; they are interpolated."""


class ClassRepresentative(InversionAttack):
    """Search for the image of each class that scores highest; answer with the image of the label.

    This image stands for a class, not for the query. Its error per query does not say how much of
    a query leaks, and is no reason to call a release safe. The attack is here because "model
    inversion" often means this attack. Ten classes cost at most 29,410 queries. The perturbations
    are drawn from a generator seeded with ``SEED``, so that the same answers give the same images.

    Source:
        Fredrikson, Jha & Ristenpart, "Model Inversion Attacks that Exploit Confidence
        Information and Basic Countermeasures", CCS 2015, Algorithm 1, from an image of zeros
        and without the denoising. The paper follows the gradient of a known network. Here the
        gradient is estimated from scores, and scaled, since it vanishes at a confidence near 0.
    """

    name: ClassVar = "class-representative"
    knows: ClassVar = "scores of images it makes up: one image per class, not the query"
    requires: ClassVar = frozenset({"query"})
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
        representatives = find_representatives(
            knowledge.query,
            torch.zeros_like(knowledge.images[0]),
            knowledge.released.shape[-1],
            generator=torch.Generator().manual_seed(SEED),
        )
        return {
            "representative": Reconstructor(
                lambda released: representatives[released[0].argmax(-1)]
            )
        }


def find_representatives(
    query: Query, start: Tensor, classes: int, *, generator: Generator
) -> Tensor:
    """Minimise ``1 - confidence`` of each class over images in ``[0, 1]``.

    Args:
        query: Queries the API.
        start: ``(C, H, W)`` image where every search begins.
        classes: Number of classes, K.
        generator: Source of the perturbations, on the CPU.

    Returns:
        ``(K, C, H, W)`` the image of the lowest cost of each class.
    """
    current = start.repeat(classes, 1, 1, 1)
    best = current.clone()
    running = torch.arange(classes, device=start.device)
    costs = _costs(query, current[running], running).unsqueeze(0)
    lowest = costs[0].clone()
    for _ in range(ITERATIONS):
        gradients = _estimate_gradients(query, current[running], running, generator)
        current[running] = (current[running] - STEP * gradients).clamp(0, 1)
        latest = costs[-1].clone()
        latest[running] = _costs(query, current[running], running)
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


def _costs(query: Query, images: Tensor, labels: Tensor) -> Tensor:
    """Return each image's ``1 - confidence`` of its label."""
    return 1 - query(images, 1)[0].gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _estimate_gradients(
    query: Query, images: Tensor, labels: Tensor, generator: Generator
) -> Tensor:
    """Return each image's smoothed cost gradient, scaled to a largest entry of 1.

    Smooth perturbations span few dimensions, so that few perturbations are needed. Clamping images
    to 0 and 1 halves an entry's share of the difference there, and leaves its sign.
    """
    channels, height, across = images.shape[1:]
    coarse = torch.randn(PAIRS, channels, min(GRID, height), min(GRID, across), generator=generator)
    noise = functional.interpolate(coarse, (height, across), mode="bilinear").to(images)
    shifted = images.unsqueeze(1).unsqueeze(0) + RADIUS * torch.stack([noise, -noise]).unsqueeze(1)
    owners = labels.repeat_interleave(PAIRS).repeat(2)
    costs = _costs(query, shifted.clamp(0, 1).flatten(0, 2), owners)
    above, below = costs.view(2, len(images), PAIRS)
    gradients = torch.einsum("kp,pchw->kchw", (above - below).to(images), noise)
    largest = gradients.abs().amax((1, 2, 3), keepdim=True)
    return gradients / torch.where(largest > 0, largest, 1)
