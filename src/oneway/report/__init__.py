"""Records to tables, figures and pages; nothing here computes a metric."""

from oneway.report.audit import (
    attackers_table,
    distortion_line,
    flag_lines,
    privacy_table,
    utility_table,
    verdict,
)
from oneway.report.certificate import (
    candidates_table,
    certificate_lines,
    certificate_table,
)
from oneway.report.figure import draw_reconstructions
from oneway.report.frontier import draw_frontier, frontier, frontier_lines
from oneway.report.results import results_page
from oneway.report.summary import (
    SUMMARY_WIDTH,
    published_table,
    summary_remarks,
    summary_table,
)
from oneway.report.table import TABLE_WIDTH, Listing, attack_table, release_table, remarks

__all__ = [
    "SUMMARY_WIDTH",
    "TABLE_WIDTH",
    "Listing",
    "attack_table",
    "attackers_table",
    "candidates_table",
    "certificate_lines",
    "certificate_table",
    "distortion_line",
    "draw_frontier",
    "draw_reconstructions",
    "flag_lines",
    "frontier",
    "frontier_lines",
    "privacy_table",
    "published_table",
    "release_table",
    "remarks",
    "results_page",
    "summary_remarks",
    "summary_table",
    "utility_table",
    "verdict",
]
