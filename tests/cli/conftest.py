"""A small pipeline, run once through the command line as a user would."""

from pathlib import Path

import pytest

from auditing.audits import little_timing
from invoking import invoke

__all__ = ["little_timing"]


@pytest.fixture(scope="session")
def oneway():
    return invoke


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """A folder with a target, its splits, a surrogate, and what was released."""
    folder = tmp_path_factory.mktemp("work")
    sizes = ("--private", 60, "--auxiliary", 80, "--test", 40, "--epochs", 2)
    surrogate = folder / "s.safetensors"
    steps: list[tuple[object, ...]] = [
        ("train", "target", "--out", folder, *sizes),
        ("train", "inverter", folder / "auxiliary.npz", "--out", surrogate, "--epochs", 2),
    ]
    for name in ("auxiliary", "test"):
        options = ("--inverter", surrogate, "--option", "step_size=0.4")
        out = folder / f"released-{name}.npy"
        steps.append(("defend", folder / f"{name}.npz", *options, "--out", out))
    for step in steps:
        result = invoke(*step)
        assert result.exit_code == 0, (step, result.output, result.exception)
    return folder
