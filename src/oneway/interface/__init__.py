"""The interface of Python: the same words as the command line, which is built on it."""

from oneway.interface.audits import AuditResult, AuditSource, audit, run_audit
from oneway.interface.codebooks import Choice, certify, choose, fit_codebook
from oneway.interface.data import Reading, read_rows
from oneway.interface.membership import MembershipResult, audit_membership
from oneway.interface.models import open_model, read_scores
from oneway.interface.stealing import StealingResult, audit_stealing, run_stealing

__all__ = [
    "AuditResult",
    "AuditSource",
    "Choice",
    "MembershipResult",
    "Reading",
    "StealingResult",
    "audit",
    "audit_membership",
    "audit_stealing",
    "certify",
    "choose",
    "fit_codebook",
    "open_model",
    "read_rows",
    "read_scores",
    "run_audit",
    "run_stealing",
]
