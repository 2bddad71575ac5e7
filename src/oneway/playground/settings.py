"""What the page may ask for: a defense, and one of the listed positions of each of its sliders."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oneway.errors import InvalidOptionError, UnknownNameError

Value = int | float | None
"""Of an option; None: no limit."""

SLIDERS: Mapping[str, Mapping[str, tuple[Value, ...]]] = {
    "none": {},
    "rounding": {"decimals": (1, 2, 3, 4, 5)},
    "adversarial-noise": {
        "step_size": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
        "steps": (1, 2, 3, 5, 7, 10, 15, 20),
        "budget": (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, None),
    },
    "codebook": {
        "min_members": (5, 10, 20, 50, 100),
        "rate_weight": (0.0, 0.01, 0.03, 0.1),
    },
    "label-only": {},
}
"""Options of each defense, and the positions of their sliders: few enough to keep all answers."""

DEFAULTS: Mapping[str, Mapping[str, Value]] = {
    "none": {},
    "rounding": {"decimals": 1},
    "adversarial-noise": {"step_size": 0.1, "steps": 10, "budget": None},
    "codebook": {"min_members": 20, "rate_weight": 0.01},
    "label-only": {},
}
"""Where the sliders stand at first: the paper's step for the noise."""

MIXED: Mapping[str, tuple[Mapping[str, Value], ...]] = {
    "rounding": tuple({"decimals": decimals} for decimals in (1, 2, 3, 4)),
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
}
"""The settings that an attacker of each defense trains on, who does not know which one is used."""


@dataclass(frozen=True)
class Setting:
    """A defense and where its sliders stand.

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
            UnknownNameError: There is no such defense, or option of it.
            InvalidOptionError: An option is missing, or is none of the slider's positions.
        """
        if defense not in SLIDERS:
            raise UnknownNameError("defense of the playground", defense, SLIDERS)
        known = SLIDERS[defense]
        for name in options:
            if name not in known:
                raise UnknownNameError(f"option of {defense!r}", name, known)
        chosen = []
        for name, positions in known.items():
            if name not in options:
                raise InvalidOptionError(f"defense {defense!r} needs the option {name!r}. Add it.")
            value = options[name]
            if isinstance(value, bool) or value not in positions:
                listed = ", ".join("null" if one is None else str(one) for one in positions)
                raise InvalidOptionError(
                    f"{name} of {defense!r} must be one of {listed}. Choose a slider's position."
                )
            chosen.append((name, positions[positions.index(value)]))
        return cls(defense, tuple(chosen))

    @classmethod
    def from_json(cls, told: Any) -> "Setting":
        """Check what a request says: ``{"defense": "rounding", "options": {"decimals": 1}}``.

        Raises:
            UnknownNameError: See :meth:`of`.
            InvalidOptionError: See there; or it is something else.
        """
        match told:
            case {"defense": str(defense), "options": dict(options), **rest} if not rest:
                return cls.of(defense, options)
        raise InvalidOptionError(
            'a setting must be an object {"defense": NAME, "options": {...}} and nothing more. '
            "See /api/state for names and positions."
        )

    def __str__(self) -> str:
        """Return what progress calls it: ``"rounding, decimals 1"``."""
        told = [f"{name} {'unlimited' if value is None else value}" for name, value in self.options]
        return ", ".join([self.defense, *told])

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return {"defense": self.defense, "options": dict(self.options)}


def all_settings(defense: str) -> list[Setting]:
    """Return every position of every slider of a defense."""
    sliders = SLIDERS[defense]
    return [
        Setting(defense, tuple(zip(sliders, values, strict=True)))
        for values in itertools.product(*sliders.values())
    ]


def default_setting(defense: str) -> Setting:
    """Return where a defense's sliders stand at first."""
    return Setting.of(defense, DEFAULTS[defense])


def mixed_settings(defense: str) -> list[Setting]:
    """Return the settings that a defense's attacker trains on before any is known; none, too."""
    return [Setting.of(defense, options) for options in MIXED.get(defense, ())]
