"""Typed values from plain TOML or JSON values: unknown keys and wrong types are refused."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from oneway.errors import InvalidOptionError, UnknownNameError

T = TypeVar("T")


def build_from(kind: type[T], values: Any, where: str) -> T:
    """Build a frozen dataclass from plain values.

    Args:
        kind: The dataclass. Its fields may be numbers, text, mappings, tuples, literals,
            optional values and other dataclasses.
        values: A table of TOML, or an object of JSON.
        where: Source of the values, for messages.

    Returns:
        An instance of ``kind``; a whole number becomes a float where a float is declared.

    Raises:
        UnknownNameError: A key is unknown.
        InvalidOptionError: A value is missing, of another type, or outside its range.
    """
    if not isinstance(values, dict):
        raise InvalidOptionError(f"{where} must be a table, but is {type(values).__name__}.")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        UnknownNameError.check(f"key in {where}", key, fields)
    for key, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and key not in values:
            raise InvalidOptionError(f"{where} lacks the key {key!r}.")
    return kind(
        **{key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    )


def _value(kind: Any, value: Any, where: str) -> Any:
    """Return a plain value as the declared kind."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build_from(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        # None, or a whole number where a fraction would mean something else.
        if type(value) in arguments:
            return value
        [*_, kind] = [argument for argument in arguments if argument is not type(None)]
        return _value(kind, value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(
            _value(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(value)
        )
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and value in ("inf", "-inf"):  # JSON has no infinity
        return float(value)
    if origin is None and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    if origin is Literal:
        known = " or ".join(map(repr, arguments))
        raise InvalidOptionError(f"{where} must be {known}, but is {value!r}.")
    expected = getattr(kind, "__name__", str(kind))
    raise InvalidOptionError(f"{where} must be {expected}, but is {type(value).__name__}.")
