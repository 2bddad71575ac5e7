"""Every flag has a page that says what raised it, why that matters and what to do."""

import re
from pathlib import Path

import pytest

from oneway.audit import CONTROLS, FLAGS
from oneway.audit.controls import BROKEN_BELOW, HOLDS_ABOVE, READ_ABOVE
from oneway.benchmark.audit_flags import SEEDS, WORSE_CALIBRATED
from oneway.benchmark.audit_plan import FIRST_EPOCHS, MOST_EPOCHS, REPEATS, first_epochs_for
from oneway.benchmark.subject import ALONE, PROBED, SAME
from oneway.guards import STRENGTHS
from oneway.report import flag_lines

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "flags"
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")
SECTIONS = ["Raised if", "Why it matters", "What to do"]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def read(name):
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def test_every_flag_has_a_page_and_every_page_a_flag():
    assert {path.stem for path in FOLDER.iterdir()} == {*FLAGS, "README"}


@pytest.mark.parametrize("name", FLAGS)
def test_a_page_has_the_flags_name_what_it_says_and_three_sections_in_order(name):
    page = read(name)
    assert page.startswith(f"# {name}\n")
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    assert parts[1::2] == SECTIONS
    assert all(part.strip() for part in parts[2::2])
    said = parts[0].partition("\n")[2].strip()
    assert said == FLAGS[name][0].upper() + FLAGS[name][1:] + "."


def test_the_index_lists_all_flags_in_order_with_what_they_say():
    rows = re.findall(r"^\| \[([^]]+)\]\(([^)]+)\) \| ([^|]+) \|", INDEX, flags=re.MULTILINE)
    assert rows == [(name, f"{name}.md", said) for name, said in FLAGS.items()]


@pytest.mark.parametrize("name", [*FLAGS, "README"])
def test_links_of_a_page_lead_to_files(name):
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", read(name))
    assert [link for link in links if not (FOLDER / link).exists()] == []


@pytest.mark.parametrize("name", FLAGS)
def test_the_command_names_a_page_that_is_there(name):
    (line,) = flag_lines({"flags": [{"name": name, "detail": "so"}]})
    (page,) = re.findall(r"\[(.+)\]$", line)
    assert (ROOT / page).is_file()


@pytest.mark.parametrize("name", FLAGS)
def test_measured_numbers_of_an_example_are_in_the_results(name):
    for paragraph in read(name).split("\n\n"):
        if "(../results.md)" not in paragraph:
            continue
        (table,) = re.findall(r"table\d-[a-z]+", paragraph)
        section = RESULTS.split(f"## {table}, ")[1].split("\n## ")[0]
        numbers = re.findall(r"-?\d+\.\d{4}|-?\d+(?:\.\d\d)? ± \d+(?:\.\d\d)?", paragraph)
        assert numbers, "an example without numbers needs no source"
        assert [number for number in numbers if number not in section] == []


THRESHOLDS = [
    ("control-failed", f"G > {BROKEN_BELOW:g}"),
    ("control-failed", f"G < {HOLDS_ABOVE:g}"),
    ("control-failed", f"less than {READ_ABOVE:g}"),
    *[("control-failed", f"| `{name}`") for name in CONTROLS],
    ("worse-calibrated", f"more than {WORSE_CALIBRATED:g}"),
    ("too-few-seeds", f"Fewer than {SEEDS} seeds"),
    ("not-trained-out", f"from {FIRST_EPOCHS} epochs"),
    ("not-trained-out", f"at {MOST_EPOCHS} epochs"),
    ("unstable-answers", f"{PROBED} test queries"),
    ("unstable-answers", f"first {ALONE} of them"),
    ("unstable-answers", f"above {SAME:g}"),
    ("unstable-answers", "{} and {} times".format(*REPEATS)),
    *[("more-budget-smaller-gap", f"| `{name}` | `{own}` |") for name, own in STRENGTHS.items()],
]


def test_the_search_begins_later_below_the_rows_that_are_said():
    assert first_epochs_for(6400) == FIRST_EPOCHS < first_epochs_for(6336)
    assert "fewer than\n6,400 auxiliary rows" in read("not-trained-out")


@pytest.mark.parametrize(("name", "said"), THRESHOLDS)
def test_thresholds_are_those_of_the_code(name, said):
    assert said in read(name).partition("## Why it matters")[0]
