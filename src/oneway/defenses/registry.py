"""The only table from names to defenses."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Generator, nn

from oneway.contracts import Defense, TrainedDefense
from oneway.defenses.adversarial_noise import AdversarialNoise, InputFreeNoise
from oneway.defenses.codebook import CodebookRelease
from oneway.defenses.confidence_cutoff import HighConfidenceCutoff
from oneway.defenses.controls import ClassOffsets, NoisyTail, Permutation, PlantedLeak
from oneway.defenses.dirichlet_noise import DirichletNoise
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
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

TEST_SIGNALS: dict[str, Callable[..., Defense]] = {
    "permutation": Permutation,
    "class-offsets": ClassOffsets,
    "planted-leak": PlantedLeak,
    "noisy-tail": NoisyTail,
}
"""Releases that hide nothing, or tell a secret: for audits to find out, and never for clients."""

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
    "lpa": Poisoning,
    **TEST_SIGNALS,
}
"""All of them, by the name that commands, experiments and files call them."""

STRENGTHS = {
    "adversarial-noise": "step_size",
    "input-free-noise": "step_size",
    "gaussian-noise": "standard_deviation",
    "ssd": "epsilon",
}
"""Options that make a defense change scores more, where twice as much can be tried."""

GIVEN = ("inverter", "network", "generator")
"""Parameters that a defense is given rather than told: its surrogate, its own trained network,
and its source of randomness."""


def needs_surrogate(name: str) -> bool:
    """Say whether a defense takes the defender's surrogate inverter."""
    return "inverter" in _parameters(name)


def needs_network(name: str) -> bool:
    """Say whether a defense trains a network of its own before release."""
    return "network" in _parameters(name)


def trained_defense(name: str) -> TrainedDefense:
    """Return the class of a defense that trains a network of its own.

    Raises:
        UnknownNameError: There is no such defense.
    """
    trained = {known: kind for known, kind in DEFENSES.items() if needs_network(known)}
    if name not in trained:
        raise UnknownNameError("trained defense", name, trained)
    kind: Any = trained[name]
    return kind  # type: ignore[no-any-return]


def training_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a defense's options that say how its network is trained."""
    if not needs_network(name):
        return {}
    known = _train_parameters(name)
    return {option: value for option, value in options.items() if option in known}


def effective_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a defense's options, those that were not given at their defaults."""
    return {
        option: options.get(option, parameter.default)
        for option, parameter in _option_parameters(name).items()
    }


def _option_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return what a defense can be told, for its constructor and for its training."""
    own = {
        option: parameter for option, parameter in _parameters(name).items() if option not in GIVEN
    }
    return own | (_train_parameters(name) if needs_network(name) else {})


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown defense, and options that it lacks or needs, before any work.

    Raises:
        UnknownNameError: With the nearest name.
        InvalidOptionError: An option that has no default is missing.
    """
    known = _option_parameters(name)
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name!r}", option, known)
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise InvalidOptionError(f"defense {name!r} needs the option {option!r}. Add it.")


def build_defense(
    name: str,
    options: Mapping[str, Any],
    surrogate: nn.Module | None,
    *,
    network: nn.Module | None = None,
    generator: Generator | None = None,
) -> Defense:
    """Build a defense from its name, its options, and what it is given.

    Args:
        name: A key of ``DEFENSES``.
        options: Those of its constructor and of its training, side by side.
        surrogate: The defender's inverter, if it takes one.
        network: What its training gave, if it has one.
        generator: Its source of randomness, if it takes one.

    Raises:
        UnknownNameError: The name or an option is unknown.
        InvalidOptionError: An option is missing, or outside its range.
    """
    check_options(name, options)
    given = {"inverter": surrogate, "network": network, "generator": generator}
    parameters = _parameters(name)
    taken = {key: value for key, value in given.items() if key in parameters}
    own = {key: value for key, value in options.items() if key in parameters}
    return DEFENSES[name](**taken, **own)


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    if name not in DEFENSES:
        raise UnknownNameError("defense", name, DEFENSES)
    return dict(inspect.signature(DEFENSES[name]).parameters)


def _train_parameters(name: str) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(trained_defense(name).train).parameters)
    return {
        option: parameter
        for option, parameter in parameters.items()
        if option not in ("training_data", "generator", "on_epoch")
    }
