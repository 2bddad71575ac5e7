"""The attacker who has everything: it searches for an input that would have been answered so."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import AttackerKnowledge, Reconstructor, TrainDecoder
from oneway.inversion.input_transforms import StandardizedLog

STEPS = (5, 20)
"""Steps of a search, two lengths to choose from."""

STEP = 0.02
"""Learning rate of Adam, in pixel values, which are in ``[0, 1]``."""

DRAWS = 4
"""Answers of a random defense that a gradient is averaged over (EoT)."""

PULLS = (3.0, 100.0)
"""Weights of staying near the decoder's reconstruction, two to choose from.

Of the mean over pixels: an image of more pixels is pulled no more than a smaller one.
"""

ROWS = 256
"""Queries that are searched for at once."""


class Optimising(InversionAttack):
    """Start from a decoder trained on released scores; descend on the image itself.

    What is made small is the difference between what was released and what target and defense
    would release for the image, as standardized log confidences, plus a pull towards the
    decoder's reconstruction, without which the search finds adversarial examples. The decoder
    alone is no reconstructor: it is the retrained attacker.

    Source:
        evaluation protocol of this project; Fredrikson et al., CCS 2015, for the search; Athalye,
        Carlini & Wagner, ICML 2018, for gradients past a defense that has none (BPDA), and for
        the mean over draws of a random defense (EoT).
    """

    name: ClassVar = "optimising"
    knows: ClassVar = "model and defense: it searches for inputs that are answered so"
    requires: ClassVar = frozenset({"differentiable_logits"})
    left_out: ClassVar = "early"

    def extra_queries(self, workload: Workload) -> float:
        """Return three answers' time per step there and back, its own held-out rows included."""
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
    parts = [
        _descend(
            differentiable_logits, decoder(batch), features, features(batch), steps, pull, draws
        )
        for batch in released[0].split(ROWS)
    ]
    return torch.cat(parts)


def _descend(
    differentiable_logits: Callable[[Tensor], Tensor],
    start: Tensor,
    features: StandardizedLog,
    wanted: Tensor,
    steps: int,
    pull: float,
    draws: int,
) -> Tensor:
    """Search from ``start``; each row by itself, since Adam has a step of its own per pixel."""
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
            misfit = (answers - wanted).square().mean(-1)
            moved = (images - start).square().flatten(1).mean(-1)
            # Of the images alone: the model's own parameters are left as they are.
            (images.grad,) = torch.autograd.grad((misfit + pull * moved).sum(), images)
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
    return images.detach()
