"""The generative inverter, which draws images instead of predicting their mean."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack
from oneway.contracts import AttackerKnowledge, Prior, Reconstructor, TrainDecoder

SEED = 2103
"""Seed of the latents: an attack has no other source of randomness."""

SAMPLES = 32
"""Draws whose mean estimates the posterior mean."""


class Generative(InversionAttack):
    """Train a generative model of inputs given released scores, and draw from it.

    A decoder trained on squared error answers with the mean of all inputs that fit the scores, and
    the mean is blurred. A draw is sharp, and shows what the scores leave open, at about twice the
    squared error of the mean. The model here is a conditional variational autoencoder. The mean of
    32 draws competes with other attackers in squared error; compare single draws by similarity or
    re-identification.

    Source:
        Inverting released logits with a conditional generative model: Teterwak, Zhang, Krishnan &
        Mozer, "Understanding Invariance via Feedforward Inversion of Discriminatively Trained
        Classifiers", ICML 2021, who train a conditional GAN.
    """

    name: ClassVar = "generative"
    knows: ClassVar = "released scores of its own images, read by a model that draws images"
    requires: ClassVar = frozenset({"train_prior"})
    trains_decoders: ClassVar = False
    by_default: ClassVar = False

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Train the model; see :meth:`InversionAttack.run`."""
        assert knowledge.train_prior is not None  # noqa: S101  required
        model = knowledge.train_prior(knowledge.images, knowledge.released, knowledge.held_out)
        return {
            f"mean of {SAMPLES}": Reconstructor(partial(_mean_of, model, SAMPLES)),
            "sample": Reconstructor(partial(_mean_of, model, 1)),
        }


@torch.no_grad()
def _mean_of(model: Prior, count: int, released: Tensor) -> Tensor:
    """Return the mean of ``count`` draws for each of ``(1, N, K)`` released vectors."""
    generator = torch.Generator().manual_seed(SEED)
    rows = released[0]
    total = model(model.draw(len(rows), generator), rows)
    for _ in range(count - 1):
        total = total + model(model.draw(len(rows), generator), rows)
    return total / count
