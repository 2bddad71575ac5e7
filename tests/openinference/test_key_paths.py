"""Places in plain JSON: laws, on values and paths of any form."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oneway.errors import InvalidOptionError
from oneway.openinference.key_paths import KeyPath, mask
from oneway.openinference.tensors import (
    MessageError,
    MessageTensor,
    read_by_label,
    read_numbers,
    read_scores,
)

NAMES = st.sampled_from(["a", "b", "scores"])
VALUES = st.recursive(
    st.none() | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
PARTS = st.lists(NAMES | st.sampled_from(["0", "1", "*"]), max_size=4).map(tuple)


def leaves(value):
    """Return the numbers in a value, and how they are reached."""
    if isinstance(value, dict | list):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        return {(str(key), *rest): leaf for key, m in members for rest, leaf in leaves(m).items()}
    return {} if value is None else {(): value}


def stands_at(place, parts):
    """Say whether a place is that of a path, or within it."""
    return len(place) >= len(parts) and all(
        part in (name, "*" if name.isdecimal() else name)
        for part, name in zip(parts, place, strict=False)
    )


@given(parts=st.lists(NAMES | st.just("0"), max_size=4).map(tuple), value=VALUES)
def test_what_a_path_wraps_is_found_and_replaced_there(parts, value):
    path = KeyPath(parts)
    assert KeyPath.parse(str(path)) == path
    assert path.find(path.wrap(value)) == value
    assert path.replace(path.wrap(None), value) == path.wrap(value)


@given(parts=PARTS, value=VALUES)
def test_putting_back_what_was_found_changes_nothing(parts, value):
    path = KeyPath(parts)
    try:
        found = path.find(value)
        put_back = path.replace(value, found)
    except MessageError:
        return
    if "*" not in parts:  # each member that * stands for is made like the first
        assert put_back == value
    assert path.find(put_back) == found


@given(guarded=PARTS.filter(lambda parts: "*" not in parts), passed=PARTS, value=VALUES)
def test_a_mask_lets_through_the_release_and_what_is_listed_and_nothing_else(
    guarded, passed, value
):
    path, listed = KeyPath(guarded), KeyPath(passed)
    if path.overlaps(listed):
        return
    masked = mask(value, path, [[77]], [listed])
    before = leaves(value)
    for place, leaf in leaves(masked).items():
        if stands_at(place, guarded):
            assert leaf == 77
        else:
            assert stands_at(place, passed)
            assert before[place] == leaf
    for place, leaf in before.items():
        if stands_at(place, passed):
            assert leaves(masked)[place] == leaf


ANY_PARTS = st.sampled_from(["a", "0", "1", "01", "*", "\u00b2", "\u0663", "9" * 5000, "-1", " "])
ANY_KEY = st.text(max_size=8) | st.lists(ANY_PARTS, max_size=5).map(".".join)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | NAMES, inner, max_size=3)
    ),
    max_leaves=12,
)


@example(key="00", value=[None])
@given(key=ANY_KEY, value=ANY_VALUE)
def test_any_text_is_a_path_or_refused_and_any_answer_is_read_or_refused(key, value):
    try:
        path = KeyPath.parse(key)
    except InvalidOptionError:
        return
    assert str(path) == key
    with suppress(InvalidOptionError):
        path.wrap(value)
    try:
        found = path.find(value)
        path.replace(value, found)
    except MessageError:
        return
    if "*" not in path.parts:
        assert path.find(mask(value, path, 77, [])) == 77
    with suppress(MessageError):
        assert read_numbers(found).dtype == np.float64
    for labels in (found, value):
        with suppress(MessageError):
            rows = read_by_label(found, labels, ("a", "b"))
            assert rows.shape[1:] == (2,) or not len(rows)


def test_scores_of_one_object_each_are_found_and_released_in_their_places():
    answer = [
        [{"label": "dog", "score": 0.9}, {"label": "cat", "score": 0.1}],
        [{"label": "cat", "score": 0.7}, {"label": "dog", "score": 0.3}],
    ]
    scores, labels = KeyPath.parse("*.*.score"), KeyPath.parse("*.*.label")
    assert scores.find(answer) == [[0.9, 0.1], [0.7, 0.3]]
    released = [[0.8, 0.2], [0.6, 0.4]]
    masked = mask(answer, scores, released, [labels])
    assert scores.find(masked) == released
    assert labels.find(masked) == labels.find(answer)
    assert mask({"p": [[1, 2]], "q": 3}, KeyPath.parse("p.*.*"), [[7, 8]], []) == {"p": [[7, 8]]}


def test_paths_that_cannot_be_are_refused():
    with pytest.raises(InvalidOptionError, match="at most 32 names, but got 40"):
        KeyPath.parse(".".join("a" * 40))
    for key in ("a..b", ".", "a."):
        with pytest.raises(InvalidOptionError, match="separated by dots"):
            KeyPath.parse(key)
    for key in ("a.1", "*", "a.*.b"):
        with pytest.raises(InvalidOptionError, match="names and 0"):
            KeyPath.parse(key).wrap([])


@given(
    shape=st.lists(st.integers(-2, 3) | st.just(10**30) | st.none() | st.booleans(), max_size=4)
    | st.just([1] * 70),
    data=ANY_VALUE | st.lists(st.floats(), max_size=4),
    kind=st.sampled_from(["FP32", "INT64", "BF16", ""]),
)
def test_any_tensor_of_an_answer_is_read_in_its_shape_or_refused(shape, data, kind):
    try:
        scores = read_scores(MessageTensor("a", kind, shape, data))
    except MessageError:
        return
    assert list(scores.shape) == shape
