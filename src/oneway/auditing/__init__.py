"""Audit a model: plan, controls, attacks, measures, and flags about them."""

from oneway.auditing.audit_target import AuditTarget
from oneway.auditing.controls import CONTROLS, ControlResult
from oneway.auditing.groups import GroupLeakage
from oneway.auditing.membership import MembershipSettings
from oneway.auditing.model_audit import AuditJob, AuditOutcome, ModelAudit, audit_on_ray
from oneway.auditing.plan import SEEDS, AuditPlan, AuditSettings
from oneway.auditing.record import THREATS, AuditRecord, InversionRecord
from oneway.auditing.stealing import StealingSettings
from oneway.auditing.suspicions import unexplained_flags
from oneway.auditing.understanding import Understanding, understand

__all__ = [
    "CONTROLS",
    "SEEDS",
    "THREATS",
    "AuditJob",
    "AuditOutcome",
    "AuditPlan",
    "AuditRecord",
    "AuditSettings",
    "AuditTarget",
    "ControlResult",
    "GroupLeakage",
    "InversionRecord",
    "MembershipSettings",
    "ModelAudit",
    "StealingSettings",
    "Understanding",
    "audit_on_ray",
    "understand",
    "unexplained_flags",
]
