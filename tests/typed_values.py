"""Any value of a declared type, for laws of values that are written as JSON and read back."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from hypothesis import strategies as st

from oneway.evaluation import FLAGS, Flag

NUMBERS = st.integers(-(2**40), 2**40)
TEXTS = st.text(max_size=4)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)
"""JSON values."""

SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    Any: PLAIN,
    bool: st.booleans(),
    int: NUMBERS,
    str: TEXTS,
    float: st.floats(allow_nan=False),
    type(None): st.none(),
}


def values_of(kind: Any, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return any value of a type, infinite numbers among them.

    Args:
        kind: What a field of a dataclass is declared as, or a dataclass.
        **known: What fields of the dataclass are drawn from instead.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Flag:
        known |= {"name": st.sampled_from(sorted(FLAGS))}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        return st.builds(
            kind, **{name: values_of(hints[name]) for name in names if name not in known}, **known
        )
    if kind in SIMPLE:
        return SIMPLE[kind]
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values_of, arguments))
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    assert issubclass(origin, Mapping), kind
    return st.dictionaries(TEXTS, values_of(arguments[1]), max_size=2)
