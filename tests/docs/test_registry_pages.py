"""Every registered defense and attacker has a page, whose facts and figures are the code's."""

import os
import re

import pytest

from laws import looped
from oneway.attacks import ATTACKS
from oneway.defenses import DEFENSES, TEST_SIGNALS
from registry_pages import DOCS, parts, put

WRITE = os.environ.get("ONEWAY_WRITE_DOCS") == "1"
FOLDERS = {"defenses": DEFENSES, "attacks": ATTACKS}
PAGES = [(folder, name) for folder, names in FOLDERS.items() for name in names]
SECTIONS = {
    "defenses": [
        "What it does",
        "Use it",
        "Parameters",
        "Measured",
        "When to use it, and when not",
    ],
    "attacks": ["What it does", "Use it", "Measured", "What it shows, and what it does not"],
}


def text_of(folder, name):
    return (DOCS / folder / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made():
    return parts()


def test_what_code_and_records_decide_is_as_they_say(made):
    """With ONEWAY_WRITE_DOCS=1 it is written."""
    for path, texts in made.items():
        page = path.read_text(encoding="utf-8")
        expected = page
        for name, text in texts.items():
            expected = put(expected, name, text)
        if WRITE:
            path.write_text(expected, encoding="utf-8")
        else:
            assert page == expected, f"{path.name}: run with ONEWAY_WRITE_DOCS=1"


@looped("folder", FOLDERS)
def test_every_registered_name_has_a_page_and_every_page_a_name(folder):
    assert {path.stem for path in (DOCS / folder).glob("*.md")} == {*FOLDERS[folder], "index"}


@looped(("folder", "name"), PAGES)
def test_a_page_says_what_a_reader_asks_in_this_order(folder, name):
    page = text_of(folder, name)
    assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE) == SECTIONS[folder]
    assert re.search(r'^\*\*Source\.\*\* [\w"]', page, flags=re.MULTILINE)
    assert "```python\n" in page
    assert f"| name | `{name}` |" in page
    assert ("test signal" in page.partition("\n")[0]) == (name in TEST_SIGNALS)


@looped("folder", FOLDERS)
def test_the_index_links_all_pages(folder):
    index = text_of(folder, "index")
    assert all(f"]({name}.md)" in index for name in FOLDERS[folder])
    listed = index.split("```{toctree}")[1].split()
    assert set(FOLDERS[folder]) <= set(listed)


def test_figures_are_those_of_the_results_page():
    """By another way: each row's G stands in docs/results.md beside its release."""
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")]
        for name in DEFENSES
        for line in text_of("defenses", name).partition("## Measured")[2].splitlines()
        if line.startswith("| ") and "---" not in line and not line.startswith("| release")
    ]
    assert len(rows) > 80
    told = results.splitlines()
    for release, _, _, gap, tail, *_ in rows:
        assert any(
            line.startswith(f"| {release} |") and f" | {gap} | {tail} |" in line for line in told
        ), release
