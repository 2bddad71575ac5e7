"""Sentences of pages, and what each rests on.

Words rest on the ``claim:`` comments right after them. Words that no record can support say what
they rest on instead: ``<!-- basis: definition -->``, ``<!-- basis: setting -->`` (how something was
measured), ``<!-- basis: proof -->`` (an argument that the page or its link gives), or
``<!-- basis: FILE -->``, a test or a record of the repository.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from markdown_it import MarkdownIt

from oneway.report.claims import COMMENT, MARKS, judge
from oneway.report.measured import BLOCK, Measurements
from oneway.report.table import Listing

NO_FILE = {"definition", "setting", "proof"}
"""What a statement may rest on, if not on a file."""

BASIS = re.compile(r"<!-- basis: (.+?) -->")
SENTENCE = re.compile(r'(?><!--.*?-->|.)+?(?:[.!?]["”)]*(?:<!--.*?-->)*(?=\s)|$)', re.DOTALL)
PART = re.compile(r"(?!$)(.*?)((?:<!--.*?-->)+|$)", re.DOTALL)
MARK = re.compile(rf" \((?:{'|'.join(MARKS)})[^()]*\)$")


@dataclass(frozen=True)
class Statement:
    """A sentence, or its part before a mark.

    Attributes:
        words: The words, from the start of the sentence or from the mark before.
        claims: The claims that follow, without ``claim:``.
        basis: What the words rest on instead of claims.
    """

    words: str
    claims: tuple[str, ...]
    basis: tuple[str, ...]


def statements(page: str) -> Iterator[Statement]:
    """Yield what a page in Markdown states outside of blocks of code and measured blocks."""
    for token in MarkdownIt().enable("table").parse(BLOCK.sub("", page)):
        parts = (c.content or " " * ("break" in c.type) for c in token.children or ())
        for sentence in SENTENCE.findall("".join(parts)):
            for words, comments in PART.findall(sentence):
                yield Statement(
                    MARK.sub("", " ".join(words.split())),
                    tuple(COMMENT.findall(comments)),
                    tuple(BASIS.findall(comments)),
                )


def claims_page(pages: Mapping[str, str], measurements: Measurements, command: str) -> str:
    """Return the list of all claims of pages, with what the records say of each, as Markdown.

    Args:
        pages: Text of each page, by its path as seen from the list.
        measurements: The records.
        command: The command that makes this page.
    """
    parts = [
        "# Claims\n",
        f"Made by `{command}` from stored records; not edited by hand. Each row has words of a "
        "page, the claim that a machine compares with the records, and the 95 % interval that the "
        "records have (over seeds; of the three threats over seeds and rows), or the number of one "
        "seed. A claim holds if the whole interval lies on its side "
        "(`?`: if the intervals overlap); the command and a test fail if one does not hold. Words "
        "with a file in place of a claim rest on that test, and words with *proof* on an "
        "argument.\n",
    ]
    headings = ("words", "claim", "in the records", "limits")
    columns = {heading: itemgetter(place) for place, heading in enumerate(headings)}
    for path, page in pages.items():
        rows = [row for each in statements(page) for row in _rows(each, measurements, path)]
        if rows:
            parts += [f"## {path.removeprefix('../')}\n", Listing(path, columns, rows).markdown()]
    return "\n".join(parts)


def _rows(statement: Statement, measurements: Measurements, where: str) -> Iterator[Sequence[str]]:
    """Yield the cells of each claim of a statement, and of what else it rests on."""
    words = statement.words.lstrip(" ,;")
    for claim in statement.claims:
        judgement = judge(claim, measurements, where)
        limits = ", ".join(mark for mark in MARKS if mark in judgement.marks)
        yield words, f"`{' '.join(claim.split())}`", judgement.found or "-", limits or "-"
    for basis in statement.basis:
        if basis not in ("definition", "setting"):
            yield words, f"`{basis}`" if basis not in NO_FILE else f"*{basis}*", "-", "-"
