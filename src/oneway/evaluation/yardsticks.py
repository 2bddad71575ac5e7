"""Attack clean scores on a certificate's own traffic, so that its error has a scale.

Where scores of changed copies were given, several guarded answers are attacked, too.

A defense loads no attack, so that whoever certifies passes this on: the commands do.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from oneway.attacks import KernelRidge, Stack
from oneway.attacks.label_means import label_means
from oneway.contracts import AttackerKnowledge, Candidate
from oneway.defenses.codebook import Certificate, Codebook, Composition
from oneway.defenses.codebook.betting import canonical_order, one_of_each
from oneway.defenses.codebook.composition import cells_of_answers
from oneway.defenses.codebook.crossings import answers_of
from oneway.defenses.codebook.release import Rows
from oneway.defenses.codebook.traffic import first_copies, query_keys, select_rows
from oneway.defenses.codebook.yardsticks import least_gap, yardstick
from oneway.errors import InvalidOptionError
from oneway.evaluation.grading import run_attack
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
    knowledge = replace(knowledge, candidates=candidates)
    mixed = run_attack("", Stack(), knowledge, _no_decoder, released, queries)
    assert mixed is not None  # noqa: S101  as above
    return mixed.errors.double().cpu()


def _no_decoder(*_: Tensor) -> torch.nn.Module:
    raise AssertionError("these attacks train no decoder")


ATTACKER_ROWS = 2000
"""Most rows that the attack is fitted to. It takes seconds; more would make it a little stronger,
and the bound on G a little larger."""

MIN_ROWS = 60
"""Queries below which no attack is run: it would learn next to nothing."""


def compare_with_clean_scores(
    certificate: Certificate,
    codebook: Codebook,
    traffic: Rows,
    chosen: Tensor | None = None,
    others: Tensor | None = None,
    groups: Tensor | None = None,
) -> Certificate:
    """Return a certificate with the error of an attack on clean scores, and the bound on G.

    The attack mixes kernel ridge regressions. It is fitted to other rows of the same traffic where
    there are some, else to a third of the certified ones, and is graded on all others. The bound
    is about the same rows; see :class:`oneway.defenses.codebook.Yardsticks`.

    Args:
        certificate: What was certified on these queries. Without an error it is returned as it is,
            and with fewer than ``MIN_ROWS`` queries, or a handful of groups, too.
        codebook: The certified table.
        traffic: Rows of traffic.
        chosen: ``(N)`` int64, the numbers of the certified rows; None: all.
        others: ``(M)`` int64, the numbers of rows that are not among them, such as those that the
            table was fitted to.
        groups: ``(N)`` int64, the group of each certified row where rows of a group depend on each
            other. They are split whole, and each counts the same.

    Raises:
        InvalidOptionError: The certificate is about another number of queries.
    """
    certified = traffic if chosen is None else traffic.of(chosen)
    keys = query_keys(certified.queries)
    if certificate.traffic.copies == "dropped":
        distinct = first_copies(keys)
        keys, certified = keys[distinct], certified.of(distinct)
        groups = select_rows(groups, distinct)
    logits = certified.logits
    _check_number(certificate, len(logits))
    if certificate.yardsticks is None or len(logits) < MIN_ROWS:
        return certificate
    level, cells = certificate.level, codebook(logits)
    # From the rows themselves, so that nobody looks for a favorable split.
    seed = canonical_order(cells, keys)[1]
    generator = Generator().manual_seed(seed)
    members = (
        torch.arange(len(cells)) if groups is None else groups.cpu().unique(return_inverse=True)[1]
    )
    asked = torch.arange(len(cells))
    if others is None or len(others) < MIN_ROWS:
        count = int(members.max()) + 1
        own = torch.randperm(count, generator=generator)[: min(count // 3, ATTACKER_ROWS)]
        used = torch.isin(members, own)
        fitting, asked = certified.of(used.nonzero()[:, 0]), (~used).nonzero()[:, 0]
    else:
        drawn = torch.randperm(len(others), generator=generator)[:ATTACKER_ROWS]
        fitting = traffic.of(others[drawn])
    if len(fitting.logits) < MIN_ROWS // 3 or len(members[asked].unique()) < 2:
        return certificate  # groups so large that one part has too few
    members, rows = members[asked], certified.of(asked)
    clean = _clean_errors(fitting, rows)
    guess = label_means(fitting.queries, fitting.logits.argmax(-1), logits.shape[-1])
    once = one_of_each(members, generator)
    return replace(
        certificate,
        yardsticks=replace(
            certificate.yardsticks,
            clean=yardstick(clean[once], level),
            least_gap=least_gap(
                cells[asked.to(cells.device)],
                rows.queries.flatten(1),
                clean,
                inversion_errors(rows.queries, guess[rows.logits.argmax(-1)]),
                largest=float(guess.maximum(1 - guess).square().flatten(1).mean(-1).max()),
                level=level,
                groups=members,
                keys=keys[asked],
            ),
        ),
        composition=with_errors(certificate.composition, codebook, fitting, rows, once),
    )


def _check_number(certificate: Certificate, queries: int) -> None:
    if certificate.queries != queries:
        raise InvalidOptionError(
            f"the certificate is about {certificate.queries} queries, but got {queries}. Pass "
            "those that it was made of."
        )


def _clean_errors(fitting: Rows, asked: Rows) -> Tensor:
    """Return the ``(N)`` float64 errors on the CPU of an attack on clean scores, by query."""
    released = release(fitting.logits), release(asked.logits)
    return ridge_errors([released], fitting.queries, asked.queries)
