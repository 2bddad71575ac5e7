"""Membership audits in words and as a table."""

from oneway.auditing.membership import AttackMeasures, MeasuredGap, MembershipRecord
from oneway.metrics import Interval
from oneway.report.audit import Gap, Headline, level_of
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
