"""A guarded model is logged, loaded and served by MLflow; the key stays where it serves."""

import asyncio
import os
import pickle
import runpy
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch

from faulty_defenses import REFUSED, Faulty
from oneway.adapters import Guard, KeyedRandomness, SecretKey
from oneway.defenses.dirichlet_noise import DirichletNoise
from oneway.defenses.identity import Identity
from oneway.defenses.rounding import Rounding
from oneway.errors import (
    InvalidOptionError,
    InvalidTensorError,
    MissingDataError,
    TargetFailedError,
)
from optional import later

mlflow = later("mlflow")
ModelSignature = later("mlflow.models:ModelSignature")
infer_signature = later("mlflow.models:infer_signature")
init = later("mlflow.pyfunc.scoring_server:init")
Schema = later("mlflow.types:Schema")
TensorSpec = later("mlflow.types:TensorSpec")
pd = later("pandas")
GuardedPyfunc = later("oneway.adapters.mlflow:GuardedPyfunc")

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef-the-key"
QUERIES = np.random.default_rng(0).random((6, 1, 4, 4)).astype(np.float32)


def load_model(artifacts):
    weights = np.load(artifacts["weights"])
    return lambda queries: queries.reshape(len(queries), -1) @ weights


def load_guard(artifacts):  # noqa: ARG001  MLflow's interface
    key = SecretKey.from_environment("SOME_KEY")
    made = KeyedRandomness(
        lambda generator: DirichletNoise(keep_label=True, generator=generator), key
    )
    return Guard(made, "logits", decimals=3)


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def logged(tmp_path_factory, weights):
    """Logged in a run, as a user does."""
    folder = tmp_path_factory.mktemp("mlflow")
    np.save(folder / "weights.npy", weights)
    spec = TensorSpec(np.dtype(np.float32), (-1, 1, 4, 4))
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.delenv("SOME_KEY", raising=False)
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((folder / "runs").as_uri())
        with mlflow.start_run():
            info = mlflow.pyfunc.log_model(
                name="guarded",
                python_model=GuardedPyfunc(load_model, load_guard),
                artifacts={"weights": str(folder / "weights.npy")},
                signature=ModelSignature(Schema([spec])),
                pip_requirements=["oneway"],
            )
        return mlflow.artifacts.download_artifacts(info.model_uri)


@contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, on pickles and examples
        yield


@pytest.fixture
def loaded(logged, monkeypatch):
    monkeypatch.setenv("SOME_KEY", SECRET)
    with quiet():
        return mlflow.pyfunc.load_model(logged)


def test_it_is_loaded_and_answers_with_what_the_guard_releases(loaded, weights, monkeypatch):
    monkeypatch.setenv("SOME_KEY", SECRET)
    clean = QUERIES.reshape(6, -1) @ weights
    released = loaded.predict(QUERIES)
    assert released.dtype == np.float32
    np.testing.assert_array_equal(released, load_guard({})(clean))
    np.testing.assert_array_equal(released.argmax(1), clean.argmax(1))
    probabilities = torch.from_numpy(clean).softmax(-1).numpy()
    assert np.abs(released - probabilities).max() > 0.01
    np.testing.assert_array_equal(loaded.predict(QUERIES[2:3]), released[2:3])


def test_the_key_is_in_no_file_and_without_it_nothing_is_loaded(logged, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    files = [path for path in walk(logged) if os.path.isfile(path)]  # noqa: PTH113
    assert len(files) >= 3
    for path in files:
        with open(path, "rb") as file:  # noqa: PTH123
            assert SECRET.encode() not in file.read()
    with pytest.raises(MissingDataError, match="SOME_KEY"), quiet():
        mlflow.pyfunc.load_model(logged)


def walk(folder):
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]  # noqa: PTH118


def ask(app, body):
    """Over ASGI, the interface by which MLflow's server calls its own app."""

    async def post():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/invocations", json=body)

    return asyncio.run(post())


def test_its_scoring_server_gives_guarded_probabilities(loaded):
    with quiet():
        answer = ask(init(loaded), {"inputs": QUERIES.tolist()})
    assert answer.status_code == 200
    assert set(answer.json()) == {"predictions"}
    told = np.array(answer.json()["predictions"], np.float32)
    np.testing.assert_array_equal(told, loaded.predict(QUERIES))


class Wrapped:
    """A loaded model as MLflow's server sees it."""

    def __init__(self, inner):
        self.inner = inner
        self.metadata = SimpleNamespace(
            get_input_schema=lambda: Schema([TensorSpec(np.dtype(np.float32), (-1, 1, 4, 4))]),
            get_params_schema=lambda: None,
        )

    def predict(self, data, params=None):
        return self.inner.predict(None, np.asarray(data), params)


def test_a_defense_that_fails_lets_nothing_out_of_the_server(weights):
    defense = Faulty()
    model = GuardedPyfunc(
        lambda _: lambda queries: queries.reshape(len(queries), -1) @ weights,
        lambda _: Guard(defense, "logits"),
    )
    model.load_context(SimpleNamespace(artifacts={}))
    clean = QUERIES.reshape(6, -1) @ weights
    with quiet():
        app = init(Wrapped(model))
        for name in ("raises ValueError", "raises InvalidTensorError", "NaN", "another label"):
            defense.fault = REFUSED[name]
            answer = ask(app, {"inputs": QUERIES.tolist()})
            assert answer.status_code >= 400, name
            assert "predictions" not in answer.json(), name
            found = [score for score in np.abs(clean).ravel() if f"{score:.4f}"[:-1] in answer.text]
            assert not found, name


def plain(score, guard=None):
    made = GuardedPyfunc(lambda _: score, lambda _: guard or Guard(Identity(), "confidences"))
    made.load_context(SimpleNamespace(artifacts=None))
    return made


def logged_with(folder, frame, score, **options):
    """A model beside the file in which MLflow keeps its signature."""
    if frame is not None:
        mlflow.models.Model(signature=infer_signature(frame)).save(folder / "MLmodel")
    guard = Guard(Rounding(decimals=1), "confidences")
    made = GuardedPyfunc(lambda _: score, lambda _: guard, **options)
    made.load_context(SimpleNamespace(artifacts={"model": str(folder / "artifacts" / "model")}))
    return made


ROWS = np.array([[0.21, 0.79], [0.55, 0.45]])


def test_a_frame_of_numbers_is_a_table_of_queries_by_the_names_of_its_columns(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b"])
    expected = Guard(Rounding(decimals=1), "confidences")(ROWS)
    model = logged_with(tmp_path, frame, np.asarray)
    for queries in (frame, frame[["b", "a"]], ROWS):
        np.testing.assert_array_equal(model.predict(None, queries), expected)
    for wrong, said in (
        (frame.assign(c=7777.0), "not known: c"),
        (frame[["a"]], "missing: b"),
        (frame.rename(columns={"b": "c"}), "missing: b.*not known: c"),
        (frame.assign(b="7777 units"), "something else in the columns b"),
        ({"a": ROWS}, "one query per row"),
        ([0.2, 0.8], "one query per row"),
    ):
        with pytest.raises(InvalidTensorError, match=said) as raised:
            model.predict(None, wrong)
        assert "7777" not in str(raised.value)
        assert raised.value.__context__ is None


def test_a_frame_is_refused_where_no_signature_says_the_order_of_its_columns(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b"])
    for model in (
        plain(np.asarray),
        logged_with(tmp_path, None, np.asarray),
        logged_with(tmp_path, ROWS, np.asarray),
    ):
        with pytest.raises(InvalidTensorError, match="infer_signature"):
            model.predict(None, frame)
    with pytest.raises(InvalidOptionError, match="signature of a tensor"):
        logged_with(tmp_path, ROWS, np.asarray, frames=True)


def test_a_model_that_takes_frames_gets_a_frame(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["a", "b"])

    def score(queries):
        return queries[["a", "b"]].to_numpy()

    expected = Guard(Rounding(decimals=1), "confidences")(ROWS)
    for frames, logged in ((True, frame), (None, frame.assign(ward="ER"))):
        model = logged_with(tmp_path, logged, score, frames=frames)
        np.testing.assert_array_equal(model.predict(None, logged), expected)
        np.testing.assert_array_equal(model.predict(None, logged[logged.columns[::-1]]), expected)


def load_pipeline(artifacts):
    with open(artifacts["model"], "rb") as file:  # noqa: PTH123  as MLflow pickles this function
        return pickle.load(file).predict_proba  # noqa: S301  ours


def test_a_pipeline_on_a_frame_with_text_is_logged_and_answers_guarded(tmp_path):
    frame = pd.DataFrame({"age": np.arange(20.0), "ward": ["ER", "ICU"] * 10})
    encoder = later("sklearn.preprocessing:OneHotEncoder")()
    columns = later("sklearn.compose:ColumnTransformer")(
        [("text", encoder, ["ward"])], remainder="passthrough"
    )
    fitted = later("sklearn.pipeline:make_pipeline")(
        columns, later("sklearn.linear_model:LogisticRegression")()
    ).fit(frame, frame["age"] > 8)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(fitted))
    guard = Guard(Rounding(decimals=1), "confidences")
    with quiet():
        mlflow.pyfunc.save_model(
            tmp_path / "guarded",
            python_model=GuardedPyfunc(load_pipeline, lambda _: guard),
            artifacts={"model": str(tmp_path / "model.pkl")},
            signature=infer_signature(frame),
            pip_requirements=["oneway"],
        )
        loaded = mlflow.pyfunc.load_model(tmp_path / "guarded")
    expected = guard(fitted.predict_proba(frame))
    np.testing.assert_array_equal(loaded.predict(frame), expected)
    np.testing.assert_array_equal(loaded.predict(frame[["ward", "age"]]), expected)
    with pytest.raises(TargetFailedError) as raised:
        loaded.predict(frame.assign(ward="ICU-7777"))
    assert "7777" not in str(raised.value)
    assert raised.value.__context__ is None


def test_a_model_that_fails_is_an_error_without_its_text():
    def shout(queries):
        raise ValueError(f"cannot score {queries}")

    with pytest.raises(TargetFailedError, match="6 queries") as raised:
        plain(shout).predict(None, QUERIES)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    for wrong in (lambda _: "scores", lambda queries: queries[1:], lambda _: np.float32(1)):
        with pytest.raises(InvalidTensorError, match="must answer 6 queries"):
            plain(wrong).predict(None, QUERIES)


def test_there_is_nothing_that_a_client_may_choose():
    with pytest.raises(InvalidOptionError, match="no parameters"):
        plain(lambda queries: queries).predict(None, QUERIES, {"decimals": 12})


def test_what_cannot_be_loaded_is_refused():
    with pytest.raises(InvalidOptionError, match="load_guard must be a function"):
        GuardedPyfunc(load_model, Guard(Identity(), "logits").decimals)
    with pytest.raises(InvalidOptionError, match="must return"):
        plain(lambda queries: queries, Identity())


def test_the_example_is_loaded_with_its_functions_and_answers_over_http(tmp_path, monkeypatch):
    """As `mlflow models serve` would: by MLflow's own server, from what lies in the folder."""
    pytest.importorskip("skops")
    example = ROOT / "examples" / "guarded_mlflow.py"
    monkeypatch.delenv("ONEWAY_KEY", raising=False)  # to log a guard takes no key
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "work")])
    images = np.random.default_rng(0).random((5, 64)).astype(np.float32)
    with quiet():
        runpy.run_path(str(example), run_name="__main__")
        monkeypatch.setenv("ONEWAY_KEY", SECRET)
        app = init(mlflow.pyfunc.load_model(str(tmp_path / "work" / "guarded")))
        answer = ask(app, {"inputs": images.tolist()})
        again = ask(app, {"inputs": images[3:].tolist()})
    assert answer.status_code == 200, answer.text
    released = np.array(answer.json()["predictions"])
    np.testing.assert_array_equal(np.array(again.json()["predictions"]), released[3:])
    import skops.io

    clean = skops.io.load(tmp_path / "work" / "digits.skops").predict_proba(images)
    np.testing.assert_array_equal(released.argmax(1), clean.argmax(1))
    assert np.abs(released - clean).max() > 0.01
    np.testing.assert_allclose(released, released.round(3), atol=1e-6)
