"""Experiments: specs in, records out."""

from oneway.benchmark.audit_flags import SEEDS
from oneway.benchmark.audit_plan import AuditPlan
from oneway.benchmark.audit_settings import AuditSettings
from oneway.benchmark.cluster import AuditJob, CellsJob, audit_on_ray, run_on_ray
from oneway.benchmark.model_audit import AuditOutcome, ModelAudit
from oneway.benchmark.published import (
    FigureRow,
    FigureSpec,
    Published,
    PublishedRow,
    figure_spec,
    published,
    published_of,
)
from oneway.benchmark.recorded import Recording, attack_recorded
from oneway.benchmark.records import Outcome
from oneway.benchmark.registry import ATTACKS
from oneway.benchmark.reproduce import Cells, Gallery, gallery_path, load_data, stored_gallery
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
    read_records,
    write_pictures,
    write_queries,
    write_records,
)
from oneway.benchmark.subject import Subject
from oneway.benchmark.summary import Estimate, Summary, estimate, summarise

__all__ = [
    "ATTACKS",
    "SEEDS",
    "AuditJob",
    "AuditOutcome",
    "AuditPlan",
    "AuditSettings",
    "Cells",
    "CellsJob",
    "Estimate",
    "Experiment",
    "ExperimentSpec",
    "FigureRow",
    "FigureSpec",
    "Gallery",
    "ModelAudit",
    "Outcome",
    "Published",
    "PublishedRow",
    "Recording",
    "ReleaseSpec",
    "Store",
    "Subject",
    "Summary",
    "attack_recorded",
    "audit_on_ray",
    "bundled_spec",
    "count_stages",
    "estimate",
    "figure_spec",
    "gallery_path",
    "load_data",
    "load_spec",
    "published",
    "published_of",
    "read_records",
    "run_on_ray",
    "sketch_defense",
    "stored_gallery",
    "summarise",
    "write_pictures",
    "write_queries",
    "write_records",
]
