"""Release the largest probabilities, rounded; the rest of the mass is spread evenly."""

import torch
from torch import Tensor

from oneway.defenses.base import ScoreDefense
from oneway.defenses.scores import logits_of
from oneway.options import option
from oneway.releases import MOST_DECIMALS


class TopRounding(ScoreDefense):
    """Keep the largest probabilities of each row in multiples of ``10**-decimals``.

    Between rounding everything and releasing the label alone: small probabilities tell queries
    apart best, and are not released. The order of the kept probabilities stays, except for ties,
    which the label wins. A probability that is rounded to 0 is not kept: it gets its share of the
    rest.
    """

    count: int = option(
        "Number of probabilities to keep; if there are no more classes, all but one, since the "
        "last follows from the others.",
        default=2,
    )
    decimals: int = option("Decimals of the kept probabilities.", default=2, most=MOST_DECIMALS)

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits of the rounded probabilities."""
        classes = logits.shape[-1]
        kept = min(self.count, classes - 1)
        units = 10**self.decimals
        # Among equals the lowest index is larger, so that the label comes first.
        order = logits.argsort(dim=-1, descending=True, stable=True)[..., :kept]
        counts = _rounded_counts(logits.double().softmax(-1).gather(-1, order) * units, units)
        # A probability that is rounded to 0 is among the rest, which nothing sets apart.
        others = classes - (counts > 0).sum(-1, keepdim=True)
        rest = (units - counts.sum(-1, keepdim=True)) / (units * others)
        rounded = torch.where(counts > 0, counts / units, rest)
        probabilities = rest.expand(logits.shape).scatter(-1, order, rounded)
        # Where the even rest is as much as the label has, the label leads by the least step.
        least = torch.nextafter(rest, torch.full_like(rest, torch.inf))
        index = logits.argmax(-1, keepdim=True)
        label = torch.maximum(probabilities.gather(-1, index), least)
        return logits_of(probabilities.scatter(-1, index, label), logits.dtype)


def _rounded_counts(scaled: Tensor, units: int) -> Tensor:
    """Round ``(..., n)`` numbers, largest first, to integers that sum to at most ``units``.

    The first is strictly the largest, unless all are 0.
    """
    kept, counts = scaled.shape[-1], scaled.round()
    # Where rounding up makes the sum too large, the entries that gained most give back; among
    # equals the last, so that counts still fall from the label on.
    excess = (counts.sum(-1, keepdim=True) - units).clamp_min(0)
    gained = (counts - scaled).flip(-1).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(gained).scatter(
        -1, gained, torch.arange(kept, device=gained.device).expand_as(gained)
    )
    counts = counts - (rank.flip(-1) < excess).to(counts.dtype)
    if kept > 1:
        # The last rival with as many units as the label hands one over.
        ties = (counts[..., 1:] >= counts[..., :1]) & (counts[..., 1:] > 0)
        last = ties.sum(-1, keepdim=True)
        tied = (last > 0).to(counts.dtype)
        counts[..., :1] += tied
        counts = counts.scatter_add(-1, last, -tied)
    return counts
