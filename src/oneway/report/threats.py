"""The verdicts of an audit, one for each threat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oneway.auditing import AuditRecord, InversionRecord
from oneway.report.audit import (
    Gap,
    Headline,
    attackers_table,
    closed_gap,
    headline,
    privacy_table,
    utility_table,
    verdict,
)
from oneway.report.membership import (
    membership_floor,
    membership_gap,
    membership_headline,
    membership_table,
    membership_verdict,
)
from oneway.report.stealing import (
    stealing_floor,
    stealing_gap,
    stealing_headline,
    stealing_table,
    stealing_verdict,
)
from oneway.report.table import Listing

SYMBOLS = {"inversion": "G", "membership": "G_mem", "stealing": "G_steal"}
"""Symbol of the closed gap, by threat."""

TONES = ("void", "bad", "mixed", "good")
"""Tones of verdicts, the worst first."""


@dataclass(frozen=True)
class Threat:
    """What is said of the record of one threat.

    Attributes:
        headline: The verdict.
        gap: The closed gap.
        floor: What labels alone leak, in a few words.
        lines: All that is said in sentences.
        tables: Tables of attackers.
    """

    headline: Callable[[Any], Headline]
    gap: Callable[[Any], Gap]
    floor: Callable[[Any], str]
    lines: Callable[[Any], list[str]]
    tables: Callable[[Any], list[Listing]]


def _inversion_floor(record: InversionRecord) -> str:
    baselines = record.baselines
    return (
        f"error of reconstructions: {record.adaptive_error:.4f}; from clean scores "
        f"{baselines.clean:.4f}, from labels alone (the floor) {baselines.label:.4f}"
    )


OF_THREAT = {
    "inversion": Threat(
        headline,
        closed_gap,
        _inversion_floor,
        lambda record: verdict(record)[1:],
        lambda record: [attackers_table(record), privacy_table(record), utility_table(record)],
    ),
    "membership": Threat(
        membership_headline,
        membership_gap,
        membership_floor,
        membership_verdict,
        lambda record: [membership_table(record)],
    ),
    "stealing": Threat(
        stealing_headline,
        stealing_gap,
        stealing_floor,
        stealing_verdict,
        lambda record: [stealing_table(record)],
    ),
}
"""What is said of each threat."""


def headlines(record: AuditRecord) -> dict[str, Headline]:
    """Return the verdict on each audited threat."""
    return {
        threat: OF_THREAT[threat].headline(getattr(record, threat)) for threat in record.threats
    }


def closed_gaps(record: AuditRecord) -> dict[str, Gap]:
    """Return the closed gap of each audited threat."""
    return {threat: OF_THREAT[threat].gap(getattr(record, threat)) for threat in record.threats}


def verdict_of_threats(record: AuditRecord) -> str:
    """Return the verdict in sentences: a line for each threat, named if there are several."""
    lines = headlines(record)
    if len(lines) == 1:
        return next(iter(lines.values())).sentence
    return "\n".join(f"{threat.capitalize()}: {each.sentence}" for threat, each in lines.items())


def overall(record: AuditRecord) -> Headline:
    """Return the verdict on the release: that of the worst threat, and all in a line each."""
    lines = headlines(record)
    worst = min(lines, key=lambda threat: TONES.index(lines[threat].tone))
    if len(lines) == 1:
        return lines[worst]
    words = {threat: f"{threat.capitalize()}: {each.stamp}" for threat, each in lines.items()}
    gaps = {
        threat: f" ({SYMBOLS[threat]} {gap.text()}{gap.bounded * f', {gap.interval()}'})"
        for threat, gap in closed_gaps(record).items()
        if gap.claimed is not None
    }
    sentence = "\n".join(f"{text}{gaps.get(threat, '')}." for threat, text in words.items())
    return Headline(lines[worst].tone, words[worst], sentence)
