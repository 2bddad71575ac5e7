"""Defenses by name: checked as they are built, and none of them a test signal by accident."""

import re

import pytest
import torch
from torch import nn

from oneway.defenses import (
    DEFENSES,
    TEST_SIGNALS,
    build_defense,
    check_options,
    controls,
    effective_options,
    needs_state,
    needs_surrogate,
    strength_option,
    trained_defense,
    training_options,
)
from oneway.defenses.registry import declared_options
from oneway.errors import InvalidOptionError, UnknownNameError
from oneway.options import options_of

NEEDED = {
    "adversarial-noise": {"step_size": 0.1},
    "input-free-noise": {"step_size": 0.1},
    "mutual-information": {"beta": 0.01},
}
GIVEN = {"state": nn.Identity(), "generator": torch.Generator()}


def test_defenses_are_built_as_they_are_checked():
    with pytest.raises(UnknownNameError, match=re.escape("unknown defense 'nothing'")):
        build_defense("nothing", {})
    for name in DEFENSES:
        build_defense(name, NEEDED.get(name, {}), nn.Identity(), **GIVEN)
    assert build_defense("label-only", {"confidence": 0.75}).confidence == 0.75
    with pytest.raises(UnknownNameError, match="Did you mean 'confidence'"):
        build_defense("label-only", {"confidenc": 0.75})


def test_a_defense_without_an_option_it_needs_is_refused_by_name():
    for name, needed in NEEDED.items():
        [option] = needed
        with pytest.raises(InvalidOptionError, match=f"'{name}' needs the option '{option}'"):
            build_defense(name, {}, nn.Identity(), **GIVEN)
    free = [name for name in DEFENSES if name not in NEEDED]
    assert not any(option.required for name in free for option in declared_options(name).values())


def test_options_of_a_defense_and_of_its_training_stand_side_by_side():
    options = {"beta": 0.01, "epochs": 3, "keep_label": True}
    check_options("mutual-information", options)
    assert training_options("mutual-information", options) == {"beta": 0.01, "epochs": 3}
    effective = effective_options("mutual-information", options)
    assert effective == {"keep_label": True, "margin": 1e-3, "beta": 0.01, "epochs": 3} | {
        "learning_rate": 3e-3,
        "batch_size": 64,
    }
    built = build_defense("mutual-information", options, None, **GIVEN)
    assert built.keeps_label
    assert training_options("rounding", {"decimals": 1}) == {}
    for name in filter(needs_state, DEFENSES):
        kind = trained_defense(name)
        assert not options_of(kind).keys() & options_of(kind.training).keys()
    with pytest.raises(UnknownNameError, match="unknown trained defense 'rounding'"):
        trained_defense("rounding")


def test_what_a_defense_is_given_follows_from_its_fields():
    assert [name for name in DEFENSES if needs_surrogate(name)] == [
        "adversarial-noise",
        "input-free-noise",
    ]
    assert not any(needs_state(name) for name in ("none", "rounding", *TEST_SIGNALS))
    assert all(needs_state(name) for name in ("prototypes", "codebook", "ssd", "memguard"))


def test_a_strength_is_one_option_of_which_more_changes_scores_more():
    strengths = {name: strength_option(name) for name in DEFENSES if strength_option(name)}
    assert strengths == {
        "adversarial-noise": "step_size",
        "input-free-noise": "step_size",
        "gaussian-noise": "standard_deviation",
        "ssd": "epsilon",
        "modelguard-w": "epsilon",
    }


def test_every_control_of_its_module_is_a_test_signal_and_no_defense_is():
    signals = {name for name, kind in DEFENSES.items() if kind.__module__ == controls.__name__}
    assert set(TEST_SIGNALS) == signals
    assert TEST_SIGNALS.items() <= DEFENSES.items()
