"""Attack clean scores on a certificate's own traffic, so that its error has a scale.

Where scores of changed copies were given, several guarded answers are attacked, too.

A defense loads no attack, so that whoever certifies passes this on: the commands do.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from oneway.attacks.label_means import label_means
from oneway.defenses.codebook import Certificate, Codebook
from oneway.defenses.codebook.betting import canonical_order, one_of_each
from oneway.defenses.codebook.release import Rows
from oneway.defenses.codebook.traffic import first_copies, query_keys, select_rows
from oneway.defenses.codebook.yardsticks import least_gap, yardstick
from oneway.errors import InvalidOptionError
from oneway.evaluation.several_answers import ridge_errors, with_errors
from oneway.metrics import inversion_errors
from oneway.releases import release

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
