"""Extras and ranges are read from metadata as an installer would; imports are tried apart."""

import os
import sys
import tomllib
import webbrowser
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli.sites import Site
from oneway.cli import diagnosis
from oneway.cli.diagnosis import (
    PURPOSES,
    check_package,
    find_conflicts,
    find_installed,
    find_modules,
    find_wanted,
    measure_folder,
    try_import,
    try_imports,
)
from oneway.cli.probe import FACTS
from oneway.errors import MissingExtraError
from oneway.extras import download_folder

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
NUMBERS = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


class Written(Distribution):
    """A package whose metadata is a text."""

    def __init__(self, text):
        self.text = text

    def read_text(self, filename):
        return self.text if filename == "METADATA" else None

    def locate_file(self, path):
        return Path(path)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


class AnyImport(dict):
    """Imports that all went well."""

    def __missing__(self, module):
        return None, {}


def packages_of(extra, installed):
    """Return the packages of an extra, by name."""
    wanted = find_wanted(extra, installed)
    checked = [check_package(each, installed, AnyImport()) for each in wanted]
    return {package["name"]: package for package in checked}


def test_every_extra_of_this_project_has_its_purpose_in_words():
    """An extra that is new needs a line in PURPOSES, which doctor and docs/install.md show."""
    assert set(PURPOSES) == set(PROJECT["optional-dependencies"])


def test_core_and_extras_are_told_apart_and_other_platforms_left_out(site):
    site.install(
        "oneway",
        requires=(
            "alpha>=1",
            "beta; sys_platform == 'nowhere'",
            "gamma<2; extra == 'more'",
            "delta; extra == 'more' and python_version < '3'",
            "epsilon; extra == 'other'",
        ),
    )
    found = {extra: list(packages_of(extra, site.installed)) for extra in ("", "more", "other")}
    assert found == {"": ["alpha"], "more": ["gamma"], "other": ["epsilon"]}


def test_what_is_missing_present_and_out_of_range(site):
    requires = ("old>=2; extra == 'x'", "Good_One>=1; extra == 'x'", "gone; extra == 'x'")
    site.install("oneway", requires=requires).install("old", "1.9").install("good-one", "1.0")
    found = packages_of("x", site.installed)
    assert (found["old"]["version"], found["old"]["faults"]) == ("1.9", ["1.9 is not >=2"])
    assert (found["Good_One"]["version"], found["Good_One"]["faults"]) == ("1.0", [])
    assert (found["gone"]["version"], found["gone"]["faults"]) == (None, [])


def test_packages_that_an_old_installer_wrote_are_read_too(site):
    site.install("alpha", "2.0")
    folder, file = site.folder / "beta-1.0.egg-info", site.folder / "gamma-3.0.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Name: beta\nVersion: 1.0\n")
    (folder / "requires.txt").write_text("alpha<2\n")
    file.write_text("Name: gamma\nVersion: 3.0\n")
    assert set(site.installed) == {"alpha", "beta", "gamma"}
    assert find_conflicts({"alpha"}, site.installed) == [("beta", "alpha<2, but 2.0")]


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_range_holds_what_lies_between_its_ends(low, high, version):
    text = [".".join(map(str, each)) for each in (low, high, version)]
    own = Written(f"Name: oneway\nVersion: 1\nRequires-Dist: other>={text[0]},<{text[1]}\n")
    found = packages_of("", {"oneway": own, "other": Written(f"Name: other\nVersion: {text[2]}\n")})
    assert (not found["other"]["faults"]) == (low <= version < high)


def test_a_build_tag_and_a_release_candidate_are_the_version_that_they_are_of(site):
    site.install("oneway", requires=("torch==2.13.0", "numpy>=2"))
    site.install("torch", "2.13.0+cpu").install("numpy", "2.5.0rc1")
    assert not any(each["faults"] for each in packages_of("", site.installed).values())


def test_extras_of_other_packages_and_of_itself_are_looked_into(site):
    site.install(
        "oneway",
        requires=(
            "ray[serve]>=2; extra == 'ray'",
            "web; extra == 'serve'",
            "oneway[serve,page]; extra == 'page'",
            "js; extra == 'page'",
        ),
    )
    site.install("ray", "2.1", requires=("net; extra == 'serve'", "other"))
    ray = packages_of("ray", site.installed).values()
    assert [(each["name"], each["through"], each["version"]) for each in ray] == [
        ("ray", None, "2.1"),
        ("net", "ray", None),
    ]
    page = packages_of("page", site.installed)
    assert sorted(page) == ["js", "web"]
    assert all(each["through"] is None for each in page.values())


def test_modules_are_those_of_its_name_or_all_that_it_brings(site):
    site.install("oneway", requires=("pillow", "under-score", "many", "bare", "gone"))
    site.install("pillow", modules={"PIL": ""}).install("under-score")
    site.install("many", modules={"many": "", "tests": ""}).install("bare", modules={})
    wanted = find_wanted("", site.installed)
    assert {str(each[0]): find_modules(each, site.installed) for each in wanted} == {
        "pillow": ["PIL"],
        "under-score": ["under_score"],
        "many": ["many"],
        "bare": [],
        "gone": [],
    }


def test_the_first_of_two_installations_counts_and_a_nameless_one_does_not(tmp_path):
    """Also where MLflow has loaded importlib_metadata, whose own kind has other methods."""
    pytest.importorskip("importlib_metadata")
    first, second = Site(tmp_path / "1"), Site(tmp_path / "2")
    first.install("oneway", "2")
    second.install("oneway", "1").install("other", "3")
    (second.folder / "broken-1.dist-info").mkdir()
    found = find_installed([str(first.folder), str(second.folder)])
    assert {name: each.version for name, each in found.items()} == {"oneway": "2", "other": "3"}
    assert {type(each) for each in found.values()} == {PathDistribution}


def test_who_wants_another_torch_is_found(site):
    site.install("oneway", requires=("torch>=3",)).install("torch", "2.13.0")
    site.install("torchvision", "0.27", requires=("torch==2.12.0", "pillow"))
    site.install("fine", requires=("torch>=2", "nothing==9"))
    site.install("elsewhere", requires=("torch==1; sys_platform == 'nowhere'",))
    site.install("optional", requires=("torch==1; extra == 'old'",))
    found = find_conflicts({"torch"}, site.installed)
    assert found == [("torchvision", "torch==2.12.0, but 2.13.0")]


def test_a_folder_is_measured_whole_and_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gone = measure_folder("networks", Path("a/b"))
    assert (gone["size"], gone["files"], gone["writable"]) == (None, 0, True)
    assert gone["path"] == str(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert measure_folder("networks", tmp_path / "a")["size"] == 0
    (tmp_path / "a" / "first").write_bytes(b"123")
    (tmp_path / "a" / "b" / "second").write_bytes(b"4567")
    measured = measure_folder("networks", tmp_path / "a")
    assert (measured["size"], measured["files"], measured["purpose"]) == (7, 2, "networks")


def test_downloads_have_a_folder_where_something_downloads(monkeypatch):
    pytest.importorskip("pooch")
    assert download_folder().name == "oneway"
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"oneway\[demo\]"):
        download_folder()


def test_a_browser_is_found_by_its_command_or_by_the_system(monkeypatch):
    commands = {"firefox": "/usr/bin/firefox", "chromium": "/usr/bin/chromium"}
    monkeypatch.setattr(diagnosis.shutil, "which", commands.get)
    assert diagnosis.find_browser() == "/usr/bin/chromium"
    commands.clear()
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("own"))
    assert diagnosis.find_browser() == "own"

    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert diagnosis.find_browser() is None


def test_imports_are_tried_in_processes_of_their_own(site, tmp_path, monkeypatch):
    """Whatever a package does there: it fails, ends its interpreter, prints, or hangs."""
    code = {
        "fine": "",
        "wrong": "raise ImportError('no such symbol\\nand a long story')",
        "other": "1 / 0",
        "aborts": "import os; os.abort()",
        "leaves": "import os; os._exit(3)",
        "loud": "import os; print('[\"x\", {}]'); os.write(1, b'noise\\n')",
    }
    site.install("pack", modules=code)
    (tmp_path / "rich.py").write_text("raise RuntimeError('a file of mine')")
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join(filter(None, [str(site.folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    found = {name: error for name, (error, _) in try_imports([*code, "gone", "rich"]).items()}
    assert found == {
        "fine": None,
        "wrong": "ImportError: no such symbol",
        "other": "ZeroDivisionError: division by zero",
        "aborts": "the interpreter ended by signal 6 while importing it",
        "leaves": "the interpreter ended with exit code 3 while importing it",
        "loud": None,
        "gone": "ModuleNotFoundError: No module named 'gone'",
        "rich": None,
    }


def test_an_import_that_hangs_is_given_up(site, monkeypatch):
    site.install("hangs", modules={"hangs": "import threading; threading.Event().wait()"})
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    assert try_import("hangs", timeout_seconds=2) == ("did not finish in 2 seconds", {})


def test_torch_says_where_it_computes():
    facts = FACTS["torch"](torch)
    assert facts["version"] == torch.__version__
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["threads"] >= 1


def test_a_release_that_breaks_its_promise_is_not_passed():
    for released in ([[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.5]], [[float("nan")] * 3]):

        class Planted:
            @staticmethod
            def release(logits, decimals, released=released):
                assert logits.argmax() == 2
                assert decimals == 2
                return torch.tensor(released)

        with pytest.raises(RuntimeError, match="no probabilities"):
            FACTS["oneway"](Planted)
