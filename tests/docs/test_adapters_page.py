"""What docs/adapters.md and docs/recipes.md lead to is guarded; servers are stood in for."""

import inspect
import sys
import types

import numpy as np
import pytest

from fences import ROOT, blocks_of
from oneway import adapters
from oneway.adapters import Guard
from oneway.defenses import build_defense
from ray_stand_in import ray_in_this_process

DOCS = ROOT / "docs"
PAGE = (DOCS / "adapters.md").read_text(encoding="utf-8")
IMAGES = np.random.default_rng(3).random((4, 64)).astype(np.float32)
GUARD = Guard(build_defense("rounding", {"decimals": 2}, None), "logits", decimals=2)


def code(page, title):
    """Return a section's Python code, after that of the page's beginning."""
    return "\n".join(
        block.text
        for block in blocks_of(f"docs/{page}")
        if block.language == "python" and block.section in ("", title)
    )


def run(title):
    names = {"__name__": "__main__"}
    exec(compile(code("adapters.md", title), "adapters.md", "exec"), names)  # noqa: S102
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


def test_a_deployment_and_stored_rows_of_ray(monkeypatch):
    """Without a cluster, which test_ray.py has."""
    ray_in_this_process(monkeypatch)
    names = run("Ray")
    np.testing.assert_array_equal(names["released"], GUARD(clean_of(names)))
    assert set(names["rows"][0]) == {"id", "confidences"}
    released = np.stack([row["confidences"] for row in names["rows"]])
    np.testing.assert_array_equal(released, GUARD(clean_of(names)))


def test_every_adapter_is_named():
    assert all(name in PAGE for name in adapters.__all__)
    for example in (ROOT / "examples").glob("guarded_*.py"):
        assert f"(../examples/{example.name})" in PAGE


def recipe(title, monkeypatch):
    module = types.ModuleType("recipe")  # BentoML looks up where a service was written
    names = module.__dict__
    monkeypatch.setitem(sys.modules, "recipe", module)
    exec(compile(code("recipes.md", title), "recipes.md", "exec"), names)  # noqa: S102
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
