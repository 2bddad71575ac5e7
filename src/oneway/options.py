"""Options that are declared once: a field states type, default, range and help.

A class that inherits :class:`Options` is a frozen dataclass. Its fields are checked from their
declarations when an instance is made, and commands, pages and the registry of defenses read the
same declarations.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any, Literal

from oneway.checks import check_above, check_count, check_switch, check_weight
from oneway.errors import InvalidOptionError, UnknownNameError

Check = Callable[[str, Any], None]
"""Takes an option's name and value, and raises unless the value is in range."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number; None: no bound.

    Attributes:
        above: Exclusive lower bound.
        least: Inclusive lower bound. A whole number without one is at least 1.
        below: Exclusive upper bound.
        most: Inclusive upper bound.
    """

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def check_whole(self, name: str, value: int) -> None:
        """Refuse a value unless it is a whole number in range.

        Raises:
            InvalidOptionError: It is not.
        """
        least = 1 if self.least is None else int(self.least)
        if self.most is None:
            check_count(name, value, least)
        elif (
            isinstance(value, bool) or not isinstance(value, int) or not least <= value <= self.most
        ):
            raise InvalidOptionError(
                f"{name} must be a whole number from {least} to {self.most}, but got {value!r}."
            )

    def check_real(self, name: str, value: float) -> None:
        """Refuse a value unless it is a finite number in range.

        Raises:
            InvalidOptionError: It is not.
        """
        if (self.least, self.below, self.most) == (0, None, None):
            check_weight(name, value)
            return
        open_ended = self.below is None and self.most is None
        lowest = -math.inf if self.above is None or not open_ended else self.above
        check_above(name, value, lowest)
        if (
            (self.above is not None and value <= self.above)
            or (self.least is not None and value < self.least)
            or (self.below is not None and value >= self.below)
            or (self.most is not None and value > self.most)
        ):
            raise InvalidOptionError(f"{name} must be {self}, but got {value}.")

    def __str__(self) -> str:
        """Return the range in words, such as ``"at least 0.5 and below 1"``; may be empty."""
        bounds = {
            "above": self.above,
            "at least": self.least,
            "below": self.below,
            "at most": self.most,
        }
        return " and ".join(
            f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None
        )


@dataclass(frozen=True)
class Option:
    """A declared option.

    Attributes:
        name: The field's name.
        help: What the option sets, with its unit.
        default: Its default; ``dataclasses.MISSING`` if it must be given.
        kind: ``bool``, ``int``, ``float``, ``str``, or a tuple of the names to choose from.
        several: The option is a tuple of at least one such value.
        nullable: None is a value.
        range: Bounds of a number.
        check: Replaces the check that follows from ``kind`` and ``range``.
        is_strength: Twice its value changes scores more.
    """

    name: str
    help: str
    default: Any
    kind: Any
    several: bool
    nullable: bool
    range: Range
    check: Check | None
    is_strength: bool

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is MISSING

    @property
    def allowed(self) -> str:
        """Say which values are allowed, as a table's cell does; empty if ``help`` says it."""
        words = str(self.range)
        if isinstance(self.kind, tuple):
            words = ", ".join(f'"{name}"' for name in self.kind)
        elif self.kind is bool:
            words = "true, false"
        elif self.kind is int and self.check is None:
            least = 1 if self.range.least is None else int(self.range.least)
            most = self.range.most
            words = f"{least} or more" if most is None else f"{least} to {most}"
        return f"{words}, none" if words and self.nullable else words

    def refuse(self, value: Any) -> None:
        """Refuse a value that is outside the declared range.

        Raises:
            InvalidOptionError: It is.
            UnknownNameError: It is none of the names to choose from.
        """
        if value is None and self.nullable:
            return
        if self.check is not None:
            self.check(self.name, value)
        elif self.several:
            if isinstance(value, str) or not isinstance(value, Collection):
                raise InvalidOptionError(
                    f"{self.name} must hold values, but got {value!r}. Pass ({value!r},)."
                )
            if not len(value):
                raise InvalidOptionError(f"{self.name} must hold at least one value, but is empty.")
            each = dataclasses.replace(self, name=f"each of {self.name}", several=False)
            for one in value:
                each.refuse(one)
        elif isinstance(self.kind, tuple):
            if value not in self.kind:
                raise UnknownNameError(self.name, str(value), self.kind)
        elif self.kind is bool:
            check_switch(self.name, value)
        elif self.kind is int:
            self.range.check_whole(self.name, value)
        elif self.kind is float:
            self.range.check_real(self.name, value)


def option(
    text: str,
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    check: Check | None = None,
    is_strength: bool = False,
) -> Any:
    """Declare an option as a dataclass field. The field's type decides the check.

    ``bool``: true or false. ``int``: a whole number, of at least 1 unless ``least`` says
    otherwise. ``float``: a finite number. ``Literal[...]``: one of these names.
    ``... | None``: or None. ``tuple[..., ...]``: at least one of these.

    Args:
        text: Help: what the option sets, with its unit.
        default: Its default; without one the option must be given.
        default_factory: Returns its default, where that is not known yet.
        above: Exclusive lower bound.
        least: Inclusive lower bound.
        below: Exclusive upper bound.
        most: Inclusive upper bound.
        check: Raises unless a value is in range: instead of all of the above.
        is_strength: Twice its value changes scores more, so that an audit may compare both.
    """
    extra = {
        "help": text,
        "range": Range(above, least, below, most),
        "check": check,
        "is_strength": is_strength,
    }
    given: Any = {"default_factory": default_factory}
    given = {"default": default} if default_factory is MISSING else given
    return dataclasses.field(**given, metadata={"option": extra})


def injected(text: str, *, default: Any = MISSING, kw_only: bool = True) -> Any:
    """Declare a field that the caller passes in, and that no user sets: a network, a generator.

    Args:
        text: What it is.
        default: Its default, if it may be missing.
        kw_only: Whether it is passed by keyword only.
    """
    return dataclasses.field(
        default=default, kw_only=kw_only, repr=False, metadata={"injected": text}
    )


@typing.dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(option, injected)
)
@dataclass(frozen=True)
class Options:
    """Base of frozen dataclasses whose options are checked from their declarations."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the subclass a frozen dataclass with keyword arguments, and document its options."""
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True)(cls)
        texts = {
            field.name: field.metadata["option"]["help"]
            for field in dataclasses.fields(cls)
            if "option" in field.metadata
        }
        lines = "".join(f"\n        {name}: {text}" for name, text in texts.items())
        if lines and cls.__doc__:  # Python leaves docstrings out with -OO
            cls.__doc__ = f"{cls.__doc__.rstrip()}\n\n    Attributes:{lines}\n    "

    def __post_init__(self) -> None:
        """Refuse values outside their declared range.

        Raises:
            InvalidOptionError: One is.
            UnknownNameError: A name is none of those to choose from.
        """
        refuse_undeclared_values(self)


def refuse_undeclared_values(instance: Any) -> None:
    """Check each declared option of a dataclass instance.

    Raises:
        InvalidOptionError: A value is outside its range.
        UnknownNameError: A name is none of those to choose from.
    """
    kind: Any = type(instance)
    for name, declared in options_of(kind).items():
        declared.refuse(getattr(instance, name))


@cache
def options_of(kind: Any) -> Mapping[str, Option]:
    """Return the declared options of a dataclass by name.

    Required options come first, then those of the class itself, then inherited options.
    """
    hints = typing.get_type_hints(kind)
    names = [name for owner in kind.__mro__ for name in inspect.get_annotations(owner)]
    declared = [field for field in dataclasses.fields(kind) if "option" in field.metadata]

    def position(field: "dataclasses.Field[Any]") -> tuple[bool, int]:
        return _default(field) is not MISSING, names.index(field.name)

    return {
        field.name: _declared_option(field, hints[field.name])
        for field in sorted(declared, key=position)
    }


def injected_names(kind: Any) -> tuple[str, ...]:
    """Return the names of a dataclass's fields that the caller passes in."""
    return tuple(field.name for field in dataclasses.fields(kind) if "injected" in field.metadata)


def _default(field: "dataclasses.Field[Any]") -> Any:
    """Return the default of a field; ``MISSING`` itself where it has none.

    A class that was pickled by value brings copies of ``MISSING`` with it, which are not it.
    """
    made: Any = field.default_factory
    if not isinstance(made, type(MISSING)):
        return made()
    return MISSING if isinstance(field.default, type(MISSING)) else field.default


def _declared_option(field: "dataclasses.Field[Any]", hint: Any) -> Option:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    several = typing.get_origin(kind) is tuple
    kind = typing.get_args(kind)[0] if several else kind
    if typing.get_origin(kind) is Literal:
        kind = typing.get_args(kind)
    extra = field.metadata["option"]
    return Option(
        name=field.name,
        help=extra["help"],
        default=_default(field),
        kind=kind,
        several=several,
        nullable=type(None) in kinds,
        range=extra["range"],
        check=extra["check"],
        is_strength=extra["is_strength"],
    )


def keywords_of(call: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters that a function or class takes as keywords alone."""
    parameters = inspect.signature(call).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def check_keywords(
    call: Callable[..., Any], given: Collection[str], passed: Collection[str]
) -> None:
    """Refuse keywords that neither a function takes, nor what it passes them to.

    Args:
        call: The function, which takes the keywords as ``**options``.
        given: Their names.
        passed: Names that it passes on.

    Raises:
        UnknownNameError: A name is neither; the message names the nearest one.
    """
    parameters = inspect.signature(call).parameters.values()
    own = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    for name in given:
        UnknownNameError.check(f"option of {call.__name__}", name, {*own, *passed})
