"""Pages for people who decide: one file of HTML each, that needs no network and no script."""

from oneway.report.page.audit import audit_page
from oneway.report.page.blocks import Page
from oneway.report.page.certificate import certificate_page
from oneway.report.page.records import no_gallery, records_page
from oneway.report.page.render import render, write_page

__all__ = [
    "Page",
    "audit_page",
    "certificate_page",
    "no_gallery",
    "records_page",
    "render",
    "write_page",
]
