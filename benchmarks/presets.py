"""Trained targets of the leaderboard's presets, as other benchmarks begin with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from oneway.benchmark import bundled_spec, load_data
from oneway.benchmark.runner import split_data, trained_target
from oneway.benchmark.spec import ExperimentSpec
from oneway.data import Dataset, Splits, no_progress
from oneway.evaluation import ReleaseSpec, Store
from oneway.targets import TorchTarget


def trained(
    preset: str, cache: Path, *, seed: int = 0, data_root: Path | None = None
) -> tuple[TorchTarget, Splits]:
    """Return the target of a preset, from the cache or trained anew, and the preset's images."""
    spec = replace(bundled_spec("leaderboard", preset), seed=seed)
    splits = split_data(spec, *load_data(spec.data, data_root))
    return trained_target(spec, splits, Store(cache), no_progress), splits


SMALL = "small-digits"

RELEASES = (
    ReleaseSpec("none", "none"),
    ReleaseSpec("adversarial noise, .4", "adversarial-noise", {"step_size": 0.4, "steps": 10}),
    ReleaseSpec("rounding, 2 decimals", "rounding", {"decimals": 2}),
    ReleaseSpec("codebook, 20 members", "codebook", {"min_members": 20, "rate_weight": 0.01}),
)
"""Releases that generative attackers are measured on."""


def preset_spec(preset: str) -> ExperimentSpec:
    """Return a preset of the leaderboard; small digits have the settings of ``smoothed``."""
    if preset != SMALL:
        return bundled_spec("leaderboard", preset)
    spec = bundled_spec("leaderboard", "smoothed")
    return replace(spec, surrogate=replace(spec.surrogate, hidden_layers_removed=1))


def preset_data(
    preset: str, spec: ExperimentSpec, root: Path | None
) -> tuple[Dataset, Dataset | None]:
    """Return the data set of a preset, and its auxiliary data set if there is another."""
    return (small_digits(), None) if preset == SMALL else load_data(spec.data, root)


def small_digits() -> Dataset:
    """Return scikit-learn's 1,797 digits of 8x8 pixels, each pixel doubled both ways."""
    values, labels = load_digits(return_X_y=True)
    pixels = np.round(values.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    doubled = pixels.repeat(2, 1).repeat(2, 2)
    return Dataset(SMALL, doubled, labels.astype(np.int64), None, 10)
