"""The code of docs/adapters.md and docs/recipes.md runs as printed; their links lead somewhere."""

import inspect
import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

from endpoints import OpenInferenceServer, running
from oneway import adapters
from oneway.adapters import Guard
from oneway.cli.main import app
from oneway.guards import build_defense

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "adapters.md").read_text(encoding="utf-8")
RECIPES = (DOCS / "recipes.md").read_text(encoding="utf-8")
IMAGES = np.random.default_rng(3).random((4, 64)).astype(np.float32)
GUARD = Guard(build_defense("rounding", {"decimals": 2}, None), "logits", decimals=2)


def section(page, title):
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def code(text):
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


def run(title, **changed):
    """Run a section's code after the page's beginning; return the names that it leaves."""
    text = code(PAGE.split("\n## ")[0]) + code(section(PAGE, title))
    for old, new in changed.items():
        text = text.replace(old, new)
    names = {"__name__": "__main__"}
    exec(compile(text, "adapters.md", "exec"), names)  # noqa: S102  our own page
    return names


def clean_of(names):
    return names["images"] @ names["weights"]


def test_a_plain_callable():
    names = run("A plain callable")
    np.testing.assert_array_equal(names["released"], GUARD(clean_of(names)))


def test_a_random_defense_with_a_key(monkeypatch):
    monkeypatch.setenv("ONEWAY_KEY", "0123456789abcdef")
    one, again = (run("Random defenses: a secret key")["noisy"] for _ in range(2))
    np.testing.assert_array_equal(one, again)
    grid = inspect.signature(adapters.KeyedRandomness).parameters["grid"].default
    assert ("a sixteenth of a nat" in PAGE) == (grid == 1 / 16)


def test_a_module():
    names = run("A PyTorch module")
    assert names["probabilities"].shape == (5, 10)


def test_a_session(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(ROOT / "examples" / "guarded_onnx.py"))
    Path("model.onnx").write_bytes(example["small_model"]())
    assert run("An ONNX Runtime session")["released"].shape == (5, 10)


def test_a_classifier():
    pytest.importorskip("sklearn")
    names = run("scikit-learn")
    np.testing.assert_array_equal(
        names["already"].predict(names["images"]), names["guarded"].predict(names["images"])
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # MLflow's, on pickles and examples
def test_a_logged_model(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    names = run("MLflow")
    loaded = mlflow.pyfunc.load_model("guarded")
    expected = Guard(names["defense"], "logits")(clean_of(names))
    np.testing.assert_array_equal(loaded.predict(names["images"]), expected)


def test_an_endpoint():
    pytest.importorskip("httpx")
    shapes = [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    weights = np.random.default_rng(4).normal(size=(64, 3))

    def model(queries):
        grown = np.exp(queries.reshape(len(queries), -1) @ weights)
        return grown / grown.sum(1, keepdims=True)

    with running(OpenInferenceServer(inputs=shapes, model=model)) as server:
        names = run("Somebody else's endpoint", **{"https://host": server.address})
    assert names["released"].shape == (5, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::Warning")  # of Ray Data, about its own settings
def test_a_deployment_and_stored_rows():
    names = run("Ray")
    np.testing.assert_array_equal(names["released"], GUARD(clean_of(names)))
    assert set(names["rows"][0]) == {"id", "confidences"}
    names["serve"].delete("default")


def test_links_lead_to_files_and_sections_and_every_adapter_is_named():
    for page in (PAGE, RECIPES):
        for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", page):
            path, _, anchor = link.partition("#")
            target = DOCS / path
            assert target.is_file(), link
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in slugs, link
    assert all(name in PAGE for name in adapters.__all__)
    for example in (ROOT / "examples").glob("guarded_*.py"):
        assert f"(../examples/{example.name})" in PAGE


def test_the_command_of_the_cluster_parses():
    words = shlex.split(section(PAGE, "Experiments on a cluster").split("```")[1])
    assert words[0] == "oneway"
    command = get_command(app).commands[words[1]]
    assert command.make_context(words[1], words[2:]).params["executor"] == "ray"


def recipe(title, monkeypatch):
    module = types.ModuleType("recipe")  # BentoML looks up where a service was written
    names = module.__dict__
    monkeypatch.setitem(sys.modules, "recipe", module)
    exec(compile(code(section(RECIPES, title)), "recipes.md", "exec"), names)  # noqa: S102
    return names


def expected():
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    return GUARD(IMAGES @ weights)


def test_litserve(monkeypatch):
    pytest.importorskip("litserve")
    api = recipe("LitServe", monkeypatch)["GuardedDigits"](max_batch_size=8)
    api.setup("cpu")
    batch = api.batch([api.decode_request({"image": row.tolist()}) for row in IMAGES])
    told = [api.encode_response(one)["probabilities"] for one in api.unbatch(api.predict(batch))]
    np.testing.assert_array_equal(np.array(told, np.float32), expected())


def test_kserve(monkeypatch):
    pytest.importorskip("kserve", reason="it wants an environment of its own")
    model = recipe("KServe", monkeypatch)["GuardedDigits"]("digits")
    assert model.load()
    told = model.predict({"instances": IMAGES.tolist()})["predictions"]
    np.testing.assert_array_equal(np.array(told, np.float32), expected())


def test_bentoml(monkeypatch):
    pytest.importorskip("bentoml", reason="run by hand: see the page")
    service = recipe("BentoML", monkeypatch)["GuardedDigits"].inner()
    np.testing.assert_array_equal(service.predict(IMAGES), expected())


class Backend(types.ModuleType):
    """As much of Triton's module as the recipe uses, with a model of its own behind."""

    def __init__(self, score):
        super().__init__("triton_python_backend_utils")
        backend = self

        class Tensor:
            def __init__(self, name, values):
                self.name, self.values = name, values

            def as_numpy(self):
                return self.values

        class InferenceResponse:
            def __init__(self, output_tensors=(), error=None):
                self.output_tensors, self.error = output_tensors, error

            def has_error(self):
                return self.error is not None

        class InferenceRequest:
            def __init__(self, model_name, requested_output_names, inputs):
                assert (model_name, requested_output_names) == ("digits", ["logits"])
                self.inputs = inputs

            def exec(self):
                scores = score(self.inputs[0].as_numpy())
                if scores is None:
                    return InferenceResponse(error=backend.TritonError("no"))
                return InferenceResponse([Tensor("logits", scores)])

        class TritonError(Exception):
            pass

        self.Tensor, self.TritonError = Tensor, TritonError
        self.InferenceRequest, self.InferenceResponse = InferenceRequest, InferenceResponse

    def get_input_tensor_by_name(self, request, name):
        return next(one for one in request if one.name == name)

    def get_output_tensor_by_name(self, response, name):
        return next(one for one in response.output_tensors if one.name == name)


def test_triton_against_a_stand_in(monkeypatch):
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    backend = Backend(lambda images: None if (images == 0).all() else images @ weights)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    model = recipe("Triton", monkeypatch)["TritonPythonModel"]()
    model.initialize({})
    requests = [[backend.Tensor("image", IMAGES)], [backend.Tensor("image", 0 * IMAGES)]]
    good, bad = model.execute(requests)
    (told,) = good.output_tensors
    assert told.name == "probabilities"
    np.testing.assert_array_equal(told.as_numpy(), expected())
    assert bad.has_error()
    assert not bad.output_tensors
