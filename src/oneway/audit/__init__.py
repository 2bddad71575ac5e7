"""Audit a model: plan, controls, attacks, measures, and flags about them."""

from oneway.audit.audit_target import AuditTarget
from oneway.audit.cluster import AuditJob, audit_on_ray
from oneway.audit.controls import CONTROLS, ControlResult
from oneway.audit.model_audit import AuditOutcome, ModelAudit
from oneway.audit.plan import AuditPlan
from oneway.audit.record import AuditRecord
from oneway.audit.settings import AuditSettings
from oneway.audit.suspicions import SEEDS, unexplained_flags
from oneway.audit.understanding import Understanding, understand

__all__ = [
    "CONTROLS",
    "SEEDS",
    "AuditJob",
    "AuditOutcome",
    "AuditPlan",
    "AuditRecord",
    "AuditSettings",
    "AuditTarget",
    "ControlResult",
    "ModelAudit",
    "Understanding",
    "audit_on_ray",
    "understand",
    "unexplained_flags",
]
