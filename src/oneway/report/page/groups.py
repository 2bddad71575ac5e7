"""Leakage by group on an audit's page: of whom the scores reveal most."""

import math
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from oneway.auditing import GroupLeakage, InversionRecord
from oneway.auditing.groups import FEWEST_QUERIES
from oneway.report.page.blocks import Block, Grid, Prose, Section
from oneway.report.page.charts import Chart, Level, Place, line_chart
from oneway.report.page.identification import percent
from oneway.report.table import Column, Listing

MOST_ROWS = 20
"""Most groups of a kind in a table and a chart: those of which the scores reveal most."""

TOO_FEW = (
    f"No class and no value of a column has {FEWEST_QUERIES} test queries, so that nothing is said "
    "of groups. The average may hide a group of which the scores reveal more."
)

EXPLAINED = (
    "The share of the label-only error that the release takes off: 0 % reveals no more than the "
    "label, 100 % is a perfect reconstruction. Intervals hold for all groups at once (about "
    f"95 %, over queries). Groups with fewer than {FEWEST_QUERIES} queries are left out."
)

COLUMNS = {
    "group": Column(attrgetter("name")),
    "queries": Column(attrgetter("queries"), ",d"),
    "error": Column(attrgetter("error"), ".4f"),
    "from the label alone": Column(attrgetter("label_error"), ".4f"),
    "from clean scores": Column(attrgetter("clean_error"), ".4f"),
    "taken off": Column(attrgetter("reduction.estimate"), percent),
    "low": Column(lambda group: _finite(group.reduction.low), percent),
    "high": Column(lambda group: _finite(group.reduction.high), percent),
    "re-identified": Column(attrgetter("reidentified"), percent),
}
"""Columns of a table of groups."""


def _finite(end: float) -> float | None:
    """Return the end of an interval; None where the queries are too few to tell."""
    return end if math.isfinite(end) else None


def overall_reduction(record: InversionRecord) -> float:
    """Return the share of the label-only error that the release takes off, of all queries."""
    return 1 - record.adaptive_error / record.baselines.label


def hurt_sentence(record: InversionRecord, groups: Sequence[GroupLeakage]) -> str:
    """Return of which group the scores reveal most, and whether that may be chance."""
    worst = max(groups, key=attrgetter("reduction.estimate"))
    overall, interval = overall_reduction(record), worst.reduction
    chance = "The difference from the average may be chance."
    sure = "too few queries for an interval"
    if math.isfinite(interval.high - interval.low):
        sure = f"{100 * interval.low:.0f} to {100 * interval.high:.0f} %"
    if interval.low > overall:
        chance = "More than on average, beyond chance."
    elif round(100 * interval.estimate) < round(100 * overall):  # a mean is below the largest
        chance = "That is less than on average: groups with fewer queries are hurt more."
    return (
        f"Most hurt, of groups with at least {FEWEST_QUERIES} queries: {worst.kind} {worst.name}. "
        f"The scores take {100 * interval.estimate:.0f} % ({sure}) off the error that the label "
        f"alone leaves; of all queries, {100 * overall:.0f} %. {chance}"
    )


def group_sections(record: InversionRecord) -> list[Section]:
    """Return who is hurt most; nothing for a record from before groups were measured."""
    if record.groups is None:
        return []
    blocks: list[Block] = []
    for number, (kind, members) in enumerate(groupby(record.groups, attrgetter("kind"))):
        groups = sorted(members, key=lambda group: -group.reduction.estimate)
        blocks.append(Prose((hurt_sentence(record, groups),)))
        shown = groups[:MOST_ROWS]
        more = f" (the {MOST_ROWS} most of {len(groups)})" if len(groups) > MOST_ROWS else ""
        title = f"Leakage by {kind}{more}"
        blocks.append(_chart(f"groups-{number}", title, record, shown))
        blocks.append(Grid(Listing(title, COLUMNS, shown)))
    blocks.append(Prose((EXPLAINED if blocks else TOO_FEW,)))
    return [Section("groups", "Who is hurt most", blocks)]


def _chart(name: str, title: str, record: InversionRecord, groups: Sequence[GroupLeakage]) -> Chart:
    """Return the groups on a line of shares, from no more than the label on."""
    overall = overall_reduction(record)
    places = [
        Place(
            group.name,
            group.reduction.estimate,
            percent(group.reduction.estimate),
            place == 0,
            _finite(group.reduction.low),
            _finite(group.reduction.high),
        )
        for place, group in enumerate(groups)
    ]
    levels = (
        Level("no more than the label", 0.0, "no more than the label: 0 %"),
        Level("all queries", overall, f"all queries: {percent(overall)}"),
    )
    columns = {
        "group": Column(attrgetter("label")),
        "taken off": Column(attrgetter("text")),
        "low": Column(attrgetter("low"), percent),
        "high": Column(attrgetter("high"), percent),
    }
    return line_chart(
        name,
        f"{title}: share of the label-only error that the scores take off (right: more leaks)",
        "A line of shares of the label-only error. To compare with: "
        f"{'; '.join(level.text for level in levels)}. On it: "
        f"{'; '.join(f'{place.label} {place.text}' for place in places)}.",
        levels,
        places,
        numbers=Listing(title, columns, places),
        banded=False,
    )
