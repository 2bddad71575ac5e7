"""Sentences that rest on records: a comment after each says what it claims, for a machine.

``<!-- claim: EXPERIMENT PRESET "RELEASE" VALUE < NUMBER -->`` stands right after its sentence. The
sign may be ``>``, or ``?`` where seeds do not decide; the number may be ``"OTHER RELEASE"`` or
``"OTHER RELEASE" VALUE``, of the same experiment. EXPERIMENT may be a file of JSON Lines: PRESET is
then the ``data`` of its records, and VALUE a field with a half width; ``numerics`` of a record says
which version of each attacker took part.

A claim holds if the 95 % intervals over seeds lie wholly on its side, or with ``?``, if they
overlap. Where the attack failed, G is not measured, and lies anywhere above its bound: a claim with
``>`` holds if the bound lies above the number, and none holds with ``<``. Without a bound, nothing
but ``?`` holds. A claim on stale records, on one seed or on none is marked as such before the
comment.

Words that no record can support say what they rest on instead: ``<!-- basis: definition -->``,
``<!-- basis: setting -->`` (how something was measured), ``<!-- basis: proof -->`` (an argument
that the page or its link gives), or ``<!-- basis: FILE -->``, a test or a record of the repository.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from markdown_it import MarkdownIt

from oneway.benchmark import Summary
from oneway.benchmark.summary import Estimate
from oneway.errors import CorruptDataError
from oneway.evaluation.records import outdated
from oneway.evaluation.store import read_json_lines
from oneway.report.measured import BLOCK, Measurements
from oneway.report.sentences import OLDER
from oneway.report.table import Listing

ONE_SEED, MISSING = "one seed", "not measured"
MARKS = (OLDER, ONE_SEED, MISSING)
COMMENT = re.compile(r"<!-- claim: (.+?) -->", re.DOTALL)
CLAIMS = re.compile(
    rf"(?: \((?:{'|'.join(MARKS)})(?:, (?:{'|'.join(MARKS)}))*\))?((?:{COMMENT.pattern})+)",
    re.DOTALL,
)
"""All claims of a sentence, with their marks."""

BY_ATTACKERS = ("closed_gap", "adaptive_error", "error ", "baseline ")
"""First letters of values that attackers measure; other values are of the release alone."""

PARTS = re.compile(
    r'(?P<experiment>\S+)(?: (?P<preset>[^\s"]+))? "(?P<release>[^"]+)" (?P<value>\S.*?) '
    r'(?P<sign>[<>?]) (?:(?P<number>-?[\d.]+)|"(?P<other>[^"]+)"(?: (?P<its>\S.*))?)'
)


@dataclass(frozen=True)
class Judgement:
    """What records say of a claim.

    Attributes:
        marks: What limits it: members of ``MARKS``.
        found: The records' interval, or both of them, in words; empty where there is no record.
        holds: Whether the interval lies on the claim's side; True where there is no record.
    """

    marks: frozenset[str]
    found: str
    holds: bool


@dataclass(frozen=True)
class Averages:
    """A release over all seeds, in a file of JSON Lines; attributes as of :class:`Summary`."""

    release: str
    seeds: Sequence[int]
    values: Mapping[str, Estimate]
    outdated: tuple[str, ...] = ()


def renew_claims(page: str, measurements: Measurements, where: str) -> tuple[str, list[str]]:
    """Mark the claims of a page, and find those that the records do not support.

    Returns:
        The page, with each claim on stale records, on one seed or without records marked; and the
        claims that records contradict or leave open, with what the records say.

    Raises:
        CorruptDataError: A claim has another form, or names a value that its record lacks.
    """
    refuted = []

    def marked(found: re.Match[str]) -> str:
        marks = set[str]()
        for claim in COMMENT.findall(found[1]):
            judgement = judge(claim, measurements, where)
            marks |= judgement.marks
            if not judgement.holds:
                words = " ".join(claim.split())
                refuted.append(f"{where}: {words}, but the records say {judgement.found}")
        shown = ", ".join(mark for mark in MARKS if mark in marks)
        return (f" ({shown})" if shown else "") + found[1]

    return CLAIMS.sub(marked, page), refuted


def judge(claim: str, measurements: Measurements, where: str) -> Judgement:
    """Compare a claim, without ``claim:`` before it, with the records.

    Raises:
        CorruptDataError: The claim has another form, or names a value that its record lacks.
    """
    claim = " ".join(claim.split())
    parts = PARTS.fullmatch(claim)
    if parts is None:
        raise CorruptDataError(
            f'{where}: a claim must be EXPERIMENT PRESET "RELEASE" VALUE < NUMBER, or with > or '
            f'"OTHER RELEASE" in their places, but is {claim!r}.'
        )
    experiment = _summaries(measurements, parts["experiment"], parts["preset"] or "")
    first = _release(experiment, parts["release"])
    other = _release(experiment, parts["other"]) if parts["other"] else first
    if first is None or other is None:
        return Judgement(frozenset({MISSING}), "", holds=True)
    left = _interval(claim, first, parts["value"], where)
    if parts["number"]:
        right = (float(parts["number"]),) * 2
    else:
        right = _interval(claim, other, parts["its"] or parts["value"], where)
    below, above = left[1] < right[0], left[0] > right[1]
    values = (parts["value"], parts["its"] or "")
    attacked = isinstance(first, Averages) or any(v.startswith(BY_ATTACKERS) for v in values)
    marks = {OLDER} if attacked and (first.outdated or other.outdated) else set()
    marks |= {ONE_SEED} if min(len(first.seeds), len(other.seeds)) == 1 else set()
    return Judgement(
        frozenset(marks),
        " and ".join(map(_words, (left, right) if parts["other"] else (left,))),
        holds={"<": below, ">": above, "?": not (below or above)}[parts["sign"]],
    )


def _summaries(
    measurements: Measurements, experiment: str, preset: str
) -> Sequence[Summary | Averages]:
    """Return all releases of an experiment, or of the records of a file whose data are ``preset``.

    Only records of a release's means over seeds count, which have half widths.
    """
    if not experiment.endswith(".jsonl"):
        return measurements.experiments.get((experiment, preset), ())
    return [
        Averages(
            row["release"],
            range(row["seeds"]),
            {
                name: Estimate(row[name], row[f"{name}_half_width"], row["seeds"])
                for name in row
                if f"{name}_half_width" in row
            },
            outdated(row.get("numerics", {}), ()),
        )
        for row in read_json_lines(measurements.folder / experiment)
        if row.get("data") == preset and {"release", "seeds"} <= row.keys()
    ]


def _release(summaries: Sequence[Summary | Averages], name: str) -> Summary | Averages | None:
    return next((summary for summary in summaries if summary.release == name), None)


def _interval(
    claim: str, summary: Summary | Averages, value: str, where: str
) -> tuple[float, float]:
    """Return the 95 % interval over seeds of a value; of one seed, the number itself.

    Where the attack failed, G is anything from its bound on; without a bound, anything at all.
    """
    if isinstance(summary, Summary) and value in summary.failed:
        bound = summary.claimed(value)
        return -math.inf if bound is None else bound, math.inf
    if value not in summary.values:
        raise CorruptDataError(
            f"{where}: the claim {claim!r} needs the value {value!r}, but the record of "
            f"{summary.release!r} has {', '.join(summary.values)}."
        )
    estimate = summary.values[value]
    half = estimate.half_width or 0.0
    return estimate.mean - half, estimate.mean + half


def _words(interval: tuple[float, float]) -> str:
    """Return an interval in words."""
    low, high = interval
    if math.isfinite(high):
        return f"{low:.4g} to {high:.4g}"
    return (
        f"at least {low:.4g} (attack failed)" if math.isfinite(low) else "nothing (attack failed)"
    )


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
