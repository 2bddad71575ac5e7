"""Records to tables, figures and pages; nothing here computes a metric."""

from oneway.report.figure import draw_reconstructions
from oneway.report.results import results_page
from oneway.report.summary import (
    SUMMARY_WIDTH,
    published_table,
    summary_remarks,
    summary_table,
)
from oneway.report.table import TABLE_WIDTH, attack_table, markdown_table, release_table, remarks

__all__ = [
    "SUMMARY_WIDTH",
    "TABLE_WIDTH",
    "attack_table",
    "draw_reconstructions",
    "markdown_table",
    "published_table",
    "release_table",
    "remarks",
    "results_page",
    "summary_remarks",
    "summary_table",
]
