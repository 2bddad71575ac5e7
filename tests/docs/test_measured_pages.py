"""Every page with measurements is what the records make; ONEWAY_WRITE_DOCS=1 makes it."""

import os
import re
import shutil
from pathlib import Path

import pytest

from invoking import invoke
from laws import looped
from oneway.evaluation.store import read_json_lines
from oneway.report.claims import BASIS, NO_FILE, statements
from oneway.report.measured import BEGIN, END

ROOT = Path(__file__).parents[2]
COMMAND = ("results", "results", "--out", "docs", "--page", "README.md")
TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")
PAGES = sorted(
    path.relative_to(ROOT) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
)


def text_of(page, root=ROOT):
    return (root / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A copy of all pages, after the one command that makes them."""
    folder = ROOT
    if os.environ.get("ONEWAY_WRITE_DOCS") != "1":
        folder = tmp_path_factory.mktemp("repository")
        for page in PAGES:
            (folder / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / page, folder / page)
        (folder / "results").symlink_to(ROOT / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, invoke(*COMMAND)


def test_pages_are_what_one_command_makes_of_the_records(made):
    folder, result = made
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    different = [str(page) for page in PAGES if text_of(page) != text_of(page, folder)]
    assert different == [], f"run `oneway {' '.join(COMMAND)}`"


def test_pictures_of_frontiers_are_of_these_records(made):
    folder, _ = made
    pictures = set(re.findall(r"\(images/([\w.-]+)\)", text_of("docs/results.md")))
    assert pictures
    for name in pictures:
        page = Path("docs") / "images" / name
        assert TEXT.findall(text_of(page)) == TEXT.findall(text_of(page, folder)), name


def test_every_claim_in_words_has_its_interval_on_its_side(made):
    _, result = made
    refuted = [line for line in result.output.splitlines() if line.startswith("Not supported")]
    assert (refuted, result.exit_code) == ([], 0)


def test_means_that_a_claim_rests_on_name_their_attackers():
    """A record without versions would never be marked as older."""
    pages = "".join(map(text_of, PAGES))
    files = set(re.findall(r"claim: (\S+\.jsonl)", pages))
    assert files
    for file in files:
        means = [row for row in read_json_lines(ROOT / "results" / file) if "seeds" in row]
        assert means, file
        assert all(row.get("numerics") for row in means), file


CLAIMING_PAGES = ("README.md", "docs/leaderboard.md", "docs/reproduce.md", "docs/threats.md")
"""Pages that compare releases. Records make all of docs/results.md."""

CLAIMING = re.compile(
    r"""
    # What a release or an attack achieves.
    \b(?: win | beat | fail | hide | leave | reveal | close | mislead | prevent | cost )s?\b
    | \b(?: leaks | undoes )\b
    # Comparisons and their extremes.
    | \bthan\b
    | \b(?: best | worst | most | least | strongest | weakest | largest | smallest | cheapest )\b
    | \b(?: half | nearly | hardly )\b
    # All or nothing.
    | \b(?: nothing | never | always | no\ (?: attack | release )\w* )\b
    # Shares.
    | \d\ ?% | (?<![\w.])0?\.\d
    """,
    re.VERBOSE | re.IGNORECASE,
)


@looped("page", CLAIMING_PAGES)
def test_a_sentence_that_claims_says_what_it_rests_on(page):
    unmarked = [
        each.words
        for each in statements(text_of(page))
        if CLAIMING.search(each.words) and not (each.claims or each.basis)
    ]
    assert unmarked == [], "add `<!-- claim: ... -->` or `<!-- basis: ... -->`, or reword it"


def test_a_sentence_rests_on_files_that_exist():
    basis = {each for page in PAGES for each in BASIS.findall(text_of(page))}
    assert basis > NO_FILE
    assert [each for each in basis - NO_FILE if not (ROOT / each).is_file()] == []


BY_HAND = {
    "docs/audit.md": 1,
    "docs/codebook.md": 2,
    "docs/decisions/0004-one-cycle-contests.md": 1,
    "docs/decisions/0006-four-input-transforms.md": 2,
    "docs/decisions/0007-boxes-merged-into-cells.md": 1,
    "docs/decisions/0009-the-judge-mixes.md": 1,
    "docs/decisions/0011-no-row-is-held-out-in-vain.md": 1,
    "docs/flags/control-failed.md": 1,
    "docs/install.md": 1,
}
"""Tables of numbers that no block makes, by page.

Decisions say what was measured when they were made. docs/codebook.md shows the best of each method
in results/codebook-choices-*.jsonl. The others hold thresholds and sizes, which tests of their own
compare with the code, and an example.
"""

TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
MEASURED = re.compile(r"(?<![\w.])-?\d*\.\d{2,}")
GENERATED = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def test_a_table_of_numbers_is_made_from_records():
    by_hand = {}
    for page in PAGES:
        if page.name in ("results.md", "claims.md"):
            continue
        rest = GENERATED.sub("", text_of(page))
        count = sum(len(MEASURED.findall(table)) > 3 for table in TABLE.findall(rest))
        if count:
            by_hand[page.as_posix()] = count
    assert by_hand == BY_HAND, "put it between <!-- measured: ... --> and its end"
