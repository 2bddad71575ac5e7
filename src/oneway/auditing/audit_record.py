"""The record of an audit: what was found of each threat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from oneway.auditing.membership import MembershipRecord
from oneway.auditing.record import InversionRecord
from oneway.auditing.stealing import StealingRecord
from oneway.defenses.codebook import Certificate
from oneway.evaluation.records import TypedRecord

THREATS = ("inversion", "membership", "stealing")
"""Threats that an audit can be about, by their name in commands and records."""


@dataclass(frozen=True, kw_only=True)
class AuditRecord(TypedRecord):
    """The results of an audit of one release, by threat.

    Attributes:
        inversion: What answers reveal of queries; None if it was not audited.
        membership: Which training rows answers reveal; None if it was not audited.
        stealing: How well the model is copied; None if it was not audited.
        certificate: Certificate of the guard, if it is a codebook that holds one.
        minutes: Target run time of all threats together; None: there was none.
        seconds: Run time by threat.
        command: The command as it was typed, without credentials; None from Python.
    """

    subject: ClassVar = "an audit"

    inversion: InversionRecord | None = None
    membership: MembershipRecord | None = None
    stealing: StealingRecord | None = None
    certificate: Certificate | None = None
    minutes: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    command: str | None = None

    @property
    def threats(self) -> tuple[str, ...]:
        """Names of the threats that were audited."""
        return tuple(name for name in THREATS if getattr(self, name) is not None)
