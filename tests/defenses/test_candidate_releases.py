"""All releases that map many scores to one, judged by the same figures."""

import dataclasses

import numpy as np
import pytest
import torch

from oneway.defenses import (
    certify_candidate,
    choose_candidate,
    measure_candidates,
    pareto_optimal,
)
from oneway.defenses.codebook import CodebookRelease, FitSettings
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


def test_a_table_that_several_settings_give_is_one_candidate():
    logits, images = random_rows(1, 900, 4, torch.float32, 1), random_images(2, 900, (1, 4, 3))
    found = measure_candidates(logits, images, generator=torch.Generator().manual_seed(0))
    tables = [one.release.state.values for one in found if one.defense == "codebook"]
    whole = [values for values in tables if len(values) == 4]  # one cell for each label
    assert len(whole) == 2  # about the mean, and about the median
    assert not torch.equal(*whole)


def test_few_cells_leave_codebooks_alone_and_are_kept_where_the_winner_is_certified():
    logits, images = random_rows(1, 400, 3, torch.float32, 2), random_images(2, 400, (1, 4, 4))
    limits = {"min_members": (10,), "max_cells": 4}
    few = measure_candidates(logits, images, generator=torch.Generator().manual_seed(0), **limits)
    assert {(one.defense, one.options["max_cells"]) for one in few} == {("codebook", 4)}
    assert max(one.release.state.sizes.cells for one in few) == 4
    for one in few:
        seeded = torch.Generator().manual_seed(0)
        told = certify_candidate(one, logits, images, generator=seeded)[1]
        assert told.identification.cells <= 4


def test_figures_are_those_of_rows_that_neither_fit_nor_certify(candidates):
    logits, images = random_rows(1, 600, 4, torch.float32, 2), random_images(2, 600, (1, 4, 4))
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    own = order[120:360]
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
        assert one.certified == pytest.approx(total / 240)
        assert one.alone == pytest.approx(alone / 240)


def test_the_choice_is_the_best_certified_one_within_the_budget(candidates):
    for budget in (0.05, 0.3, 2.0):
        chosen = choose_candidate(candidates, budget)
        assert chosen.l1_mean <= budget
        within = [one.certified for one in candidates if one.l1_mean <= budget]
        assert chosen.certified == max(within)


def test_of_candidates_that_hide_as_much_the_choice_moves_least(candidates):
    moved = [dataclasses.replace(candidates[0], l1_mean=l1) for l1 in (0.3, 0.1, 0.2)]
    assert choose_candidate(moved, 2.0) is moved[1]


def test_the_pareto_optimal_are_those_that_none_beats_in_both(candidates):
    best = pareto_optimal(candidates)
    for one in candidates:
        beaten = any(
            round(other.l1_mean, 4) <= round(one.l1_mean, 4) and other.certified > one.certified
            for other in candidates
        )
        assert beaten or any(
            round(kept.l1_mean, 4) <= round(one.l1_mean, 4) and kept.certified >= one.certified
            for kept in best
        )
        assert not (beaten and one in best)


def test_an_impossible_budget_and_a_share_that_leaves_nothing_are_refused(candidates):
    with pytest.raises(InvalidOptionError, match="the nearest moves them by"):
        choose_candidate(candidates, 0.0)
    for share in (0.0, 0.1, 1.0):
        with pytest.raises(InvalidOptionError, match="held_out must leave queries"):
            measure_candidates(
                torch.zeros(8, 3),
                torch.zeros(8, 1, 2, 2),
                generator=torch.Generator(),
                held_out=share,
            )


def test_the_winner_is_certified_on_rows_that_no_figure_of_a_candidate_depends_on():
    logits, images = random_rows(1, 240, 4, torch.float32, 2), random_images(2, 240, (1, 4, 4))
    certifying = torch.randperm(240, generator=seeded())[:96]
    other, shown = logits.clone(), images.clone()
    other[certifying], shown[certifying] = logits[:96] * 0.1, 1 - images[:96]
    candidates, again = (
        measure_candidates(*rows, generator=seeded(), min_members=(30,), held_out=0.4)
        for rows in ((logits, images), (other, shown))
    )
    assert figures_of(again) == figures_of(candidates)
    for name in ("codebook", "top-rounding"):
        chosen = min((one for one in candidates if one.defense == name), key=lambda one: one.alone)
        guard, told = certify_candidate(chosen, logits, images, generator=seeded(), held_out=0.4)
        assert (told.queries, told.held_out.answer) == (96, "yes")
        if name == "codebook":
            fitting = FitSettings(**chosen.options)
            refitted = CodebookRelease.fit(
                logits, images, generator=seeded(), settings=fitting, held_out=0.4
            )
            assert told == refitted.certificate
            assert guard.state.digest() == refitted.state.digest()
        else:
            clean = logits[certifying].double().softmax(-1)
            released = release(chosen.release(logits[certifying]), dtype=torch.float64)
            moved = float((released - clean).abs().sum(-1).mean())
            assert told.distortion["l1_probabilities"]["mean"] == pytest.approx(moved)


def test_copies_fit_once_and_judge_as_often_as_they_come():
    logits, images = random_rows(1, 200, 3, torch.float32, 2), random_images(2, 200, (1, 2, 2))
    rows = torch.cat([torch.arange(200), torch.full((600,), 7)])
    kept, dropped = (
        measure_candidates(
            logits[rows], images[rows], generator=seeded(), min_members=(20,), drop_copies=drop
        )
        for drop in (False, True)
    )
    assert min(one.release.state.members.sum() for one in kept if one.defense == "codebook") < 100
    best, unaware = (max(one.certified for one in each) for each in (kept, dropped))
    assert best < 0.5 * unaware  # three quarters of the traffic are one image


def figures_of(candidates):
    return [(one.options, one.l1_mean, one.certified, one.bits) for one in candidates]


def seeded():
    return torch.Generator().manual_seed(0)


def test_with_a_cap_on_cells_all_candidates_are_tables_within_it(candidates):
    logits = random_rows(1, 600, 4, torch.float32, 2)
    capped = measure_candidates(
        logits,
        random_images(2, 600, (1, 4, 4)),
        generator=torch.Generator().manual_seed(0),
        min_members=(10,),
        max_cells=8,
    )
    assert all(4 <= one.cells <= 8 and one.options["max_cells"] == 8 for one in capped)
    free = [one for one in candidates if one.cells is not None]
    assert max(one.cells for one in free) > 8
    assert len(free) < len(candidates)
