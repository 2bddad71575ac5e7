"""Places in plain JSON: laws, on values and paths of any form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneway.errors import InvalidOptionError
from oneway.openinference.key_paths import KeyPath, mask
from oneway.openinference.tensors import MessageError

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


def test_paths_that_cannot_be_are_refused():
    for key in ("a..b", ".", "a."):
        with pytest.raises(InvalidOptionError, match="separated by dots"):
            KeyPath.parse(key)
    for key in ("a.1", "*", "a.*.b"):
        with pytest.raises(InvalidOptionError, match="names and 0"):
            KeyPath.parse(key).wrap([])
