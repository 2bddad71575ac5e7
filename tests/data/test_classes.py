"""Labels are matched to a model's classes by name; what cannot be matched is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.data.classes import ClassOrder, class_counts, class_order, map_labels
from oneway.errors import CorruptDataError, InvalidOptionError

NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=8, unique=True)


def order_of(names, source="the model"):
    return ClassOrder(tuple(names), source)


@given(NAMES, st.randoms(use_true_random=False), st.data())
def test_a_row_keeps_its_class_whatever_the_order_of_names_in_its_file(names, random, data):
    shuffled = list(names)
    random.shuffle(shuffled)
    present = shuffled[: data.draw(st.integers(1, len(names)))]
    labels = torch.tensor(data.draw(st.lists(st.integers(0, len(present) - 1), max_size=9))).long()
    mapped = map_labels(labels, present, order_of(names), "the file")
    assert [names[label] for label in mapped] == [present[label] for label in labels]
    assert mapped.dtype == torch.int64


def test_a_class_that_the_model_does_not_have_is_refused_with_both_lists():
    message = r"queries/ has classes .*'wolf'.*classes \(the model\) are 'cat', 'dog', 'fox'"
    with pytest.raises(CorruptDataError, match=message):
        map_labels(torch.tensor([0]), ("cat", "wolf"), order_of(("cat", "dog", "fox")), "queries/")


def test_class_numbers_are_the_models_own_and_refused_beyond_its_classes():
    labels = torch.tensor([2, 0, 2])
    assert map_labels(labels, None, order_of("abc"), "q.npz") is labels
    with pytest.raises(CorruptDataError, match=r"q\.npz must lie in \[0, 2\).* 2 of 3 do not"):
        map_labels(labels, None, order_of("ab"), "q.npz")


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@looped(
    ("classes", "names", "places"),
    [
        # A folder from a Mac: the accent is a character of its own.
        ((COMPOSED, "dog"), (DECOMPOSED, "dog"), [0, 1]),
        # scikit-learn fitted on float labels; labels with leading zeros.
        (("1.0", "2.0", "10.0"), ("10", "2"), [2, 1]),
        (("1", "2"), ("02", "01"), [1, 0]),
        (("01", "1"), ("1", "01"), [1, 0]),
    ],
)
def test_a_class_is_found_in_another_spelling_of_its_name(classes, names, places):
    mapped = map_labels(torch.arange(len(names)), names, order_of(classes), "queries/")
    assert mapped.tolist() == places


@looped(
    ("classes", "names"),
    [
        (("01", "1"), ("1.0",)),  # which of the two is not clear
        (("1", "2"), ("1", "01")),  # two classes of the data would be one
        (("cat", "dog"), ("Cat",)),
        (("1.5", "2"), ("1",)),
        ((str(2**53), "0"), (str(2**53 + 1),)),  # one number in float64
    ],
)
def test_names_that_differ_are_not_taken_for_one_class(classes, names):
    with pytest.raises(CorruptDataError, match="classes that the model does not have"):
        map_labels(torch.arange(len(names)), names, order_of(classes), "queries/")


@looped(
    ("declared", "of_model", "of_data", "names"),
    [
        (("fox", "cat"), None, {"a": ("cat", "fox")}, ("fox", "cat")),
        (None, ("fox", "cat"), {"a": ("cat", "fox")}, ("fox", "cat")),
        (("fox", "cat"), ("fox", "cat"), {"a": None}, ("fox", "cat")),
        (None, None, {"a": ("cat",), "b": ("fox", "cat")}, ("cat", "fox")),
        (None, None, {"a": ("1", "0")}, ("0", "1")),
        (None, None, {"a": None}, ("0", "1")),
        (None, None, {}, ("0", "1")),
        (None, None, {"a": ("1", "-1")}, ("-1", "1")),
        (None, None, {"a": (COMPOSED, "dog"), "b": (DECOMPOSED,)}, (DECOMPOSED, "dog")),
        (("1", "2"), ("1.0", "2.0"), {}, ("1.0", "2.0")),
    ],
)
def test_the_models_list_decides_and_then_the_sorted_names(declared, of_model, of_data, names):
    order = class_order(2, declared=declared, of_model=of_model, of_data=of_data)
    assert order.names == names
    assert order.source == "--classes" if declared else order.source != "--classes"


FOLDERS = {"own": ("cat", "fox"), "queries": ("fox",)}


@looped(
    ("count", "declared", "of_model", "of_data", "message"),
    [
        (3, None, None, FOLDERS, r"3 scores and does not name.* names 2 \(own: 'cat', 'fox'"),
        (1, None, None, FOLDERS, "names 2"),
        (3, ("cat", "fox"), None, {}, "--classes must name each of 3 classes.* names 2"),
        (2, ("cat", "cat"), None, {}, "each of 2 classes once"),
        (2, None, ("a", "b", "c"), {}, "the model must name each of 2 classes"),
        (2, ("a", "b"), ("b", "a"), {}, "'a', 'b', but the model's classes are 'b', 'a'"),
        (3, None, None, {"own": ("1", "10", "2")}, "order as text differs.*--classes"),
        (3, None, None, {"own": ("-2", "-1", "1")}, "order as text differs.*--classes"),
        (3, None, None, {"own": ("1.5", "10.5", "2")}, "order as text differs.*--classes"),
        (2, None, None, {"own": ("e\u0301cole", "faucon")}, "accents as a Mac.*--classes"),
    ],
)
def test_what_does_not_settle_the_order_is_refused(count, declared, of_model, of_data, message):
    with pytest.raises(InvalidOptionError, match=message):
        class_order(count, declared=declared, of_model=of_model, of_data=of_data)


def test_long_lists_are_cut_in_messages():
    names = [f"c{place:04}" for place in range(1000)]
    with pytest.raises(InvalidOptionError) as refused:
        class_order(3, declared=names, of_model=None, of_data={})
    assert len(str(refused.value)) < 300
    assert "(1000 in all)" in str(refused.value)


def test_classes_without_rows_are_counted_as_0():
    assert class_counts(torch.tensor([2, 0, 2]), 4) == [1, 0, 2, 0]
    assert class_counts(None, 4) is None
