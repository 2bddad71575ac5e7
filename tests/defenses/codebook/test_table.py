"""The table: which cell a row of scores is in, and how a vector is spread over the classes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneway.defenses.codebook import table
from oneway.defenses.codebook.table import Codebook, first_boxes, project, width_of
from oneway.errors import InvalidOptionError, InvalidTensorError
from reference import codebook as slow
from rows import random_rows, score_rows


def filled(seed, classes, listed, boxes):
    """A table with random edges, the last box of each label open."""
    numbers = np.random.default_rng(seed)
    book = Codebook(classes, listed, boxes, classes * boxes)
    for label in range(classes):
        others = [k for k in range(classes) if k != label]
        order = [label, *numbers.permutation(others)[: book.sizes.explicit_classes - 1]]
        book.classes[label] = torch.tensor(order)
    edges = torch.from_numpy(numbers.uniform(0, 1, book.edges.shape))
    edges[torch.from_numpy(numbers.random(edges.shape) < 0.3)] = torch.inf
    edges[:, -1] = torch.inf
    book.edges.copy_(edges)
    book.assignment.copy_(torch.arange(classes * boxes).view(classes, boxes))
    book.labels.copy_(torch.arange(classes).repeat_interleave(boxes))
    book.values.copy_(torch.from_numpy(numbers.random(book.values.shape)))
    return book


def cell_of(book, scores):
    """The first box of the label whose upper edges all numbers keep within, by a loop."""
    probabilities = slow.softmax(np.array(scores, dtype=np.float64))
    label = scores.index(max(scores))
    row = slow.seen(probabilities, book.classes[label].tolist())
    for box, edges in enumerate(book.edges[label].tolist()):
        if all(value <= edge for value, edge in zip(row, edges, strict=True)):
            return int(book.assignment[label, box])
    raise AssertionError("the last box has no edges")


def test_a_row_is_in_the_first_box_of_its_label_whose_edges_no_number_exceeds():
    for classes, explicit in ((2, 2), (5, 5), (5, 1), (5, 4), (9, 3)):
        book = filled(1, classes, explicit, 6)
        logits = random_rows(2, 300, classes, torch.float64, 1.5)
        cells = book(logits)
        assert cells.dtype == torch.int64
        wanted = [cell_of(book, row) for row in logits.tolist()]
        assert cells.tolist() == wanted, f"{explicit} of {classes} classes"
        assert torch.equal(book.labels[cells], logits.argmax(-1))
        # No row is compared with another row's boxes.
        assert torch.equal(torch.cat([book(row) for row in logits.split(7)]), cells)


def test_many_rows_are_compared_in_parts_and_found_in_the_same_cells(monkeypatch):
    for classes, explicit in ((5, 5), (9, 3)):
        book = filled(1, classes, explicit, 6)
        logits = random_rows(2, 300, classes, torch.float64, 1.5)
        whole, compared = book(logits), []

        def watched(rows, labels, axes, compared=compared):
            compared.append(len(rows) * axes[:, 0].numel())
            return first_boxes(rows, labels, axes)

        most = 7 * book.edges[0].numel()
        with monkeypatch.context() as patch:
            patch.setattr(table, "NUMBERS_AT_ONCE", most)
            patch.setattr(table, "first_boxes", watched)
            assert book.rows_at_once == 7
            assert torch.equal(book(logits), whole)
            assert max(compared) <= most
            assert len(compared) == 43  # of 300 rows, by seven
            # However large one row's boxes are, it is compared.
            patch.setattr(table, "NUMBERS_AT_ONCE", 1)
            assert torch.equal(book(logits[:5]), whole[:5])


@given(score_rows())
def test_scores_of_every_size_and_type_have_a_cell_of_their_label(logits):
    book = filled(3, logits.shape[-1], 3, 4)
    assert torch.equal(book.labels[book(logits)], logits.argmax(-1))


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 9))
def test_rows_are_projected_to_explicit_classes_and_the_rest(seed, classes, listed):
    listed = min(listed, classes)
    numbers = np.random.default_rng(seed)
    probabilities = slow.softmaxes(numbers.normal(size=(4, classes)))
    orders = [numbers.permutation(classes)[:listed].tolist() for _ in range(4)]
    told = project(torch.from_numpy(probabilities), torch.tensor(orders), dense=listed == classes)
    wanted = [slow.seen(*pair) for pair in zip(probabilities, orders, strict=True)]
    np.testing.assert_allclose(told.numpy(), wanted, rtol=0, atol=1e-15)
    assert told.shape[1] == width_of(classes, listed)
    np.testing.assert_allclose(told.sum(-1).numpy(), 1, rtol=0, atol=1e-12)


def test_a_vector_is_expanded_to_the_explicit_classes_of_its_label_and_all_others():
    for classes, explicit in ((4, 4), (7, 1), (7, 3), (7, 6)):
        book = filled(4, classes, explicit, 3)
        cells = torch.tensor([0, 3 * classes - 1, 5, 5])
        for row, cell in zip(book.expand(book.values, cells), cells.tolist(), strict=True):
            order = book.classes[book.labels[cell]].tolist()
            values = book.values[cell].tolist()
            wanted = [values[order.index(k) if k in order else explicit] for k in range(classes)]
            assert row.tolist() == wanted, f"{explicit} of {classes} classes"
        assert book.expand(book.values, cells[:0]).shape == (0, classes)


def test_an_empty_table_has_one_cell_per_label():
    book = Codebook(4, 9, 3, 4)
    assert book.is_dense
    assert book.architecture == {"num_classes": 4, "explicit_classes": 4, "boxes": 3, "cells": 4}
    logits = random_rows(0, 50, 4, torch.float32, 2)
    assert torch.equal(book(logits), logits.argmax(-1))


def test_sizes_outside_their_range_are_refused_by_name():
    for sizes, text in (
        ((1, 1, 1, 2), "num_classes must be"),
        ((3, 0, 1, 3), "explicit_classes must be"),
        ((3, 2, 0, 3), "boxes must be"),
        ((3, 2, 1, 2), "cells must be a whole number of at least 3"),
        ((3, 2, 1.0, 3), "boxes must be"),
    ):
        with pytest.raises(InvalidOptionError, match=text):
            Codebook(*sizes)


def test_scores_over_other_classes_are_refused_with_the_remedy():
    with pytest.raises(InvalidTensorError, match=r"4 classes .* got \(2, 5\)\. Fit one"):
        Codebook(4, 4, 1, 4).check(torch.zeros(2, 5))
    with pytest.raises(InvalidTensorError, match="finite"):
        Codebook(4, 4, 1, 4).check(torch.full((2, 4), torch.nan))
