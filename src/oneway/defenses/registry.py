"""The only table from names to defenses."""

from collections.abc import Callable, Mapping
from inspect import isabstract
from typing import Any

from torch import Generator, nn

from oneway.contracts import Defense, TrainedDefense
from oneway.defenses.adversarial_noise import AdversarialNoise, InputFreeNoise
from oneway.defenses.base import BaseDefense
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses.confidence_cutoff import HighConfidenceCutoff
from oneway.defenses.controls import (
    ClassOffsets,
    NoisyTail,
    Permutation,
    PlantedLeak,
    PlantedLevels,
)
from oneway.defenses.dirichlet_noise import DirichletNoise
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.hamp import Hamp
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.modelguard_s import ModelGuardS
from oneway.defenses.modelguard_w import ModelGuardW
from oneway.defenses.one_parameter import OneParameter
from oneway.defenses.prototypes import Prototypes
from oneway.defenses.reverse_sigmoid import ReverseSigmoid
from oneway.defenses.rounding import Rounding
from oneway.defenses.stealthy_shield import StealthyShield
from oneway.defenses.temperature import Temperature
from oneway.defenses.top_k import TopK
from oneway.defenses.top_rounding import TopRounding
from oneway.defenses.trained import (
    DecoyCodebook,
    MemGuard,
    MutualInformation,
    Poisoning,
    Purification,
)
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.options import Option, injected_names, options_of
from oneway.targets.objects import imported

TEST_SIGNALS: dict[str, Callable[..., Defense]] = {
    "permutation": Permutation,
    "class-offsets": ClassOffsets,
    "planted-leak": PlantedLeak,
    "planted-levels": PlantedLevels,
    "noisy-tail": NoisyTail,
}
"""Releases that hide nothing, or leak a secret: for audits to detect, and never for clients."""

DEFENSES: dict[str, Callable[..., Defense]] = {
    "none": Identity,
    "label-only": LabelOnly,
    "adversarial-noise": AdversarialNoise,
    "mutual-information": MutualInformation,
    "purification": Purification,
    "input-free-noise": InputFreeNoise,
    "rounding": Rounding,
    "top-rounding": TopRounding,
    "top-k": TopK,
    "temperature": Temperature,
    "prototypes": Prototypes,
    "codebook": CodebookRelease,
    "decoy-codebook": DecoyCodebook,
    "confidence-cutoff": HighConfidenceCutoff,
    "reverse-sigmoid": ReverseSigmoid,
    "gaussian-noise": GaussianNoise,
    "dirichlet-noise": DirichletNoise,
    "one-parameter": OneParameter,
    "ssd": StealthyShield,
    "memguard": MemGuard,
    "hamp": Hamp,
    "modelguard-s": ModelGuardS,
    "modelguard-w": ModelGuardW,
    "lpa": Poisoning,
    **TEST_SIGNALS,
}
"""All defenses, by their name in commands, experiments and files."""


def registered_name(defense: Defense) -> str | None:
    """Return the name of a defense of oneway; None if it is somebody's own."""
    return next((name for name, kind in DEFENSES.items() if kind is type(defense)), None)


def needs_surrogate(name: str) -> bool:
    """Say whether a defense takes the defender's surrogate inverter."""
    return "inverter" in _injected(name)


def needs_state(name: str) -> bool:
    """Say whether a defense takes a state that is fitted before release."""
    return "state" in _injected(name)


def trained_defense(name: str) -> TrainedDefense:
    """Return the class of a defense whose state is fitted before release.

    Raises:
        UnknownNameError: There is no such defense.
    """
    if not needs_state(name):
        raise UnknownNameError("trained defense", name, filter(needs_state, DEFENSES))
    return _kind(name)  # type: ignore[no-any-return]


def declared_options(name: str) -> dict[str, Option]:
    """Return the options of a defense and of its training, by name.

    Raises:
        UnknownNameError: There is no such defense.
    """
    return {**_own_options(name), **_training_options(name)}


def training_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a defense's options that decide how its state is fitted."""
    known = _training_options(name)
    return {option: value for option, value in options.items() if option in known}


def effective_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a defense's options, those that were not given at their defaults."""
    return {
        option: options.get(option, declared.default)
        for option, declared in declared_options(name).items()
    }


def strength_option(name: str) -> str | None:
    """Return the option whose double makes a defense change scores more; None if there is none."""
    declared = declared_options(name).values()
    return next((option.name for option in declared if option.is_strength), None)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a defense or its training lacks, needs, or allows no such value of.

    Raises:
        UnknownNameError: There is no such defense or option; with the nearest name.
        InvalidOptionError: An option that has no default is missing, or a value is outside its
            range.
    """
    known = declared_options(name)
    for option in options:
        UnknownNameError.check(f"option of {name!r}", option, known)
    for option, declared in known.items():
        if option in options:
            declared.refuse(options[option])
        elif declared.required:
            raise InvalidOptionError(f"defense {name!r} needs the option {option!r}. Add it.")


def build_defense(
    name: str,
    options: Mapping[str, Any],
    surrogate: nn.Module | None = None,
    *,
    state: nn.Module | None = None,
    generator: Generator | None = None,
) -> Defense:
    """Build a defense from its name, its options, and what is injected.

    Args:
        name: A key of ``DEFENSES``, or ``module:Class`` of a subclass of ``BaseDefense``.
        options: Options of the defense and of its training, side by side.
        surrogate: The defender's inverter, if the defense takes one.
        state: The fitted state, if the defense takes one.
        generator: On the CPU; the source of randomness, if the defense takes one.

    Raises:
        UnknownNameError: The name or an option is unknown.
        InvalidOptionError: An option is missing, or outside its range.
    """
    check_options(name, options)
    at_hand = {"inverter": surrogate, "state": state, "generator": generator}
    taken = {given: at_hand[given] for given in _injected(name)}
    chosen = {key: value for key, value in options.items() if key in _own_options(name)}
    return _kind(name)(**taken, **chosen)  # type: ignore[no-any-return]


def _kind(name: str) -> Any:
    """Return the class of a defense: of the registry, or ``module:Class`` of somebody's own."""
    if ":" in name:
        kind = imported(name, "defense")
        if not (isinstance(kind, type) and issubclass(kind, BaseDefense)) or isabstract(kind):
            raise InvalidOptionError(
                f"{name!r} must be a subclass of oneway.defenses.base.BaseDefense, such as of its "
                "ScoreDefense, with all of its abstract methods."
            )
        return kind
    UnknownNameError.check("defense", name, DEFENSES)
    return DEFENSES[name]


def _injected(name: str) -> tuple[str, ...]:
    return injected_names(_kind(name))


def _own_options(name: str) -> Mapping[str, Option]:
    return options_of(_kind(name))


def _training_options(name: str) -> Mapping[str, Option]:
    return options_of(_kind(name).training) if needs_state(name) else {}
