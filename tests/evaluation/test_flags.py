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


def test_each_flag_says_what_it_is_in_a_word_that_is_the_name_of_its_page():
    for name, kind in FLAGS.items():
        assert Flag(name, "because") == Flag(name, "because", None)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name), name
        texts = (kind.says, kind.raised_if, kind.why, kind.what_to_do)
        assert all(text == text.strip() != "" for text in texts), name
        assert kind.page.startswith(f"# {name}\n"), name
        assert all(text in kind.page for text in texts[1:]), name
    assert {path.stem for path in (PACKAGE / "evaluation" / "flag_pages").iterdir()} == set(FLAGS)


def test_flags_in_the_code_are_those_that_are_listed():
    """A flag that nothing raises would promise a check that is not made."""
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    assert {name for source in sources for name in RAISED.findall(source)} == set(FLAGS)
