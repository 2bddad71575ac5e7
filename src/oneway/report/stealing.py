"""Audits against thieves, in words and as a table."""

from oneway.auditing.stealing import CLEAN, LABEL, RELEASED, BudgetResult, StealingRecord
from oneway.report.audit import Gap, Headline, level_of
from oneway.report.membership import shown
from oneway.report.table import Column, Listing

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
