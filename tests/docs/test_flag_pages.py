"""Every flag has a page, made from what the code says of it; and what it says is so.

With ONEWAY_WRITE_DOCS=1 the pages are written.
"""

import os
import re
from pathlib import Path

from laws import looped
from oneway.auditing import CONTROLS
from oneway.auditing.audit_target import ALONE, PROBED, SAME
from oneway.auditing.controls import BROKEN_BELOW, HOLDS_ABOVE, READ_ABOVE
from oneway.auditing.plan import FIRST_EPOCHS, MOST_EPOCHS, REPEATS, SEEDS, first_epochs_for
from oneway.auditing.suspicions import WORSE_CALIBRATED
from oneway.defenses import DEFENSES, strength_option
from oneway.evaluation import FLAGS
from oneway.report.audit import flag_line

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "flags"
WRITE = bool(os.environ.get("ONEWAY_WRITE_DOCS"))
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
INDEX = """\
# Flags

A flag is a warning of `oneway audit` about a release, or about the audit itself. A raised flag
makes the command exit with 1, unless [something explains it](../audit.md#exit-codes). The page of
a flag says what raises it, why it matters and what to do. The report of an audit contains the pages
of its raised flags. How an audit works: [audit.md](../audit.md).

| flag | what it says | about |
| --- | --- | --- |
"""
TREE = """
```{toctree}
:hidden:
:glob:

*
```
"""


def page_of(name):
    kind = FLAGS[name]
    says = kind.says[0].upper() + kind.says[1:]
    return (
        f"# {name}\n\n{says}.\n\n## Raised if\n\n{kind.raised_if}\n\n"
        f"## Why it matters\n\n{kind.why}\n\n## What to do\n\n{kind.what_to_do}\n"
    )


def index():
    rows = [f"| [{name}]({name}.md) | {one.says} | {one.about} |" for name, one in FLAGS.items()]
    return INDEX + "\n".join(rows) + "\n" + TREE


PAGES = {"README": index(), **{name: page_of(name) for name in FLAGS}}


def test_there_is_a_page_for_each_flag_and_an_index():
    assert {path.stem for path in FOLDER.iterdir()} == set(PAGES)


@looped("name", PAGES)
def test_a_page_is_what_the_code_says(name):
    path = FOLDER / f"{name}.md"
    if WRITE:
        path.write_text(PAGES[name], encoding="utf-8")
    assert path.read_text(encoding="utf-8") == PAGES[name]


@looped("name", FLAGS)
def test_nothing_is_left_unsaid_of_a_flag(name):
    kind = FLAGS[name]
    assert kind.about in ("the attack", "the release")
    for text in (kind.says, kind.raised_if, kind.why, kind.what_to_do):
        assert text == text.strip()
        assert len(text.split()) > 3


@looped("name", PAGES)
def test_links_of_a_page_lead_to_files(name):
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", PAGES[name])
    assert [link for link in links if not (FOLDER / link).exists()] == []


@looped("name", FLAGS)
def test_the_command_names_a_page_that_is_there(name):
    (page,) = re.findall(r"\[(.+)\]$", flag_line(name, "so"))
    assert (ROOT / page).is_file()


@looped("name", FLAGS)
def test_measured_numbers_of_an_example_are_in_the_results(name):
    for paragraph in FLAGS[name].why.split("\n\n"):
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
    ("not-trained-out", f"which is {FIRST_EPOCHS} ("),
    ("not-trained-out", f"in an audit {MOST_EPOCHS}, or 8 times"),
    ("unstable-answers", f"{PROBED} test queries"),
    ("unstable-answers", f"first {ALONE} of them"),
    ("unstable-answers", f"above {SAME:g}"),
    ("unstable-answers", "{} and {} times".format(*REPEATS)),
    *[
        ("more-budget-smaller-gap", f"| `{name}` | `{strength_option(name)}` |")
        for name in DEFENSES
        if strength_option(name)
    ],
]


def test_the_search_begins_later_below_the_rows_that_are_said():
    assert first_epochs_for(6400) == FIRST_EPOCHS < first_epochs_for(6336)
    said = " ".join(FLAGS["not-trained-out"].raised_if.split())
    assert "fewer than 6,400 auxiliary rows" in said


@looped(("name", "said"), THRESHOLDS)
def test_thresholds_are_those_of_the_code(name, said):
    assert said in " ".join(FLAGS[name].raised_if.split())
