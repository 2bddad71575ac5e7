"""`oneway serve` as a user runs them: processes, signals, exit codes."""

import contextlib
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import joblib
import pandas
import pytest
import torch

from guarded_servers import PATIENCE, logged, running
from oneway.cli.serve_summary import sample_of, sample_requests
from oneway.defenses import open_guard
from oneway.defenses.codebook import CodebookRelease
from oneway.openinference.messages import ModelMetadata, TensorMetadata
from oneway.serving import ProxyOptions, ServingSettings
from optional import later

make_column_transformer = later("sklearn.compose:make_column_transformer")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
make_pipeline = later("sklearn.pipeline:make_pipeline")
OneHotEncoder = later("sklearn.preprocessing:OneHotEncoder")

EXAMPLE = Path(__file__).parents[2] / "examples" / "guarded_onnx.py"

ONEWAY = [sys.executable, "-c", "from oneway.cli.main import app; app()"]

MODEL = """
import torch

def build():
    layer = torch.nn.Linear(4, 3)
    layer.weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 1.0]])
    layer.bias.data.zero_()
    return layer

def softmaxed():
    return torch.nn.Sequential(build(), torch.nn.Softmax(-1))

def broken():
    return torch.nn.Linear(5, 3)

def watched():
    import atexit, pathlib, sys
    atexit.register(lambda: pathlib.Path("modules").write_text("\\n".join(sys.modules)))
    return torch.nn.Linear(4, 5)
"""

QUERY = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [0.25, 0.875, 0.125, 0.5]}

SERVE = ["serve", "served_flowers:build", "--outputs", "logits", "--input-shape", "4"]
ADDRESS = ["serve", "http://127.0.0.1:9/v2/models/m", "--outputs", "confidences"]
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
        [*ONEWAY, *arguments, "--port", "0"],
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


def copied(process, **environment):
    """Run the two requests that a server printed at its start, as a user who copies them."""
    said = process.stdout.readline()
    lines = [said]
    while not said.startswith("print("):
        said = process.stdout.readline()
        assert said, process.stderr.read()
        lines.append(said)
    text = "".join(lines)
    curl, program = text[text.index("curl ") :].split("\n\n", 1)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    answers = [
        subprocess.run(  # noqa: S603  our own commands
            ["bash", "-c", each],  # noqa: S607
            env={**os.environ, "PATH": path, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for each in (curl.replace("curl", "curl --noproxy '*'", 1), program)
    ]
    return text, json.loads(answers[0])["outputs"][0]["data"], answers[1]


def ask(address, model="model", token=None):
    answer = httpx.post(
        f"{address}/v2/models/{model}/infer",
        json={"inputs": [QUERY]},
        headers={} if token is None else {"Authorization": f"Bearer {token}"},
        trust_env=False,
        timeout=PATIENCE,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def ended(process):
    """Tell a server to stop; return the lines of its log."""
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[-1]["event"] == "stopped"
    assert "started" in {line["event"] for line in lines}
    return lines


def test_a_server_and_one_before_its_address_end_well_when_told_to(folder, tmp_path):
    """The first releases clean scores, as one would that knows no guard.

    Its settings come from a file, the environment and the command line; its token is nowhere.
    """
    file, token = tmp_path / "serve.toml", "correct-horse-battery"
    file.write_text('model_name = "flowers"\noutput_name = "scores"\nmodel_version = "1"\n')
    clean = ["--defense", "none", "--allow-clean-scores", "--settings", str(file)]
    arguments = [*SERVE, *clean, "--setting", "model_version=2", "--grpc-port", "0"]
    environment = {"ONEWAY_SERVE_OUTPUT_NAME": "risk", "ONEWAY_SERVE_TOKEN": token}
    with started(folder, *arguments, **environment) as (server, address):
        said, data, printed = copied(server, ONEWAY_SERVE_TOKEN=token)
        assert "flowers, version 2: input FP32 [-1, 4] to risk FP32 [-1, 3]" in said
        assert re.search(r"ports +\d+ HTTP, \d+ gRPC\n", said)
        assert data == pytest.approx([0.2741, 0.2741, 0.4519], abs=1e-4)
        assert "0.451" in printed
        path = f"{address}/v2/models/flowers"
        patient = {"trust_env": False, "timeout": PATIENCE}
        assert httpx.get(path, **patient).status_code == 401
        metadata = httpx.get(path, headers={"Authorization": f"Bearer {token}"}, **patient).json()
        assert metadata["outputs"][0]["name"] == "risk"
        assert metadata["versions"] == ["2"]
        guard = ["serve", path, "--outputs", "confidences", *ROUNDING]
        with started(folder, *guard, ONEWAY_TOKEN=token) as (proxy, guarded):
            answer = ask(guarded, "flowers")
            assert answer["parameters"]["guard"] == "rounding"
            assert answer["outputs"][0]["data"] == pytest.approx([0.2, 0.5, 0.3])
            bare = ask(address, "flowers", token)
            assert bare["parameters"]["guard"] == "none"
            assert bare["outputs"][0]["data"][0] == pytest.approx(0.2313, abs=1e-4)
            logs = [ended(process) for process in (proxy, server)]
    assert "0.23130" not in json.dumps(logs)
    assert token not in json.dumps(logs)
    assert "clean_scores_are_released" in {line["event"] for line in logs[1]}


def test_a_random_defense_answers_the_same_from_another_server(
    folder, tmp_path, oneway, monkeypatch
):
    """In another process, too: ``tests/defenses/test_keyed.py``."""
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    noise = ["--defense", "gaussian-noise", "--option", "keep_label=true"]
    arguments = [*SERVE, *noise, "--setting", f"key_file={key}"]
    answers = []
    for _ in range(2):
        ((app, how),) = in_process(arguments, folder, oneway, monkeypatch)
        with running(app, how) as server:
            answers += [ask(server.url) for _ in range(2)]
    assert all(answer == answers[0] for answer in answers)


def test_a_server_behind_a_codebook_loads_no_symbolic_algebra(folder):
    """PyTorch loads it for some tensors without memory: a second of the start, and 80 MB."""
    arguments = [*SERVE, "--guard", CODEBOOK]
    arguments[1] = "served_flowers:watched"
    with started(folder, *arguments) as (process, address):
        assert ask(address)["parameters"]["guard"] == "codebook"
        (line,) = [line for line in ended(process) if line["event"] == "started"]
    assert line["batch_multiple"] == 1  # it needs no bits
    assert not {"sympy", "httpx"} & set((folder / "modules").read_text().split())


def in_process(arguments, folder, oneway, monkeypatch):
    """Run a command of oneway that serves, here; return what would be served, or its result."""
    served = []
    monkeypatch.setattr("oneway.serving.run", lambda app, how, *_, **__: served.append((app, how)))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    with logged():
        result = oneway(*arguments, "--setting", "port=0")
    return served or result


NETWORK = "network.safetensors"

CODEBOOK = "codebook.safetensors"

NOISE = ["--defense", "adversarial-noise", "--option", "step_size=1"]

REFUSED = {
    "no guard": (SERVE, "--guard FILE, or --defense NAME"),
    "two guards": ([*SERVE, *ROUNDING, "--guard", NETWORK], "--guard FILE, or --defense NAME"),
    "a guard of another version": (
        [*SERVE, *ROUNDING, "--require-guard", "0123456789abcdef"],
        "the guard must be of version 0123456789abcdef, but is of version",
    ),
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
    "another shape, in the model's own words": (
        ["serve", "served_flowers:broken", "--outputs", "logits", "--input-shape", "4", *ROUNDING],
        "mat1 and mat2 shapes cannot be multiplied",
    ),
    "another shape": (
        ["serve", "served_flowers:broken", "--outputs", "logits", "--input-shape", "4", *ROUNDING],
        "takes queries of this shape",
    ),
    "a model that ends in softmax, as logits": (
        [*SERVE[:1], "served_flowers:softmaxed", *SERVE[2:], *ROUNDING],
        "declared logits, but look like confidences",
    ),
    "no outputs said": (
        ["serve", "served_flowers:build", "--input-shape", "4", *ROUNDING],
        "outputs",
    ),
    "a bad shape": (
        [*SERVE[:4], "--input-shape", "1x0", *ROUNDING],
        "--input-shape",
    ),
    "no shape of a query": ([*SERVE[:4], *ROUNDING], "--input-shape"),
    "options of an address": ([*SERVE, *ROUNDING, "--pass", "x"], "are for the address"),
    "options of a model": ([*ADDRESS, *ROUNDING, "--model-option", "x=1"], "are for a model"),
    "no outputs of an address said": ([*ADDRESS[:2], *ROUNDING], "--outputs confidences"),
    "a secret on the command line": (
        [*SERVE, *ROUNDING, "--setting", "token=correct-horse-battery"],
        "token_file",
    ),
    "a setting twice": (
        [*SERVE, *ROUNDING, "--port", "0", "--setting", "port=1"],
        "give one of --port and --setting port=",
    ),
    "an unknown setting": ([*SERVE, *ROUNDING, "--setting", "prot=1"], "Did you mean 'port'"),
    "a port of gRPC twice": (
        [*SERVE, *ROUNDING, "--grpc-port", "0", "--setting", "grpc_port=1"],
        "give one of --grpc-port and --setting grpc_port=",
    ),
    "nobody at the address": ([*ADDRESS, *ROUNDING], "not ready"),
    "an address that says no scores": (
        ["serve", "http://127.0.0.1:9/predict", "--outputs", "confidences", *ROUNDING],
        "response_key",
    ),
}


def test_the_table_of_a_probe_is_read_as_an_audit_reads_it(tmp_path, oneway, monkeypatch):
    frame = pandas.DataFrame({"zip": ["01067", "80331"] * 30, "age": [45.0, 60.5] * 30})
    encoder = make_column_transformer((OneHotEncoder(), ["zip"]), remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression()).fit(frame, ["well", "sick"] * 30)
    joblib.dump(model, tmp_path / "model.joblib")
    frame[2:].astype(str).replace("45.0", "?").to_csv(tmp_path / "rows.csv", index=False)
    serve = ["serve", "model.joblib", "--model-option", "trust_pickle=true", *ROUNDING]
    serve += ["--probe", "rows.csv", "--missing-value"]
    frame[:2].to_csv(tmp_path / "few.csv", index=False)
    mixed = in_process([*serve, "!"], tmp_path, oneway, monkeypatch)
    assert mixed.exit_code == 2
    assert "column 'age' of rows.csv mixes numbers" in mixed.stderr
    serve[serve.index("rows.csv")] = "few.csv"
    served = in_process([*serve, "?", "--categorical", "zip"], tmp_path, oneway, monkeypatch)
    assert isinstance(served, list), served.stderr
    codes = in_process([*serve, "?"], tmp_path, oneway, monkeypatch)
    assert codes.exit_code == 2
    assert "1 of 2 cells begin with a zero" in codes.stderr


def test_it_does_not_start_without_a_guard_that_works(folder, oneway, monkeypatch):
    (folder / NETWORK).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for fault, (arguments, said) in REFUSED.items():
        result = in_process(arguments, folder, oneway, monkeypatch)
        assert not isinstance(result, list), f"{fault}: it serves"
        assert (result.exit_code, result.stdout) == (2, ""), (fault, result.exception)
        assert said in " ".join(result.stderr.split()), (fault, result.stderr)
        assert "correct-horse" not in result.stderr, fault
    # All of it could be refused for another reason.
    assert len(in_process([*SERVE, *ROUNDING], folder, oneway, monkeypatch)) == 1


def test_workers_that_require_one_version_start_only_with_it(folder, oneway, monkeypatch):
    guard = open_guard("rounding", {"decimals": 1}, device=torch.device("cpu"))
    rounded = guard.rounded(1).version
    assert guard.version != rounded
    monkeypatch.setenv("ONEWAY_REQUIRE_GUARD", guard.version)
    ((app, how),) = in_process([*SERVE, *ROUNDING], folder, oneway, monkeypatch)
    with running(app, how) as server:
        assert ask(server.url)["parameters"]["guard_version"] == guard.version
        metadata = server.client.get("/v2/models/model").json()
        assert metadata["parameters"]["guard_version"] == guard.version
        told = f'guard="rounding",guard_version="{guard.version}"'
        assert server.metric(f"oneway_guard_info{{{told}}} 1.0")
    refused = in_process(
        [*SERVE, *ROUNDING, "--setting", "decimals=1"], folder, oneway, monkeypatch
    )
    assert f"but is of version {rounded}" in " ".join(refused.stderr.split())


def test_a_model_keeps_its_names_and_those_of_the_settings_come_first(
    tmp_path, oneway, monkeypatch
):
    (tmp_path / "two words.v1.onnx").write_bytes(runpy.run_path(str(EXAMPLE))["small_model"]())
    serve = ["serve", "two words.v1.onnx", "--outputs", "logits", "--input-shape", "64"]
    serve += ["--model-option", "output_name=logits"]
    for more, name, input_name, output_name in (
        ([], "two-words.v1", "image", "logits"),
        (["--setting", "model_name=a", "--setting", "input_name=b", "--setting", "output_name=c"],
         "a", "b", "c"),
    ):  # fmt: skip
        ran = in_process([*serve, *ROUNDING, *more], tmp_path, oneway, monkeypatch)
        assert isinstance(ran, list), ran.stderr
        ((app, _),) = ran
        told = app.server.metadata
        assert [told.name, told.inputs[0].name, told.outputs[0].name] == [
            name, input_name, output_name,
        ]  # fmt: skip


SAMPLED = {
    "a token file and TLS": (
        {"token_file": Path("a token"), "tls_certificate": Path("cert.pem"), "tls_key": Path("k")},
        [r"curl --cacert cert\.pem https://127\.0\.0\.1:1/v2/models/m/infer",
         r'-H "Authorization: Bearer \$\(cat \'a token\'\)"', r'root_certificates="cert\.pem"',
         r'"Bearer " \+ open\("a token"\)'],
    ),
    "every address": ({"host": "::"}, [r"http://localhost:1/v2", r'"localhost:2"']),
}  # fmt: skip


def test_requests_that_are_printed_fit_token_tls_and_address():
    for name, (given, wanted) in SAMPLED.items():
        settings = ServingSettings(**given)
        tensor = TensorMetadata(name="x", datatype="FP32", shape=[-1, 3, 64, 64])
        metadata = ModelMetadata(name="m", platform="oneway", inputs=[tensor], outputs=[tensor])
        server = SimpleNamespace(settings=settings, metadata=metadata)
        said = "\n".join(sample_requests(server, {"port": 1, "grpc_port": 2}, "/v2/models/m", None))
        for pattern in wanted:
            assert re.search(pattern, said), (name, said)
        assert "[0.5] * 12288" in said
    metadata.inputs.append(TensorMetadata(name="ward", datatype="BYTES", shape=[-1]))
    assert next(sample_requests(server, {"port": 1}, "/v2/models/m", None)).startswith("# in place")
    plain = ProxyOptions(request_key="a.0.b", response_key="c", input_shape=(2, 3))
    server = SimpleNamespace(settings=ServingSettings(), metadata=None)
    (curl,) = sample_requests(server, {"port": 1}, "/predict", sample_of(plain))
    program = curl.partition(" | ")[0].removeprefix("python3 -c ")
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", *shlex.split(program)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"a": [{"b": [[[0.5] * 3] * 2]}]}
    assert curl.endswith("| curl http://127.0.0.1:1/predict -d @-")
    (curl,) = sample_requests(server, {"port": 1}, "/p", sample_of(ProxyOptions(probe=Path("f"))))
    assert curl == "curl http://127.0.0.1:1/p -d @f"
