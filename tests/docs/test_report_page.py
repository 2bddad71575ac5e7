"""What docs/report.md says of commands, files and links is so."""

import re
from pathlib import Path

from invoking import all_commands
from oneway.auditing.examples import WORST
from oneway.report.audit import HIDDEN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
COMMANDS = all_commands().commands


def test_commands_that_are_said_to_write_a_page_have_what_is_said_of_them():
    table = PAGE.split("| --- | --- |\n")[1].split("\n\n")[0]
    named = re.findall(r"`oneway (\w+)`", table)
    assert set(named) == {"audit", "demo", "leaderboard", "reproduce", "codebook", "certify"}
    for name in named:
        options = {one for option in COMMANDS[name].params for one in option.opts}
        assert ("--no-images" in options) == (name not in ("codebook", "certify"))
    assert "--page" in {one for option in COMMANDS["certify"].params for one in option.opts}


def test_options_that_are_named_exist():
    known = {
        one for command in COMMANDS.values() for option in command.params for one in option.opts
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE)) <= known


def test_numbers_are_those_of_the_code():
    assert f"the {({8: 'eight'})[WORST]} queries with the largest gain beyond the label" in PAGE
    assert f"close {HIDDEN:g}".replace("0.", ".") in PAGE


def test_links_lead_to_files():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
