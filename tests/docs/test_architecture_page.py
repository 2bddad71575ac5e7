"""Adding a defense touches two files: done as the page shows it, in a copy of the source."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fences import ROOT, blocks_of

PAGE = "docs/architecture.md"
SECTION = [block for block in blocks_of(PAGE) if block.section == "To add a defense"]
REGISTRY = "oneway/defenses/registry.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source with the page's two changes."""
    copy = tmp_path_factory.mktemp("copy") / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    defense, registry = SECTION
    path = copy.parent / defense.notes["file"]
    assert path.parent.is_dir()
    assert not path.exists()
    path.write_text(defense.text, encoding="utf-8")
    imported, line = (part for part in registry.text.splitlines() if part)
    text = (copy / REGISTRY).read_text(encoding="utf-8")
    first = re.search(r"^from oneway\.defenses\.", text, flags=re.MULTILINE)
    text = f"{text[: first.start()]}{imported}\n{text[first.start() :]}"
    before = "    **TEST_SIGNALS,\n"
    assert text.count(before) == 1
    (copy / REGISTRY).write_text(text.replace(before, f"{line}\n{before}"), encoding="utf-8")
    return copy


def run(source, *words):
    return subprocess.run(  # noqa: S603  our own interpreter and arguments
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


def suite(source, only="order-only"):
    laws = "tests/contracts/test_defense_contract.py"
    return run(source, "-m", "pytest", "-q", "-p", "no:cacheprovider", laws, "-k", only)


def test_the_suite_of_laws_holds_it_to_its_promises(source):
    done = suite(source)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 7


def test_a_command_takes_it_with_its_option(source, tmp_path):
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    told = tmp_path / "told.npy"
    words = ["defend", tmp_path / "scores.npy", "--kind", "logits", "--out", told]
    named = ["--defense", "order-only", "--option", "step=2.0"]
    done = run(source, "-c", "from oneway.cli.main import app; app()", *words, *named)
    assert done.returncode == 0, done.stderr
    released = np.load(told)
    np.testing.assert_array_equal(released.argsort(1), scores.argsort(1))
    np.testing.assert_allclose(
        np.sort(np.log(released), 1)[:, 1:] - np.sort(np.log(released), 1)[:, :-1], 2, rtol=1e-4
    )


def test_a_promise_that_it_does_not_keep_is_found(source):
    path = source.parent / SECTION[0].notes["file"]
    honest = path.read_text(encoding="utf-8")
    path.write_text(
        honest.replace("-self.step", "self.step").replace(
            "    step:", "    is_finished = True\n\n    step:"
        ),
        encoding="utf-8",
    )
    try:
        done = suite(source, "order-only and label_it_promises")
    finally:
        path.write_text(honest, encoding="utf-8")
    assert done.returncode == 1
    assert "label_it_promises" in done.stdout
