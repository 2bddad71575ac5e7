"""The interface of Python: the same words as the command line, which is built on it."""

from oneway.auditing import MembershipSettings, StealingSettings
from oneway.interface.audit_source import AuditSource
from oneway.interface.audits import AuditResult, audit, run_audit
from oneway.interface.codebooks import Choice, certify, choose, fit_codebook
from oneway.interface.data import Reading, read_rows
from oneway.interface.models import open_model, read_scores
from oneway.interface.threats import ThreatSettings

__all__ = [
    "AuditResult",
    "AuditSource",
    "Choice",
    "MembershipSettings",
    "Reading",
    "StealingSettings",
    "ThreatSettings",
    "audit",
    "certify",
    "choose",
    "fit_codebook",
    "open_model",
    "read_rows",
    "read_scores",
    "run_audit",
]
