"""An audit in sentences and tables, for a terminal and for its page."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from operator import attrgetter, itemgetter

from oneway.attacks import inversion_attacks
from oneway.auditing import InversionRecord, Understanding
from oneway.auditing.controls import BROKEN_BELOW, HOLDS_ABOVE, READ_ABOVE
from oneway.evaluation import AttackRecord, MatchingResult
from oneway.evaluation.records import outdated
from oneway.evaluation.verdict import trained_attacks
from oneway.metrics import Interval
from oneway.report.sentences import (
    LABEL_LEAKS,
    NO_CONTROLS,
    NO_GAP,
    baselines_sentence,
    bound_text,
    epochs_of,
    failure_sentence,
    flag_line,
    gap_number,
    knows,
)
from oneway.report.table import Column, Listing


@dataclass(frozen=True)
class Gap:
    """A closed gap of a record, with its 95 % interval over resampled queries.

    Attributes:
        value: G; None where clean scores reveal no more than the label.
        low: The lower end, possibly infinite; None without an interval.
        high: The upper end, possibly infinite; None without an interval.
        failed: Whether the trained attackers failed, so that G is not measured.
        bound: Bound of G where they failed; None if nothing can be claimed.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    failed: bool = False
    bound: float | None = None

    @classmethod
    def of(cls, value: float | None, interval: Interval | None) -> "Gap":
        """Return a measured gap with its interval, if it has one."""
        return cls(value) if interval is None else cls(value, interval.low, interval.high)

    @property
    def claimed(self) -> float | None:
        """G, or its bound where the attack failed; None if nothing can be claimed."""
        return self.bound if self.failed else self.value

    def text(self) -> str:
        """Return what is claimed of G, in a few words."""
        if self.failed:
            return bound_text(self.bound)
        return "none" if self.value is None else gap_number(self.value)

    @property
    def bounded(self) -> bool:
        """Whether there is an interval, and both its ends are finite."""
        ends = (self.low, self.high)
        return all(end is not None and math.isfinite(end) for end in ends)

    def interval(self) -> str:
        """Return the interval in words; empty without an interval."""
        return "" if self.low is None else f"{self.low:.2f} to {self.high:.2f}"


def closed_gap(record: InversionRecord) -> Gap:
    """Return G over all queries, or its bound where the trained attackers failed."""
    value = record.closed_gap
    if value is not None and (record.failed or value >= 1):
        return Gap(value, failed=True, bound=record.closed_gap_at_least)
    return Gap.of(value, record.closed_gap_interval)


def closed_gap_least_confident(record: InversionRecord) -> Gap:
    """Return G over the least confident 5 % of queries; no claim where no attacker beat the label.

    Known leaks are found on all queries together, so that they give no bound of a few queries.
    """
    value = record.closed_gap_least_confident
    if value is not None and (record.failed or value >= 1):
        return Gap(value, failed=True)
    return Gap.of(value, record.closed_gap_least_confident_interval)


@dataclass(frozen=True)
class Headline:
    """The verdict of an audit.

    Attributes:
        tone: ``void``, ``bad``, ``mixed`` or ``good``.
        stamp: The verdict in a few words.
        sentence: The verdict in a sentence, with its numbers.
    """

    tone: str
    stamp: str
    sentence: str


LEVELS = (
    (
        0.0,
        *("bad", "It leaks more than no defense"),
        "an attacker who retrains learns more than from clean scores.",
    ),
    (0.5, "bad", "Most of it still leaks", "most of what clean scores reveal still leaks."),
    (0.9, "mixed", "Part of it still leaks", "part of what clean scores reveal still leaks."),
)
"""By the G that stays below it: tone, stamp and meaning."""

BEST = ("good", "Next to nothing leaks, to these attackers")
"""Tone and stamp from the highest of ``LEVELS`` on."""

HIDDEN = LEVELS[-1][0]
"""From this G on, a release hides nearly all that there is to hide."""


def level_of(gap: Interval, release: str) -> tuple[str, str]:
    """Return tone and stamp of a closed gap of another threat than inversion.

    Args:
        gap: G with its interval. One that is wider than from nothing to everything says nothing.
        release: Name of the release.
    """
    if release == "as it is":
        return "bad", "No defense: the scores leak"
    if gap.high - gap.low >= 1:
        return "mixed", "Inconclusive: too few rows"
    return next(((tone, stamp) for below, tone, stamp, _ in LEVELS if gap.estimate < below), BEST)


def headline(record: InversionRecord) -> Headline:
    """Return the verdict of an audit."""
    if record.void:
        failed = _controls_that(record, passed=False)
        return Headline(
            "void",
            "VOID: believe nothing below",
            f"VOID: these attackers misjudged {', '.join(failed)}, whose leak is known. Nothing "
            "below says anything about the release.",
        )
    left_out = "; ".join(record.plan.left_out)
    left_out = f" Left out for lack of time: {left_out}." if left_out else ""
    if record.defense == "none":
        bare = _undefended(record)
        return dataclasses.replace(bare, sentence=bare.sentence + left_out)
    gap, tail = closed_gap(record), closed_gap_least_confident(record)
    if gap.value is None:
        return Headline(
            "mixed",
            "No gap to close",
            f"{NO_GAP} Either nothing leaks, or the attackers are too weak to see it.{left_out}",
        )
    measured = Gap.of(record.closed_gap, record.closed_gap_interval)
    if measured.low is not None and not measured.bounded:
        return Headline(
            "mixed",
            "Inconclusive: too few queries",
            "Inconclusive: clean scores give these attackers hardly more than the label does, so "
            f"that G may be anything. Pass more queries, or more time.{left_out}",
        )
    if gap.failed:
        verdict_of_failure = _failed(record, gap)
        sentence = verdict_of_failure.sentence + left_out
        return dataclasses.replace(verdict_of_failure, sentence=sentence)
    sure = f" (95 % interval: {gap.interval()})" if gap.bounded else ""
    facts = f"The release closes G = {gap.text()} of the gap{sure}{_tail(record)}"
    # Before anything is said about what it means.
    facts += f".{left_out} With the attackers that ran, " if left_out else ": "
    for below, tone, stamp, meaning in LEVELS:
        if gap.value < below:
            return Headline(tone, stamp, f"{facts}{meaning}")
    if tail.claimed is not None and tail.claimed < HIDDEN:
        certain = tail.bounded and tail.high is not None and tail.high < HIDDEN
        return Headline(
            "mixed",
            "Little leaks, but not of every query",
            f"{facts}little leaks on average, but the least confident queries "
            f"{'leak' if certain else 'may leak'} more.",
        )
    meaning = f"{facts}next to nothing leaks beyond the label, to these attackers."
    if not _decoders_ran(record):
        return Headline(
            "mixed",
            "Next to nothing leaks, to attackers without decoders",
            f"{meaning} None of them trained a decoder: give the audit more time.",
        )
    return Headline(*BEST, meaning)


def _decoders_ran(record: InversionRecord) -> bool:
    """Return whether an attack on the release trained decoders on more than its label."""
    attacks, names = inversion_attacks(), trained_attacks(record.errors)
    return any(name not in attacks or attacks[name].needs_decoders for name in names)


def _failed(record: InversionRecord, gap: Gap) -> Headline:
    """Return the verdict where the trained attackers failed: a bound, or no claim."""
    sentence = failure_sentence(gap.bound, record.detection_limit)
    if gap.bound is None:
        return Headline("mixed", "The attackers failed: nothing is claimed", sentence)
    tone = "good" if gap.bound >= HIDDEN else "mixed"
    return Headline(tone, "The trained attackers failed, but are not blind", sentence)


def _undefended(record: InversionRecord) -> Headline:
    gained = 1 - record.adaptive_error / record.baselines.label
    if gained > 0:
        return Headline(
            "bad",
            "No defense: the scores leak",
            f"Undefended, the scores take {100 * gained:.0f} % off the error that the label alone "
            "leaves: that much of a query leaks beyond its label.",
        )
    return Headline(
        "mixed",
        "No defense, and no leak seen",
        "Undefended, the scores reveal no more to these attackers than the label does.",
    )


def _tail(record: InversionRecord) -> str:
    """Return G of the least confident queries, and how many they are, for the headline."""
    tail = closed_gap_least_confident(record)
    if tail.value is None:
        return ""
    if tail.failed:
        return "; of the least confident 5 % of queries they read nothing beyond the label"
    queries = f"the least confident 5 % of queries ({record.least_confident_queries})"
    if not tail.bounded:
        return f"; {queries} are too few for an estimate"
    return f", and {tail.text()} ({tail.interval()}) for {queries}"


def verdict(record: InversionRecord) -> list[str]:
    """Return what an audit says, in sentences; the first is the headline."""
    baselines, seeds = record.baselines, record.seeds
    lines = [
        headline(record).sentence,
        baselines_sentence(*(f"{error:.4f}" for error in astuple(baselines)))
        + f" Strongest attack on the release: {record.adaptive_error:.4f} "
        f"({', '.join(sorted(set(record.strongest)))}).",
        _reidentified(record),
        *_matched(record),
    ]
    if not record.controls:
        lines.append(NO_CONTROLS)
    elif not record.void:
        lines += _controls(record)
    trained = (
        f"Decoders were trained on up to {record.auxiliary} queried examples, for "
        f"{epochs_of(record)}"
        if record.plan.decoders
        else f"No decoders were trained; attackers have {record.auxiliary} queried examples"
    )
    lines.append(
        f"{trained}, with {len(seeds)} seed{'s' if len(seeds) > 1 else ''}; "
        f"{record.queries} test queries. They reconstruct no better than this; a stronger attacker "
        "may exist."
    )
    if record.stopped:
        planned = record.plan.seeds
        lines.append(f"Not measured: {planned - len(seeds)} of {planned} seeds ({record.stopped}).")
    failed = record.utility["cost"]["failed"]
    if failed:
        lines.append(f"Not measured: the server's time for an answer ({failed}).")
    return [*lines, LABEL_LEAKS]


def reidentified(record: InversionRecord) -> dict[str, float]:
    """Return the percentage of queries re-identified at rank 1: released, clean, label."""
    return {
        source: 100 * measures["reidentified_rank_1"] for source, measures in record.privacy.items()
    }


def _reidentified(record: InversionRecord) -> str:
    released, percent = record.privacy["released"], reidentified(record)
    return (
        f"Re-identified at rank 1 among {released['gallery']} true inputs: "
        f"{percent['released']:.1f} % of queries ({released['reidentified_by']} attacker, the "
        f"best); {percent['clean']:.1f} % from clean scores, {percent['label']:.1f} % from the "
        f"label alone, {100 / released['gallery']:.1f} % by chance."
    )


def _matched(record: InversionRecord) -> list[str]:
    """Return what an attacker identifies who asks about candidates; nothing in older records."""
    if not record.matching:
        return []
    results = record.matching
    gallery = next(iter(results.values())).gallery
    released = ", ".join(
        f"{100 * result.rank_1:.1f} %{'' if place else ' of queries'} among {name}"
        for place, (name, result) in enumerate(results.items())
    )

    def shares(take: Callable[[MatchingResult], float]) -> str:
        return " and ".join(f"{100 * take(result):.1f} %" for result in results.values())

    return [
        f"Identified at rank 1 by asking about each of {gallery} candidates (matching attacker): "
        f"{released}; "
        f"{shares(attrgetter('clean_rank_1'))} from clean scores, "
        f"{shares(attrgetter('label_rank_1'))} from the label alone, {100 / gallery:.1f} % by "
        "chance."
    ]


def matching_table(record: InversionRecord) -> Listing:
    """Return the shares of queries that matching identifies, by gallery and rank."""
    rows = [
        (gallery, rank, *(getattr(result, f"{source}{rank}") for source in ("", *REFERENCES)))
        for gallery, result in record.matching.items()
        for rank in ("rank_1", "rank_5")
    ]
    columns = {
        "candidates": Column(lambda row: f"{row[0]}, {row[1].replace('_', ' ')}"),
        "the release": Column(itemgetter(2), ".4f"),
        "clean scores": Column(itemgetter(3), ".4f"),
        "the label": Column(itemgetter(4), ".4f"),
    }
    return Listing("Queries identified by asking about each candidate (matching)", columns, rows)


REFERENCES = ("clean_", "label_")
"""Scores that matching on the release is compared with, as prefixes of a result's fields."""


def _controls(record: InversionRecord) -> list[str]:
    """Return which controls vouch for the attackers of an audit that is not void."""
    lines = []
    for passed, words in (
        (True, "Controls passed"),
        (
            None,
            "Controls inconclusive (their attackers read no more from clean scores than the label)",
        ),
    ):
        names = _controls_that(record, passed=passed)
        if names:
            lines.append(f"{words}: {', '.join(names)}.")
    return lines


def _controls_that(record: InversionRecord, *, passed: bool | None) -> list[str]:
    """Return the names of controls that passed, failed (False) or are inconclusive (None)."""
    return [name for name, row in record.controls.items() if row.passed is passed]


def is_stale(record: InversionRecord) -> bool:
    """Return whether an attacker has another version today, or one of every audit is new.

    Decoders that the plan left out for lack of time do not count.
    """
    always = (
        name
        for name, attack in inversion_attacks().items()
        if attack.left_out is None
        and not attack.requires
        and (record.plan.decoders or not attack.needs_decoders)
    )
    return bool(outdated(record.numerics, (*record.errors, *always)))


def flag_lines(record: InversionRecord) -> list[str]:
    """Return a line for each raised flag, with the page that explains it."""
    return [flag_line(flag.name, flag.detail) for flag in record.flags]


def attackers_table(record: InversionRecord | AttackRecord) -> Listing:
    """Return each attacker's error on the release, on average over seeds, and what it knows.

    Where the record has it, also the share of queries that it re-identifies at rank 1.
    """
    ranks = record.reidentified if isinstance(record, InversionRecord) else None
    of_records = isinstance(record, InversionRecord) and len(record.shape) == 1
    columns = {"attacker": Column(itemgetter(0)), "error": Column(itemgetter(1), ".4f")}
    if ranks is not None:
        columns["re-identified"] = Column(lambda row: ranks[row[0]]["rank_1"], ".4f")
    columns["what it knows"] = Column(lambda row: knows(row[0], of_records=of_records))
    rows = list(record.errors.items())
    return Listing("Attackers on the release", columns, rows, spare=["what it knows"])


PRIVACY = {
    "error": "error per entry",
    "error_worst_5_percent": "error, lowest 5 % of queries",
    "error_worst_1_percent": "error, lowest 1 % of queries",
    "gain_largest_5_percent": "gain beyond the label, largest 5 %",
    "gain_largest_1_percent": "gain beyond the label, largest 1 %",
    "psnr_decibels": "PSNR, dB",
    "ssim": "SSIM",
    "reidentified_rank_1": "re-identified, rank 1 (best attacker)",
    "reidentified_rank_5": "re-identified, rank 5 (best attacker)",
}


def privacy_table(record: InversionRecord) -> Listing:
    """Return how close reconstructions are to the true inputs."""
    sources = [record.privacy[source] for source in ("released", "clean", "label")]
    rows = [
        (title, *(source.get(name) for source in sources))
        for name, title in PRIVACY.items()
        if name in sources[0]
    ]
    for name, column in sources[0].get("columns", {}).items():
        kind = "accuracy" if column["kind"] == "categorical" else "error"
        rows.append((f"{name}, {kind}", *(source["columns"][name]["value"] for source in sources)))
    columns = {
        "reconstructed from": Column(itemgetter(0)),
        "the release": Column(itemgetter(1), ".4f"),
        "clean scores": Column(itemgetter(2), ".4f"),
        "the label": Column(itemgetter(3), ".4f"),
    }
    return Listing("What is reconstructed (by the strongest attacker)", columns, rows)


UTILITY = {
    "top_1": ("accuracy", ".4f"),
    "top_5": ("top-5 accuracy", ".4f"),
    "negative_log_likelihood": ("negative log-likelihood", ".4f"),
    "expected_calibration_error": ("expected calibration error", ".4f"),
    "brier_score": ("Brier score", ".4f"),
    "failure_auroc": ("AUROC of the top score for mistakes", ".4f"),
}
COST = {
    "p50_milliseconds": ("one query, ms (median)", ".2f"),
    "p99_milliseconds": ("one query, ms (99th percentile)", ".2f"),
    "queries_per_second": ("queries per second, in batches", ".0f"),
}


def utility_table(record: InversionRecord) -> Listing:
    """Return what users and the server pay."""
    utility = record.utility
    rows = [
        (title, *(Column(itemgetter(name), style)(measures) for measures in (before, after)))
        for names, before, after in (
            (UTILITY, utility["clean"], utility["released"]),
            (COST, utility["cost"]["bare"], utility["cost"]["guarded"]),
        )
        for name, (title, style) in names.items()
    ]
    headings = ("utility and cost", "clean scores", "the release")
    columns = {heading: itemgetter(place) for place, heading in enumerate(headings)}
    return Listing("What users and the server pay", columns, rows)


def distortion_line(record: InversionRecord) -> str:
    """Return the distance of released scores from clean scores, in a sentence."""
    utility = record.utility
    logits = utility["logit_distortion"]
    return (
        f"Distortion: L1 of probabilities {utility['l1_mean']:.4f} "
        f"(99th percentile {utility['l1_p99']:.4f}, maximum {utility['l1_max']:.4f}), logits "
        f"{'infinite (zeros)' if logits is None else f'{logits:.3f}'}; "
        f"{record.label_changes} labels changed; "
        f"top-5 agreement {utility['top_5_agreement']:.3f}, "
        f"rank correlation {utility['rank_correlation']:.3f}."
    )


EXPECTED = {
    "broken": f"broken: G at most {BROKEN_BELOW:g}",
    "read": f"read: at least {READ_ABOVE:g}",
    "holds": f"unbroken: G at least {HOLDS_ABOVE:g}",
}
PASSED = {True: "yes", False: "NO", None: "inconclusive"}


def controls_table(record: InversionRecord) -> Listing:
    """Return releases whose leak is known, with the attackers' results."""
    columns = {
        "control": Column(attrgetter("name")),
        "must be": Column(lambda row: EXPECTED[row.expected]),
        "measured": Column(
            attrgetter("measured"),
            ".2f",
            "G; for a control that must be read, the share of the label-only error that is gone.",
        ),
        "passed": Column(lambda row: PASSED[row.passed]),
        "tested attacker": Column(
            lambda row: ", ".join(filter(None, (row.attack, row.input_transform)))
        ),
    }
    rows = list(record.controls.values())
    return Listing("Controls: releases whose leak is known", columns, rows)


def understanding_facts(understanding: Understanding) -> list[tuple[str, str]]:
    """Return what was understood of a model and its data, as pairs of name and text."""
    facts = [
        ("Model", understanding.model),
        ("Scores", understanding.scores),
        ("Queries", understanding.queries),
        ("Classes", f"{len(understanding.classes)}; names from {understanding.classes_from}"),
    ]
    if understanding.accuracy is not None:
        facts.append(("Accuracy on a few test queries", f"{understanding.accuracy:.2f}"))
    return [*facts, *(("Note", note) for note in understanding.notes)]


def understanding_lines(understanding: Understanding) -> list[str]:
    """Return what was understood of a model and its data, a line for each fact."""
    return [f"{name}: {text}" for name, text in understanding_facts(understanding)]


SHOWN_CLASSES = 20
"""Most classes in a table of what was understood."""


def understanding_tables(understanding: Understanding) -> list[Listing]:
    """Return the classes with their counts, and the columns of a table."""
    classes = understanding.classes
    more = f" (the first {SHOWN_CLASSES} of {len(classes)})" if len(classes) > SHOWN_CLASSES else ""
    tables = [
        Listing(
            f"Classes, in the order of the scores{more}",
            {
                "class": Column(attrgetter("name")),
                "auxiliary rows": Column(attrgetter("auxiliary"), ",d"),
                "test queries": Column(attrgetter("test"), ",d"),
            },
            classes[:SHOWN_CLASSES],
        )
    ]
    if understanding.columns:
        columns = {
            "column": Column(attrgetter("name")),
            "kind": Column(attrgetter("kind")),
            "content": Column(attrgetter("content")),
        }
        tables.append(Listing("Columns, by the auxiliary table", columns, understanding.columns))
    return tables
