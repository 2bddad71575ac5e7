"""Experiments: run specs, and return records and summaries."""

from oneway.benchmark.cells import (
    Cells,
    CellsJob,
    Gallery,
    gallery_path,
    load_data,
    run_on_ray,
    stored_gallery,
)
from oneway.benchmark.published import (
    FigureRow,
    FigureSpec,
    Published,
    PublishedRow,
    figure_spec,
    published,
    published_of,
)
from oneway.benchmark.runner import Experiment, count_stages
from oneway.benchmark.spec import ExperimentSpec, bundled_spec, load_spec
from oneway.benchmark.summary import Estimate, Summary, estimate, summarise

__all__ = [
    "Cells",
    "CellsJob",
    "Estimate",
    "Experiment",
    "ExperimentSpec",
    "FigureRow",
    "FigureSpec",
    "Gallery",
    "Published",
    "PublishedRow",
    "Summary",
    "bundled_spec",
    "count_stages",
    "estimate",
    "figure_spec",
    "gallery_path",
    "load_data",
    "load_spec",
    "published",
    "published_of",
    "run_on_ray",
    "stored_gallery",
    "summarise",
]
