"""The attacker who has model and defense, and searches for an input with the same answer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.inversion.input_transforms import StandardizedLog

STEPS = (5, 20)
"""Steps of a search: two lengths, of which held-out rows choose."""

STEP = 0.02
"""Learning rate of Adam, in pixel values, which are in ``[0, 1]``."""

DRAWS = 4
"""Answers of a random defense that a gradient is the mean of (EoT)."""

PULLS = (3.0, 100.0)
"""Weights of the distance from the decoder's reconstruction: two, of which held-out rows choose.

The distance is a mean over pixels, so that the weight does not depend on the size of an image.
"""

ROWS, ROWS_ON_CPU = 1024, 64
"""Queries that are reconstructed at once. What a processor works on stays in its cache."""


class Optimising(InversionAttack):
    """Start from a decoder trained on released scores, and descend on the image itself.

    The search minimises the difference between the released scores and the scores that target and
    defense would release for the image, as standardized log confidences. It adds a pull towards
    the decoder's reconstruction, without which the search ends in adversarial examples. The decoder
    alone is no reconstructor here, since it is the retrained attacker.

    Source:
        Evaluation protocol of this project. Fredrikson et al., CCS 2015, for the search. Athalye,
        Carlini & Wagner, ICML 2018, for gradients past a defense without gradient (BPDA), and for
        the mean over draws of a random defense (EoT).
    """

    name: ClassVar = "optimising"
    knows: ClassVar = "model and defense: it searches for inputs with the same answer"
    requires: ClassVar = frozenset({"differentiable_logits"})
    left_out: ClassVar = "early"

    def extra_queries(self, workload: Workload) -> float:
        """Return three answers per step, forwards and backwards, for test and held-out rows."""
        searched = workload.test + workload.auxiliary // 8
        return 3 * sum(STEPS) * len(PULLS) * searched

    def run(self, knowledge: AttackerKnowledge, train: TrainDecoder) -> Mapping[str, Reconstructor]:
        """Train a decoder to start from; see :meth:`InversionAttack.run`."""
        assert knowledge.differentiable_logits is not None  # noqa: S101  required
        kept = ~knowledge.held_out
        features = StandardizedLog(knowledge.released.shape[-1]).to(knowledge.released.device)
        features.fit(knowledge.released[kept])
        decoder = train(knowledge.released, knowledge.images, knowledge.held_out)
        draws = DRAWS if knowledge.random else 1
        return {
            f"{steps} steps, pull {pull}": Reconstructor(
                partial(
                    _search, knowledge.differentiable_logits, decoder, features, steps, pull, draws
                )
            )
            for steps in STEPS
            for pull in PULLS
        }


@torch.no_grad()
def _search(
    differentiable_logits: Callable[[Tensor], Tensor],
    decoder: nn.Module,
    features: StandardizedLog,
    steps: int,
    pull: float,
    draws: int,
    released: Tensor,
) -> Tensor:
    rows = ROWS_ON_CPU if released.device.type == "cpu" else ROWS
    parts = [
        _descend(
            differentiable_logits, decoder(batch), features, features(batch), steps, pull, draws
        )
        for batch in released[0].split(rows)
    ]
    return torch.cat(parts)


def _descend(
    differentiable_logits: Callable[[Tensor], Tensor],
    start: Tensor,
    features: StandardizedLog,
    released_features: Tensor,
    steps: int,
    pull: float,
    draws: int,
) -> Tensor:
    """Search from ``start``, each row independently, since Adam adapts its step to each pixel."""
    with torch.enable_grad():
        images = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([images], lr=STEP)
        for _ in range(steps):
            answers = torch.stack(
                [
                    features.from_logs(differentiable_logits(images).log_softmax(-1))
                    for _ in range(draws)
                ]
            ).mean(0)
            misfit = (answers - released_features).square().mean(-1)
            moved = (images - start).square().flatten(1).mean(-1)
            # The gradient in the images alone: the model's parameters get none.
            (images.grad,) = torch.autograd.grad((misfit + pull * moved).sum(), images)
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
    return images.detach()
