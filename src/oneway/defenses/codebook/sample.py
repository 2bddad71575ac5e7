"""A bounded sample of calibration scores, the same however the rows are stored, split or ordered.

Each row has a key, a hash of its scores. Of each predicted label the ``most`` rows with the least
keys are kept. A sample of samples is the sample of all rows, in any order and any grouping: so that
blocks of a data set are summed up by themselves, in any process, and merged later. A label with no
more than ``most`` rows keeps all of them.

Boxes of a sample have as many members at least as ``min_members`` asks for, all of them real
queries. What is lost is fineness: a cell's borders rest on ``most`` rows of its label, not on all.

Keys are no secret, and their hash is no cryptographic one: whoever may write most of the
calibration queries can choose which of them are kept.

Source: sampling by the least hashes, Broder, "On the resemblance and containment of documents"
(Compression and Complexity of Sequences 1997).
"""

import torch
from torch import Tensor

from oneway.checks import NUMBERS_AT_ONCE, filled, in_parts

MOST_ROWS = 2**14
"""Rows of a label that boxes are cut from, at most."""

SPARE = 1.05
"""Rows that are looked at, by those that are kept: keys are as good as uniform, so that with so
many to spare the least of 16,384 are among them."""

MULTIPLIERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Odd numbers of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), as signed 64 bits."""


def sample_rows(
    logits: Tensor, most: int = MOST_ROWS, rows: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the ``(n)`` int64 numbers of the rows that a sample keeps of each label, on the CPU.

    Beside what is returned, memory is a number per row, and ``most`` rows of each label.

    Args:
        logits: ``(N, K)`` floating scores, finite; may be mapped from a file.
        most: Largest number of rows of a label.
        rows: ``(n)`` int64, the rows that there are, on the CPU; None: all. What a sample keeps
            stays in their order.
    """
    labels = labels_of(logits) if rows is None else labels_of(logits)[rows]
    counts = labels.bincount(minlength=logits.shape[-1])
    if (counts > most).any():
        places = _least_keys(logits, labels, counts, most, rows)
        labels, counts = labels[places], counts.clamp_max(most)
    else:
        places = torch.arange(len(labels))
    places = places[labels.argsort(stable=True)]
    parts: tuple[Tensor, ...] = (places if rows is None else rows[places]).split(counts.tolist())
    return parts


def _least_keys(
    logits: Tensor, labels: Tensor, counts: Tensor, most: int, rows: Tensor | None
) -> Tensor:
    """Return the int64 places of the ``most`` rows of each label that have the least keys."""
    wanted = counts.clamp_max(most)
    shares = torch.where(counts > most, SPARE * most / counts, torch.inf)
    while True:
        places, keys = _below(logits, labels, counts, shares, rows)
        are_short = labels[places].bincount(minlength=len(counts)) < wanted
        if not are_short.any():
            break
        # Copies of a row have its key, so that keys may be uneven.
        shares = torch.where(are_short, torch.inf, shares)
    own = labels[places]
    of_labels = own.argsort(stable=True).split(own.bincount(minlength=len(counts)).tolist())
    is_kept = torch.zeros(len(places), dtype=torch.bool)
    for each in of_labels:
        is_kept[each[keys[each].argsort(stable=True)[:most]]] = True
    return places[is_kept]


def _below(
    logits: Tensor, labels: Tensor, counts: Tensor, shares: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the int64 places and keys of rows whose key is in their label's share of all keys."""
    last = torch.iinfo(torch.int64).max
    ends = [last if share >= 1 else int((share - 0.5) * 2**64) for share in shares.tolist()]
    limits = torch.tensor(ends)
    at_once = max(1, NUMBERS_AT_ONCE // (4 * logits.shape[-1]))  # hashes take eight bytes
    # Room for as many as are expected, and some; see :func:`oneway.checks.filled`.
    expected = float((counts * shares.clamp_max(1)).sum())
    found = torch.empty(2, int(1.01 * expected) + at_once, dtype=torch.int64)
    start = end = 0
    for own in labels.split(at_once):
        span = slice(start, start + len(own))
        keys = row_keys(logits[span] if rows is None else logits[rows[span].to(logits.device)])
        below = (keys <= limits.index_select(0, own)).nonzero()[:, 0]
        while end + len(below) > found.shape[1]:
            found = torch.cat([found, torch.empty_like(found)], 1)
        found[0, end : end + len(below)] = below + start
        found[1, end : end + len(below)] = keys[below]
        start, end = span.stop, end + len(below)
    return found[0, :end], found[1, :end]


def labels_of(logits: Tensor) -> Tensor:
    """Return the ``(N)`` int32 predicted labels of ``(N, K)`` scores, on the CPU."""
    labels = torch.empty(len(logits), dtype=torch.int32)
    return filled(labels, (part.argmax(-1) for part in in_parts(logits)))


def row_keys(logits: Tensor) -> Tensor:
    """Return ``(N)`` int64 hashes of ``(N, K)`` scores; sums and products leave out what is over.

    Adding 0 turns -0 into 0, which is the same score.
    """
    bits = (logits.detach().cpu().double() + 0.0).view(torch.int64)
    places = _mixed(torch.arange(1, bits.shape[-1] + 1))
    return _mixed(_mixed(bits ^ places).sum(-1))


def _mixed(numbers: Tensor) -> Tensor:
    """Return int64 numbers whose bits all depend on all bits of those given."""
    first, second, third = MULTIPLIERS
    mixed = numbers + first
    # In place: what is made on the way would take several times the memory of the numbers.
    for shift, factor in ((30, second), (27, third), (31, 1)):
        # Of a signed number a shift to the right keeps the sign: the bits above are taken out.
        above = mixed >> shift
        above &= (1 << 64 - shift) - 1
        mixed ^= above
        mixed *= factor
    return mixed
