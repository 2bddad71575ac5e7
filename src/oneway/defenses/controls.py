"""Positive controls: releases that hide nothing, or tell a secret. An audit must find them out.

These are test signals, not defenses. A closed gap near 1 on one of them says that the attacker
is too weak to be believed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from oneway.checks import check_above, check_count, check_images, check_logits, check_switch
from oneway.defenses.label_modifier import lift_label
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.scores import log_probabilities, narrowed
from oneway.errors import InvalidOptionError, InvalidTensorError


class Permutation:
    """Hand each class's score to another class: all is told, under other names.

    The permutation is one cycle through all classes, so that no class keeps its own score.
    """

    requires_input = False
    keeps_label = False
    deterministic = True

    def __init__(self, *, seed: int = 0) -> None:
        """Prepare the control.

        Args:
            seed: Of the permutation, at least 0.

        Raises:
            InvalidOptionError: ``seed`` is no whole number of at least 0.
        """
        check_count("seed", seed, least=0)
        self.seed = seed

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` logits in another order; ``images`` are ignored.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        generator = torch.Generator().manual_seed(self.seed)
        cycle = torch.randperm(logits.shape[-1], generator=generator)
        source = torch.empty_like(cycle).scatter(0, cycle, cycle.roll(1))
        return logits.detach()[..., source.to(logits.device)]


class ClassOffsets:
    """Add a fixed vector to the logits of each predicted label: who learns the vectors reads on."""

    requires_input = False
    deterministic = True

    def __init__(
        self,
        *,
        scale: float = 1.0,
        seed: int = 0,
        keep_label: bool = False,
        margin: float = 1e-3,
    ) -> None:
        """Prepare the control.

        Args:
            scale: Standard deviation of the offsets, in nats, above 0.
            seed: Of the offsets, at least 0.
            keep_label: Lift the clean label over all others.
            margin: Least lead of a lifted label, in nats, above 0.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        check_above("scale", scale, 0)
        check_count("seed", seed, least=0)
        check_above("margin", margin, 0)
        check_switch("keep_label", keep_label)
        self.scale, self.seed, self.margin = scale, seed, margin
        self.keeps_label = keep_label

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` log probabilities and offsets; ``images`` are ignored.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        classes, labels = logits.shape[-1], logits.argmax(-1)
        generator = torch.Generator().manual_seed(self.seed)
        table = torch.randn(classes, classes, generator=generator, dtype=torch.float64)
        offsets = self.scale * table.to(logits.device)[labels]
        moved = narrowed(log_probabilities(logits) + offsets, logits.dtype)
        return lift_label(moved, labels, self.margin) if self.keeps_label else moved


class PlantedLeak:
    """Release the label alone, and some of the query's pixels in the low digits beside it.

    Users see next to nothing of it: whoever looks at the digits has pixels of the query. Its
    L1 distance from a label-only release is at most ``scale``.
    """

    requires_input = True
    keeps_label = True
    deterministic = True

    def __init__(
        self,
        *,
        scale: float = 1e-3,
        positions: Sequence[int] | None = None,
        confidence: float = 0.99,
    ) -> None:
        """Prepare the control.

        Args:
            scale: What a pixel that is 1 brighter adds to a log probability, above 0.
            positions: Which pixels, as indices into a flattened image: the n-th is in the n-th
                class's score. No more than there are classes; None: as many as there are
                classes, evenly spread over the middle half of the flattened image.
            confidence: What the label gets, apart from the leak; see
                :class:`oneway.defenses.label_only.LabelOnly`.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        check_above("scale", scale, 0)
        if positions is not None:
            if not isinstance(positions, list | tuple):
                raise InvalidOptionError(
                    f"positions must be a list of indices, but is {type(positions).__name__}."
                )
            for position in positions:
                check_count("each of positions", position, least=0)
        self.label_only = LabelOnly(confidence=confidence)
        self.scale = scale
        self.positions = None if positions is None else tuple(positions)

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:
        """Return ``(N, K)`` logits that tell the label, and pixels in their low digits.

        Args:
            logits: ``(N, K)`` clean scores; only their labels are used.
            images: ``(N, ...)`` the queries, in ``[0, 1]``.

        Raises:
            InvalidTensorError: A tensor breaks the lines above.
            InvalidOptionError: There are more positions than classes, or one lies outside the
                image.
        """
        told = self.label_only(logits)
        if images is None:
            raise InvalidTensorError("images must be given: this control tells pixels of them.")
        check_images(images, rows=len(logits))
        pixels = images.detach().flatten(1)
        places = self._places(logits.shape[-1], pixels.shape[-1]).to(pixels.device)
        leak = self.scale * (pixels[:, places].double() - 0.5)
        leaking = told.double()
        leaking[:, : len(places)] += leak.to(told.device)
        return lift_label(leaking.to(told.dtype), logits.argmax(-1), 0)

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


class NoisyTail:
    """Tell the largest probabilities as they are, and drown them among noise that tells nothing.

    The others share what is left by a hash of the scores: the same scores are answered the same,
    and scores that differ in the last digit by unrelated noise. So it tells as much as
    :class:`oneway.defenses.top_k.TopK` of the same count, where the others share evenly; a
    decoder that looks at all entries alike learns from the noise instead.
    """

    requires_input = False
    keeps_label = True
    deterministic = True

    def __init__(self, *, count: int = 4, scale: float = 20.0, seed: int = 0) -> None:
        """Prepare the control.

        Args:
            count: How many to keep, at least 1; with one class more, or fewer, there is no noise.
            scale: Range of the noise on the others' log probabilities, in nats, above 0. In a row
                where they have no room for so much below the least that is kept, it is less.
            seed: Of the hash, at least 0.

        Raises:
            InvalidOptionError: An option is outside its range.
        """
        check_count("count", count)
        check_above("scale", scale, 0)
        check_count("seed", seed, least=0)
        self.count, self.scale, self.seed = count, scale, seed

    def __call__(self, logits: Tensor, images: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return ``(..., K)`` log probabilities; ``images`` are ignored.

        Raises:
            InvalidTensorError: ``logits`` are no finite floating scores.
        """
        check_logits(logits)
        logs, others = log_probabilities(logits), logits.shape[-1] - self.count
        if others > 0:
            order = logits.argsort(dim=-1, descending=True, stable=True)
            kept, drowned = order.split([self.count, others], -1)
            # Around an even share; in logs, where a saturated row's others do not vanish.
            even = logs.gather(-1, drowned).logsumexp(-1, keepdim=True) - math.log(others)
            uneven = others * (self.scale * self._noise(logits, others)).softmax(-1) - 1
            # As far from even as leaves the kept ones the largest.
            room = (logs.gather(-1, kept).amin(-1, keepdim=True) - even).expm1()
            tiny = torch.finfo(room.dtype).tiny
            share = (0.9 * room / uneven.amax(-1, keepdim=True).clamp_min(tiny)).clamp(0, 1)
            logs = logs.scatter(-1, drowned, even + (share * uneven).log1p())
        return lift_label(narrowed(logs, logits.dtype), logits.argmax(-1), 0)

    def _noise(self, logits: Tensor, count: int) -> Tensor:
        """Return ``(..., count)`` float64 numbers in [0, 1), a hash of each row's very bits."""
        # Minus zero is zero.
        bits = (logits.detach().double() + 0.0).view(torch.int64)
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
