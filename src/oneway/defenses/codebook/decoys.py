"""Decoys: codewords that also mislead attackers who learned before the codebook was there.

Each codeword is moved, offline and within a budget, to where inverters trained on clean scores
err most about what is in its cell: the paper's objective, with many steps and an ensemble of
surrogates, since no query waits for it. A codeword stays one vector for its whole cell, so that
an attacker who retrains learns no more than before.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oneway.checks import check_above, check_count, check_images
from oneway.defenses.codebook.fit import with_leading_label
from oneway.defenses.codebook.options import DecoyOptions
from oneway.defenses.codebook.table import Codebook
from oneway.defenses.label_modifier import lift_label
from oneway.errors import DefenseFailedError, InvalidOptionError

MARGIN = 1e-3
"""Least lead of a label, in nats."""

HALVINGS = 30
"""Halvings of the interval that holds the largest move within the budget."""


def plant_decoys(
    codebook: Codebook,
    logits: Tensor,
    queries: Tensor,
    surrogates: Sequence[nn.Module],
    *,
    l1_budget: float = DecoyOptions.decoy_l1,
    nats: float | None = None,
    steps: int = DecoyOptions.decoy_steps,
    step_size: float = 0.1,
) -> Codebook:
    """Return a copy of a table whose codewords mislead inverters of clean scores.

    Args:
        codebook: A fitted table. Not modified.
        logits: ``(N, K)`` calibration scores, which say what is in each cell.
        queries: ``(N, ...)`` in [0, 1], the queries that gave the scores.
        surrogates: Inverters, ``(C, K)`` confidences to ``(C, ...)`` images, trained on clean
            scores. Several with different input transforms represent an attacker's better.
        l1_budget: Largest move of a codeword in L1 distance of probabilities, above 0.
        nats: Largest move of its logits, mean absolute centered difference per class in nats,
            above 0. None: unbounded.
        steps: Sign steps, at least 1.
        step_size: Nats per step, above 0.

    Raises:
        InvalidOptionError: An option is outside its range, or there is no surrogate.
        InvalidTensorError: A tensor breaks the lines above.
        DefenseFailedError: A surrogate's gradient is not finite.

    Source:
        Wen, Yiu & Hui, "Defending Against Model Inversion Attack by Adversarial Examples", IEEE
        CSR 2021, for the objective; its search per cell, with several surrogates, is ours.
    """
    check_above("l1_budget", l1_budget, 0)
    check_count("steps", steps)
    check_above("step_size", step_size, 0)
    if nats is not None:
        check_above("nats", nats, 0)
    if not surrogates:
        raise InvalidOptionError("surrogates must hold at least one inverter, but are empty.")
    codebook.check(logits)
    check_images(queries, rows=len(logits))
    images = _mean_images(codebook, logits, queries).double()
    start = codebook.values.log()
    moved = best = start
    clean = _rows(codebook, start).softmax(-1)
    largest, direction = _ascent(codebook, start, images, surrogates)
    for _ in range(steps):
        stepped = moved + step_size * direction
        moved = _within(codebook, start, clean, stepped, l1_budget, nats)
        errors, direction = _ascent(codebook, moved, images, surrogates)
        # A step may be too long: each codeword stays where its error was largest.
        best = torch.where((errors > largest).unsqueeze(-1), moved, best)
        largest = torch.maximum(largest, errors)
    decoys = copy.deepcopy(codebook)
    values = (best - _rows(codebook, best).logsumexp(-1, keepdim=True)).exp()
    decoys.values.copy_(with_leading_label(values))
    return decoys


def _rows(codebook: Codebook, values: Tensor) -> Tensor:
    """Return the ``(C, K)`` rows of ``(C, W)`` values of all cells."""
    return codebook.expand(values, torch.arange(len(values), device=values.device))


def _ascent(
    codebook: Codebook, values: Tensor, images: Tensor, surrogates: Sequence[nn.Module]
) -> tuple[Tensor, Tensor]:
    """Return the surrogates' mean errors ``(C)``, and the signs of their gradients ``(C, W)``."""
    # A caller may be in inference mode, whose tensors take no part in a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        variable = values.detach().clone().requires_grad_()
        confidences = _rows(codebook, variable).softmax(-1)
        errors = torch.stack(
            [
                (_reconstructed(surrogate, confidences) - images).square().flatten(1).mean(-1)
                for surrogate in surrogates
            ]
        ).mean(0)
        (gradient,) = torch.autograd.grad(errors.sum(), variable)
    if not torch.isfinite(gradient).all():
        raise DefenseFailedError(
            "a surrogate's gradient is not finite, so there are no decoys. Check that it was "
            "trained and takes these scores."
        )
    return errors.detach(), gradient.sign()


def _reconstructed(surrogate: nn.Module, confidences: Tensor) -> Tensor:
    """Return float64 images of float64 confidences, computed in the surrogate's own type."""
    parameter = next(surrogate.parameters(), None)
    images: Tensor = surrogate(
        confidences if parameter is None else confidences.to(parameter.dtype)
    )
    return images.double()


def _within(
    codebook: Codebook,
    start: Tensor,
    clean: Tensor,
    stepped: Tensor,
    l1_budget: float,
    nats: float | None,
) -> Tensor:
    """Return the farthest point on the way from ``start`` to ``stepped`` within the budget."""
    first = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    step = lift_label(stepped, first, MARGIN) - start
    if nats is not None:
        rows = _rows(codebook, step)
        size = (rows - rows.mean(-1, keepdim=True)).abs().mean(-1, keepdim=True)
        step = step * (nats / size.clamp_min(1e-12)).clamp_max(1)

    def fits(share: Tensor) -> Tensor:
        moved = _rows(codebook, start + share * step).softmax(-1)
        return (moved - clean).abs().sum(-1, keepdim=True) <= l1_budget

    high = torch.ones_like(start[:, :1])
    low = fits(high).to(start.dtype)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        kept = fits(middle)
        low, high = torch.where(kept, middle, low), torch.where(kept, high, middle)
    return start + low * step


def _mean_images(codebook: Codebook, logits: Tensor, queries: Tensor) -> Tensor:
    """Return each cell's mean query; of an empty cell its label's, or else the mean of all."""
    cells = codebook(logits)
    flat = queries.detach().flatten(1)

    def means(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
        counts = numbers.bincount(minlength=count)
        sums = flat.new_zeros(count, flat.shape[1]).index_add(0, numbers, flat)
        return sums / counts.clamp_min(1).unsqueeze(-1), counts.unsqueeze(-1)

    of_cells, in_cells = means(cells, codebook.sizes.cells)
    of_labels, in_labels = means(codebook.labels[cells], codebook.sizes.num_classes)
    of_labels = torch.where(in_labels > 0, of_labels, flat.mean(0))
    images = torch.where(in_cells > 0, of_cells, of_labels[codebook.labels])
    return images.view(-1, *queries.shape[1:])
