"""`oneway audit` as somebody uses it on a model of their own."""

import dataclasses
import hashlib
import json
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import guarded_servers
from auditing.audits import BLACK_BOX, ROWS, TESTS, TINY, Scores, blobs, quickly, run_few_controls
from endpoints import OpenInferenceServer, as_json, running
from laws import looped
from oneway.auditing import AuditRecord, AuditSettings, ModelAudit
from oneway.cli.common import parse_options
from oneway.cli.sources import parse_size
from oneway.defenses import ServableDefense
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError
from oneway.evaluation import Flag
from oneway.evaluation.records import weights_hash
from oneway.evaluation.store import fingerprint
from oneway.releases import release
from oneway.serving import GuardedModel, ServingSettings, serving_app
from oneway.targets import TorchTarget

FACTORY = """
import numpy as np
import torch
from auditing.audits import Scores


def network():
    return Scores()
"""
TABLE = """
import numpy as np


def model():
    def answer(rows):
        age, income = rows[:, 0] / 80, rows[:, 1] / 5000
        scores = np.stack([3 * age, 3 * income, 2 - age - income + rows[:, 2]], 1)
        grown = np.exp(scores)
        return grown / grown.sum(1, keepdims=True)

    return answer
"""


@pytest.fixture(scope="module", autouse=True)
def _small_audits():
    """The commands are real; only how long decoders are trained is not."""
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        run_few_controls(patch)

        def for_rows(cls, rows, **others):  # noqa: ARG001
            return dataclasses.replace(TINY, **others)

        patch.setattr(AuditSettings, "for_rows", classmethod(for_rows))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a TorchScript model, a module with factories, and images."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "audited_models.py").write_text(FACTORY, encoding="utf-8")
    (folder / "audited_tables.py").write_text(TABLE, encoding="utf-8")
    for name, rows, seed in (("own", ROWS, 0), ("queries", TESTS, 1)):
        images, labels = blobs(rows, seed)
        np.savez(folder / f"{name}.npz", images=images.numpy(), labels=labels.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        yield folder


def arguments(place, model="audited_models:network", outputs="logits", **options):
    """What a user types; ``release="x"`` is ``--release x``, None leaves an option out."""
    options = {
        "outputs": outputs,
        "attacker_data": place / "own.npz",
        "queries": place / "queries.npz",
        "out": place / "report",
        "cache": place / "cache",
        "seeds": 1,
    } | options
    told = ["audit", model]
    for name, value in options.items():
        if value is not None:
            told += [f"--{name.replace('_', '-')}", value]
    return told


def read_record(folder):
    """The record of inversion that a command wrote."""
    text = (folder / "audit.json").read_text(encoding="utf-8")
    return AuditRecord.from_json(json.loads(text), "audit.json").inversion


def ran(result, *codes):
    """Assert that a command came to its end: an uncaught error would exit 1, too."""
    assert isinstance(result.exception, SystemExit | None), (result.output, result.exc_info)
    assert result.exit_code in codes, (result.output, result.exception)


def refused(result, *parts):
    """Assert that a command said no, in one line on standard error that holds ``parts``."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture(scope="module")
def audited(oneway, place):
    """One audit with controls, of a model by its factory."""
    result = oneway(*arguments(place))
    ran(result, 0, 1)
    record = read_record(place / "report")
    return types.SimpleNamespace(result=result, out=place / "report", record=record)


def test_report_is_written_whole(audited):
    from pyarrow import parquet

    assert sorted(path.name for path in audited.out.iterdir()) == [
        "audit.json",
        "figure.png",
        "pictures.npz",
        "queries.parquet",
        "report.html",
    ]
    assert (audited.out / "figure.png").read_bytes().startswith(b"\x89PNG")
    table = parquet.read_table(audited.out / "queries.parquet").to_pydict()
    assert set(table["attack"]) == set(audited.record.errors)
    for name, error in audited.record.errors.items():
        own = [e for e, who in zip(table["error"], table["attack"], strict=True) if who == name]
        assert len(own) == TESTS
        assert np.mean(own) == pytest.approx(error)


def test_terminal_shows_the_verdict_the_attackers_and_every_flag(audited):
    shown = audited.result.stdout
    understood, _, verdict = shown.partition("Undefended, the scores take")
    assert understood.startswith("Model: a factory\nScores: 3 logits")
    assert "test queries" in understood
    assert verdict
    for name in audited.record.errors:
        assert name in shown
    assert "Controls passed:" in shown
    for flag in audited.record.flags:
        assert f"flag {flag.name}: {flag.detail} [" in shown
    assert f"report: {audited.out}" in shown
    assert "Undefended" not in audited.result.stderr  # progress goes elsewhere


def test_the_record_says_how_it_was_made(audited):
    whole = json.loads((audited.out / "audit.json").read_text(encoding="utf-8"))
    assert whole["command"].startswith("oneway audit audited_models:network --")
    assert audited.record.provenance.model == weights_hash(Scores())
    auxiliary, test = blobs(ROWS, 0)[0], blobs(TESTS, 1)[0]
    assert audited.record.provenance.data == fingerprint(auxiliary, test)


def test_a_raised_flag_exits_1(audited):
    assert {"too-few-seeds", "not-trained-out"} <= {flag.name for flag in audited.record.flags}
    assert audited.result.exit_code == 1


@pytest.mark.usefixtures("audited")
def test_a_flag_that_the_settings_explain_does_not_change_the_exit_code(
    oneway, place, tmp_path, monkeypatch
):
    few = [Flag("too-few-seeds", "so")]
    monkeypatch.setattr("oneway.auditing.model_audit.suspicions", lambda *_: few)
    ran(oneway(*arguments(place, out=tmp_path), "--no-controls"), 0)


def write_folder(folder, rows, seed, names):
    """Write a folder of images for each class but those without a name."""
    from PIL import Image

    for name in filter(None, names):
        (folder / name).mkdir(parents=True)
    for row, (image, label) in enumerate(zip(*blobs(rows, seed), strict=True)):
        if names[label]:
            pixels = (255 * image[0]).round().byte().numpy()
            Image.fromarray(pixels).save(folder / names[label] / f"{row}.png")


def test_a_class_that_a_folder_lacks_is_matched_by_name_or_refused(
    oneway, place, tmp_path, monkeypatch
):
    own, queries = tmp_path / "own", tmp_path / "queries"
    write_folder(own, ROWS, 0, ("fox", None, "cat"))
    write_folder(queries, TESTS, 1, ("fox", None, "cat"))
    told = arguments(place, attacker_data=own, queries=queries, out=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(ModelAudit, "run", never_audited)
        refused(oneway(*told), "3 scores", "names 2", "'cat', 'fox'", "--classes")
        refused(oneway(*told, "--classes", "fox,dog,wolf"), "'cat'", "'fox', 'dog', 'wolf'")
        refused(oneway(*told, "--classes", "fox,,cat"), "--classes must name each class once")
        (tmp_path / "latin.txt").write_bytes("füchse\nhunde\n".encode("latin-1"))
        refused(oneway(*told, "--classes", tmp_path / "latin.txt"), "text file in UTF-8")
    (tmp_path / "classes.txt").write_text("fox\ndog\ncat\n", encoding="utf-8")
    result = oneway(*told, "--no-controls", "--classes", tmp_path / "classes.txt")
    ran(result, 1)
    record = read_record(tmp_path / "out")
    assert record.utility["clean"]["top_1"] > 0.9
    counts = {row.name: row.test for row in record.understanding.classes}
    assert counts == {"fox": 34, "dog": 0, "cat": 33}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_an_audit_runs_on_a_cluster_with_a_model_that_each_worker_opens(oneway, place, tmp_path):
    torch.jit.script(Scores()).save(place / "sent.pt")  # TorchScript cannot be sent by value
    told = arguments(place, "sent.pt", out=tmp_path / "report", cache="sent", seeds=2)
    result = oneway(*told, "--executor", "ray", "--no-controls")
    ran(result, 0, 1)
    record = read_record(tmp_path / "report")
    assert record.seeds == (0, 1)
    # Each worker kept what it trained where the command was given, and names it relative to that.
    assert len(list((place / "sent" / "networks").glob("inverter-*"))) >= 4


@pytest.fixture
def nothing_is_suspicious(monkeypatch):
    """Flags of an audit are tested beside it; here it is what the command makes of them."""
    monkeypatch.setattr("oneway.auditing.model_audit.suspicions", lambda *_: [])


@pytest.mark.usefixtures("nothing_is_suspicious", "audited")
@looped(("gap", "code"), [(-5, 0), (1, 1)])
def test_a_required_gap_that_is_missed_exits_1(oneway, place, gap, code, tmp_path):
    result = oneway(*arguments(place, require_gap=gap, out=tmp_path), "--no-controls")
    ran(result, code)


@pytest.mark.usefixtures("nothing_is_suspicious", "audited")
def test_a_release_that_tells_the_label_alone_reaches_the_required_gap(oneway, place, tmp_path):
    options = {"defense": "label-only", "require_gap": 0.9, "out": tmp_path}
    options["option"] = "confidence=0.8"
    result = oneway(*arguments(place, **options), "--no-controls")
    record = read_record(tmp_path)
    assert record.options == {"confidence": 0.8}
    assert record.attack_failed
    assert "The trained attackers failed" in result.stdout
    assert "1.00" not in result.stdout.splitlines()[0]
    assert "No controls were run" in result.stdout
    # It is full of ties, which is told whatever else is not.
    assert [flag.name for flag in record.flags] == ["ties-or-zeros"]
    ran(result, 1)


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated:DeprecationWarning")
def test_a_torchscript_file_and_our_own_server_with_the_defaults_of_both(oneway, place, tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.trace(Scores(), torch.rand(2, 1, 8, 8)).save(str(path))
    guard = ServableDefense("rounding", "7", Rounding(decimals=2))
    where = torch.device("cpu")
    model = GuardedModel(TorchTarget(Scores()), guard, input_shape=(1, 8, 8), device=where)
    model.check()
    how = ServingSettings(port=0)
    with guarded_servers.running(serving_app(model, how), how) as server:
        (name,) = (each["name"] for each in server.client.post("/v2/repository/index").json())
        address = f"{server.url}/v2/models/{name}"
        result = oneway(
            *arguments(place, str(path), guarded=address, out=tmp_path / "out"), "--no-controls"
        )
    ran(result, 0, 1)
    record = read_record(tmp_path / "out")
    assert record.defense == "guarded endpoint"
    assert record.label_changes == 0
    rounded = Scores()(torch.as_tensor(np.load(place / "queries.npz")["images"])).softmax(-1)
    moved = release(Rounding(decimals=2)(rounded.log())) - rounded
    l1 = float(moved.abs().sum(-1).mean())
    assert record.utility["l1_mean"] == pytest.approx(l1, rel=1e-3)
    assert record.provenance.model == hashlib.sha256(path.read_bytes()).hexdigest()


COLOR = (3, 6, 10)


def patterns():
    """Colored blocks for each class, ``(3, 180)``: no two sides or channels are alike."""
    blocks = np.random.default_rng(9).random((3, 3, 3, 5))
    return blocks.repeat(2, -1).repeat(2, -2).reshape(3, -1)


def in_color(rows, seed):
    """Non-square images in color; the class says which pattern, the scores how bright it is."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    bright = generator.uniform(0.2, 0.9, (rows, 1))
    noise = generator.uniform(0, 0.1, (rows, 180))
    images = np.clip(bright * patterns()[labels] + noise, 0, 1)
    return images.reshape(rows, *COLOR).astype(np.float32), labels


def color_confidences(queries):
    """A model of them: bright images are told with more confidence."""
    centered = patterns() - patterns().mean(0)
    scores = 0.5 * np.asarray(queries, np.float64).reshape(len(queries), -1) @ centered.T
    grown = np.exp(scores - scores.max(1, keepdims=True))
    return grown / grown.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def color_files(place):
    for name, rows, seed in (("color-own", 400, 0), ("color-queries", 60, 1)):
        images, labels = in_color(rows, seed)
        # As cameras and Pillow have them: channels last.
        np.savez(place / f"{name}.npz", images=np.moveaxis(images, 1, -1), labels=labels)
    return {"attacker_data": place / "color-own.npz", "queries": place / "color-queries.npz"}


def test_an_endpoint_is_audited_over_http_in_color_and_not_square(
    oneway, place, color_files, tmp_path
):
    """From the address to the figure; the defense stands before what the endpoint answers."""
    server = OpenInferenceServer(
        inputs=[{"name": "image", "datatype": "FP32", "shape": [-1, *COLOR]}],
        model=color_confidences,
    )
    with running(server) as endpoint:
        result = oneway(
            *arguments(
                place,
                f"{endpoint.address}/v2/models/digits",
                "confidences",
                out=tmp_path / "out",
                cache=tmp_path / "cache",
                defense="temperature",
                option="temperature=3",
                batch_size=64,
                **color_files,
            )
        )
        asked = [np.prod(post.json["inputs"][0]["shape"]) // 180 for post in endpoint.posts]
    ran(result, 1)
    record = read_record(tmp_path / "out")
    assert record.provenance.model is None  # only its answers are at hand
    assert (record.shape, record.classes) == (COLOR, 3)
    assert record.baselines.clean < 0.8 * record.baselines.label
    # A temperature hides nothing from whoever retrains; the model is not at hand to follow.
    assert set(record.errors) == BLACK_BOX
    assert record.closed_gap < 0.3
    assert record.utility["clean"]["top_1"] == 1
    assert record.utility["cost"]["failed"] is None
    assert record.utility["cost"]["bare"]["p50_milliseconds"] > 0
    assert {control.passed for control in record.controls.values()} <= {True, None}
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert max(asked) <= 64
    # Each auxiliary row twice, undefended and defended; candidates of two galleries, and rows that
    # choose a distance, likewise; and little besides.
    assert sum(asked) < 2 * 400 + 60 + 2 * 2 * (60 + 256) + 2500


def test_an_endpoint_that_stops_answering_is_refused_by_name_and_nothing_is_reported(
    oneway, place, color_files, tmp_path
):
    server = OpenInferenceServer(
        inputs=[{"name": "image", "datatype": "FP32", "shape": [-1, *COLOR]}],
        model=color_confidences,
    )
    with running(server) as endpoint:
        endpoint.faults.extend([as_json({"error": "gone"}, 400)] * 50)
        result = oneway(
            *arguments(
                place,
                f"{endpoint.address}/v2/models/digits",
                "confidences",
                out=tmp_path / "out",
                **color_files,
            )
        )
    refused(result, "400")
    assert not (tmp_path / "out" / "audit.json").exists()


def write_table(path, rows, seed):
    generator = np.random.default_rng(seed)
    lines = ["age,income,home,risk"]
    for _ in range(rows):
        age, income = generator.integers(18, 80), generator.integers(500, 5000)
        home = generator.choice(["owns", "rents"])
        lines.append(f"{age},{income},{home},{'abc'[generator.integers(3)]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_table_is_audited_column_by_column(oneway, place, tmp_path):
    own, queries = tmp_path / "own.csv", tmp_path / "queries.csv"
    write_table(own, 260, 0)
    write_table(queries, 60, 1)
    result = oneway(
        *arguments(
            place,
            "audited_tables:model",
            "confidences",
            attacker_data=own,
            queries=queries,
            label="risk",
            out=tmp_path / "out",
        ),
        "--no-controls",
    )
    ran(result, 1)
    record = read_record(tmp_path / "out")
    columns = record.privacy["released"]["columns"]
    assert {name: one["kind"] for name, one in columns.items()} == {
        "age": "numeric",
        "income": "numeric",
        "home": "categorical",
    }
    assert record.utility["clean"]["top_1"] is not None
    assert not (tmp_path / "out" / "figure.png").exists()
    assert "home, accuracy" in result.stdout


def never_audited(*_, **__):
    pytest.fail("an audit began before wrong input was refused")


WRONG = {
    "minutes": ({"minutes": 0}, "--minutes must be positive, but got 0"),
    "no number of minutes": ({"minutes": "nan"}, "--minutes must be positive, but got nan"),
    "gap": ({"require_gap": 1.5}, "--require-gap must be at most 1, but got 1.5"),
    "no number as gap": ({"require_gap": "nan"}, "--require-gap must be at most 1"),
    "size": ({"size": "32"}, "--size must be HxW in pixels, such as 32x32, but got '32'"),
    "option": ({"option": "step_size"}, "--option must be NAME=VALUE, but got 'step_size'"),
    "model option": ({"model_option": "=1"}, "--model-option must be NAME=VALUE"),
    "defense": ({"defense": "label-onyl"}, "Did you mean 'label-only'?"),
    "option of none": ({"option": "step_size=0.1"}, "unknown option of 'none' 'step_size'"),
    "missing option": ({"defense": "temperature", "option": "temprature=2"}, "'temperature'"),
    "out of range": ({"defense": "temperature", "option": "temperature=-1"}, "positive"),
    "mixed data": ({"queries": "queries.csv"}, "both be tables, or both images"),
    "no outputs": ({"outputs": None}, "outputs"),
    "no such file": ({"attacker_data": "onw.npz"}, "onw.npz"),
    "two defenses": (
        {"defense": "label-only", "guarded": "audited_models:network"},
        "either a defense or a guarded endpoint",
    ),
    "same data": ({"queries": "own.npz"}, "share 300 images"),
    "device": ({"device": "tpu9"}, "device 'tpu9' cannot be used here"),
}


@looped("name", WRONG)
def test_wrong_usage_is_refused_in_one_line_before_any_audit(oneway, place, monkeypatch, name):
    monkeypatch.setattr(ModelAudit, "run", never_audited)
    options, message = WRONG[name]
    options = {"out": place / "never"} | options
    refused(oneway(*arguments(place, **options)), message)
    assert not (place / "never").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript is retired
def test_probabilities_that_are_declared_logits_are_refused_before_any_audit(
    oneway, place, monkeypatch, tmp_path
):
    monkeypatch.setattr(ModelAudit, "run", never_audited)
    path = tmp_path / "softmax.pt"
    module = torch.nn.Sequential(Scores(), torch.nn.Softmax(-1))
    torch.jit.trace(module, torch.rand(2, 1, 8, 8)).save(str(path))
    result = oneway(*arguments(place, str(path), out=tmp_path / "out"))
    refused(result, "declared logits, but look like confidences", "--outputs confidences")


def test_keys_of_an_endpoint_are_text_and_whatever_they_say_ends_in_a_message(
    oneway, place, tmp_path
):
    with running(lambda _: as_json([[{"label": "a", "score": 1.0}]])) as endpoint:
        for key in ("*.*.score", "p.*.*", "predictions.\u00b2", "0." * 40 + "0", "9" * 5000):
            options = ["--model-option", "request_key=x", "--model-option", f"response_key={key}"]
            result = oneway(
                *arguments(place, endpoint.address, "confidences", out=tmp_path / "out"), *options
            )
            refused(result)
            labelled = [*options, "--model-option", "label_key=*.*.label"]
            result = oneway(
                *arguments(place, endpoint.address, "confidences", out=tmp_path / "out"), *labelled
            )
            refused(result)


def test_what_is_no_model_is_refused(oneway, place, tmp_path):
    refused(oneway(*arguments(place, "model.h5", out=tmp_path / "no")), "cannot tell what")
    missing = oneway(*arguments(place, "audited_models:netwrok", out=tmp_path / "no"))
    refused(missing, "'network'")


def test_too_few_rows_are_refused_with_how_many_it_takes(oneway, place, tmp_path):
    np.savez(tmp_path / "few.npz", images=blobs(20, 3)[0].numpy())
    refused(
        oneway(*arguments(place, queries=tmp_path / "few.npz", out=tmp_path / "no")),
        "at least 50 test rows, but got 20",
    )


def test_a_file_where_the_report_should_go_is_refused_before_the_work(
    oneway, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(ModelAudit, "run", never_audited)
    (tmp_path / "out").write_text("", encoding="utf-8")
    refused(oneway(*arguments(place, out=tmp_path / "out")), "--out must be a folder")


@looped(("module", "package"), [("pyarrow", "pyarrow"), ("PIL", "pillow")])
def test_what_writes_the_report_is_missed_before_the_work(
    oneway, place, monkeypatch, module, package
):
    monkeypatch.setattr(ModelAudit, "run", never_audited)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        refused(oneway(*arguments(place, out=place / "never")), package, "oneway[audit]")


@looped("flags", [("--seeds", 0), ("--batch-size", 0), ("--outputs", "scores")])
def test_what_the_parser_refuses_exits_2(oneway, place, flags):
    assert oneway(*arguments(place), *flags).exit_code == 2


@looped(
    ("pair", "value"),
    [
        ("a=1", 1),
        ("a=0.1", 0.1),
        ("a=1e-3", 0.001),
        ("a=true", True),
        ("a=inf", float("inf")),
        ("a=[1, 2]", [1, 2]),
        ('a="text"', "text"),
        ("a=text", "text"),
        ("a=https://host/a?b=c", "https://host/a?b=c"),
        ("a=x=y", "x=y"),
        ("a=", ""),
        ("a=True", "True"),  # as TOML has it; what takes a switch says so
    ],
)
def test_values_of_options_are_toml_or_else_text(pair, value):
    found = parse_options([pair], "--option")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


def test_several_options_are_taken_in_turn():
    assert parse_options(["a=1", "b=2"], "--option") == {"a": 1, "b": 2}
    assert parse_options(None, "--option") == parse_options([], "--option") == {}


@looped("pair", ["a", "", "=1", "1a=2", "a b=1", "a-b=1"])
def test_what_names_no_option_is_refused(pair):
    with pytest.raises(InvalidOptionError, match="--option must be NAME=VALUE"):
        parse_options([pair], "--option")


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_a_size_is_height_by_width(height, width):
    assert parse_size(f"{height}x{width}") == (height, width)


@looped("size", ["", "x", "32", "32x", "x32", "0x8", "8x0", "-1x8", "8x8x8", "8X8"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InvalidOptionError, match="--size must be HxW"):
        parse_size(size)


def test_without_a_size_images_stay_as_they_are():
    assert parse_size(None) is None
