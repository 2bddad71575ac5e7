"""Pages for people who decide: one file of HTML each, that needs no network and no script."""

from oneway.report.page.audit import audit_page
from oneway.report.page.certificate import certificate_page
from oneway.report.page.experiments import (
    frontier_charts,
    no_gallery,
    overview_charts,
    records_page,
    results_page,
)
from oneway.report.page.render import render, write_charts, write_page

__all__ = [
    "audit_page",
    "certificate_page",
    "frontier_charts",
    "no_gallery",
    "overview_charts",
    "records_page",
    "render",
    "results_page",
    "write_charts",
    "write_page",
]
