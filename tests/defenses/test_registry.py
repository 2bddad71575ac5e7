"""Defenses by name: checked as they are built, and none of them a test signal by accident."""

import re

import pytest
import torch
from torch import nn

from oneway.defenses import DEFENSES, TEST_SIGNALS, build_defense, controls
from oneway.errors import InvalidOptionError, UnknownNameError

NEEDED = {
    "adversarial-noise": {"step_size": 0.1},
    "input-free-noise": {"step_size": 0.1},
    "mutual-information": {"beta": 0.01},
}


def test_defenses_are_built_as_they_are_checked():
    with pytest.raises(UnknownNameError, match=re.escape("unknown defense 'nothing'")):
        build_defense("nothing", {}, None)
    given = {"network": nn.Identity(), "generator": torch.Generator()}
    for name in DEFENSES:
        build_defense(name, NEEDED.get(name, {}), nn.Identity(), **given)
    assert build_defense("label-only", {"confidence": 0.75}, None).confidence == 0.75
    with pytest.raises(UnknownNameError, match="Did you mean 'confidence'"):
        build_defense("label-only", {"confidenc": 0.75}, None)


@pytest.mark.parametrize("name", NEEDED)
def test_a_defense_without_an_option_it_needs_is_refused_by_name(name):
    [option] = NEEDED[name]
    with pytest.raises(InvalidOptionError, match=f"'{name}' needs the option '{option}'"):
        build_defense(name, {}, nn.Identity(), network=nn.Identity(), generator=torch.Generator())


def test_every_control_of_its_room_is_a_test_signal_and_no_defense_is():
    signals = {name for name, kind in DEFENSES.items() if kind.__module__ == controls.__name__}
    assert set(TEST_SIGNALS) == signals
    assert TEST_SIGNALS.items() <= DEFENSES.items()
