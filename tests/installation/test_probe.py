"""Imports are tried in a process of their own, whatever a package does there."""

import os

import pytest
import torch

from installation.sites import Site
from oneway.installation import try_imports
from oneway.installation.probe import FACTS


@pytest.fixture
def modules(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site.folder), before])))

    def write(**code):
        site.install("pack", modules=code)
        return list(code)

    return write


def test_what_loads_and_what_does_not(modules):
    names = modules(
        fine="", wrong="raise ImportError('no such symbol\\nand a long story')", other="1 / 0"
    )
    fine, wrong, other, gone = try_imports([*names, "not_there"])
    assert (fine.module, fine.error) == ("fine", None)
    assert wrong.error == "ImportError: no such symbol"
    assert other.error == "ZeroDivisionError: division by zero"
    assert gone.error is not None
    assert gone.error.startswith("ModuleNotFoundError")


def test_one_that_kills_its_interpreter_keeps_no_other_from_being_tried(modules):
    names = modules(
        first="",
        aborts="import os; os.abort()",
        middle="import first",
        leaves="import os; os._exit(3)",
        last="import middle",
    )
    errors = {one.module: one.error for one in try_imports(names)}
    assert list(errors) == names
    assert errors["first"] is errors["middle"] is errors["last"] is None
    assert "signal 6" in errors["aborts"]
    assert "exit code 3" in errors["leaves"]


def test_a_later_one_is_tried_beside_an_earlier_even_after_a_crash(modules):
    names = modules(
        torch_like="",
        aborts="import os; os.abort()",
        beside="import sys; assert 'torch_like' in sys.modules",
    )
    assert [one.error for one in try_imports(names)][::2] == [None, None]


def test_one_that_hangs_is_given_up(modules):
    names = modules(hangs="import time; time.sleep(60)")
    (one,) = try_imports(names, timeout_seconds=3)
    assert one.error == "did not finish in 3 seconds"


def test_what_a_package_prints_is_not_taken_for_an_answer(modules):
    names = modules(loud="import os; print('{\"module\": \"x\"}'); os.write(1, b'noise\\n')")
    (one,) = try_imports(names)
    assert (one.module, one.error) == ("loud", None)


def test_a_file_of_the_working_folder_stands_for_no_package(tmp_path, monkeypatch):
    (tmp_path / "rich.py").write_text("raise RuntimeError('a file of mine')")
    monkeypatch.chdir(tmp_path)
    assert [one.error for one in try_imports(["rich"])] == [None]


def test_torch_says_where_it_computes_and_oneway_releases_a_row():
    its, own = try_imports(["torch", "oneway"])
    assert (its.error, own.error) == (None, None)
    assert its.facts["version"] == torch.__version__
    assert len(its.facts["gpus"]) == torch.cuda.device_count()
    assert its.facts["threads"] >= 1


@pytest.mark.parametrize(
    "released", [[[0.5, 0.3, 0.2]], [[0.1, 0.1, 0.5]], [[float("nan")] * 3]], ids=repr
)
def test_a_release_that_breaks_its_promise_is_not_passed(released):
    class Planted:
        @staticmethod
        def release(logits, decimals):
            assert logits.argmax() == 2
            assert decimals == 2
            return torch.tensor(released)

    with pytest.raises(RuntimeError, match="no probabilities"):
        FACTS["oneway"](Planted)
