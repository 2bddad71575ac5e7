"""Positive controls: releases that hide nothing, or leak a secret. An audit must find them out.

These are test signals, not defenses. A closed gap near 1 on such a control says that the attacker
is too weak to be believed.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from oneway.checks import check_above, check_count
from oneway.defenses.base import BaseDefense, LabelOnRequest, ScoreDefense
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.scores import log_probabilities
from oneway.errors import InvalidOptionError
from oneway.options import option


class Permutation(ScoreDefense):
    """Hand each class's score to another class: every score is released, under another name.

    The permutation is one cycle through all classes, so that no class keeps its own score.
    """

    keeps_label = False
    is_finished = True

    seed: int = option("Seed of the permutation.", default=0, least=0)

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` logits in another order."""
        generator = torch.Generator().manual_seed(self.seed)
        cycle = torch.randperm(logits.shape[-1], generator=generator)
        source = torch.empty_like(cycle).scatter(0, cycle, cycle.roll(1))
        return logits[..., source.to(logits.device)]


class ClassOffsets(LabelOnRequest, ScoreDefense):
    """Add a fixed vector to the logits of each label: an attacker who learns it loses nothing."""

    scale: float = option("Standard deviation of the offsets, in nats.", default=1.0, above=0)
    seed: int = option("Seed of the offsets.", default=0, least=0)

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` log probabilities with offsets added."""
        classes = logits.shape[-1]
        generator = torch.Generator().manual_seed(self.seed)
        table = torch.randn(classes, classes, generator=generator, dtype=torch.float64)
        offsets = self.scale * table.to(logits.device)[logits.argmax(-1)]
        return log_probabilities(logits) + offsets


def check_positions(name: str, value: object) -> None:
    """Refuse anything but a list of indices.

    Raises:
        InvalidOptionError: It is something else.
    """
    if not isinstance(value, list | tuple):
        raise InvalidOptionError(
            f"{name} must be a list of indices, but is {type(value).__name__}."
        )
    for position in value:
        check_count(f"each of {name}", position, least=0)


class PlantedLeak(BaseDefense):
    """Release the label alone, and a few of the query's pixels in the low digits beside it.

    Users hardly notice: an attacker who looks at the digits reads pixels of the query. Its
    L1 distance from a label-only release is at most ``scale``.
    """

    requires_input = True

    scale: float = option(
        "What a pixel that is 1 brighter adds to a log probability.", default=1e-3, above=0
    )
    positions: Sequence[int] | None = option(
        "Pixels to leak, as indices into a flattened image: the n-th goes into the n-th class's "
        "score. No more than there are classes; None: as many as there are classes, evenly "
        "spread over the middle half of the flattened image.",
        default=None,
        check=check_positions,
    )
    confidence: float = option(
        "Probability of the label, apart from the leak.", default=0.99, above=0, below=1
    )

    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:
        """Return ``(N, K)`` logits of the label, with pixels in their low digits.

        Args:
            logits: ``(N, K)`` clean scores; only their labels are used.
            images: ``(N, ...)`` the queries, in ``[0, 1]``.

        Raises:
            InvalidOptionError: There are more positions than classes, or a position lies outside
                the image.
        """
        assert images is not None  # noqa: S101  narrows the type; the base class refuses None
        pixels = images.flatten(1)
        places = self._places(logits.shape[-1], pixels.shape[-1]).to(pixels.device)
        leak = self.scale * (pixels[:, places].double() - 0.5)
        leaking = LabelOnly(confidence=self.confidence)(logits).double()
        leaking[:, : len(places)] += leak.to(leaking.device)
        return leaking

    def _places(self, classes: int, pixels: int) -> Tensor:
        if self.positions is None:
            middle = torch.linspace(pixels // 4, 3 * pixels // 4, classes, dtype=torch.float64)
            return middle.round().long().clamp_max(pixels - 1)
        if len(self.positions) > classes:
            raise InvalidOptionError(
                f"positions must be no more than the {classes} classes, "
                f"but there are {len(self.positions)}."
            )
        if self.positions and max(self.positions) >= pixels:
            raise InvalidOptionError(
                f"positions must lie in [0, {pixels}), the pixels of an image, "
                f"but one is {max(self.positions)}."
            )
        return torch.tensor(self.positions, dtype=torch.int64)


def check_borders(name: str, value: object) -> None:
    """Refuse anything but a list of finite numbers in rising order.

    Raises:
        InvalidOptionError: It is something else.
    """
    if not isinstance(value, list | tuple) or not value:
        raise InvalidOptionError(
            f"{name} must be a list of at least one number, but is {type(value).__name__}."
        )
    for border in value:
        check_above(f"each of {name}", border, -math.inf)
    if any(high <= low for low, high in pairwise(value)):
        raise InvalidOptionError(f"{name} must rise from each number to the next. Sort them.")


class PlantedLevels(BaseDefense):
    """Release the level of one pixel of the query, and nothing else: one vector for each level.

    A release of few vectors, whose cells all have the same label. The best reconstruction of a
    query is the mean of the queries in its cell.
    """

    requires_input = True
    keeps_label = False

    position: int | None = option(
        "Pixel to release, as an index into a flattened image; None: the pixel in its middle.",
        default=None,
        least=0,
    )
    borders: Sequence[float] = option(
        "Values of the pixel between one level and the next, in rising order.",
        default=(0.25, 0.5, 0.75),
        check=check_borders,
    )
    step: float = option(
        "What a level adds to the log odds of the first class, in nats.", default=0.25, above=0
    )

    def respond(self, logits: Tensor, images: Tensor | None) -> Tensor:
        """Return ``(N, K)`` logits, the first class above all others by the pixel's level.

        Args:
            logits: ``(N, K)`` clean scores; only their shape is used.
            images: ``(N, ...)`` the queries.

        Raises:
            InvalidOptionError: The position lies outside the image.
        """
        assert images is not None  # noqa: S101  narrows the type; the base class refuses None
        pixels = images.flatten(1)
        count = pixels.shape[-1]
        position = count // 2 if self.position is None else self.position
        if position >= count:
            raise InvalidOptionError(
                f"position must lie in [0, {count}), the pixels of an image, but is {position}."
            )
        borders = torch.tensor(self.borders, dtype=torch.float64, device=pixels.device)
        levels = torch.bucketize(pixels[:, position].double().contiguous(), borders)
        released = torch.zeros_like(logits, dtype=torch.float64)
        released[:, 0] = 1 + self.step * levels.to(released.device)
        return released


class NoisyTail(ScoreDefense):
    """Release the largest probabilities as they are, and drown the others in noise.

    The others share the rest of the mass by a hash of the scores: equal scores have equal
    answers, and scores that differ in the last digit have unrelated noise. So it reveals as much
    as :class:`oneway.defenses.top_k.TopK` of the same count, where the others share evenly; a
    decoder that looks at all entries alike learns from the noise instead.
    """

    count: int = option(
        "Number of probabilities to keep; with one class more, or fewer, there is no noise.",
        default=4,
    )
    scale: float = option(
        "Range of the noise on the others' log probabilities, in nats. Less in a row where it "
        "would lift them above the least kept probability.",
        default=20.0,
        above=0,
    )
    seed: int = option("Seed of the hash.", default=0, least=0)

    def transform(self, logits: Tensor) -> Tensor:
        """Return ``(..., K)`` log probabilities."""
        logs, others = log_probabilities(logits), logits.shape[-1] - self.count
        if others <= 0:
            return logs
        order = logits.argsort(dim=-1, descending=True, stable=True)
        kept, drowned = order.split([self.count, others], -1)
        # Around an even share; in logs, where a saturated row's others do not vanish.
        even = logs.gather(-1, drowned).logsumexp(-1, keepdim=True) - math.log(others)
        uneven = others * (self.scale * self._noise(logits, others)).softmax(-1) - 1
        # As far from even as leaves the kept probabilities the largest.
        room = (logs.gather(-1, kept).amin(-1, keepdim=True) - even).expm1()
        tiny = torch.finfo(room.dtype).tiny
        share = (0.9 * room / uneven.amax(-1, keepdim=True).clamp_min(tiny)).clamp(0, 1)
        return logs.scatter(-1, drowned, even + (share * uneven).log1p())

    def _noise(self, logits: Tensor, count: int) -> Tensor:
        """Return ``(..., count)`` float64 numbers in [0, 1), a hash of each row's bits."""
        # Minus zero is zero.
        bits = (logits.double() + 0.0).view(torch.int64)
        generator = torch.Generator().manual_seed(self.seed)
        keys = torch.randint(2**62, (bits.shape[-1],), generator=generator) | 1
        digest = (_mixed(bits) * keys.to(bits.device)).sum(-1, keepdim=True)
        places = torch.arange(1, count + 1, device=bits.device)
        mixed = _mixed(_mixed(digest) + places * GOLDEN)
        return (mixed >> 11 & (2**53 - 1)).double() / 2**53


GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""Odd, and 2**64 divided by the golden ratio; as int64, which wraps."""


def _mixed(bits: Tensor) -> Tensor:
    """Mix int64 numbers so that each bit depends on all: the finalizer of SplitMix64.

    Source:
        Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        bits = (bits ^ (bits >> shift & (2 ** (64 - shift) - 1))) * factor
    return bits ^ (bits >> 31 & (2**33 - 1))
