"""`oneway serve` as a user runs them: processes, signals, exit codes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from guarded_servers import logged
from oneway.defenses.codebook import CodebookRelease

ONEWAY = [sys.executable, "-c", "from oneway.cli.main import app; app()"]

MODEL = """
import torch

def build():
    layer = torch.nn.Linear(4, 3)
    layer.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 1.0]])
    layer.bias.data.zero_()
    return layer

def broken():
    return torch.nn.Linear(5, 3)
"""

QUERY = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.25, 0.875, 0.125, 0.5]}

SERVE = ["serve", "served_flowers:build", "--outputs", "logits", "--input-shape", "4"]
ROUNDING = ["--defense", "rounding", "--option", "decimals=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("serve")
    (place / "served_flowers.py").write_text(MODEL)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 5, generator=generator)
    CodebookRelease.fit(logits, generator=generator).save(place / CODEBOOK)
    return place


@contextlib.contextmanager
def started(folder, *arguments, **environment):
    """Run a command of oneway that serves; give its process and its address."""
    process = subprocess.Popen(  # noqa: S603  our own command
        [*ONEWAY, *arguments, "--setting", "port=0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        said = process.stdout.readline()
        found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+)(/\S+) behind (\S+)\n", said)
        assert found, said + process.stderr.read()
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def ask(address, model="model"):
    answer = httpx.post(
        f"{address}/v2/models/{model}/infer", json={"inputs": [QUERY]}, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_server_and_a_proxy_before_it_end_well_when_told_to(folder):
    """The server behind the proxy releases clean scores, as one would that knows no guard."""
    clean = ["--defense", "none", "--allow-clean-scores", "--setting", "model_name=flowers"]
    with started(folder, *SERVE, *clean) as (server, address):
        upstream = f"{address}/v2/models/flowers"
        guard = ["serve", upstream, "--outputs", "confidences", *ROUNDING]
        with started(folder, *guard) as (proxy, guarded):
            told = ask(guarded, "flowers")
            assert told["parameters"]["guard"] == "rounding"
            assert told["outputs"][0]["data"] == pytest.approx([0.2, 0.5, 0.3])
            bare = ask(address, "flowers")
            assert bare["parameters"]["guard"] == "none"
            assert bare["outputs"][0]["data"][0] == pytest.approx(0.2313, abs=1e-4)
            for process in (proxy, server):
                process.send_signal(signal.SIGTERM)
                _, log = process.communicate(timeout=30)
                assert process.returncode == 0
                lines = [json.loads(line) for line in log.splitlines()]
                assert lines[-1]["event"] == "stopped"
                assert "started" in {line["event"] for line in lines}
                assert "0.23130" not in log
    assert "clean_scores_are_released" in {line["event"] for line in lines}


def test_settings_come_from_a_file_and_the_environment(folder, tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('model_name = "filed"\noutput_name = "scores"\n')
    token = "correct-horse-battery"
    arguments = [*SERVE, *ROUNDING, "--settings", str(file), "--setting", "model_version=2"]
    environment = {"ONEWAY_SERVE_OUTPUT_NAME": "risk", "ONEWAY_SERVE_TOKEN": token}
    with started(folder, *arguments, **environment) as (process, address):
        path = f"{address}/v2/models/filed"
        assert httpx.get(path, trust_env=False).status_code == 401
        told = httpx.get(path, trust_env=False, headers={"Authorization": f"Bearer {token}"})
        assert told.json()["outputs"][0]["name"] == "risk"
        assert told.json()["versions"] == ["2"]
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert token not in log


def test_a_random_defense_answers_the_same_after_a_restart(folder, tmp_path):
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    noise = ["--defense", "gaussian-noise", "--option", "keep_label=true"]
    arguments = [*SERVE, *noise, "--setting", f"key_file={key}"]
    told = []
    for _ in range(2):
        with started(folder, *arguments) as (_, address):
            told += [ask(address)["outputs"][0]["data"] for _ in range(2)]
    assert told[0] == told[1] == told[2] == told[3]


NETWORK = "network.safetensors"

CODEBOOK = "codebook.safetensors"

NOISE = ["--defense", "adversarial-noise", "--option", "step_size=1"]

REFUSED = {
    "no guard": (SERVE, "--guard FILE, or --defense NAME"),
    "two guards": ([*SERVE, *ROUNDING, "--guard", NETWORK], "--guard FILE, or --defense NAME"),
    "options of another guard": ([*SERVE, "--guard", NETWORK, "--option", "x=1"], "--defense"),
    "a corrupt codebook": ([*SERVE, "--guard", NETWORK], "codebook"),
    "a codebook of other classes": ([*SERVE, "--guard", CODEBOOK], "classes"),
    "none without saying so": ([*SERVE, "--defense", "none"], "--allow-clean-scores"),
    "a control": ([*SERVE, "--defense", "planted-leak"], "leaks on purpose"),
    "an unknown defense": ([*SERVE, "--defense", "ronding"], "Did you mean 'rounding'"),
    "an unknown option": ([*SERVE, *ROUNDING, "--option", "x=1"], "unknown option"),
    "a random guard without a key": (
        [*SERVE, "--defense", "gaussian-noise", "--option", "keep_label=true"],
        "key_file",
    ),
    "a guard that changes nothing": (
        [*SERVE, "--defense", "rounding", "--option", "decimals=12"],
        "changes nothing",
    ),
    "a corrupt network": (
        [
            *SERVE,
            "--defense",
            "adversarial-noise",
            "--option",
            "step_size=1",
            "--inverter",
            NETWORK,
        ],
        "is not a network",
    ),
    "another shape": (
        ["serve", "served_flowers:broken", "--outputs", "logits", "--input-shape", "4", *ROUNDING],
        "takes the images' shape",
    ),
    "no outputs said": (
        ["serve", "served_flowers:build", "--input-shape", "4", *ROUNDING],
        "outputs",
    ),
    "a bad shape": (
        [*SERVE[:4], "--input-shape", "1x0", *ROUNDING],
        "--input-shape",
    ),
    "a secret on the command line": (
        [*SERVE, *ROUNDING, "--setting", "token=correct-horse-battery"],
        "token_file",
    ),
    "an unknown setting": ([*SERVE, *ROUNDING, "--setting", "prot=1"], "Did you mean 'port'"),
    "nobody behind the proxy": (
        ["serve", "http://127.0.0.1:9/v2/models/m", "--outputs", "confidences", *ROUNDING],
        "not ready",
    ),
    "a proxy that knows no scores": (
        ["serve", "http://127.0.0.1:9/predict", "--outputs", "confidences", *ROUNDING],
        "response_key",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_it_does_not_start_without_a_guard_that_works(fault, folder, oneway, monkeypatch):
    def serves(*_, **__):
        raise AssertionError("it serves")

    monkeypatch.setattr("oneway.serving.run", serves)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / NETWORK).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    arguments, said = REFUSED[fault]
    with logged():
        result = oneway(*arguments, "--setting", "port=0")
    assert (result.exit_code, result.stdout) == (2, ""), result.exception
    assert said in result.stderr
    assert "correct-horse" not in result.stderr


def test_what_is_refused_above_serves_without_the_fault(folder, oneway, monkeypatch):
    """Else all of it could be refused for another reason."""
    served = []
    monkeypatch.setattr("oneway.serving.run", lambda *_, **__: served.append(True))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    with logged():
        result = oneway(*SERVE, *ROUNDING, "--setting", "port=0")
    assert (result.exit_code, served) == (0, [True])
