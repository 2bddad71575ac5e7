"""Places in plain JSON: where queries go, where scores stand, and what of an answer may pass."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from oneway.errors import InvalidOptionError
from oneway.openinference.tensors import MessageError

Parts = tuple[str, ...]

MOST_PARTS = 32
"""Most parts of a path: no server nests its scores as deep."""


@dataclass(frozen=True)
class KeyPath:
    """A place in a JSON value, such as ``"predictions.*.scores"``.

    A name is a member of an object, a whole number a member of a list, and ``*`` every member of
    a list. The path without parts is the whole value.
    """

    parts: Parts

    @classmethod
    def parse(cls, key: str) -> Self:
        """Return the path of names joined by dots; ``""`` is the whole value.

        Raises:
            InvalidOptionError: A name is empty, or there are more than 32.
        """
        parts = tuple(key.split(".")) if key else ()
        if not all(parts):
            raise InvalidOptionError(f"a key must be names separated by dots, but got {key!r}.")
        if len(parts) > MOST_PARTS:
            raise InvalidOptionError(
                f"a key must have at most {MOST_PARTS} names, but got {len(parts)}."
            )
        return cls(parts)

    def __str__(self) -> str:
        return ".".join(self.parts)

    def find(self, value: Any) -> Any:
        """Return the part of ``value`` at this place; for ``*`` a list.

        Raises:
            MessageError: There is no such place.
        """
        return self._find(value, self.parts)

    def _find(self, value: Any, parts: Parts) -> Any:
        if not parts:
            return value
        part, rest = parts[0], parts[1:]
        if part == "*" and isinstance(value, list):
            return [self._find(member, rest) for member in value]
        if isinstance(value, dict) and part in value:
            return self._find(value[part], rest)
        if isinstance(value, list) and (at := _index_in(value, part)) is not None:
            return self._find(value[at], rest)
        kind = "a list" if isinstance(value, list) else "a single value"
        if isinstance(value, dict):
            kind = "an object without it" + ", but with 'error'" * ("error" in value)
        raise MessageError(
            f"must answer with {part!r} of the key {str(self)!r}, but there is {kind}. Look at one "
            "answer of the server, and name the place of its scores.",
            "output_missing",
        )

    def wrap(self, value: Any) -> Any:
        """Return a new JSON value that holds ``value`` at this place, and nothing else.

        Raises:
            InvalidOptionError: The place is not the first member of each list.
        """
        for part in reversed(self.parts):
            if part == "*" or (part.isdecimal() and part != "0"):
                raise InvalidOptionError(
                    "the key of a request may hold names and 0, separated by dots, but got "
                    f"{part!r} in {str(self)!r}."
                )
            value = [value] if part == "0" else {part: value}
        return value

    def replace(self, template: Any, value: Any) -> Any:
        """Return a copy of ``template`` with ``value``, as :meth:`find` gives it, at this place.

        Each member that ``*`` stands for is made like the first.

        Raises:
            MessageError: The template has no such place.
        """
        return _replace(template, self.parts, value)

    def overlaps(self, other: "KeyPath") -> bool:
        """Say whether one of two places may hold the other."""
        return all(
            one == two or ("*" in (one, two) and (one + two).replace("*", "").isdecimal())
            for one, two in zip(self.parts, other.parts, strict=False)
        )


def _replace(template: Any, parts: Parts, value: Any) -> Any:
    if not parts:
        return value
    part, rest = parts[0], parts[1:]
    if part == "*" and isinstance(template, list) and template and isinstance(value, list):
        return [_replace(template[0], rest, member) for member in value]
    if isinstance(template, dict) and part in template:
        return {**template, part: _replace(template[part], rest, value)}
    if isinstance(template, list) and (at := _index_in(template, part)) is not None:
        return [*template[:at], _replace(template[at], rest, value), *template[at + 1 :]]
    raise MessageError(f"the request must have {'.'.join(parts)!r} as a list of members")


def differing_place(value: Any, other: Any, place: Parts = ()) -> Parts | None:
    """Return the first place at which two JSON values both hold something, but not the same.

    Args:
        value: A JSON value.
        other: Another; members of objects that only one of the two has do not count.
        place: Where both stand.

    Returns:
        Names and places in lists, from the outermost on; None if the values agree.
    """
    if value is other:  # such as queries, which may be large
        return None
    if isinstance(value, dict) and isinstance(other, dict):
        members = [(name, value[name], other[name]) for name in value if name in other]
    elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        members = [(str(at), *pair) for at, pair in enumerate(zip(value, other, strict=True))]
    else:
        return None if value == other else place
    places = (differing_place(one, two, (*place, name)) for name, one, two in members)
    return next((found for found in places if found is not None), None)


def mask(value: Any, guarded: KeyPath, released: Any, passed: Sequence[KeyPath]) -> Any:
    """Return a copy of ``value`` that holds the release, the passed places, and nothing else.

    Of a list, members that may not pass become None, so that places stay.

    Args:
        value: A server's answer, as a JSON value.
        guarded: The place of the scores.
        released: Nested lists of the shape that :meth:`KeyPath.find` gives for ``guarded``: what
            stands there instead. Each ``*`` takes one member.
        passed: Places that pass as they are.
    """
    return _mask(value, guarded.parts, released, [path.parts for path in passed])


def _mask(value: Any, guarded: Parts | None, released: Any, passed: list[Parts]) -> Any:
    if guarded == ():
        return released
    if guarded is None and () in passed:
        return value

    def kept(names: Sequence[str], member: Any, at: int | None = None) -> tuple[bool, Any]:
        """Return whether anything of a member is kept, and what."""
        deeper = guarded[1:] if guarded is not None and guarded[0] in names else None
        allowed = [path[1:] for path in passed if path and path[0] in names]
        if deeper is None and not allowed:
            return False, None
        is_one_of_many = at is not None and guarded is not None and guarded[0] == "*"
        return True, _mask(member, deeper, released[at] if is_one_of_many else released, allowed)

    if isinstance(value, dict):
        members = ((key, *kept((key,), member)) for key, member in value.items())
        return {key: member for key, is_kept, member in members if is_kept}
    if isinstance(value, list):
        return [kept((str(at), "*"), member, at)[1] for at, member in enumerate(value)]
    return None


def _index_in(members: list[Any], part: str) -> int | None:
    """Return the place in a list that a part names; None if it names none."""
    is_number = re.fullmatch("0|[1-9][0-9]{0,8}", part)  # one text for each place: no "00"
    return int(part) if is_number and int(part) < len(members) else None
