"""Experiments: specs in, records out."""

from oneway.benchmark.audit_plan import AuditPlan
from oneway.benchmark.model_audit import AuditOutcome, AuditSettings, ModelAudit
from oneway.benchmark.published import (
    FigureRow,
    FigureSpec,
    Published,
    PublishedRow,
    figure_spec,
    published,
)
from oneway.benchmark.recorded import Recording, attack_recorded
from oneway.benchmark.records import Outcome
from oneway.benchmark.registry import (
    ATTACKS,
    DEFENSES,
    build_defense,
    needs_network,
    needs_surrogate,
)
from oneway.benchmark.reproduce import Cells, load_data
from oneway.benchmark.runner import Experiment, count_stages
from oneway.benchmark.spec import (
    ExperimentSpec,
    ReleaseSpec,
    bundled_spec,
    load_spec,
    sketch_defense,
)
from oneway.benchmark.store import (
    Store,
    atomic_file,
    load_network,
    read_records,
    save_network,
    write_queries,
    write_records,
)
from oneway.benchmark.subject import Subject
from oneway.benchmark.summary import Estimate, Summary, estimate, summarise

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "AuditOutcome",
    "AuditPlan",
    "AuditSettings",
    "Cells",
    "Estimate",
    "Experiment",
    "ExperimentSpec",
    "FigureRow",
    "FigureSpec",
    "ModelAudit",
    "Outcome",
    "Published",
    "PublishedRow",
    "Recording",
    "ReleaseSpec",
    "Store",
    "Subject",
    "Summary",
    "atomic_file",
    "attack_recorded",
    "build_defense",
    "bundled_spec",
    "count_stages",
    "estimate",
    "figure_spec",
    "load_data",
    "load_network",
    "load_spec",
    "needs_network",
    "needs_surrogate",
    "published",
    "read_records",
    "save_network",
    "sketch_defense",
    "summarise",
    "write_queries",
    "write_records",
]
