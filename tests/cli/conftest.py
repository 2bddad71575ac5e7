"""A small pipeline, run once through the command line as a user would."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from oneway.cli.main import app


def invoke(*arguments: object, env: dict[str, str] | None = None) -> Result:
    """Run ``oneway`` with these arguments, in a wide terminal so that no message is wrapped."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


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
