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


def rows_of(part):
    """Cells of the rows of tables in a part of a page, without headings."""
    return [
        [cell.strip() for cell in line.strip("| \n").split(" | ")]
        for line in part.splitlines()
        if line.startswith("| ") and "---" not in line and not line.startswith("| release")
    ]


def test_figures_are_those_of_the_results_page_and_of_the_page_of_threats():
    """By another way: each row's G stands on these pages beside its release."""
    told = (DOCS / "results.md").read_text(encoding="utf-8").splitlines()
    board = (DOCS / "threats.md").read_text(encoding="utf-8").splitlines()
    counts = [0, 0]
    for name in DEFENSES:
        measured = text_of("defenses", name).partition("## Measured")[2]
        leaderboards, _, threats = measured.partition("[Against three threats]")
        for release, _, _, gap, tail, *_ in rows_of(leaderboards):
            start, cells = f"| {release} |", f" | {gap} | {tail} |"
            assert any(line.startswith(start) and cells in line for line in told), release
            counts[0] += 1
        for release, target, _, inversion, membership, *_ in rows_of(threats):
            start, cells = f"| {target} | {release} |", f" | {inversion} | {membership} |"
            assert any(line.startswith(start) and cells in line for line in board), release
            counts[1] += 1
    assert min(counts) > 80
