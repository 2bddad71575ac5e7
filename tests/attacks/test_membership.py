"""Membership attacks on planted answers: a signal is found, and nothing is found in noise."""

from dataclasses import replace

import pytest
import torch

from laws import looped
from oneway.attacks.membership import MEMBERSHIP_ATTACKS
from oneway.attacks.membership.scores import modified_entropy, normal_ranks, scaled_confidence
from oneway.contracts import MembershipKnowledge
from oneway.evaluation.membership import grade_membership
from oneway.metrics.membership import area_under_curve, resampled_counts

ROWS, MODELS, CLASSES, QUERIES = 240, 4, 4, 2
FITTED = {"trained-classifier", "quantile-regression", "label-copies", "membership-stack"}
ALONE = [name for name in MEMBERSHIP_ATTACKS if name != "membership-stack"]


def planted(lead, seed=0):
    """Knowledge of models whose members' true labels lead by so many nats; and the members."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(ROWS, 6, generator=generator)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    halves = torch.stack(
        [torch.randperm(ROWS, generator=generator) < ROWS // 2 for _ in range(MODELS // 2 + 1)]
    )
    members = torch.stack([halves, ~halves], 1).flatten(0, 1)
    hard = torch.randn(ROWS, 1, 1, generator=generator)

    def answers(rows, inside):
        shape = (*inside.shape, QUERIES, CLASSES)
        logits = torch.randn(shape, generator=generator).double() + hard[: len(rows)]
        lead_of = 1 + lead * inside.double().unsqueeze(-1).expand(*inside.shape, QUERIES)
        index = rows.view(-1, 1, 1).expand(*shape[:-1], 1)
        return logits.scatter_add(-1, index, lead_of.unsqueeze(-1)).softmax(-1)

    released, others = answers(labels, members), labels[:100]
    population = answers(others, torch.zeros(len(members), 100, dtype=torch.bool))
    first = slice(2, None)  # the attacked model's pair is no reference
    return (
        MembershipKnowledge(
            inputs,
            labels,
            released[0],
            torch.rand(100, 6, generator=generator),
            others,
            population[0],
            released[first],
            members[first],
            population[first],
        ),
        members[0],
    )


@pytest.fixture(scope="module")
def graded():
    counts = resampled_counts(ROWS, torch.Generator().manual_seed(0), 2)
    return {
        lead: {each.attack: each for each in grade_membership(*planted(lead), counts)}
        for lead in (0.0, 3.0)
    }


def test_every_attack_finds_a_planted_signal_and_the_stack_is_among_the_best(graded):
    areas = {name: float(each.measures.area[0]) for name, each in graded[3.0].items()}
    assert set(areas) == set(MEMBERSHIP_ATTACKS)
    assert min(areas.values()) > 0.6
    assert areas["online-lira"] > 0.9
    assert areas["membership-stack"] > max(areas.values()) - 0.02
    games = [each.game_area for each in graded[3.0].values()]
    assert min(games) > 0.6


def test_no_attack_finds_anything_in_noise_nor_does_a_stack_in_its_games(graded):
    """Members are random here, so that a larger area is a leak of the evaluation itself."""
    for each in graded[0.0].values():
        assert 0.4 < float(each.measures.area[0]) < 0.6, each.attack
        assert 0.4 < each.game_area < 0.6, each.attack


def test_a_game_leaves_out_the_pair_so_that_counts_of_models_say_nothing():
    knowledge, _ = planted(0.0)
    for number in knowledge.games:
        game, members = knowledge.game(number)
        assert torch.equal(members, knowledge.reference_members[number])
        assert (game.reference_members.sum(0) == MODELS // 2 - 1).all()
        assert game.candidate_scores is None


@looped("name", [name for name in ALONE if name not in FITTED])
def test_scores_follow_their_candidates_wherever_these_stand(name):
    knowledge, _ = planted(1.0)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    moved = replace(
        knowledge,
        inputs=knowledge.inputs[order],
        labels=knowledge.labels[order],
        released=knowledge.released[order],
        reference_released=knowledge.reference_released[:, order],
        reference_members=knowledge.reference_members[:, order],
    )
    attack = MEMBERSHIP_ATTACKS[name]
    torch.testing.assert_close(attack(moved), attack(knowledge)[order])


@looped("name", ALONE)
def test_without_references_or_copies_only_attacks_that_need_none_apply(name):
    knowledge, members = planted(3.0)
    bare = replace(
        knowledge,
        released=knowledge.released[:, :1],
        population_released=knowledge.population_released[:, :1],
        reference_released=knowledge.reference_released[:0, :, :1],
        reference_members=knowledge.reference_members[:0],
        reference_population=knowledge.reference_population[:0, :, :1],
    )
    scores = MEMBERSHIP_ATTACKS[name](bare)
    assert (scores is None) is bool(MEMBERSHIP_ATTACKS[name].requires)
    if scores is not None:
        assert area_under_curve(scores, members) > 0.6


def test_cells_that_no_normal_distribution_fits_are_read_by_counts():
    """Scores of members are 1 or -1, others' 0 or +-sqrt(2): of the same mean and variance."""
    knowledge, members = planted(0.0)
    generator = torch.Generator().manual_seed(2)
    right = torch.tensor([-1, 1, 0, 0, -(2**0.5), 2**0.5]).double().sigmoid()

    def released(inside):
        drawn = torch.rand(inside.shape, generator=generator)
        cells = torch.where(inside, (2 * drawn).long(), 2 + (4 * drawn).long())
        others = (1 - right[cells]) / (CLASSES - 1)
        vectors = others.unsqueeze(-1).expand(*inside.shape, CLASSES)
        index = knowledge.labels.view(-1, 1).expand(*inside.shape, 1)
        return vectors.scatter(-1, index, right[cells].unsqueeze(-1)).unsqueeze(-2)

    discrete = replace(
        knowledge,
        released=released(members),
        reference_released=released(knowledge.reference_members),
    )
    areas = {
        name: area_under_curve(MEMBERSHIP_ATTACKS[name](discrete), members)
        for name in ("online-lira", "cell-likelihood")
    }
    assert areas["cell-likelihood"] > 0.95
    assert areas["online-lira"] < 0.65


def test_scores_of_a_vector_are_their_formulas():
    released = torch.tensor([[[0.7, 0.2, 0.1]]]).double()
    labels = torch.tensor([0])
    assert float(scaled_confidence(released, labels)) == pytest.approx(torch.tensor(7 / 3).log())
    logs = torch.tensor([0.7, 0.8, 0.9]).double().log()
    expected = -0.3 * logs[0] - 0.2 * logs[1] - 0.1 * logs[2]
    assert float(modified_entropy(released, labels)) == pytest.approx(float(expected))
    zeros = torch.tensor([[[1.0, 0.0, 0.0]]])
    assert scaled_confidence(zeros, labels).isfinite().all()
    assert modified_entropy(zeros, torch.tensor([1])).isfinite().all()
    assert normal_ranks(torch.tensor([5.0, 5.0])).tolist() == [0, 0]
