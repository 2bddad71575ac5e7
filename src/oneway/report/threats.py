"""The verdicts of an audit in words and tables, one for each threat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from oneway.auditing import AuditRecord, InversionRecord
from oneway.auditing.membership import AttackMeasures, MeasuredGap, MembershipRecord
from oneway.auditing.stealing import CLEAN, LABEL, RELEASED, BudgetResult, StealingRecord
from oneway.metrics import Interval
from oneway.metrics.membership import LEAST_FOR_LOW
from oneway.report.audit import (
    Gap,
    Headline,
    attackers_table,
    closed_gap,
    headline,
    level_of,
    privacy_table,
    utility_table,
    verdict,
)
from oneway.report.sentences import NO_CONTROLS
from oneway.report.table import Column, Listing

WORDS = {
    "area": "area under the ROC curve of members",
    "low": "members named at 1 % false alarms",
    "lowest": "members named at .1 % false alarms",
}

LEAST_REFERENCES = 4
"""Least number of reference models for a claim that little leaks."""


def decisive_gap(record: MembershipRecord) -> tuple[str, MeasuredGap]:
    """Return the measure that decides, and what was reached by it.

    It is the true positive rate at 1 % false alarms; the area under the curve where clean scores
    leak no more than labels by that rate.
    """
    gaps = record.gaps
    return next(
        ((name, gaps[name]) for name in ("low", "area") if gaps[name].closed is not None),
        ("area", gaps["area"]),
    )


def membership_gap(record: MembershipRecord) -> Gap:
    """Return G_mem by the measure that decides; without a value, there is nothing to defend.

    Nothing is claimed where a control failed, or without strong attackers.
    """
    closed = decisive_gap(record)[1].closed
    if record.controls_failed or record.references < LEAST_REFERENCES:
        return Gap(None if closed is None else closed.estimate, failed=True)
    return Gap.of(None if closed is None else closed.estimate, closed)


def membership_floor(record: MembershipRecord) -> str:
    """Return what attackers reach on the release, clean scores and labels alone, in words."""
    name, gap = decisive_gap(record)
    return (
        f"{WORDS[name]}: {gap.released.estimate:.1%}; from clean scores {gap.clean.estimate:.1%}, "
        f"from labels alone (the floor) {gap.label.estimate:.1%}"
    )


def membership_headline(record: MembershipRecord) -> Headline:
    """Return the verdict on membership."""
    closed, floor = decisive_gap(record)[1].closed, membership_floor(record)
    if record.controls_failed:
        failed = ", ".join(record.controls_failed)
        return Headline("void", "VOID: believe nothing", f"VOID: these controls failed: {failed}.")
    if closed is None:
        tone, stamp = "mixed", "Nothing to defend"
        reason = "Attackers of clean scores cannot be told from attackers of labels alone"
    else:
        tone, stamp = level_of(closed, record.release)
        reason = f"G_mem {shown(closed)}"
    if record.references < LEAST_REFERENCES and (closed is None or tone == "good"):
        tone, stamp = "mixed", "Weak attackers: nothing is claimed"
    return Headline(tone, stamp, f"{reason}; {floor}.")


def membership_verdict(record: MembershipRecord) -> list[str]:
    """Return what leaks, the floor, G_mem, and what vouches for it, in sentences."""
    lines = [
        f"{record.members:,} members and {record.non_members:,} non-members, {record.references} "
        f"reference models; the model is right on {record.accuracy[0]:.1%} of members and "
        f"{record.accuracy[1]:.1%} of non-members."
    ]
    lines += [_gap_sentence(WORDS[name], gap) for name, gap in record.gaps.items()]
    variation = record.total_variation
    if variation is not None:
        lines.append(
            "Attackers who see the released vector and know the true label, and nothing else of "
            f"the candidate: TPR - FPR is at most {variation.high:.3f} and the best is at least "
            f"{variation.low:.3f} ({variation.level:.0%}; estimate {variation.plug_in:.3f}, of "
            f"which {variation.by_chance:.3f} would appear by chance)."
        )
    if record.references < LEAST_REFERENCES:
        lines.append(
            f"Fewer than {LEAST_REFERENCES} reference models: a claim without strong attackers is "
            "empty. Use "
            "--references 8 or more."
        )
    if record.non_members < LEAST_FOR_LOW:
        lines.append(
            f"Fewer than {LEAST_FOR_LOW:,} non-members: intervals of the true positive rate at 1 % "
            "miss more often than 5 % of the time, mostly since they are too high."
        )
    lines += record.notes
    if record.left_out:
        lines.append(f"Left out for lack of time: {'; '.join(record.left_out)}.")
    if not record.controls:
        lines.append(NO_CONTROLS)
    lines += [
        f"Control {each.name}: {'passed' if each.passed else 'FAILED'}, area under the ROC curve "
        f"{shown(each.area)}."
        for each in record.controls
    ]
    return lines


def _gap_sentence(words: str, gap: MeasuredGap) -> str:
    line = f"{words}: clean {shown(gap.clean)}, release {shown(gap.released)}, label only (the "
    line += f"floor) {shown(gap.label)}; strongest on the release: {gap.attacks[2]}"
    if gap.closed is None:
        return f"{line}. Clean scores leak no more than the label here, so that G has no value."
    return f"{line}; G_mem {shown(gap.closed)}."


def shown(interval: Interval) -> str:
    """Return an estimate with the ends of its interval."""
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def membership_table(record: MembershipRecord) -> Listing:
    """Return the table of all attackers on all releases."""

    def spread(interval: Interval | None) -> str | None:
        return None if interval is None else shown(interval)

    columns: dict[str, Column] = {
        "attacker": Column(lambda row: row.attack),
        "release": Column(lambda row: row.release),
        "before reference models": Column(lambda row: row.reference_release),
        "AUC": Column(lambda row: spread(row.area)),
        "TPR at 1 %": Column(lambda row: spread(row.low)),
        "TPR at .1 %": Column(lambda row: spread(row.lowest)),
        "AUC in games": Column(lambda row: row.game_area, ".3f"),
    }
    rows: list[AttackMeasures] = list(record.attacks)
    if all(row.lowest is None for row in rows):
        del columns["TPR at .1 %"]
    return Listing("Membership attackers, 95 % intervals over candidates", columns, rows)


FLOOR = "No release of scores prevents a copy from labels."


def decisive_budget(record: StealingRecord) -> BudgetResult | None:
    """Return the result of the largest budget with a gap; else of the largest; None without any."""
    with_gap = [each for each in record.budgets if each.gap is not None]
    return next(reversed(with_gap or list(record.budgets)), None)


def stealing_gap(record: StealingRecord) -> Gap:
    """Return G_steal of the budget that decides; without a value, there is nothing to defend.

    Where time was too short for any thief, nothing is claimed.
    """
    result = decisive_budget(record)
    if result is None:
        return Gap(None, failed=True)
    return Gap.of(None if result.gap is None else result.gap.estimate, result.gap)


def stealing_floor(record: StealingRecord) -> str:
    """Return what thieves reach on the release, clean scores and labels alone, in words."""
    result = decisive_budget(record)
    if result is None:
        return "not measured for lack of time"
    released, clean, label = (
        f"{result.thefts[name].fidelity.estimate:.1%}" for name in (RELEASED, CLEAN, LABEL)
    )
    return (
        f"labels that a copy from {result.budget:,} queries shares with the model: {released}; "
        f"from clean scores {clean}, from labels alone (the floor) {label}"
    )


def stealing_headline(record: StealingRecord) -> Headline:
    """Return the verdict on stealing."""
    result, floor = decisive_budget(record), stealing_floor(record)
    if result is None:
        return Headline("mixed", "Not measured", f"Stealing was {floor}.")
    if result.gap is None:
        return Headline(
            "mixed",
            "Nothing to defend",
            f"It is not certain that scores help thieves more than labels do; {floor}.",
        )
    stamp = level_of(result.gap, record.release)
    return Headline(*stamp, f"G_steal {shown(result.gap)}; {floor}. {FLOOR}")


def stealing_verdict(record: StealingRecord) -> list[str]:
    """Return for each budget the gap, the floor and the thief, in sentences."""
    lines = [f"Copies are graded on {record.queries:,} queries. {FLOOR}"]
    for result in record.budgets:
        fidelities = {name: theft.fidelity for name, theft in result.thefts.items()}
        gap = "" if result.gap is None else f"; G_steal {shown(result.gap)}"
        lines.append(
            f"{result.budget:,} queries, {result.seeds} seed{'s' if result.seeds > 1 else ''}: "
            f"{result.verdict}. Fidelity: clean {shown(fidelities[CLEAN])}, release "
            f"{shown(fidelities[RELEASED])}, label only (the floor) {shown(fidelities[LABEL])}"
            f"{gap}; strongest on the release: {result.thefts[RELEASED].thief}."
        )
    if record.left_out:
        lines.append(f"Left out for lack of time: {'; '.join(record.left_out)}.")
    return lines


def stealing_table(record: StealingRecord) -> Listing:
    """Return the table of all thieves, by budget and release."""
    columns = {
        "queries": Column(lambda row: row[0], ","),
        "thieves get": Column(lambda row: row[1]),
        "thief": Column(lambda row: row[2]),
        "fidelity": Column(lambda row: row[3].fidelities[row[2]], ".3f"),
        "error of scores": Column(lambda row: row[3].score_errors[row[2]], ".4f"),
    }
    rows = [
        (result.budget, name, thief, theft)
        for result in record.budgets
        for name, theft in result.thefts.items()
        for thief in theft.fidelities
    ]
    return Listing("Thieves, means over seeds", columns, rows)


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
