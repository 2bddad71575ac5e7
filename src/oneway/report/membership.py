"""Membership audits in words and as a table."""

from oneway.auditing.membership import AttackMeasures, MeasuredGap, MembershipRecord
from oneway.metrics import Interval
from oneway.report.table import Column, Listing

WORDS = {
    "area": "area under the ROC curve",
    "low": "members named at 1 % false alarms",
    "lowest": "members named at .1 % false alarms",
}


def membership_verdict(record: MembershipRecord) -> list[str]:
    """Return the verdict in sentences: what leaks, the floor, G_mem, and what vouches for it."""
    lines = [
        f"Membership, {record.release}: {record.members:,} members and {record.non_members:,} "
        f"non-members, {record.references} reference models; the model is right on "
        f"{record.accuracy[0]:.1%} of members and {record.accuracy[1]:.1%} of non-members."
    ]
    if record.nothing_to_defend:
        lines.append(
            "Nothing to defend: attackers of clean scores cannot be told from attackers of the "
            "label alone. Labels still leak what the floor says."
        )
    lines += [_gap_sentence(WORDS[name], gap) for name, gap in record.gaps.items()]
    variation = record.total_variation
    if variation is not None:
        lines.append(
            "Attackers who see the released vector and know the true label, and nothing else of "
            f"the candidate: TPR - FPR is at most {variation.high:.3f} and the best is at least "
            f"{variation.low:.3f} ({variation.level:.0%}; estimate {variation.plug_in:.3f}, of "
            f"which {variation.by_chance:.3f} would appear by chance)."
        )
    if record.references < 4:
        lines.append(
            "Fewer than 4 reference models: a claim without strong attackers is empty. Use "
            "--references 8 or more."
        )
    lines += record.notes
    lines += [
        f"Control failed: {name}. The figures above say nothing." for name in record.controls_failed
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
