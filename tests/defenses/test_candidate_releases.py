"""All releases that map many scores to one, judged by the same figures."""

import numpy as np
import pytest
import torch

from oneway.defenses import choose_candidate, measure_candidates, pareto_optimal
from oneway.errors import InvalidOptionError
from oneway.releases import release
from rows import random_rows
from surrogates import random_images


@pytest.fixture(scope="module")
def candidates():
    logits = random_rows(1, 600, 4, torch.float32, 2)
    return measure_candidates(
        logits,
        random_images(2, 600, (1, 4, 4)),
        generator=torch.Generator().manual_seed(0),
        min_members=(10,),
    )


def test_it_holds_codebooks_and_roundings_each_with_its_own_figures(candidates):
    assert {one.defense for one in candidates} == {"codebook", "rounding", "top-rounding"}
    figures = [(one.l1_mean, one.certified, one.bits) for one in candidates]
    assert len(set(figures)) == len(figures)


def test_figures_are_those_of_the_half_that_nothing_was_fitted_to(candidates):
    logits, images = random_rows(1, 600, 4, torch.float32, 2), random_images(2, 600, (1, 4, 4))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    own = order[:300]
    clean, shown = logits[own].double().softmax(-1), images[own].flatten(1).double().numpy()
    for one in candidates:
        told = release(one.release(logits[own]), dtype=torch.float64)
        assert one.l1_mean == pytest.approx(float((told - clean).abs().sum(-1).mean()))
        _, cells = np.unique(told.numpy(), axis=0, return_inverse=True)
        total, alone = 0.0, 0
        for cell in range(cells.max() + 1):
            members = shown[cells.ravel() == cell]
            if len(members) > 1:
                total += len(members) * members.var(0, ddof=1).mean()
            else:
                alone += 1
        assert one.certified == pytest.approx(total / 300)
        assert one.alone == pytest.approx(alone / 300)


def test_the_choice_is_the_best_certified_one_within_the_budget(candidates):
    for budget in (0.05, 0.3, 2.0):
        chosen = choose_candidate(candidates, budget)
        assert chosen.l1_mean <= budget
        within = [one.certified for one in candidates if one.l1_mean <= budget]
        assert chosen.certified == max(within)


def test_the_pareto_optimal_are_those_that_none_beats_in_both(candidates):
    best = pareto_optimal(candidates)
    for one in candidates:
        beaten = any(
            other.l1_mean <= one.l1_mean and other.certified > one.certified for other in candidates
        )
        assert beaten or any(
            kept.l1_mean <= one.l1_mean and kept.certified >= one.certified for kept in best
        )
        assert not (beaten and one in best)


def test_an_impossible_budget_and_a_share_that_leaves_nothing_are_refused(candidates):
    with pytest.raises(InvalidOptionError, match="the nearest moves them by"):
        choose_candidate(candidates, 0.0)
    with pytest.raises(InvalidOptionError, match="held_out must leave queries"):
        measure_candidates(
            torch.zeros(8, 3),
            torch.zeros(8, 1, 2, 2),
            generator=torch.Generator(),
            held_out=0.0,
        )
