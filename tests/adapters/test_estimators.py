"""Classifiers of all kinds keep their own labels behind a guard, or are refused with the reason."""

import pickle
import warnings

import numpy as np
import pytest
from torch import nn

from laws import looped
from oneway.defenses import build_defense
from oneway.defenses.identity import Identity
from oneway.defenses.rounding import Rounding
from oneway.errors import InvalidOptionError, InvalidTensorError, OnewayError, TargetFailedError
from optional import later

pd = later("pandas")
GuardedClassifier = later("oneway.adapters.scikit_learn:GuardedClassifier")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
datasets = later("sklearn.datasets")


def breast_cancer():
    queries, labels = datasets.load_breast_cancer(return_X_y=True)
    return queries, 1 - labels  # 1: malignant


def irises():
    return datasets.load_iris(return_X_y=True)


def text_irises():
    queries, labels = irises()
    return queries, np.array(["virginica", "setosa", "versicolor"])[labels]


def scaled(model):
    return later("sklearn.pipeline:make_pipeline")(
        later("sklearn.preprocessing:StandardScaler")(), model
    )


def low_threshold():
    model = scaled(LogisticRegression())
    return later("sklearn.model_selection:FixedThresholdClassifier")(model, threshold=0.1)


def tuned_threshold():
    return later("sklearn.model_selection:TunedThresholdClassifierCV")(
        scaled(LogisticRegression()), scoring="recall", cv=2, thresholds=5
    )


def support_vectors():
    return later("sklearn.svm:SVC")(probability=True, random_state=0)


def boosting():
    return later("sklearn.ensemble:HistGradientBoostingClassifier")(max_iter=3)


def light():
    return later("lightgbm:LGBMClassifier")(n_estimators=3, verbose=-1, n_jobs=1)


def extreme():
    return later("xgboost:XGBClassifier")(n_estimators=3, n_jobs=1)


def encoded_extreme():
    """XGBoost takes class numbers only: with text it is used like this."""

    base = later("sklearn.base")

    class Encoded(base.ClassifierMixin, base.BaseEstimator):
        def fit(self, X, y):  # noqa: N803
            self.classes_, numbers = np.unique(y, return_inverse=True)
            self.model_ = extreme().fit(X, numbers)
            return self

        def predict_proba(self, X):  # noqa: N803
            return self.model_.predict_proba(X)

        def predict(self, X):  # noqa: N803
            return self.model_.predict(X)  # numbers, though classes_ are text

    return Encoded()


def cat():
    return later("catboost:CatBoostClassifier")(
        iterations=3, verbose=0, allow_writing_files=False, thread_count=1
    )


MODELS = {
    "low threshold": (low_threshold, breast_cancer),
    "tuned threshold": (tuned_threshold, breast_cancer),
    "SVC": (support_vectors, text_irises),
    "boosting": (boosting, text_irises),
    "LightGBM": (light, text_irises),
    "XGBoost": (extreme, irises),
    "XGBoost, classes of text": (encoded_extreme, text_irises),
    "CatBoost": (cat, text_irises),
    "CatBoost, two classes": (cat, breast_cancer),
}


@pytest.mark.filterwarnings("ignore:The `probability` parameter:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_labels_are_the_models_own_and_strictly_on_top_of_the_release(name):
    make, load = MODELS[name]
    queries, labels = load()
    fitted = make().fit(queries, labels)
    guarded = GuardedClassifier.of_fitted(fitted, Rounding(decimals=1), decimals=3)
    own = fitted.predict(queries).ravel()  # CatBoost gives a column
    assert len(set(own.tolist())) > 1
    np.testing.assert_array_equal(guarded.predict(queries), own)
    released = guarded.predict_proba(queries)
    names = guarded.classes_ if name != "XGBoost, classes of text" else np.arange(3)
    np.testing.assert_array_equal(names[released.argmax(1)], own)
    assert (np.sort(released, 1)[:, -1] > np.sort(released, 1)[:, -2]).all()
    np.testing.assert_allclose(released.sum(1), 1, atol=1e-6)
    alone = np.concatenate([guarded.predict_proba(row[None]) for row in queries[::40]])
    np.testing.assert_allclose(alone, released[::40], atol=1e-6)


def test_a_low_threshold_misses_no_more_cancers_behind_a_guard():
    queries, labels = breast_cancer()
    fitted = low_threshold().fit(queries, labels)
    arg_max = fitted.predict_proba(queries).argmax(1)
    assert (fitted.predict(queries) != arg_max).sum() > 5
    guarded = GuardedClassifier.of_fitted(fitted, Identity())
    assert guarded.score(queries, labels) == fitted.score(queries, labels)


class Counting:
    """A classifier that counts what it is asked, and knows no class but by its sign."""

    classes_ = np.array(["no", "yes"])

    def __init__(self, predicted=None):
        self.asked, self.predicted = [], predicted

    def predict_proba(self, queries):
        self.asked.append("predict_proba")
        queries *= 0  # in place
        return np.full((len(queries), 2), 0.5)

    def predict(self, queries):
        self.asked.append("predict")
        if self.predicted is not None:
            return self.predicted
        return self.classes_[(queries[:, 0] > 0).astype(int)]


def test_a_model_is_asked_for_each_thing_once_and_its_ties_are_broken_as_it_breaks_them():
    model, queries = Counting(), np.array([[-1.0], [2.0], [3.0]])
    guarded = GuardedClassifier.of_fitted(model, Identity())
    released = guarded.predict_proba(queries)
    assert model.asked == ["predict_proba", "predict"]
    assert released.argmax(1).tolist() == [0, 1, 1]
    assert guarded.predict(queries).tolist() == ["no", "yes", "yes"]
    assert model.asked == ["predict_proba", "predict", "predict"]
    assert queries.tolist() == [[-1.0], [2.0], [3.0]]


@looped(
    ("predicted", "columns"),
    [
        (np.array([["no"], ["yes"], ["no"]]), [0, 1, 0]),
        (np.array([1, 0, 1]), [1, 0, 1]),
        (np.array(["no", "yes", "no"], object), [0, 1, 0]),
    ],
)
def test_labels_in_a_column_and_indices_of_text_classes_are_understood(predicted, columns):
    guarded = GuardedClassifier.of_fitted(Counting(predicted), Identity())
    assert guarded.predict_proba(np.ones((3, 1))).argmax(1).tolist() == columns


@looped(
    ("predicted", "said"),
    [
        (np.array(["no", "maybe", "no"]), r"classes of classes_ \(no, yes\)"),
        (np.array([0, 1, 2]), r"classes of classes_ \(no, yes\)"),
        (np.array([-0.7, 0.2, 1.3]), r"classes of classes_ \(no, yes\)"),  # raw scores
        (np.eye(3, dtype=int), "several labels"),
    ],
)
def test_what_is_no_class_is_refused_and_never_leaves(predicted, said):
    guarded = GuardedClassifier.of_fitted(Counting(predicted), Identity())
    for ask in (guarded.predict_proba, guarded.predict):
        with pytest.raises(InvalidTensorError, match=said):
            ask(np.ones((3, 1)))


def test_an_objective_of_ones_own_is_refused_since_predict_gives_its_clean_scores():
    def logistic(labels, scores):
        probability = 1 / (1 + np.exp(-scores))
        return probability - labels, probability * (1 - probability)

    fitted = light().set_params(objective=logistic).fit(*breast_cancer())
    with pytest.raises(InvalidOptionError, match=r"raw scores .*GuardedFunction"):
        GuardedClassifier.of_fitted(fitted, Identity())


def several_labels():
    return datasets.make_multilabel_classification(40, n_classes=2, random_state=0)


def one_against_rest():
    return later("sklearn.multiclass:OneVsRestClassifier")(LogisticRegression())


def perceptron():
    return later("sklearn.neural_network:MLPClassifier")(max_iter=1, hidden_layer_sizes=2)


def cat_of_several_labels():
    return cat().set_params(loss_function="MultiLogloss")


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer:UserWarning")
@pytest.mark.parametrize("make", [one_against_rest, perceptron, extreme, cat_of_several_labels])
def test_a_model_of_several_labels_is_refused_when_it_is_guarded(make):
    queries, labels = several_labels()
    fitted = make().fit(queries, labels)
    for model in (fitted, later("sklearn.pipeline:make_pipeline")("passthrough", fitted)):
        with pytest.raises(InvalidOptionError, match="multi-label"):
            GuardedClassifier.of_fitted(model, Identity())
    with pytest.raises(InvalidOptionError, match="one output"):
        GuardedClassifier(make(), Identity()).fit(queries, labels)


@pytest.mark.parametrize(
    ("make", "objective"), [(light, "multiclassova"), (cat, "MultiClassOneVsAll")]
)
def test_probabilities_of_one_against_all_are_refused_whoever_shares_the_batch(make, objective):
    queries, labels = irises()
    option = "objective" if make is light else "loss_function"
    fitted = make().set_params(**{option: objective}).fit(queries, labels)
    with pytest.raises(InvalidOptionError, match=r"sum to 1.*divide each row"):
        GuardedClassifier.of_fitted(fitted, Identity())


@pytest.mark.parametrize("make", [low_threshold, boosting, light, extreme, cat])
def test_a_model_that_is_not_fitted_is_refused(make):
    with pytest.raises(InvalidOptionError, match="not fitted"):
        GuardedClassifier.of_fitted(make(), Identity())


@pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
def test_a_booster_is_refused_with_the_class_that_it_can_be(library):
    queries, labels = breast_cancer()
    booster = (
        light().fit(queries, labels).booster_
        if library == "lightgbm"
        else extreme().fit(queries, labels).get_booster()
    )
    name = {"lightgbm": "LGBMClassifier", "xgboost": "XGBClassifier"}[library]
    with pytest.raises(InvalidOptionError, match=rf"{name}.*np\.stack"):
        GuardedClassifier.of_fitted(booster, Identity())


def test_a_loaded_catboost_model_is_guarded_as_one_that_was_fitted(tmp_path):
    queries, labels = text_irises()
    fitted = cat().fit(queries, labels)
    fitted.save_model(tmp_path / "model.cbm")
    loaded = later("catboost:CatBoostClassifier")().load_model(tmp_path / "model.cbm")
    for model in (loaded, pickle.loads(pickle.dumps(fitted))):  # noqa: S301  ours
        guarded = GuardedClassifier.of_fitted(model, Identity())
        own = fitted.predict(queries).ravel()
        np.testing.assert_array_equal(guarded.predict(queries), own)


def test_a_catboost_model_finds_the_columns_of_a_frame_by_name():
    frame, labels = ward_table()
    model = cat().fit(frame, labels, cat_features=["ward"])
    guarded = GuardedClassifier.of_fitted(model, Identity())
    turned = frame[list(frame)[::-1]]
    np.testing.assert_allclose(guarded.predict_proba(turned), model.predict_proba(frame), atol=1e-6)
    np.testing.assert_array_equal(guarded.predict(turned), model.predict(frame).ravel())


def test_options_that_a_clone_would_lose_are_passed_to_fit():
    frame, labels = ward_table()
    options = {"cat_features": ["ward"]}
    with pytest.raises(InvalidOptionError, match="Pass those to fit"):
        GuardedClassifier(cat().set_params(**options), Identity()).fit(frame, labels)
    guarded = GuardedClassifier(cat(), Identity()).fit(frame, labels, **options)
    bare = cat().fit(frame, labels, **options)
    np.testing.assert_array_equal(guarded.predict(frame), bare.predict(frame))


def ward_table():
    ages = np.arange(40.0)
    frame = pd.DataFrame({"age": ages, "ward": np.tile(["ICU-7777", "ER"], 20), "dose": ages % 7})
    return frame, np.where(ages > 17, "sick", "well")


def ward_pipeline():
    encoder = later("sklearn.preprocessing:OneHotEncoder")()
    columns = later("sklearn.compose:ColumnTransformer")(
        [("text", encoder, ["ward"]), ("number", "passthrough", ["age", "dose"])]
    )
    return later("sklearn.pipeline:make_pipeline")(columns, LogisticRegression(max_iter=500))


def test_a_frame_with_text_reaches_the_model_as_a_frame_in_any_order_of_its_columns():
    frame, labels = ward_table()
    fitted = ward_pipeline().fit(frame, labels)
    guarded = GuardedClassifier(ward_pipeline(), Rounding(decimals=2)).fit(frame, labels)
    np.testing.assert_array_equal(guarded.predict(frame), fitted.predict(frame))
    turned = frame[["dose", "ward", "age"]]
    np.testing.assert_array_equal(guarded.predict_proba(turned), guarded.predict_proba(frame))


def surrogate():
    return build_defense("adversarial-noise", {"step_size": 0.4}, nn.Linear(2, 2))


def test_no_error_and_no_context_of_one_holds_a_cell_of_a_query():
    frame, labels = ward_table()
    fitted = ward_pipeline().fit(frame, labels)
    plain = GuardedClassifier.of_fitted(fitted, Identity())
    needy = GuardedClassifier.of_fitted(fitted, surrogate())
    unknown, text = frame.assign(ward="ICU-8888"), frame.astype({"dose": str})
    text.loc[0, "dose"] = "ICU-9999"
    cases = (
        (plain.predict_proba, unknown, "Check that X has the columns"),
        (plain.predict, unknown, "Check that X has the columns"),
        (plain.predict, text, "Check that X"),
        (plain.predict, frame.drop(columns="ward"), "missing: ward"),
        (plain.predict, frame.rename(columns={"ward": "unit"}), "not known: unit"),
        (needy.predict_proba, frame, "numbers only, but got something else in the columns ward"),
        (needy.predict_proba, frame.to_numpy(), "something else in ndarray"),
    )
    for ask, queries, said in cases:
        with pytest.raises(OnewayError, match=said) as caught:
            ask(queries)
        error = caught.value
        assert isinstance(error, ValueError)
        assert error.__context__ is None
        assert error.__cause__ is None
        assert "ICU" not in str(error)


def test_a_model_that_fails_for_another_reason_is_an_error_without_its_text():
    class Fails(Counting):
        def predict(self, queries):
            raise RuntimeError(f"out of memory at {queries}")

    guarded = GuardedClassifier.of_fitted(Fails(), Identity())
    for ask in (guarded.predict, guarded.predict_proba):
        with pytest.raises(
            TargetFailedError, match="predict of Fails raised RuntimeError"
        ) as caught:
            ask(np.full((2, 1), 7777.0))
        assert caught.value.__context__ is None
        assert "7777" not in str(caught.value)


@pytest.mark.parametrize("make", [light, extreme, lambda: calibrated(light())])
def test_columns_are_matched_by_name_where_the_model_takes_them_by_place(make):
    frame, labels = datasets.load_iris(return_X_y=True, as_frame=True)  # with spaces in its names
    fitted = make().fit(frame, labels)
    guarded = GuardedClassifier.of_fitted(fitted, Identity())
    turned = frame[frame.columns[::-1]]
    np.testing.assert_array_equal(guarded.predict(turned), fitted.predict(frame))
    np.testing.assert_array_equal(guarded.predict_proba(turned), guarded.predict_proba(frame))


def calibrated(model):
    return later("sklearn.calibration:CalibratedClassifierCV")(model, cv=2)


def test_an_array_for_a_model_that_was_fitted_on_a_frame_is_warned_of_once():
    frame, labels = datasets.load_iris(return_X_y=True, as_frame=True)
    for model in (LogisticRegression(max_iter=500), light()):
        fitted = model.fit(frame, labels)
        guarded = GuardedClassifier.of_fitted(fitted, Identity())
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for _ in range(5):
                guarded.predict_proba(frame)
            assert not warned
            for _ in range(5):
                guarded.predict_proba(frame.to_numpy())
                labels_of_array = guarded.predict(frame.to_numpy())
        assert [str(one.message)[:26] for one in warned] == ["X has no column names, so "]
        np.testing.assert_array_equal(labels_of_array, fitted.predict(frame))


def test_names_of_an_earlier_fit_are_forgotten():
    frame, labels = datasets.load_iris(return_X_y=True, as_frame=True)
    guarded = GuardedClassifier(LogisticRegression(max_iter=500), Identity()).fit(frame, labels)
    guarded.fit(frame.to_numpy(), labels)
    assert not hasattr(guarded, "feature_names_in_")
    guarded.predict(frame.to_numpy())  # no warning


def test_rows_of_several_lengths_are_an_error_of_ours():
    guarded = GuardedClassifier(LogisticRegression(max_iter=500), Identity()).fit(*irises())
    with pytest.raises(InvalidTensorError, match="predict of LogisticRegression"):
        guarded.predict([[7777.0] * 4, [7777.0]])


def test_codes_of_categories_in_an_array_are_taken_as_lightgbm_takes_them():
    frame, labels = ward_table()
    frame = frame.astype({"ward": "category"})
    fitted = light().set_params(min_child_samples=1).fit(frame, labels)
    codes = frame.assign(ward=frame["ward"].cat.codes).to_numpy(np.float64)
    guarded = GuardedClassifier.of_fitted(fitted, Identity())
    np.testing.assert_array_equal(guarded.predict(frame), fitted.predict(frame))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LightGBM's, of the missing names
        np.testing.assert_array_equal(guarded.predict(codes), fitted.predict(codes))


def test_sparse_queries_are_answered_and_given_to_a_defense_that_needs_them():
    sparse = later("scipy.sparse")
    queries, labels = irises()
    fitted = LogisticRegression(max_iter=500).fit(queries, labels)
    noise = build_defense("adversarial-noise", {"step_size": 0.4}, nn.Linear(3, 4))
    for defense in (Rounding(decimals=1), noise):
        guarded = GuardedClassifier.of_fitted(fitted, defense)
        rows = sparse.csr_matrix(queries)
        np.testing.assert_array_equal(guarded.predict(rows), fitted.predict(queries))
        np.testing.assert_allclose(guarded.predict_proba(rows), guarded.predict_proba(queries))


def test_texts_are_queries_of_a_model_that_takes_texts():
    vectors = later("sklearn.feature_extraction.text:TfidfVectorizer")()
    texts = ["a cough", "a broken leg", "the cough", "the leg"]
    fitted = later("sklearn.pipeline:make_pipeline")(vectors, LogisticRegression()).fit(
        texts, ["lung", "bone", "lung", "bone"]
    )
    guarded = GuardedClassifier.of_fitted(fitted, Identity())
    assert guarded.predict(texts).tolist() == fitted.predict(texts).tolist()
    assert guarded.predict_proba(texts).argmax(1).tolist() == [1, 0, 1, 0]
