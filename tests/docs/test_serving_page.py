"""docs/serving.md: its tables are the settings' and the records'; what it names exists."""

import json
import os
import re
from pathlib import Path

from invoking import all_commands
from laws import looped
from oneway.serving import ServingSettings
from oneway.serving.openapi import REFUSALS
from registry_pages import put

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"


def settings_table() -> str:
    rows = ["| setting | default | |", "| --- | --- | --- |"]
    for name, field in ServingSettings.model_fields.items():
        default = "" if field.default is None else f"`{json.dumps(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_settings_of_the_page_are_all_there_are():
    """With ONEWAY_WRITE_DOCS=1 they are written."""
    page = put(PAGE, "settings", f"{settings_table()}\n")
    if WRITE:
        (ROOT / "docs" / "serving.md").write_text(page, encoding="utf-8")
    else:
        assert page == PAGE, "run with ONEWAY_WRITE_DOCS=1"


def test_settings_and_options_that_the_page_names_exist():
    options = {name for option in all_commands().commands["serve"].params for name in option.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert named - {"--cacert"} <= options
    assert options - named <= {
        "--help", "--model-option", "--probe", "--device", "model",
    }  # fmt: skip
    for name in re.findall(
        r"--setting (\w+)=|`((?:max|timeout|shutdown|upstream|batch)_\w+)", PAGE
    ):
        assert (name[0] or name[1]) in ServingSettings.model_fields


def test_statuses_of_the_page_are_those_of_the_openapi_document():
    """405 is of another method, and so of no operation."""
    table = PAGE.partition("| status | when |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert {status for row in rows for status in row.split(", ")} == {*REFUSALS, "405"}


@looped("page", ["serving.md", "security.md"])
def test_links_lead_to_files(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
