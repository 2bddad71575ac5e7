"""Adding a defense touches two files: done as the page shows it, in this process alone."""

import importlib.util
import inspect
import re
import sys
import types

import numpy as np
import pytest

import oneway.defenses.registry as registry
from fences import ROOT, blocks_of
from invoking import invoke
from surrogates import random_images

PAGE = "docs/architecture.md"
NAME = "order-only"
FILE, LINES = [block for block in blocks_of(PAGE) if block.section == "To add a defense"]
LAWS = ROOT / "tests" / "contracts" / "test_defense_contract.py"


def module_of(name, text):
    """Run a file that is not there as a module."""
    module = types.ModuleType(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        exec(compile(text, name, "exec"), module.__dict__)  # noqa: S102  our own page
    return module


def changed_registry():
    """Return the registry's source with the page's import and its line in ``DEFENSES``."""
    imported, line = (part for part in LINES.text.splitlines() if part)
    text = inspect.getsource(registry)
    first = re.search(r"^from oneway\.defenses\.", text, flags=re.MULTILINE)
    text = f"{text[: first.start()]}{imported}\n{text[first.start() :]}"
    before = "    **TEST_SIGNALS,\n"
    assert text.count(before) == 1
    return text.replace(before, f"{line}\n{before}")


@pytest.fixture
def added(monkeypatch):
    """The defense's module, with the defense in the registry."""
    path = ROOT / FILE.notes["file"]
    assert path.parent.is_dir()
    assert not path.exists()
    name = f"oneway.defenses.{path.stem}"
    module = module_of(name, FILE.text)
    monkeypatch.setitem(sys.modules, name, module)
    changed = module_of("changed_registry", changed_registry())
    assert changed.DEFENSES.keys() - registry.DEFENSES.keys() == {NAME}
    monkeypatch.setitem(registry.DEFENSES, NAME, changed.DEFENSES[NAME])
    return module


def laws_of_the_defense():
    """Read the suite anew, as it is with the defense: its laws for it, by their names."""
    spec = importlib.util.spec_from_file_location("laws_with_one_more_defense", LAWS)
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    fixtures = {"case": NAME, "images": random_images(3, suite.COUNT)}
    laws = {}
    for name, law in vars(suite).items():
        wanted = inspect.signature(law).parameters if name.startswith("test_") else {}
        marks = [mark for mark in getattr(law, "pytestmark", ()) if mark.name == "parametrize"]
        if "case" in wanted and all(NAME in mark.args[1] for mark in marks):
            given = {argument: fixtures[argument] for argument in wanted}
            laws[name] = lambda law=law, given=given: law(**given)
    return laws


@pytest.mark.usefixtures("added")
def test_the_suite_of_laws_holds_it_to_its_promises():
    laws = laws_of_the_defense()
    assert len(laws) >= 7
    for law in laws.values():
        law()


@pytest.mark.usefixtures("added")
def test_a_command_takes_it_with_its_option(tmp_path):
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    out = tmp_path / "released.npy"
    words = ["defend", tmp_path / "scores.npy", "--outputs", "logits", "--out", out]
    named = ["--defense", NAME, "--option", "step=2.0"]
    done = invoke(*words, *named)
    assert done.exit_code == 0, done.output
    released = np.load(out)
    np.testing.assert_array_equal(released.argsort(1), scores.argsort(1))
    np.testing.assert_allclose(np.diff(np.sort(np.log(released), 1), axis=1), 2, rtol=1e-4)


def test_a_promise_that_it_does_not_keep_is_found(added, monkeypatch):
    broken = FILE.text.replace("-self.step", "self.step")
    broken = broken.replace("    step:", "    is_finished = True\n\n    step:")
    made = module_of(added.__name__, broken)
    (name,) = (name for name, kind in vars(added).items() if kind is registry.DEFENSES[NAME])
    monkeypatch.setitem(registry.DEFENSES, NAME, getattr(made, name))
    (law,) = (law for name, law in laws_of_the_defense().items() if "label_it_promises" in name)
    with pytest.raises(AssertionError):
        law()
