"""Audits against thieves, in words and as a table."""

from oneway.auditing.stealing import CLEAN, LABEL, RELEASED, StealingRecord
from oneway.report.membership import shown
from oneway.report.table import Column, Listing


def stealing_verdict(record: StealingRecord) -> list[str]:
    """Return the verdict in sentences: for each budget the gap, the floor and the thief."""
    seeds = record.settings.seeds
    lines = [
        f"Stealing, {record.release}: copies are graded on {record.queries:,} queries; "
        f"{seeds} seed{'s' if seeds > 1 else ''}. No release of scores prevents a copy from labels."
    ]
    for result in record.budgets:
        fidelities = {name: theft.fidelity for name, theft in result.thefts.items()}
        gap = "" if result.gap is None else f"; G_steal {shown(result.gap)}"
        lines.append(
            f"{result.budget:,} queries: {result.verdict}. Fidelity: clean "
            f"{shown(fidelities[CLEAN])}, release {shown(fidelities[RELEASED])}, label only (the "
            f"floor) {shown(fidelities[LABEL])}{gap}; strongest on the release: "
            f"{result.thefts[RELEASED].thief}."
        )
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
