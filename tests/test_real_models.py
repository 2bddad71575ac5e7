"""Real models of other people's libraries, from what is understood to what is released.

Each is opened as a target, understood, asked, guarded, and asked again: its labels must be those
that the bare model gives, everywhere. One of each kind of answer is audited for a moment, too.
"""

import functools
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from auditing.audits import audit, quickly
from oneway.adapters import Guard, GuardedFunction, GuardedModule
from oneway.attacks import ATTACKS
from oneway.auditing import AuditTarget, understand
from oneway.defenses import build_defense
from oneway.targets import class_names_of, open_target
from optional import later

GuardedSession = later("oneway.adapters.onnx_session:GuardedSession")
GuardedClassifier = later("oneway.adapters.scikit_learn:GuardedClassifier")
CalibratedClassifierCV = later("sklearn.calibration:CalibratedClassifierCV")
load_digits = later("sklearn.datasets:load_digits")
HistGradientBoostingClassifier = later("sklearn.ensemble:HistGradientBoostingClassifier")
RandomForestClassifier = later("sklearn.ensemble:RandomForestClassifier")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
make_scorer = later("sklearn.metrics:make_scorer")
recall_score = later("sklearn.metrics:recall_score")
FixedThresholdClassifier = later("sklearn.model_selection:FixedThresholdClassifier")
TunedThresholdClassifierCV = later("sklearn.model_selection:TunedThresholdClassifierCV")
OneVsRestClassifier = later("sklearn.multiclass:OneVsRestClassifier")
MLPClassifier = later("sklearn.neural_network:MLPClassifier")
SVC = later("sklearn.svm:SVC")

CPU = torch.device("cpu")
NAMES = np.array(["zero", "one", "two"])
"""Classes whose sorted order is another one."""


@dataclass(frozen=True)
class Digits:
    """Digits 0, 1 and 2 of 8 by 8 pixels, in three parts of no shared image."""

    train: tuple[np.ndarray, np.ndarray]
    auxiliary: np.ndarray
    test: tuple[np.ndarray, np.ndarray]


@functools.cache
def digits():
    images, labels = load_digits(n_class=3, return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, auxiliary, test = np.split(order, [240, 440])
    return Digits((images[train], labels[train]), images[auxiliary], (images[test], labels[test]))


ROUNDING = build_defense("rounding", {"decimals": 1}, None)


@pytest.fixture(autouse=True, scope="module")
def _short_audits():
    whole = dict(ATTACKS)
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        # They read scores alone, whatever model gave them: test_model_audit has them.
        for name in ("cell-means", "kernel-ridge", "retrained", "stack"):
            patch.delitem(ATTACKS, name)
        yield
    # Put back one by one they would stand behind the others, and attacks run in order.
    ATTACKS.clear()
    ATTACKS.update(whole)


AUDITED = (
    *("linear", "fixed threshold", "tuned threshold", "XGBoost", "export of linear"),
    *(".pt2", "tensor", "output object"),
)
"""Models that are audited: others answer with the same kinds of scores and labels."""


def walk(name, target, labels, folder, guarded, images=True):
    """Understand, audit and guard a model; its labels must be the bare model's.

    Args:
        name: The model's, as in ``AUDITED``.
        target: The model, opened.
        labels: Class positions that the bare model gives to the test queries.
        folder: For the audit's networks.
        guarded: Returns the class positions that the guarded model gives to the test queries.
        images: Whether queries are images rather than records.
    """
    shape = (-1, 1, 8, 8) if images else (-1, 64)
    auxiliary, test = (
        torch.from_numpy(rows).reshape(shape) for rows in (digits().auxiliary, digits().test[0])
    )
    labels = torch.as_tensor(np.asarray(labels, np.int64))
    audited = AuditTarget(target, auxiliary, test, labels)
    understood = understand(audited)
    assert len(understood.classes) == int(labels.max()) + 1
    if name not in AUDITED:
        assert (target(test).argmax(-1) == labels).double().mean() > 0.99
    else:
        record = audit(audited, folder).record
        assert record.label_changes == 0
        assert record.utility["clean"]["top_1"] > 0.99
        assert "accuracy-below-majority" not in {flag.name for flag in record.flags}
    assert (guarded() == labels.numpy()).all()


def tuned():
    recall = make_scorer(recall_score, pos_label="sick")
    return TunedThresholdClassifierCV(LogisticRegression(), scoring=recall, cv=3)


def lightgbm():
    package = pytest.importorskip("lightgbm")
    return package.LGBMClassifier(n_estimators=10, verbose=-1, num_threads=1)


def xgboost():
    return pytest.importorskip("xgboost").XGBClassifier(n_estimators=10, nthread=1)


def catboost():
    package = pytest.importorskip("catboost")
    return package.CatBoostClassifier(10, verbose=False, thread_count=1, allow_writing_files=False)


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "linear": LogisticRegression,
    "forest": lambda: RandomForestClassifier(20, random_state=0),
    "boosting": lambda: HistGradientBoostingClassifier(max_iter=10),
    "SVC": lambda: SVC(probability=True, random_state=0),
    "MLP": lambda: MLPClassifier((16,), max_iter=60, random_state=0),
    "one-vs-rest": lambda: OneVsRestClassifier(LogisticRegression()),
    "calibrated": lambda: CalibratedClassifierCV(LogisticRegression(), cv=2),
    "fixed threshold": lambda: FixedThresholdClassifier(LogisticRegression(), threshold=0.1),
    "tuned threshold": tuned,
    "LightGBM": lightgbm,
    "XGBoost": xgboost,
    "CatBoost": catboost,
}


@pytest.mark.filterwarnings("ignore:.*probability.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_keeps_its_own_labels(name, tmp_path):
    joblib = pytest.importorskip("joblib")
    binary = name.endswith("threshold")
    rows, labels = digits().train
    names = np.where(labels == 1, "sick", "well") if binary else NAMES[labels]
    if name == "XGBoost":
        names = labels  # it takes class numbers alone
    model = ESTIMATORS[name]().fit(rows, names)
    joblib.dump(model, tmp_path / "model.joblib")
    target = open_target(
        str(tmp_path / "model.joblib"),
        outputs=None,
        device=CPU,
        batch_size=512,
        trust_pickle=True,
    )
    assert class_names_of(target) == tuple(map(str, model.classes_))
    places = {label: place for place, label in enumerate(model.classes_)}
    bare = np.array([places[label] for label in model.predict(digits().test[0]).ravel()])

    def guarded():
        answers = GuardedClassifier.of_fitted(model, ROUNDING).predict(digits().test[0])
        return np.array([places[label] for label in answers])

    walk(name, target, bare, tmp_path, guarded)


@pytest.mark.parametrize("name", ["linear", "forest", "MLP"])
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_an_onnx_export_of_an_estimator_keeps_its_labels(name, tmp_path):
    skl2onnx = pytest.importorskip("skl2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    rows, labels = digits().train
    model = ESTIMATORS[name]().fit(rows, labels)
    path = tmp_path / "model.onnx"
    exported = skl2onnx.to_onnx(model, rows[:1], options={"zipmap": False})
    path.write_bytes(exported.SerializeToString())
    target = open_target(
        str(path),
        outputs="confidences",
        device=CPU,
        batch_size=512,
        output_name="probabilities",
    )

    def guarded():
        session = GuardedSession(
            onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]),
            ROUNDING,
            output_name="probabilities",
            outputs="confidences",
        )
        [released] = session.run(None, {session.get_inputs()[0].name: digits().test[0]})
        return released.argmax(1)

    # A forest in float32 is another model where a pixel lies on a threshold: its file decides.
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [bare] = session.run(["label"], {session.get_inputs()[0].name: digits().test[0]})
    walk(f"export of {name}", target, bare, tmp_path, guarded, images=False)


class Network(nn.Module):
    """A trained network with steps that write into what they get, the query among it."""

    def __init__(self, kind="tensor"):
        super().__init__()
        self.kind = kind
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(inplace=True))
        self.head = nn.Linear(24, 3)

    def logits(self, images):
        images -= images.mean((1, 2, 3), True)
        return self.head(self.layers(images))

    def forward(self, images):
        return self.logits(images)


class Answers(Network):
    """The same, which answers with a tuple, a dict, or an output object."""

    def forward(self, images):
        logits = self.logits(images)
        if self.kind == "tuple":
            return (logits,)
        if self.kind == "dict":
            return {"logits": logits}
        if self.kind == "object":
            return types.SimpleNamespace(logits=logits, hidden_states=(logits,))
        output = pytest.importorskip("transformers.modeling_outputs").ImageClassifierOutput
        return output(logits=logits, hidden_states=(logits,))


@pytest.fixture(scope="module")
def trained():
    """Weights of a network that knows the digits."""
    torch.manual_seed(0)
    network = Network()
    images = torch.from_numpy(digits().train[0]).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(digits().train[1])
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(network(images.clone()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().state_dict()


def bare_labels(network):
    with torch.no_grad():
        images = torch.from_numpy(digits().test[0]).reshape(-1, 1, 8, 8).clone()
        return network.logits(images).argmax(-1).numpy()


def built(trained, kind="tensor"):
    network = Network() if kind == "tensor" else Answers(kind)
    network.load_state_dict(trained)
    return network.eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript
@pytest.mark.filterwarnings("ignore:ONNX Preprocess:UserWarning")
@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_a_network_file_with_steps_in_place_keeps_its_labels(suffix, trained, tmp_path):
    network, path = built(trained), tmp_path / f"network{suffix}"
    example = torch.rand(2, 1, 8, 8)
    if suffix == ".pt":
        torch.jit.trace(network, example.clone()).save(str(path))
    elif suffix == ".pt2":
        shapes = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(network, (example.clone(),), dynamic_shapes=shapes)
        torch.export.save(exported, path)
    else:
        pytest.importorskip("onnxruntime")
        axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
        names = {"input_names": ["images"], "output_names": ["logits"]}
        torch.onnx.export(
            network, (example.clone(),), path, dynamic_axes=axes, dynamo=False, **names
        )
    target = open_target(str(path), outputs="logits", device=CPU, batch_size=512)

    def guarded():
        answer = GuardedFunction(target.logits, Guard(ROUNDING, "logits"))
        return answer(torch.from_numpy(digits().test[0]).reshape(-1, 1, 8, 8)).argmax(-1).numpy()

    walk(suffix, target, bare_labels(network), tmp_path, guarded)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "object", "output object"])
def test_a_network_from_a_factory_keeps_its_labels_whatever_it_answers_with(
    kind, trained, tmp_path, monkeypatch
):
    network = built(trained, kind)
    module = types.ModuleType("real_models")
    module.factory = lambda: network
    monkeypatch.setitem(sys.modules, "real_models", module)
    if kind == "output object":
        pytest.importorskip("transformers")
    target = open_target("real_models:factory", outputs="logits", device=CPU, batch_size=512)

    def guarded():
        images = torch.from_numpy(digits().test[0]).reshape(-1, 1, 8, 8)
        answer = GuardedModule(network, ROUNDING, outputs="logits")(images)
        released = answer.logits if kind == "output object" else answer
        return released.argmax(-1).numpy()

    walk(kind, target, bare_labels(network), tmp_path, guarded)
