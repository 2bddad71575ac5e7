"""Labels of estimators: what ``predict`` says is what a guard gets, and nothing else moves."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.defenses import build_defense
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import logits_from_confidences
from oneway.targets import DefendedTarget
from oneway.targets.answers import lift_labels, to_float32
from oneway.targets.estimator import EstimatorTarget, estimator_target
from optional import later

load_breast_cancer = later("sklearn.datasets:load_breast_cancer")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
FixedThresholdClassifier = later("sklearn.model_selection:FixedThresholdClassifier")
TunedThresholdClassifierCV = later("sklearn.model_selection:TunedThresholdClassifierCV")
OneVsRestClassifier = later("sklearn.multiclass:OneVsRestClassifier")
make_pipeline = later("sklearn.pipeline:make_pipeline")
StandardScaler = later("sklearn.preprocessing:StandardScaler")
SVC = later("sklearn.svm:SVC")
RandomForestClassifier = later("sklearn.ensemble:RandomForestClassifier")


@st.composite
def answers(draw):
    """Probabilities with ties and zeros among them, and a label for each row."""
    classes, rows = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from([np.float32, np.float64]))
    weight = st.integers(0, 3) | st.floats(0, 1, width=32)
    row = st.lists(weight, min_size=classes, max_size=classes)
    weights = np.array(draw(st.lists(row, min_size=rows, max_size=rows)), np.float64)
    weights[:, 0] += weights.sum(1) == 0
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return (weights / weights.sum(1, keepdims=True)).astype(kind), np.array(labels)


@given(answers())
def test_the_label_is_lifted_to_the_only_maximum_and_no_more(case):
    probabilities, labels = case
    before, rows = probabilities.copy(), np.arange(len(labels))
    lifted = lift_labels(probabilities, labels)
    assert (probabilities == before).all()
    assert lifted.dtype == before.dtype
    rivals = lifted.copy()
    rivals[rows, labels] = -1
    assert (lifted[rows, labels] > rivals.max(1)).all()
    np.testing.assert_allclose(lifted.sum(1), 1, rtol=2e-6)
    # A row that has its label on top already is the same; in others the rest keeps its ratios.
    others = before.copy()
    others[rows, labels] = -1
    on_top = before[rows, labels] > others.max(1)
    assert (lifted[on_top] == before[on_top]).all()
    eps = np.finfo(before.dtype).eps
    for row in np.flatnonzero(~on_top):
        rest = np.delete(before[row], labels[row])
        got = np.delete(lifted[row], labels[row])
        np.testing.assert_allclose(got * rest.max(), rest * got.max(), atol=4 * eps, rtol=4 * eps)
        assert lifted[row, labels[row]] <= got.max() * (1 + 4 * eps)
    assert (lift_labels(lifted, labels) == lifted).all()


@looped("kind", [np.float32, np.float64])
def test_dividing_by_the_sum_makes_no_new_tie(kind):
    generator = np.random.default_rng(0)
    weights = generator.random((20_000, 3)).astype(kind)
    probabilities = weights / weights.sum(1, keepdims=True)
    labels = probabilities.argmin(1)
    ordered = np.sort(lift_labels(probabilities, labels), 1)
    assert (ordered[:, -1] > ordered[:, -2]).all()
    assert (lift_labels(probabilities, labels).argmax(1) == labels).all()


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return x[:, :10], 1 - y


def models():
    scaled = lambda model: make_pipeline(StandardScaler(), model)  # noqa: E731
    return {
        "fixed": FixedThresholdClassifier(scaled(LogisticRegression()), threshold=0.1),
        "tuned": TunedThresholdClassifierCV(scaled(LogisticRegression()), cv=2, scoring="recall"),
        "svc": scaled(SVC(probability=True, random_state=0)),
    }


@pytest.mark.filterwarnings("ignore:.*probability.*:FutureWarning")
@pytest.mark.parametrize("name", ["fixed", "tuned", "svc"])
def test_a_guard_releases_the_estimator_s_own_label_and_an_open_api_its_probabilities(cancer, name):
    rows, labels = cancer
    model = models()[name].fit(rows, labels)
    target = estimator_target(model, batch_size=100, name="the model")
    queries, own = torch.from_numpy(rows), torch.from_numpy(model.predict(rows))
    raw = model.predict_proba(rows)
    assert (raw.argmax(1) != own.numpy()).any()
    torch.testing.assert_close(target(queries), torch.from_numpy(raw).float())
    assert torch.equal(target.logits(queries).argmax(-1), own)
    for defense in (Identity(), build_defense("rounding", {"decimals": 1}, None)):
        released = DefendedTarget(target, defense)(queries)
        assert torch.equal(released.argmax(-1), own)
        assert ((released == released.amax(-1, keepdim=True)).sum(-1) == 1).all()


def test_where_predict_is_the_likeliest_class_logits_are_the_logs_of_the_answers(cancer):
    rows, labels = cancer
    queries = torch.from_numpy(rows)
    for model in (LogisticRegression(max_iter=9000), RandomForestClassifier(3, random_state=0)):
        target = estimator_target(model.fit(rows, labels), batch_size=77, name="the model")
        raw = to_float32(torch.from_numpy(model.predict_proba(rows)))
        assert torch.equal(target(queries), raw)
        assert torch.equal(target.logits(queries), logits_from_confidences(raw))


class Says:
    """Predicts these answers, whatever it is asked."""

    def __init__(self, classes, predicted, probabilities=(0.7, 0.2, 0.1)):
        self.classes_, self.predicted = classes, np.asarray(predicted)
        self.probabilities = np.array(probabilities)

    def predict_proba(self, rows):
        return np.tile(self.probabilities, (len(rows), 1))

    def predict(self, rows):  # noqa: ARG002
        return self.predicted


def wrapped(*arguments):
    return estimator_target(Says(*arguments), batch_size=9, name="the model")


THREE = torch.rand(3, 4)


@looped(
    ("classes", "predicted"),
    [
        (["a", "b", "c"], [["a"], ["b"], ["c"]]),  # a column, as CatBoost's
        (["a", "b", "c"], [0, 1, 2]),  # places rather than classes
        ([0, 1, 2], [0.0, 1.0, 2.0]),
        ([0.0, 1.0, 2.0], ["0", "1", "2"]),
    ],
)
def test_predictions_of_another_form_are_the_classes_that_they_mean(classes, predicted):
    target = wrapped(classes, predicted)
    assert target.logits(THREE).argmax(-1).tolist() == [0, 1, 2]
    assert target(THREE).argmax(-1).tolist() == [0, 0, 0]


@looped(
    ("classes", "predicted", "message"),
    [
        (["a", "b", "c"], ["a", "x", "b"], r"classes_ \(a, b, c\), but 1 of 3"),
        ([4, 5, 6], [0, 1, 2], r"classes_ \(4, 5, 6\), but 3 of 3 answers, of type int64"),
        (["a", "b", "c"], np.eye(3), r"one class for each of 3 queries, but gave shape \(3, 3\)"),
    ],
)
def test_predictions_that_are_no_classes_are_refused(classes, predicted, message):
    with pytest.raises(InvalidTensorError, match=message):
        wrapped(classes, predicted)(THREE)


def test_probabilities_of_one_model_for_each_class_have_their_own_remedy():
    target = wrapped(["a", "b", "c"], ["a", "b", "c"], (0.9, 0.8, 0.1))
    with pytest.raises(InvalidTensorError, match=r"sum to 1 in each row .*3 of 3.*multiclass"):
        target(THREE)


def test_several_labels_for_a_query_are_refused_at_once(cancer):
    rows, labels = cancer
    both = np.stack([labels, 1 - labels], 1)
    model = OneVsRestClassifier(LogisticRegression(max_iter=9000)).fit(rows[:60], both[:60])
    with pytest.raises(InvalidOptionError, match=r"OneVsRestClassifier\) must give each"):
        estimator_target(model, batch_size=9, name="the model")


def test_boosters_and_models_that_are_not_fitted_have_their_own_remedies(cancer):
    lightgbm, xgboost = pytest.importorskip("lightgbm"), pytest.importorskip("xgboost")
    rows, labels = cancer
    tree = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(rows, labels)
    boosted = xgboost.XGBClassifier(n_estimators=2).fit(rows, labels)
    for booster in (tree.booster_, boosted.get_booster()):
        with pytest.raises(InvalidOptionError, match=r"save it as (LGBM|XGB)Class"):
            estimator_target(booster, batch_size=9, name="the model")
    for model in (lightgbm.LGBMClassifier(), xgboost.XGBClassifier(), LogisticRegression()):
        with pytest.raises(InvalidOptionError, match=r"has no classes_. Fit it"):
            estimator_target(model, batch_size=9, name="the model")
    for model in (tree, boosted):
        target = estimator_target(model, batch_size=100, name="the model")
        assert type(target) is EstimatorTarget
        queries = torch.from_numpy(rows)
        assert (target.logits(queries).argmax(-1).numpy() == model.predict(rows)).all()
