"""What is shipped: the built wheel holds what an installed oneway reads at run time."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(  # noqa: S603  our own interpreter and arguments
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_every_source_file_is_in_the_wheel(wheel):
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "oneway").rglob("*")
        if path.suffix in (".py", ".toml", ".typed")
    }
    assert {"oneway/py.typed", "oneway/benchmark/experiments/demo-digits.toml"} <= sources
    assert sources <= set(wheel.namelist())


def test_the_wheel_holds_no_tests_data_or_networks(wheel):
    outside = [name for name in wheel.namelist() if not name.startswith(("oneway/", "oneway-"))]
    assert outside == []
    assert not [name for name in wheel.namelist() if name.endswith((".npz", ".safetensors"))]


def test_metadata_names_the_licence_and_the_command(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()
    commands = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "oneway = oneway.cli.main:app" in wheel.read(commands).decode()
