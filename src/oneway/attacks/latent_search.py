"""The attacker who makes images up, asks the service about each, and keeps those answered alike."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from oneway.attacks.base import InversionAttack, Workload
from oneway.contracts import AttackerKnowledge, Prior, Reconstructor, TrainDecoder
from oneway.inversion.input_transforms import INPUT_TRANSFORMS

SEED = 2021
"""Seed of the latents: an attack has no other source of randomness."""

DRAWS = 8192
"""Images that the attacker makes up and asks about."""

ROWS = 512
"""Images that are made or compared at once."""

TRANSFORMS = ("standardized", "within-label")
"""Input transforms whose features are compared."""

BANDWIDTHS = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Standard deviations of the weights, as multiples of the median distance between two draws.

At 0 only the nearest draws count, all of them alike: the draws of the same released vector.
"""


class LatentSearch(InversionAttack):
    """Answer with the weighted mean of made-up images whose released scores match.

    The images are draws of a generative prior, which auxiliary images trained. Where the release
    has few vectors, the mean of the draws with the observed vector approaches the posterior mean
    under the prior as draws increase. Where it has many, near draws count by their distance, and
    held-out rows choose how near. The reconstructor "sample" answers with one of the nearest draws:
    a sharp image, at about twice the squared error of the mean.

    Source:
        Rejection sampling: Pritchard, Seielstad, Perez-Lezaun & Feldman, Molecular Biology and
        Evolution 16(12), 1999. Weights by distance: Nadaraya and Watson, 1964.
    """

    name: ClassVar = "latent-search"
    knows: ClassVar = "scores of images that a generative prior makes: the mean of those that match"
    requires: ClassVar = frozenset({"query", "train_prior"})
    trains_decoders: ClassVar = False
    by_default: ClassVar = False

    def extra_queries(self, workload: Workload) -> float:  # noqa: ARG002  part of the contract
        """Return the number of draws."""
        return DRAWS

    def run(
        self,
        knowledge: AttackerKnowledge,
        train: TrainDecoder,  # noqa: ARG002  part of the contract
    ) -> Mapping[str, Reconstructor]:
        """Draw and ask; see :meth:`InversionAttack.run`."""
        assert knowledge.query is not None  # noqa: S101  required
        assert knowledge.train_prior is not None  # noqa: S101  required
        prior = knowledge.train_prior(knowledge.images, None, knowledge.held_out)
        generator = torch.Generator().manual_seed(SEED)
        draws = draw_inputs(prior, DRAWS, generator)
        released = torch.cat([knowledge.query(rows, 1)[0] for rows in draws.split(ROWS)])
        reconstructors: dict[str, Reconstructor] = {}
        for name in TRANSFORMS:
            transform = INPUT_TRANSFORMS[name](released.shape[-1]).to(released.device)
            transform.fit(knowledge.released[~knowledge.held_out])
            features = transform(released).double()
            unit = median_distance(features)
            for bandwidth in BANDWIDTHS:
                weigh = partial(match_weights, transform, features, bandwidth * unit)
                mean = Reconstructor(partial(_mean, weigh, draws))
                reconstructors[f"mean, {name}, {bandwidth}"] = mean
                sample = Reconstructor(partial(_sample, weigh, draws))
                reconstructors.setdefault("sample", sample)  # of the nearest draws
        return reconstructors


@torch.no_grad()
def draw_inputs(prior: Prior, count: int, generator: torch.Generator) -> Tensor:
    """Return ``(count, ...)`` inputs of a prior."""
    return torch.cat([prior(rows) for rows in prior.draw(count, generator).split(ROWS)])


def median_distance(features: Tensor) -> float:
    """Return the median distance between two different rows; 1 where all rows are equal."""
    distances = torch.pdist(features[:ROWS])
    apart = distances[distances > 0]
    return float(apart.median()) if len(apart) else 1.0


def match_weights(
    transform: Callable[[Tensor], Tensor], features: Tensor, bandwidth: float, released: Tensor
) -> Tensor:
    """Return the weights of the draws for released vectors.

    Args:
        transform: Maps confidences to features.
        features: ``(M, F)`` float64 features of the draws' released vectors.
        bandwidth: Standard deviation of the weights; 0: the nearest draws count alike.
        released: ``(N, K)`` observed vectors.

    Returns:
        ``(N, M)`` float64 weights, each row with sum 1.
    """
    # By matrix products, equal vectors would not be at equal distances.
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(transform(released).double(), features, compute_mode=exact)
    beyond = distances.square() - distances.amin(-1, keepdim=True).square()
    if bandwidth > 0:
        return (-0.5 * beyond / bandwidth**2).softmax(-1)
    nearest = (distances <= distances.amin(-1, keepdim=True) + 1e-9).double()
    return nearest / nearest.sum(-1, keepdim=True)


def _mean(weigh: Callable[[Tensor], Tensor], draws: Tensor, released: Tensor) -> Tensor:
    """Return ``(N, ...)`` weighted means of the draws."""
    weights = weigh(released[0]).to(draws)
    return torch.einsum("nm,m...->n...", weights, draws).clamp(0, 1)


def _sample(weigh: Callable[[Tensor], Tensor], draws: Tensor, released: Tensor) -> Tensor:
    """Return ``(N, ...)`` draws, each drawn by its weights."""
    generator = torch.Generator().manual_seed(SEED)
    return draws[torch.multinomial(weigh(released[0]).cpu(), 1, generator=generator)[:, 0]]
