"""The only table from names to defenses and attacks."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from oneway.attacks import label_only, retrained, static
from oneway.contracts import Attack, Defense
from oneway.defenses.adversarial_noise import AdversarialNoise
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.errors import InvalidOptionError, UnknownNameError

DEFENSES: dict[str, Callable[..., Defense]] = {
    "none": Identity,
    "label-only": LabelOnly,
    "adversarial-noise": AdversarialNoise,
}

ATTACKS: dict[str, Attack] = {
    "label-only": label_only,
    "static": static,
    "retrained": retrained,
}


def needs_surrogate(name: str) -> bool:
    """Say whether a defense takes the defender's surrogate inverter."""
    return "inverter" in _parameters(name)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown defense, and options that it lacks or needs, before any work.

    Raises:
        UnknownNameError: With the nearest name.
        InvalidOptionError: An option that has no default is missing.
    """
    known = [option for option in _parameters(name) if option != "inverter"]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name!r}", option, known)
    for option in known:
        if _parameters(name)[option].default is inspect.Parameter.empty and option not in options:
            raise InvalidOptionError(f"defense {name!r} needs the option {option!r}. Add it.")


def build_defense(name: str, options: Mapping[str, Any], surrogate: nn.Module | None) -> Defense:
    """Build a defense from its name, its options, and the surrogate if it takes one.

    Raises:
        UnknownNameError: The name or an option is unknown.
        InvalidOptionError: An option is missing, or outside its range.
    """
    _check_options(name, options)
    if needs_surrogate(name):
        return DEFENSES[name](surrogate, **options)
    return DEFENSES[name](**options)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    if name not in DEFENSES:
        raise UnknownNameError("defense", name, DEFENSES)
    return inspect.signature(DEFENSES[name]).parameters
