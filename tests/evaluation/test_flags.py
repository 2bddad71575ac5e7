"""Flags have known names, and every name is raised somewhere."""

import re
from pathlib import Path

import pytest

import oneway
from oneway.errors import UnknownNameError
from oneway.evaluation import FLAGS, Flag

PACKAGE = Path(oneway.__file__).parent
RAISED = re.compile(r'Flag\(\s*"([a-z-]+)"')


def test_a_flag_that_nobody_could_look_up_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown flag 'atack-failed'.*'attack-failed'"):
        Flag("atack-failed", "whatever")


@pytest.mark.parametrize("name", FLAGS)
def test_each_flag_says_what_it_is_in_a_word_that_is_the_name_of_its_page(name):
    assert Flag(name, "because").detail == "because"
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
    assert FLAGS[name].says


def test_flags_in_the_code_are_those_that_are_listed():
    """A flag that nothing raises would promise a check that is not made."""
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    assert {name for source in sources for name in RAISED.findall(source)} == set(FLAGS)
