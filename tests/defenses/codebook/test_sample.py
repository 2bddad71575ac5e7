"""A sample of calibration rows: the same for any split and order, and all rows where they fit."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from oneway.defenses.codebook import FitSettings, fit_codebook, sample
from oneway.defenses.codebook import fit as fitting
from oneway.defenses.codebook.sample import sample_rows


def scores(rows, classes=3, seed=0):
    return torch.randn(rows, classes, generator=Generator().manual_seed(seed)) * 3


def kept_of(logits, most):
    return torch.cat(sample_rows(logits, most)).sort().values


def same_rows(one, other):
    return sorted(one.tolist()) == sorted(other.tolist())


@given(st.integers(0, 50), st.integers(1, 30), st.lists(st.integers(0, 80), max_size=4))
def test_a_sample_of_samples_is_the_sample_of_all_rows_in_any_order(seed, most, ends):
    logits = scores(80, seed=seed)
    logits[40:50] = logits[:10]  # copies
    wanted = logits[kept_of(logits, most)]
    shuffled = logits[torch.randperm(80, generator=Generator().manual_seed(seed))]
    edges = sorted({0, 80, *ends})
    blocks = [shuffled[a:b] for a, b in itertools.pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "NUMBERS_AT_ONCE", 1 + seed)
        parts = [block[kept_of(block, most)] for block in blocks]
        merged = torch.cat(parts)
        assert same_rows(merged[kept_of(merged, most)], wanted)
    # Of a label with few rows all are kept, of others the same number.
    counts = logits.argmax(-1).bincount(minlength=3).clamp_max(most)
    assert torch.equal(wanted.argmax(-1).bincount(minlength=3), counts)


def test_each_row_of_a_label_is_kept_as_often_and_types_do_not_matter():
    logits, hits = scores(40_000, 2), 0
    own = (logits.argmax(-1) == 0).nonzero()[:, 0]
    kept = kept_of(logits, 5_000)
    for part in own.tensor_split(10):
        hits = int(torch.isin(part, kept).sum())
        assert abs(hits - 500) < 5 * 500**0.5
    top = logits.softmax(-1).amax(-1)
    assert float(top[kept].mean()) == pytest.approx(float(top.mean()), abs=0.01)
    assert torch.equal(kept_of(logits.double(), 5_000), kept)
    signed = torch.tensor([[0.0, -1.0], [0.0, -2.0], [0.0, -3.0]])
    assert torch.equal(kept_of(signed, 1), kept_of(signed * 1.0 - 0.0, 1))


def test_a_fit_cuts_the_sample_and_each_cell_has_its_members(monkeypatch):
    logits, settings = scores(3000), FitSettings(min_members=20)
    exact = fit_codebook(logits, settings)
    monkeypatch.setattr(fitting, "sample_rows", partial(sample_rows, most=400))
    sampled = fit_codebook(logits, settings)
    assert torch.equal(sampled.edges, fit_codebook(logits[kept_of(logits, 400)]).edges)
    assert int(sampled.members.sum()) == 3 * 400
    assert int(sampled.members.min()) >= 20
    costs = [
        float((book.expand(book.values, book(logits)) - logits.double().softmax(-1)).abs().sum())
        for book in (exact, sampled)
    ]
    # As many members of fewer rows are coarser cells.
    assert costs[0] < costs[1] < 2 * costs[0]


def test_the_sample_is_the_least_keys_however_many_copies_share_one():
    logits = scores(6000)
    logits[1000:4000] = logits[3]
    labels, keys = logits.argmax(-1), sample.row_keys(logits)
    for most in (7, 300, 1500, 2900):
        wanted = [
            sorted(zip(keys[rows].tolist(), rows.tolist(), strict=True))[:most]
            for rows in ((labels == label).nonzero()[:, 0] for label in range(3))
        ]
        for rows in (None, torch.arange(6000)):
            found = sample_rows(logits, most, rows)
            for own, pairs in zip(found, wanted, strict=True):
                assert own.tolist() == sorted(row for _, row in pairs), most
