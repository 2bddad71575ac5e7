"""Attack several answers to a query and to changed copies of it, by kernel ridge regression."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from oneway.attacks import KernelRidge, Stack
from oneway.attacks.label_means import label_means
from oneway.contracts import AttackerKnowledge
from oneway.defenses.codebook import Codebook, Composition
from oneway.defenses.codebook.composition import cells_of_answers
from oneway.defenses.codebook.crossings import answers_of
from oneway.defenses.codebook.release import Rows
from oneway.evaluation.grading import Candidate, run_attack
from oneway.metrics import inversion_errors
from oneway.releases import release

HELD_OUT = 8
"""One of so many of the attacker's rows is held out, for choices and for the mixture."""

ROWS = 600
"""Most rows that attacks on several answers are fitted to: they take seconds for each number."""

Pair = tuple[Tensor, Tensor]
"""``(n, F)`` vectors on the simplex of the attacker's rows, and ``(N, F)`` those of the queries."""


def with_errors(
    composition: Composition | None, codebook: Codebook, fitting: Rows, asked: Rows, once: Tensor
) -> Composition | None:
    """Return a composition with the error of an attack on each number of answers.

    The attack mixes kernel ridge regressions on the mean released vector and on the share of each
    cell among the answers. Where changes are drawn alike for all queries, their order tells
    nothing. It is fitted to other rows of the same traffic with as many answers. Whoever has more
    answers may use fewer, so that errors do not rise with their number. To compare with, the same
    attack reads one clean answer, and the label's mean is a guess from as many rows.

    Args:
        composition: Without errors; None is returned as it is.
        codebook: The table.
        fitting: The attacker's rows.
        asked: The rows that the attack is graded on.
        once: ``(n)`` int64, the rows among these whose mean error counts: one of each group.
    """
    if composition is None or fitting.variants is None or asked.variants is None:
        return composition
    fitting = fitting.of(torch.arange(min(len(fitting.logits), ROWS)))
    read = release(fitting.logits), release(asked.logits)
    clean = ridge_errors([read], fitting.queries, asked.queries)[once]
    cells = [
        cells_of_answers(codebook, answers_of(each.logits, each.variants))
        for each in (fitting, asked)
        if each.variants is not None
    ]
    vectors = codebook.expand(codebook.values, torch.arange(codebook.sizes.cells).to(cells[0]))
    rows, least = [], 1.0
    for row in composition.rows:
        own, released = (_shares(each[:, : row.answers], codebook) for each in cells)
        known = [(own.float(), released.float())]
        known.append(((own @ vectors).float(), (released @ vectors).float()))
        errors = ridge_errors(known, fitting.queries, asked.queries)
        least = min(least, float(errors[once].mean()))
        rows.append(replace(row, error=least))
    return replace(
        composition,
        rows=tuple(rows),
        clean=float(clean.mean()),
        label=float(_label_errors(fitting, asked)[once].mean()),
    )


def _label_errors(fitting: Rows, asked: Rows) -> Tensor:
    """Return the ``(N)`` errors of label means of the rows that the attacks are fitted to."""
    kept = fitting.of((torch.arange(len(fitting.logits)) % HELD_OUT > 0).nonzero()[:, 0])
    means = label_means(kept.queries, kept.logits.argmax(-1), kept.logits.shape[-1])
    return inversion_errors(asked.queries, means[asked.logits.argmax(-1)])


def _shares(cells: Tensor, codebook: Codebook) -> Tensor:
    """Return the ``(N, C)`` float64 share of each cell among ``(N, m)`` int64 cells."""
    return one_hot(cells, codebook.sizes.cells).double().mean(1)


def ridge_errors(known: Sequence[Pair], images: Tensor, queries: Tensor) -> Tensor:
    """Return the ``(N)`` float64 errors on the CPU of a mixture of kernel ridge regressions.

    Args:
        known: What is read, each by regressions of its own.
        images: ``(n, ...)`` the attacker's inputs.
        queries: ``(N, ...)`` the queries.
    """
    held_out = torch.arange(len(images), device=images.device) % HELD_OUT == 0
    candidates = list[Candidate]()
    for own, released in known:
        knowledge = AttackerKnowledge(images, own, own, held_out)
        ridge = run_attack("", KernelRidge(), knowledge, _no_decoder, released, queries)
        assert ridge is not None  # noqa: S101  narrows the type; it always applies
        candidates += ridge.candidates
    knowledge = replace(knowledge, candidates=[each.held_out for each in candidates])
    mixed = run_attack(
        "", Stack(), knowledge, _no_decoder, released, queries, candidates=candidates
    )
    assert mixed is not None  # noqa: S101  as above
    return mixed.errors.double().cpu()


def _no_decoder(*_: Tensor) -> torch.nn.Module:
    raise AssertionError("these attacks train no decoder")
