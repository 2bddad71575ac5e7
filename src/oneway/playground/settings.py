"""Settings that the page can ask for: a defense, and a listed position of each of its sliders."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oneway.errors import InvalidOptionError, UnknownNameError

Value = int | float | None
"""The value of an option; None: no limit."""

SLIDERS: Mapping[str, Mapping[str, tuple[Value, ...]]] = {
    "none": {},
    "adversarial-noise": {
        "step_size": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
        "steps": (1, 2, 3, 5, 7, 10, 15, 20),
        "budget": (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, None),
    },
    "codebook": {
        "min_members": (5, 10, 20, 50, 100),
        "rate_weight": (0.0, 0.01, 0.03, 0.1),
    },
    "rounding": {"decimals": (1, 2, 3, 4, 5)},
    "label-only": {},
}
"""Slider positions by defense and option."""

DEFAULTS: Mapping[str, Mapping[str, Value]] = {
    "none": {},
    "adversarial-noise": {"step_size": 0.1, "steps": 10, "budget": None},
    "codebook": {"min_members": 20, "rate_weight": 0.01},
    "rounding": {"decimals": 1},
    "label-only": {},
}
"""The first position of each slider; the noise has the step size of its paper."""

MIXED: Mapping[str, tuple[Mapping[str, Value], ...]] = {
    "adversarial-noise": (
        {"step_size": 0.1, "steps": 10, "budget": None},
        {"step_size": 0.4, "steps": 10, "budget": None},
        {"step_size": 0.05, "steps": 10, "budget": None},
        {"step_size": 0.2, "steps": 10, "budget": None},
        {"step_size": 0.4, "steps": 10, "budget": 3.0},
        {"step_size": 0.8, "steps": 5, "budget": None},
    ),
    "codebook": tuple(
        {"min_members": members, "rate_weight": weight}
        for members, weight in ((5, 0.01), (20, 0.01), (5, 0.0), (20, 0.1))
    ),
    "rounding": tuple({"decimals": decimals} for decimals in (1, 2, 3, 4)),
}
"""Settings by defense, for an attacker who does not know which of them is used."""


@dataclass(frozen=True)
class Setting:
    """A defense and the position of each of its sliders.

    Attributes:
        defense: A key of ``SLIDERS``.
        options: Names and values, in the order of ``SLIDERS``.
    """

    defense: str
    options: tuple[tuple[str, Value], ...]

    @classmethod
    def of(cls, defense: str, options: Mapping[str, Value]) -> "Setting":
        """Check a defense and all of its options.

        Raises:
            UnknownNameError: The defense, or an option of it, does not exist.
            InvalidOptionError: An option is missing, or its value is not a slider position.
        """
        if defense not in SLIDERS:
            raise UnknownNameError("defense of the playground", defense, SLIDERS)
        sliders = SLIDERS[defense]
        for name in options:
            if name not in sliders:
                raise UnknownNameError(f"option of {defense!r}", name, sliders)
        checked = []
        for name, positions in sliders.items():
            if name not in options:
                raise InvalidOptionError(f"defense {defense!r} needs the option {name!r}. Add it.")
            value = options[name]
            if isinstance(value, bool) or value not in positions:
                listed = ", ".join("null" if each is None else str(each) for each in positions)
                raise InvalidOptionError(
                    f"{name} of {defense!r} must be one of {listed}. Choose a slider's position."
                )
            checked.append((name, positions[positions.index(value)]))
        return cls(defense, tuple(checked))

    @classmethod
    def from_json(cls, value: Any) -> "Setting":
        """Check a JSON value such as ``{"defense": "rounding", "options": {"decimals": 1}}``.

        Raises:
            UnknownNameError: See :meth:`of`.
            InvalidOptionError: See :meth:`of`; or the value has another form.
        """
        match value:
            case {"defense": str(defense), "options": dict(options), **rest} if not rest:
                return cls.of(defense, options)
        raise InvalidOptionError(
            'a setting must be an object {"defense": NAME, "options": {...}} and nothing more. '
            "See /api/state for names and positions."
        )

    def __str__(self) -> str:
        """Return the name of the setting in progress reports: ``"rounding, decimals 1"``."""
        options = (f"{k} {'unlimited' if v is None else v}" for k, v in self.options)
        return ", ".join([self.defense, *options])

    def as_json(self) -> dict[str, Any]:
        """Return the value that :meth:`from_json` reads."""
        return {"defense": self.defense, "options": dict(self.options)}


def all_settings(defense: str) -> list[Setting]:
    """Return every combination of a defense's slider positions."""
    sliders = SLIDERS[defense]
    return [
        Setting(defense, tuple(zip(sliders, values, strict=True)))
        for values in itertools.product(*sliders.values())
    ]


def mixed_settings(defense: str) -> list[Setting]:
    """Return the settings of ``MIXED``; empty for a defense without sliders."""
    return [Setting.of(defense, options) for options in MIXED.get(defense, ())]
