"""Sliders have listed positions; a request for anything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneway.errors import InvalidOptionError, OnewayError, UnknownNameError
from oneway.playground.settings import (
    DEFAULTS,
    MIXED,
    SLIDERS,
    Setting,
    all_settings,
    mixed_settings,
)
from playground.planted import default_setting

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def test_every_position_says_itself_and_is_read_back():
    for defense in SLIDERS:
        settings = all_settings(defense)
        assert len(set(settings)) == len(settings)
        for setting in settings:
            assert Setting.from_json(setting.as_json()) == setting


def test_defaults_and_mixtures_are_positions():
    assert DEFAULTS.keys() == SLIDERS.keys()
    assert MIXED.keys() == {"rounding", "adversarial-noise", "codebook"}
    for defense in SLIDERS:
        assert default_setting(defense) in all_settings(defense)
        assert set(mixed_settings(defense)) <= set(all_settings(defense))


def test_whole_numbers_are_read_as_the_position_they_equal():
    setting = Setting.of("rounding", {"decimals": 1.0})
    assert type(dict(setting.options)["decimals"]) is int


@given(JSON)
def test_whatever_else_is_sent_is_refused_on_purpose(value):
    for sent in (value, {"defense": value, "options": {}}, {"defense": "none", "options": value}):
        try:
            setting = Setting.from_json(sent)
        except OnewayError:
            continue
        assert setting in all_settings(setting.defense)


def test_a_mistake_is_refused_with_its_remedy():
    for defense, options, error, words in (
        ("roundin", {}, UnknownNameError, "Did you mean 'rounding'"),
        ("rounding", {"decimal": 1}, UnknownNameError, "Did you mean 'decimals'"),
        ("rounding", {}, InvalidOptionError, "needs the option 'decimals'"),
        ("rounding", {"decimals": True}, InvalidOptionError, "must be one of 1, 2, 3, 4, 5"),
        ("rounding", {"decimals": 6}, InvalidOptionError, "Choose a slider's position"),
        ("rounding", {"decimals": [1]}, InvalidOptionError, "must be one of"),
    ):
        with pytest.raises(error, match=words):
            Setting.of(defense, options)
