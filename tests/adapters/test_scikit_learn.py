"""The guarded classifier is a classifier of scikit-learn, and lets out nothing clean."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from faulty_defenses import REFUSED, Faulty
from oneway.adapters.guard import Guard
from oneway.defenses import KeyedRandomness, SecretKey, build_defense
from oneway.defenses.gaussian_noise import GaussianNoise
from oneway.defenses.identity import Identity
from oneway.defenses.label_only import LabelOnly
from oneway.defenses.rounding import Rounding
from oneway.errors import DefenseFailedError, InvalidOptionError
from optional import later
from surrogates import small_inverter

clone = later("sklearn.base:clone")
RandomForestClassifier = later("sklearn.ensemble:RandomForestClassifier")
exceptions = later("sklearn.exceptions")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
GridSearchCV = later("sklearn.model_selection:GridSearchCV")
cross_val_score = later("sklearn.model_selection:cross_val_score")
make_pipeline = later("sklearn.pipeline:make_pipeline")
StandardScaler = later("sklearn.preprocessing:StandardScaler")
LinearSVC = later("sklearn.svm:LinearSVC")
GuardedClassifier = later("oneway.adapters.scikit_learn:GuardedClassifier")


class RowInverter(nn.Module):
    """Reconstructs records instead of images."""

    def __init__(self, inverter):
        super().__init__()
        self.inverter = inverter

    def forward(self, confidences):
        return self.inverter(confidences).flatten(1)


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    queries = random.normal(size=(300, 6))
    names = np.array(["ant", "bee", "cat"])
    return queries, names[queries[:, :3].argmax(1)]


@pytest.mark.filterwarnings("ignore::Warning")
def test_it_passes_the_checks_of_scikit_learn():
    check_estimator = later("sklearn.utils.estimator_checks:check_estimator")
    check_estimator(GuardedClassifier(LogisticRegression(), Rounding(decimals=3)))
    forest = RandomForestClassifier(n_estimators=5, random_state=0)
    check_estimator(GuardedClassifier(forest, LabelOnly(), decimals=4))


def test_predict_is_the_estimators_own_and_on_top_of_what_predict_proba_releases(rows):
    queries, labels = rows
    guarded = GuardedClassifier(LogisticRegression(), Rounding(decimals=1)).fit(queries, labels)
    clean = LogisticRegression().fit(queries, labels)
    released = guarded.predict_proba(queries)
    np.testing.assert_array_equal(guarded.predict(queries), guarded.classes_[released.argmax(1)])
    np.testing.assert_array_equal(guarded.predict(queries), clean.predict(queries))
    expected = Guard(Rounding(decimals=1), "confidences")(clean.predict_proba(queries))
    np.testing.assert_array_equal(released, expected)
    assert np.abs(released - clean.predict_proba(queries)).max() > 0.01
    np.testing.assert_array_equal(np.exp(guarded.predict_log_proba(queries)) > 0, released > 0)
    assert guarded.score(queries, labels) == clean.score(queries, labels)


def test_nothing_but_its_own_methods_answers(rows):
    guarded = GuardedClassifier(LogisticRegression(), LabelOnly()).fit(*rows)
    for name in ("decision_function", "coef_", "intercept_", "predict_joint_log_proba"):
        assert not hasattr(guarded, name)


def test_it_goes_through_pipelines_searches_clones_and_pickles(rows):
    queries, labels = rows
    search = GridSearchCV(
        GuardedClassifier(
            make_pipeline(StandardScaler(), LogisticRegression()), Rounding(decimals=2)
        ),
        {"estimator__logisticregression__C": [0.1, 1.0], "decimals": [2, None]},
        cv=2,
        scoring="neg_log_loss",
    ).fit(queries, labels)
    assert search.best_score_ > -1
    again = pickle.loads(pickle.dumps(search))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(again.predict_proba(queries), search.predict_proba(queries))
    assert cross_val_score(clone(search.best_estimator_), queries, labels, cv=2).min() > 0.8


def test_a_key_goes_through_clones_and_not_into_a_pickle(rows):
    queries, labels = rows
    keyed = KeyedRandomness(
        lambda generator: GaussianNoise(keep_label=True, generator=generator),
        SecretKey(b"0123456789abcdef"),
    )
    guarded = clone(GuardedClassifier(LogisticRegression(), keyed)).fit(queries, labels)
    assert guarded.defense is keyed
    together = guarded.predict_proba(queries)
    alone = np.concatenate([guarded.predict_proba(row[None]) for row in queries])
    np.testing.assert_allclose(alone, together, atol=1e-9)
    with pytest.raises(InvalidOptionError, match="not pickled"):
        pickle.dumps(guarded)


def test_a_fitted_classifier_is_guarded_as_it_is(rows):
    queries, labels = rows
    fitted = LogisticRegression().fit(queries, labels)
    guarded = GuardedClassifier.of_fitted(fitted, Rounding(decimals=1), decimals=3)
    assert guarded.estimator_ is fitted
    assert guarded.n_features_in_ == 6
    expected = GuardedClassifier(LogisticRegression(), Rounding(decimals=1), decimals=3)
    np.testing.assert_array_equal(
        guarded.predict_proba(queries), expected.fit(queries, labels).predict_proba(queries)
    )
    with pytest.raises(InvalidOptionError, match="not fitted"):
        GuardedClassifier.of_fitted(LogisticRegression(), Identity())


def test_a_defense_that_needs_the_queries_is_given_them(rows):
    queries, labels = rows
    flat = small_inverter(classes=3)
    images = np.random.default_rng(1).random((20, 64))
    guarded = GuardedClassifier(
        LogisticRegression(),
        build_defense("adversarial-noise", {"step_size": 0.4}, RowInverter(flat)),
    ).fit(np.pad(queries, ((0, 0), (0, 58))), labels)
    clean = guarded.estimator_.predict_proba(images)
    released = guarded.predict_proba(images)
    assert np.abs(released - clean).max() > 0.01
    np.testing.assert_array_equal(released.argmax(1), clean.argmax(1))


def test_a_defense_that_fails_lets_no_score_out_of_any_method(rows):
    guarded = GuardedClassifier(LogisticRegression(), Faulty(REFUSED["another label"])).fit(*rows)
    for ask in (guarded.predict_proba, guarded.predict_log_proba):
        with pytest.raises(DefenseFailedError, match="nothing is released"):
            ask(rows[0][:3])


def test_what_cannot_be_guarded_is_refused(rows):
    queries, labels = rows
    with pytest.raises(InvalidOptionError, match="no predict_proba"):
        GuardedClassifier(LinearSVC(), Identity()).fit(queries, labels)
    with pytest.raises(InvalidOptionError, match="at least 2 classes"):
        GuardedClassifier(RandomForestClassifier(2), Identity()).fit(queries, ["ant"] * 300)
    two = np.stack([labels, labels[::-1]], 1)
    with pytest.raises(InvalidOptionError, match="one output"):
        GuardedClassifier(RandomForestClassifier(2), Identity()).fit(queries, two)
    with pytest.raises(InvalidOptionError, match="KeyedRandomness"):
        GuardedClassifier(
            LogisticRegression(), GaussianNoise(keep_label=True, generator=torch.Generator())
        ).fit(queries, labels)
    with pytest.raises(exceptions.NotFittedError):
        GuardedClassifier(LogisticRegression(), Identity()).predict_proba(queries)
