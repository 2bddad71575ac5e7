"""Sentences that rest on records: a comment after each says what it claims, for a machine.

``<!-- claim: EXPERIMENT PRESET "RELEASE" VALUE < NUMBER -->`` stands right after its sentence. The
sign may be ``>``, or ``?`` where seeds do not decide; the number may be ``"OTHER RELEASE"`` or
``"OTHER RELEASE" VALUE``, of the same experiment. A claim holds if the 95 % intervals over seeds
lie wholly on its side, or with ``?``, if they overlap. Where the attack failed, G is not measured,
and lies anywhere above its bound: a claim with ``>`` holds if the bound lies above the number, and
none holds with ``<``. Without a bound, nothing but ``?`` holds. A claim on stale records, on one
seed or on none is marked as such before the comment.

In the place of an experiment may stand a file of JSON Lines: ``<!-- claim: FILE.jsonl "NAME" FIELD
< NUMBER -->`` is about the row with this ``name``, whose field holds ``low`` and ``high``, or
nothing where the attack failed, and whose ``seeds`` is their number.
"""

import math
import re
from collections.abc import Sequence

from oneway.benchmark import Summary
from oneway.errors import CorruptDataError
from oneway.evaluation.store import read_json_lines
from oneway.report.measured import Measurements

LINES = ".jsonl"
OLDER, ONE_SEED, MISSING = "measured by older attackers", "one seed", "not measured"
MARKS = (OLDER, ONE_SEED, MISSING)
COMMENT = re.compile(r"<!-- claim: (.+?) -->", re.DOTALL)
CLAIMS = re.compile(
    rf"(?: \((?:{'|'.join(MARKS)})(?:, (?:{'|'.join(MARKS)}))*\))?((?:{COMMENT.pattern})+)",
    re.DOTALL,
)
"""All claims of a sentence, with their marks."""

BY_ATTACKERS = ("closed_gap", "adaptive_error", "error ", "baseline ")
"""First letters of the values that attackers measure; others are of the release alone."""

PARTS = re.compile(
    r'(?P<experiment>\S+)(?: (?P<preset>[^\s"]+))? "(?P<release>[^"]+)" (?P<value>\S.*?) '
    r'(?P<sign>[<>?]) (?:(?P<number>-?[\d.]+)|"(?P<other>[^"]+)"(?: (?P<its>\S.*))?)'
)


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
            own, refutation = _judge(" ".join(claim.split()), measurements, where)
            marks |= own
            if refutation:
                refuted.append(f"{where}: {refutation}")
        shown = ", ".join(mark for mark in MARKS if mark in marks)
        return (f" ({shown})" if shown else "") + found[1]

    return CLAIMS.sub(marked, page), refuted


def _judge(claim: str, measurements: Measurements, where: str) -> tuple[set[str], str | None]:
    """Return the marks of a claim, and what speaks against it."""
    parts = PARTS.fullmatch(claim)
    if parts is None:
        raise CorruptDataError(
            f'{where}: a claim must be EXPERIMENT PRESET "RELEASE" VALUE < NUMBER, or with > or '
            f'"OTHER RELEASE" in their places, but is {claim!r}.'
        )
    if parts["experiment"].endswith(LINES):
        return _judge_lines(claim, parts, measurements, where)
    experiment = measurements.experiments.get((parts["experiment"], parts["preset"] or ""), ())
    first = _release(experiment, parts["release"])
    other = _release(experiment, parts["other"]) if parts["other"] else first
    if first is None or other is None:
        return {MISSING}, None
    left = _interval(claim, first, parts["value"], where)
    if parts["number"]:
        right = (float(parts["number"]),) * 2
    else:
        right = _interval(claim, other, parts["its"] or parts["value"], where)
    attacked = any(value.startswith(BY_ATTACKERS) for value in (parts["value"], parts["its"] or ""))
    marks = {OLDER} if attacked and (first.outdated or other.outdated) else set()
    marks |= {ONE_SEED} if min(len(first.seeds), len(other.seeds)) == 1 else set()
    return marks, _refutation(claim, parts, left, right)


def _refutation(
    claim: str, parts: re.Match[str], left: tuple[float, float], right: tuple[float, float]
) -> str | None:
    """Return what intervals say against a claim that compares them; None: they support it."""
    below, above = left[1] < right[0], left[0] > right[1]
    if {"<": below, ">": above, "?": not (below or above)}[parts["sign"]]:
        return None
    against = f"{claim}, but the records say {_words(left)}"
    return against + (f" and {_words(right)}" if parts["other"] else "")


def _judge_lines(
    claim: str, parts: re.Match[str], measurements: Measurements, where: str
) -> tuple[set[str], str | None]:
    """Return the marks of a claim about rows of JSON Lines, and what speaks against it."""
    rows = {row.get("name"): row for row in read_json_lines(measurements.folder / parts[1])}
    names = [parts["release"], parts["other"] or parts["release"]]
    if not all(name in rows for name in names):
        return {MISSING}, None
    fields = [parts["value"], parts["its"] or parts["value"]]
    intervals = []
    for name, field in zip(names, fields, strict=True):
        if field not in rows[name]:
            raise CorruptDataError(f"{where}: the claim {claim!r} needs the field {field!r}.")
        ends = rows[name][field] or {"low": -math.inf, "high": math.inf}
        intervals.append((float(ends["low"]), float(ends["high"])))
    if parts["number"]:
        intervals[1] = (float(parts["number"]),) * 2
    marks = {ONE_SEED} if min(rows[name]["seeds"] for name in names) == 1 else set()
    return marks, _refutation(claim, parts, *intervals)


def _release(summaries: Sequence[Summary], name: str) -> Summary | None:
    return next((summary for summary in summaries if summary.release == name), None)


def _interval(claim: str, summary: Summary, value: str, where: str) -> tuple[float, float]:
    """Return the 95 % interval over seeds of a value; of one seed, the number itself.

    Where the attack failed, G is anything from its bound on; without a bound, anything at all.
    """
    if value in summary.failed:
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
