"""Records to sentences, tables, pictures and pages; nothing here computes a metric."""

from oneway.report.audit import (
    attackers_table,
    distortion_line,
    flag_lines,
    matching_table,
    privacy_table,
    understanding_lines,
    understanding_tables,
    utility_table,
    verdict,
)
from oneway.report.experiments import costs_table, published_table, summary_table
from oneway.report.figure import check_figure_path, draw_reconstructions
from oneway.report.findings import report_lines
from oneway.report.frontier import candidates_table, frontier_lines
from oneway.report.sentences import failure_sentence
from oneway.report.table import Listing

__all__ = [
    "Listing",
    "attackers_table",
    "candidates_table",
    "check_figure_path",
    "costs_table",
    "distortion_line",
    "draw_reconstructions",
    "failure_sentence",
    "flag_lines",
    "frontier_lines",
    "matching_table",
    "privacy_table",
    "published_table",
    "report_lines",
    "summary_table",
    "understanding_lines",
    "understanding_tables",
    "utility_table",
    "verdict",
]
