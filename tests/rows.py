"""Rows of scores for the laws: how they are drawn, ranked, and compared to the bit."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from oneway.checks import FLOATING

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def smallest_subnormal(dtype: torch.dtype) -> float:
    limits = torch.finfo(dtype)
    return limits.tiny * limits.eps


def scores(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Ties, everyday logits, numbers next to zero, and numbers an eighth of the largest."""
    huge = float(torch.finfo(dtype).max) / 8
    return st.one_of(
        st.integers(-2, 2).map(float),
        st.floats(-30, 30),
        st.sampled_from([-0.0, smallest_subnormal(dtype), -torch.finfo(dtype).tiny]),
        st.floats(-huge, huge),
    )


@st.composite
def tensors(draw: st.DrawFn, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
    rows, classes = shape
    row = st.one_of(
        st.lists(scores(dtype), min_size=classes, max_size=classes),
        scores(dtype).map(lambda score: [score] * classes),
    )
    tensor = torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)), dtype=dtype)
    if draw(st.booleans()):
        one, other = draw(st.permutations(range(classes)))[:2]
        towards = draw(st.sampled_from([-torch.inf, torch.inf]))
        neighbour = torch.nextafter(tensor[:, one], torch.full_like(tensor[:, one], towards))
        tensor[:, other] = neighbour
    return tensor


@st.composite
def score_rows(
    draw: st.DrawFn, dtypes: Sequence[torch.dtype] = FLOATING, count: int = 1
) -> tuple[Tensor, ...] | Tensor:
    """Draw ``count`` tensors of one type and one shape ``(N, K)``; one comes without its tuple."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 8)))
    drawn = tuple(draw(tensors(dtype, shape)) for _ in range(count))
    return drawn if count > 1 else drawn[0]


@st.composite
def score_rows_and_labels(
    draw: st.DrawFn, dtypes: Sequence[torch.dtype] = FLOATING
) -> tuple[Tensor, Tensor]:
    logits = draw(score_rows(dtypes))
    rows, classes = logits.shape
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return logits, torch.tensor(labels)


def random_rows(seed: int, rows: int, classes: int, dtype: torch.dtype, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return (scale * normal).to(dtype)


def leads(rows: Tensor, labels: Tensor) -> bool:
    """Say whether the label's entry is the only maximum of every row."""
    index = labels.unsqueeze(-1)
    rival = rows.scatter(-1, index, -torch.inf).amax(-1, keepdim=True)
    return bool((rows.gather(-1, index) > rival).all())


def lead_of(rows: Tensor, labels: Tensor) -> Tensor:
    """Return by how much each label's entry exceeds the largest other one, in float64."""
    index = labels.unsqueeze(-1)
    wide = rows.double()
    rival = wide.scatter(-1, index, -torch.inf).amax(-1)
    return wide.gather(-1, index).squeeze(-1) - rival


def same_bits(one: Tensor, other: Tensor) -> bool:
    kind = BITS[one.dtype]
    return one.dtype == other.dtype and torch.equal(one.view(kind), other.view(kind))
