"""What is shipped: the wheel holds what an installed oneway reads, the sdist what its tests do."""

import shutil
import subprocess
import zipfile
from collections.abc import Iterator

import pytest

from built import ROOT


@pytest.fixture(scope="module")
def wheel(built) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built.wheel) as file:
        yield file


def test_every_source_file_is_in_the_wheel(wheel):
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "oneway").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {
        "oneway/py.typed",
        "oneway/benchmark/experiments/demo-digits.toml",
        "oneway/playground/static/index.html",
        "oneway/report/page/page.css",
        "oneway/report/page/page.html.j2",
    } <= sources
    assert sources <= set(wheel.namelist())


NETWORKS = "oneway/playground/networks.safetensors"


def test_the_wheel_holds_no_tests_no_data_and_no_networks_but_the_playgrounds(wheel):
    outside = [name for name in wheel.namelist() if not name.startswith(("oneway/", "oneway-"))]
    assert outside == []
    others = [name for name in wheel.namelist() if name.endswith((".npz", ".safetensors"))]
    assert others == [NETWORKS]
    assert wheel.getinfo(NETWORKS).compress_size < 2_000_000


def test_metadata_names_the_licence_and_the_command(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()
    commands = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "oneway = oneway.cli.main:app" in wheel.read(commands).decode()


def test_the_wheel_holds_the_licence_and_says_which_python_and_readme(wheel):
    names = wheel.namelist()
    assert [name for name in names if name.endswith("/licenses/LICENSE")]
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    assert "Requires-Python: >=3.11" in text
    assert "Description-Content-Type: text/markdown" in text
    assert "# oneway: let the label out" in text


def test_the_wheel_is_small_and_every_file_in_it_has_one_of_few_kinds(wheel):
    """A picture, a network or a data set that slipped in would show here."""
    kinds = {name.rpartition(".")[2] for name in wheel.namelist() if name.startswith("oneway/")}
    kinds -= {"safetensors"}
    assert kinds <= {"py", "typed", "toml", "md", "html", "css", "js", "svg", "j2", "txt"}
    sizes = {one.filename: one.file_size for one in wheel.infolist()}
    assert sum(size for name, size in sizes.items() if name != NETWORKS) < 3_000_000


def test_the_sdist_holds_all_that_is_tracked(built):
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a clone: there is nothing that says which files belong to it")
    listed = subprocess.run(  # noqa: S603  git, by its full path
        [git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    tracked = {name for name in listed if name and (ROOT / name).exists()}
    shipped = {
        path.relative_to(built.unpacked).as_posix()
        for path in built.unpacked.rglob("*")
        if path.is_file()
    }
    assert tracked - shipped == set()
    assert {"tests/conftest.py", "constraints.txt", ".ci/run", "Makefile"} <= shipped


def test_the_sdist_holds_no_data_set_and_no_network_but_the_playgrounds(built):
    files = {path for path in built.unpacked.rglob("*") if path.is_file()}
    endings = {path.suffix for path in files - {built.unpacked / "src" / NETWORKS}}
    assert not endings & {".npz", ".npy", ".safetensors", ".pt", ".pt2", ".onnx", ".parquet", ".gz"}
