"""Thieves: exact where the model is linear, and never beyond their budget."""

from collections.abc import Callable
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from laws import looped
from oneway.attacks.stealing import STEALING_ATTACKS, ThiefKnowledge
from oneway.attacks.stealing.boundary import Boundary
from oneway.attacks.stealing.cell_boundary import CellBoundary
from oneway.attacks.stealing.equation_solving import EquationSolving
from oneway.attacks.stealing.jacobian import Jacobian
from oneway.attacks.stealing.soft_labels import SoftLabels
from oneway.attacks.stealing.training import copy_trainer
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.rounding import Rounding
from oneway.releases import release

SEEDS = st.integers(0, 2**32 - 1)


def linear(seed: int, classes: int, entries: int = 5) -> Callable[[Tensor], Tensor]:
    """Return a linear model's float64 logits; its boundaries cross the middle of the inputs."""
    generator = torch.Generator().manual_seed(seed)
    weights = 6 * torch.randn(entries, classes, generator=generator, dtype=torch.float64)
    return lambda inputs: (inputs.flatten(1).double() - 0.5) @ weights


def thief(
    answer: Callable[[Tensor], Tensor], seed: int, budget: int, entries: int = 5
) -> ThiefKnowledge:
    """Return a thief with random inputs, one entry of which never changes."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(2000, entries, generator=generator)
    own[:, -1] = 0.25
    return ThiefKnowledge(answer, budget, own, copy_trainer(30, generator), generator)


def queries(seed: int) -> Tensor:
    """Return 400 other inputs."""
    return thief(torch.clone, seed + 1, 1).own[:400]


@settings(max_examples=10)
@given(SEEDS, st.integers(2, 4))
def test_clean_answers_give_a_linear_model_from_one_query_more_than_inputs(
    seed: int, classes: int
) -> None:
    logits = linear(seed, classes)
    knowledge = thief(lambda inputs: release(logits(inputs), dtype=torch.float64), seed, 6)
    (copy,) = EquationSolving().run(knowledge).values()
    asked = queries(seed)
    torch.testing.assert_close(
        copy(asked).softmax(-1), logits(asked).softmax(-1), atol=1e-6, rtol=0
    )


@settings(max_examples=10)
@given(SEEDS, st.integers(2, 3))
def test_labels_alone_give_the_labels_of_a_linear_model(seed: int, classes: int) -> None:
    logits = linear(seed, classes)
    knowledge = thief(lambda inputs: release(LabelOnly()(logits(inputs))), seed, 2000)
    copies = Boundary().run(knowledge)
    asked = queries(seed)
    truth = logits(asked)
    wrong = sum(
        float((copy(asked).argmax(-1) != truth.argmax(-1)).double().mean())
        for copy in copies.values()
    )
    seen = logits(knowledge.own).argmax(-1).bincount(minlength=classes)
    if (seen > 200).all():  # every label has boundaries enough
        assert copies
        assert wrong < 0.02


@settings(max_examples=10)
@given(SEEDS)
def test_boundaries_of_known_cells_give_the_exact_scores_of_two_classes(seed: int) -> None:
    logits = linear(seed, 2)

    def guarded(scores: Tensor) -> Tensor:
        return release(Rounding(decimals=1)(scores))

    knowledge = thief(lambda inputs: guarded(logits(inputs)), seed, 1500)
    (copy,) = CellBoundary().run(replace(knowledge, release=guarded)).values()
    asked = queries(seed)
    error = (copy(asked).softmax(-1) - logits(asked).softmax(-1)).abs().max()
    assert error < 1e-3
    # Without the halving the same answers are worth far less.
    (coarse,) = EquationSolving().run(knowledge).values()
    assert (coarse(asked).softmax(-1) - logits(asked).softmax(-1)).abs().max() > 10 * error


def test_cells_of_labels_alone_give_no_scale() -> None:
    logits = linear(0, 2)

    def guarded(scores: Tensor) -> Tensor:
        return release(LabelOnly()(scores))

    knowledge = thief(lambda inputs: guarded(logits(inputs)), 0, 1500)
    assert not CellBoundary().run(replace(knowledge, release=guarded))


@looped("name", STEALING_ATTACKS)
@looped("budget", [1, 7, 300])
def test_no_thief_asks_more_than_its_budget(name: str, budget: int) -> None:
    logits, asked = linear(1, 2), 0

    def ask(inputs: Tensor) -> Tensor:
        nonlocal asked
        asked += len(inputs)
        return release(logits(inputs))

    knowledge = thief(ask, 1, budget)
    knowledge = replace(
        knowledge,
        public=knowledge.own,
        cell_means=torch.clone,
        release=release,
        train=lambda *_: lambda rows: rows.flatten(1)[:, :2],
    )
    STEALING_ATTACKS[name].run(knowledge)
    assert asked <= budget
    assert asked or budget < 8


def test_a_thief_who_knows_the_table_trains_on_its_means() -> None:
    logits, seen = linear(2, 3), list[Tensor]()

    def train(_: Tensor, answers: Tensor) -> Callable[[Tensor], Tensor]:
        seen.append(answers)
        return logits

    knowledge = thief(lambda inputs: release(logits(inputs)), 2, 50)
    knowledge = replace(knowledge, train=train, cell_means=lambda answers: answers * 0 + 1 / 3)
    assert set(SoftLabels().run(knowledge)) == {"as released", "means of cells"}
    assert (seen[1] == 1 / 3).all()
    assert not (seen[0] == 1 / 3).all()


def test_augmented_queries_leave_the_label_of_the_copy() -> None:
    logits, asked = linear(3, 2), list[Tensor]()

    def ask(inputs: Tensor) -> Tensor:
        asked.append(inputs)
        return release(logits(inputs))

    # The copy is the model itself.
    Jacobian().run(replace(thief(ask, 3, 80), train=lambda *_: logits))
    assert [len(rows) for rows in asked] == [10, 10, 20, 40]
    first, moved = asked[:2]
    labels = logits(first).argmax(-1, keepdim=True)
    assert (logits(moved).gather(-1, labels) < logits(first).gather(-1, labels)).all()
    assert (moved - first).abs().max() <= 0.1 + 1e-6
