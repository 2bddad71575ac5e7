"""Trained targets of the leaderboard's presets, as other benchmarks begin with them."""

from dataclasses import replace
from pathlib import Path

from oneway.benchmark import bundled_spec, load_data
from oneway.benchmark.runner import split_data, trained_target
from oneway.data import Splits, no_progress
from oneway.evaluation import Store
from oneway.targets import TorchTarget


def trained(
    preset: str, cache: Path, *, seed: int = 0, data_root: Path | None = None
) -> tuple[TorchTarget, Splits]:
    """Return the target of a preset, from the cache or trained anew, and the preset's images."""
    spec = replace(bundled_spec("leaderboard", preset), seed=seed)
    splits = split_data(spec, *load_data(spec.data, data_root))
    return trained_target(spec, splits, Store(cache), no_progress), splits
