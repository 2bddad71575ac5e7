"""Typed values from plain ones: what was written comes back, and nothing else is taken."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given

from laws import looped
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.evaluation.records import json_values
from oneway.parsing import build_from
from typed_values import values_of


@dataclass(frozen=True)
class Inner:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    switch: bool
    level: Literal["low", "high"]
    limit: float | None
    number: int | None
    size: int | float
    inner: Inner
    perhaps: Inner | None
    several: tuple[Inner, ...]
    numbers: tuple[float | None, ...]
    by_name: Mapping[str, Mapping[str, float]]
    anything: Mapping[str, Any]


PLAIN = {
    "name": "a",
    "switch": True,
    "level": "low",
    "limit": None,
    "number": None,
    "size": 3,
    "inner": {"count": 1},
    "perhaps": None,
    "several": [{"count": 2, "share": 1}, {"count": 3}],
    "numbers": [1, None, "-inf"],
    "by_name": {"a": {"b": 2}},
    "anything": {"a": [1, None, {"b": "inf"}]},
}


@given(values_of(Outer))
def test_a_value_comes_back_from_json(value):
    text = json.dumps(json_values(dataclasses.asdict(value)), allow_nan=False)
    assert build_from(Outer, json.loads(text), "here") == value


def test_plain_values_become_the_declared_types_and_defaults_fill_in():
    value = build_from(Outer, PLAIN, "here")
    assert value.inner == Inner(1, 0.5)
    assert value.several == (Inner(2, 1.0), Inner(3, 0.5))
    assert value.numbers == (1.0, None, -math.inf)
    assert value.by_name == {"a": {"b": 2.0}}
    assert value.anything == PLAIN["anything"]  # as it is: nothing says what it should be
    floats = (value.several[0].share, value.numbers[0], value.by_name["a"]["b"])
    assert {type(number) for number in floats} == {float}


@looped(
    ("changes", "where", "kinds"),
    [
        ({"name": 1}, "here.name", "str, but is int"),
        ({"name": None}, "here.name", "str, but is NoneType"),
        ({"switch": 1}, "here.switch", "bool, but is int"),
        ({"switch": "true"}, "here.switch", "bool, but is str"),
        ({"level": "middle"}, "here.level", "'low' or 'high', but is 'middle'"),
        ({"level": None}, "here.level", "'low' or 'high', but is None"),
        ({"limit": "a"}, "here.limit", "float, but is str"),
        ({"limit": "nan"}, "here.limit", "float, but is str"),
        ({"limit": True}, "here.limit", "float, but is bool"),
        ({"number": 1.0}, "here.number", "int, but is float"),
        ({"number": False}, "here.number", "int, but is bool"),
        ({"number": "inf"}, "here.number", "int, but is str"),
        ({"inner": {"count": 1.5}}, "here.inner.count", "int, but is float"),
        ({"inner": [1]}, "here.inner", "a table, but is list"),
        ({"inner": None}, "here.inner", "a table, but is NoneType"),
        ({"perhaps": {"count": "1"}}, "here.perhaps.count", "int, but is str"),
        ({"several": {"count": 1}}, "here.several", "tuple, but is dict"),
        ({"several": [{"count": 1}, 2]}, r"here.several\[1\]", "a table, but is int"),
        ({"numbers": [0, "x"]}, r"here.numbers\[1\]", "float, but is str"),
        ({"by_name": [1]}, "here.by_name", "Mapping, but is list"),
        ({"by_name": {"a": 1}}, "here.by_name.a", "Mapping, but is int"),
        ({"by_name": {"a": {"b": []}}}, "here.by_name.a.b", "float, but is list"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place_and_both_types(changes, where, kinds):
    with pytest.raises(InvalidOptionError, match=rf"^{where} must be {kinds}\.$"):
        build_from(Outer, PLAIN | changes, "here")


def test_a_missing_key_is_refused_wherever_it_is_missing():
    for key in PLAIN:
        rest = {name: value for name, value in PLAIN.items() if name != key}
        with pytest.raises(InvalidOptionError, match=f"^here lacks the key '{key}'"):
            build_from(Outer, rest, "here")
    with pytest.raises(InvalidOptionError, match=r"^here\.several\[0\] lacks the key 'count'"):
        build_from(Outer, PLAIN | {"several": [{}]}, "here")


def test_an_unknown_key_is_refused_with_the_nearest_and_its_place():
    with pytest.raises(UnknownNameError, match=r"key in here 'nane'\. Did you mean 'name'"):
        build_from(Outer, PLAIN | {"nane": 1}, "here")
    with pytest.raises(UnknownNameError, match=r"key in here\.inner 'cuont'.*mean 'count'"):
        build_from(Outer, PLAIN | {"inner": {"cuont": 1}}, "here")


@looped("values", [None, [], "text", 3])
def test_what_is_no_table_is_refused(values):
    with pytest.raises(InvalidOptionError, match=r"^here must be a table, but is "):
        build_from(Outer, values, "here")
