"""docs/install.md: its table of extras is pyproject.toml's; its commands and links are good."""

import os
import re
import shlex
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from oneway.cli.diagnosis import PURPOSES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "install.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"


def extras_table() -> str:
    rows = ["| extra | for | packages |", "| --- | --- | --- |"]
    for name, wanted in sorted(PROJECT["optional-dependencies"].items()):
        packages = ", ".join(str(Requirement(one)) for one in wanted)
        rows.append(f"| `{name}` | {PURPOSES[name]} | {packages} |")
    return "\n".join(rows)


def test_the_extras_are_those_of_the_project():
    text = TEXT
    if WRITE:
        block = f"<!-- extras -->\n{extras_table()}\n<!-- end of extras -->"
        text = re.sub(r"<!-- extras -->.*<!-- end of extras -->", lambda _: block, TEXT, flags=re.S)
        PAGE.write_text(text, encoding="utf-8")
    (table,) = re.findall(r"<!-- extras -->\n(.*)\n<!-- end of extras -->", text, flags=re.S)
    assert table == extras_table()


def test_the_core_that_is_explained_is_the_core():
    explained = TEXT.split("## What the core brings")[1].split("<!-- core -->")[0]
    named = re.findall(r"^\| ([a-z][a-z0-9-]*) \|", explained, re.MULTILINE)
    assert set(named) - {"package"} == {Requirement(one).name for one in PROJECT["dependencies"]}
    numbers = {"Six": 6, "Seven": 7, "Eight": 8, "Nine": 9}
    assert numbers[explained.split()[0]] == len(PROJECT["dependencies"])


def test_every_extra_that_is_asked_for_exists_and_every_kind_of_user_is_sent_to_one():
    asked = set()
    for names in re.findall(r"oneway\[([\w,-]+)\]", TEXT):
        asked |= set(names.split(","))
    assert asked <= set(PROJECT["optional-dependencies"])
    assert {"demo", "audit", "serve"} <= asked
    for command in re.findall(r"^pip .*$", TEXT, re.MULTILINE):
        assert shlex.split(command)[1] in ("install", "download")


def test_links_lead_to_files():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", TEXT)
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
