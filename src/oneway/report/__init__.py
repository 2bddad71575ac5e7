"""Records to tables and figures; nothing here computes a metric."""

from oneway.report.figure import draw_reconstructions
from oneway.report.table import TABLE_WIDTH, attack_table, markdown_table, release_table, remarks

__all__ = [
    "TABLE_WIDTH",
    "attack_table",
    "draw_reconstructions",
    "markdown_table",
    "release_table",
    "remarks",
]
