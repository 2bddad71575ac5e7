"""Release the largest probabilities, rounded; the rest of the mass is spread evenly."""

import torch
from torch import Tensor

from oneway.checks import check_count, check_logits
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.scores import logits_of
from oneway.errors import InvalidOptionError
from oneway.releases import MOST_DECIMALS


class TopRounding:
    """Keep the largest probabilities of each row in multiples of ``10**-decimals``, label guarded.

    Between rounding everything and telling the label alone: what tells queries apart most is
    small and in the tail, and is not told. How the kept ones rank is kept but for ties, which the
    label wins. One that is rounded to 0 is not kept: it has its share of the rest.
    """

    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, *, count: int = 2, decimals: int = 2) -> None:
        """Prepare the defense.

        Args:
            count: How many entries are told, at least 1; if there are no more classes, all but
                one, since the last follows.
            decimals: From 1 to 12.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        check_count("count", count)
        check_count("decimals", decimals)
        if decimals > MOST_DECIMALS:
            raise InvalidOptionError(
                f"decimals must be a whole number from 1 to {MOST_DECIMALS}, but got {decimals}."
            )
        self.count, self.decimals = count, decimals

    @torch.no_grad()
    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` logits of the rounded probabilities; ``images`` are ignored.

        The arg max of ``logits`` (the lowest index, if they tie) is the only maximum.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        classes, labels = logits.shape[-1], logits.argmax(-1)
        told = min(self.count, classes - 1)
        units = 10**self.decimals
        # Among equals the lowest index is larger, so that the label comes first.
        order = logits.argsort(dim=-1, descending=True, stable=True)[..., :told]
        scaled = logits.double().softmax(-1).gather(-1, order) * units
        counts = scaled.round()
        # Rounded up too often, they would sum to more than 1: who gained most gives back, among
        # equals the last, so that counts still fall from the label on.
        excess = (counts.sum(-1, keepdim=True) - units).clamp_min(0)
        gained = (counts - scaled).flip(-1).argsort(dim=-1, descending=True, stable=True)
        rank = torch.empty_like(gained).scatter(
            -1, gained, torch.arange(told, device=gained.device).expand_as(gained)
        )
        counts = counts - (rank.flip(-1) < excess).to(counts.dtype)
        if told > 1:
            # The last rival with as many units as the label hands one over.
            ties = (counts[..., 1:] >= counts[..., :1]) & (counts[..., 1:] > 0)
            last = ties.sum(-1, keepdim=True)
            tied = (last > 0).to(counts.dtype)
            counts[..., :1] += tied
            counts = counts.scatter_add(-1, last, -tied)
        # What is rounded to nothing is among the rest, which nothing sets apart.
        others = classes - (counts > 0).sum(-1, keepdim=True)
        rest = (units - counts.sum(-1, keepdim=True)) / (units * others)
        kept = torch.where(counts > 0, counts / units, rest)
        probabilities = rest.expand(logits.shape).scatter(-1, order, kept)
        # Where the even rest is as much as the label has, it leads by the least step.
        least = torch.nextafter(rest, torch.full_like(rest, torch.inf))
        own = torch.maximum(probabilities.gather(-1, labels.unsqueeze(-1)), least)
        probabilities = probabilities.scatter(-1, labels.unsqueeze(-1), own)
        return lift_label(logits_of(probabilities, logits.dtype), labels, 0)
