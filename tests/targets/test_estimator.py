"""scikit-learn classifiers as targets: their own probabilities, and nothing run unasked."""

import pickle
import sys
import warnings

import numpy as np
import pytest
import torch

from oneway.contracts import ScoredTarget
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    InvalidTensorError,
    MissingExtraError,
)
from oneway.targets import open_target
from oneway.targets.estimator import estimator_target
from optional import later

io = later("skops.io")
CalibratedClassifierCV = later("sklearn.calibration:CalibratedClassifierCV")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
KNeighborsClassifier = later("sklearn.neighbors:KNeighborsClassifier")
make_pipeline = later("sklearn.pipeline:make_pipeline")
FunctionTransformer = later("sklearn.preprocessing:FunctionTransformer")
StandardScaler = later("sklearn.preprocessing:StandardScaler")
SVC = later("sklearn.svm:SVC")

CPU = torch.device("cpu")

LABELS = np.arange(300) % 10

# Ten pictures of 17 shades, each of them with noise.
GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.random((10, 64))[LABELS] + GENERATOR.normal(0, 0.2, (300, 64))
ROWS = (16 * ROWS.clip(0, 1)).round() / 16

IMAGES = torch.from_numpy(ROWS).unflatten(1, (1, 8, 8))


@pytest.fixture(scope="module")
def regression():
    return LogisticRegression(max_iter=300).fit(ROWS, LABELS)


def half(rows):
    return rows / 2


def opened(path, outputs=None, **options):
    return open_target(str(path), outputs=outputs, device=CPU, **options)


def wrapped(estimator, batch_size=512):
    return estimator_target(estimator, batch_size=batch_size, name="the model")


SAVERS = [
    (later("skops.io:dump"), "m.skops", {}),
    (later("joblib:dump"), "m.joblib", {"trust_pickle": True}),
    (lambda model, path: path.write_bytes(pickle.dumps(model)), "m.pkl", {"trust_pickle": True}),
]


@pytest.mark.parametrize("outputs", [None, "confidences"])
@pytest.mark.parametrize(("save", "file", "options"), SAVERS)
def test_answers_are_predict_proba_of_the_rows(save, file, options, outputs, regression, tmp_path):
    save(regression, tmp_path / file)
    wanted = torch.tensor(regression.predict_proba(ROWS)).float()
    for batch_size in (97, 512):
        target = opened(tmp_path / file, outputs, batch_size=batch_size, **options)
        assert target.class_names == tuple("0123456789")
        torch.testing.assert_close(target(IMAGES), wanted)
        torch.testing.assert_close(target(IMAGES.flatten(1)), wanted)


@pytest.mark.parametrize(("save", "file", "options"), SAVERS)
def test_logits_are_not_what_a_classifier_answers_with(save, file, options, regression, tmp_path):
    save(regression, tmp_path / file)
    with pytest.raises(InvalidOptionError, match=r"answers with confidences, since .*predict_pro"):
        opened(tmp_path / file, "logits", **options)


@pytest.mark.parametrize("names", [np.array(list("jihgfedcba")), np.arange(0, 100, 10)])
def test_columns_are_classes_in_order_and_the_label_is_what_predict_says(names):
    model = LogisticRegression(max_iter=300).fit(ROWS, names[LABELS])
    label = wrapped(model)(IMAGES).argmax(-1)
    assert (model.classes_[label] == model.predict(ROWS)).all()


class Said:
    """Says these probabilities, and predicts this class, whatever it is asked."""

    classes_ = np.array(["a", "b", "c"])

    def __init__(self, probabilities, label):
        self.probabilities, self.label = probabilities, label

    def predict_proba(self, rows):
        self.given = np.tile(self.probabilities, (len(rows), 1))
        return self.given

    def predict(self, rows):
        return np.repeat(self.label, len(rows))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("label", "index"), [("a", 0), ("b", 1)])
def test_a_tie_goes_to_the_class_that_is_predicted(label, index, kind):
    tied = np.array([0.4, 0.4, 0.2], kind)
    model = Said(tied, label)
    answer = wrapped(model)(IMAGES[:2])
    assert answer.argmax(-1).tolist() == [index] * 2
    torch.testing.assert_close(answer[0], torch.tensor(tied), check_dtype=False)
    # What the model may still hold is not written to.
    assert (model.given == tied).all()


def test_a_prediction_that_is_not_the_likeliest_class_is_lifted_in_the_logits_alone():
    probabilities = np.array([0.4, 0.3, 0.3])
    target = wrapped(Said(probabilities, "b"))
    assert isinstance(target, ScoredTarget)
    torch.testing.assert_close(target(IMAGES[:1])[0], torch.tensor(probabilities).float())
    released = target.logits(IMAGES[:1]).softmax(-1)[0]
    assert released.argmax() == 1
    torch.testing.assert_close(released, torch.tensor([0.4, 0.4, 0.3]).double() / 1.1)


@pytest.mark.parametrize("probabilities", [np.array([0.5, 0.5]), np.full(4, 0.25)])
def test_columns_that_are_not_one_per_class_are_refused(probabilities):
    with pytest.raises(InvalidTensorError, match=r"the model .* shape \(2, 3\), one column"):
        wrapped(Said(probabilities, "a"))(IMAGES[:2])


def test_a_classifier_of_several_outputs_is_refused():
    model = KNeighborsClassifier(3).fit(ROWS, np.stack([LABELS, LABELS], 1))
    with pytest.raises(InvalidOptionError, match=r"the model must have one output, .* has 2"):
        wrapped(model)


def test_pictures_of_another_size_are_refused(regression):
    with pytest.raises(InvalidTensorError, match=r"64 features, but .*\(2, 1, 4, 4\) have 16"):
        wrapped(regression)(torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: LogisticRegression(), "LogisticRegression has no classes_. Fit it"),
        (lambda: SVC(), "SVC has no predict_proba. Wrap it in .*CalibratedClassifierCV"),
    ],
)
def test_what_has_no_probabilities_is_refused(model, message):
    with pytest.raises(InvalidOptionError, match=message):
        wrapped(model())


def test_types_that_skops_does_not_know_are_listed_and_taken_when_trusted(tmp_path):
    model = make_pipeline(FunctionTransformer(half), StandardScaler(), LogisticRegression())
    model.fit(ROWS, LABELS)
    path = tmp_path / "m.skops"
    io.dump(model, path)
    (unknown,) = io.get_untrusted_types(file=path)
    assert "half" in unknown
    with pytest.raises(InvalidOptionError, match=r"does not know to be safe") as caught:
        opened(path)
    assert f"trusted={(unknown,)!r}" in str(caught.value)
    with pytest.raises(InvalidOptionError, match="a sequence of type names, but got the text"):
        opened(path, trusted=unknown)


@pytest.mark.parametrize(
    "build", [lambda: KNeighborsClassifier(3), lambda: CalibratedClassifierCV(SVC(), cv=2)]
)
def test_other_classifiers_can_be_opened_once_their_types_are_trusted(build, tmp_path):
    model = build().fit(ROWS, LABELS)
    path = tmp_path / "m.skops"
    io.dump(model, path)
    trusted = tuple(io.get_untrusted_types(file=path))
    target = opened(path, trusted=trusted)
    torch.testing.assert_close(target(IMAGES), torch.tensor(model.predict_proba(ROWS)).float())


class Trap:
    """A pickle that does something when it is loaded."""

    def __reduce__(self):
        return warnings.warn, ("the trap was sprung",)


@pytest.mark.parametrize("file", ["m.pkl", "m.pickle", "m.joblib"])
@pytest.mark.parametrize("options", [{}, {"trust_pickle": False}])
def test_a_pickle_is_not_touched_unless_it_is_trusted(file, options, tmp_path):
    (tmp_path / file).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InvalidOptionError, match=r"runs whatever code .*skops.*trust_pickle=True"):
        opened(tmp_path / file, **options)
    with pytest.raises(UserWarning, match="sprung"):
        opened(tmp_path / file, trust_pickle=True)


def test_trust_is_true_or_false(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InvalidOptionError, match="trust_pickle must be true or false"):
        opened(tmp_path / "m.pkl", trust_pickle="no")


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("m.skops", {}, "cannot be opened by skops .*skops.io.dump"),
        ("m.pkl", {"trust_pickle": True}, "cannot be loaded"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"no model", pickle.dumps([1, 2])[:-3]])
def test_damaged_files_are_refused(file, options, message, content, tmp_path):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CorruptDataError, match=message):
        opened(tmp_path / file, **options)


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    io.dump([1, 2], tmp_path / "m.skops")
    with pytest.raises(InvalidOptionError, match=r"m\.skops' must be .* list has no predict_proba"):
        opened(tmp_path / "m.skops")


@pytest.mark.parametrize(
    ("module", "file", "options"),
    [("skops.io", "m.skops", {}), ("joblib", "m.pkl", {"trust_pickle": True})],
)
def test_the_extra_is_named_where_a_package_is_not_installed(
    module, file, options, tmp_path, monkeypatch
):
    (tmp_path / file).write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'oneway\[sklearn\]'"):
        opened(tmp_path / file, **options)
