"""Estimators that were fitted on DataFrames: asked by column name, with the types of the fit."""

import numpy as np
import pandas
import pytest
import torch

from laws import looped
from oneway.contracts import FrameTarget
from oneway.data.tables import load_records
from oneway.defenses.identity import Identity
from oneway.errors import InvalidOptionError, InvalidTensorError, TargetFailedError
from oneway.targets import (
    CallableTarget,
    DefendedTarget,
    class_names_of,
    open_target,
    records_target,
)
from oneway.targets.estimator import EstimatorTarget, estimator_target
from optional import later

CalibratedClassifierCV = later("sklearn.calibration:CalibratedClassifierCV")
make_column_transformer = later("sklearn.compose:make_column_transformer")
HistGradientBoostingClassifier = later("sklearn.ensemble:HistGradientBoostingClassifier")
SimpleImputer = later("sklearn.impute:SimpleImputer")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
make_pipeline = later("sklearn.pipeline:make_pipeline")
OneHotEncoder = later("sklearn.preprocessing:OneHotEncoder")
StandardScaler = later("sklearn.preprocessing:StandardScaler")
lightgbm = later("lightgbm")
xgboost = later("xgboost")
catboost = later("catboost")

LEVELS = ["lo", "mid", "hi"]
TEXTS = ["sex", "ward name", "level"]


def patients(rows, seed):
    """A frame as of a hospital: texts, integers, booleans, numbers, and missing values."""
    generator = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "sex": generator.choice(["m", "f"], rows),
            "ward name": generator.choice(["ICU", "ER", "GP"], rows),
            "level": generator.choice(LEVELS, rows),
            "age": generator.integers(18, 90, rows),
            "smoker": generator.random(rows) < 0.3,
            "pressure": generator.integers(80, 160, rows).astype(float),
            "code": generator.choice([30, 10, 20], rows),
        }
    )
    frame.loc[generator.random(rows) < 0.1, "pressure"] = np.nan
    frame.loc[generator.random(rows) < 0.1, "ward name"] = np.nan
    return frame


OWN, TEST = patients(300, 1), patients(60, 2)
TRAIN = patients(300, 0)
ILL = ((TRAIN["age"] > 50) & (TRAIN["level"] == "mid")).to_numpy()
CLASSES = np.where(ILL, "ill", np.where(TRAIN["smoker"], "a smoker", "well"))


def as_it_is(frame):
    return frame


def categories(*, ordered=False, code=True):
    """Return a function that makes texts categories in another order than the sorted one."""
    level = pandas.CategoricalDtype(LEVELS, ordered=ordered)
    number = pandas.CategoricalDtype([30, 10, 20])
    ward = pandas.CategoricalDtype(["ICU", "ER", "GP"])

    def prepare(frame):
        kinds = {"level": level, "ward name": ward, "sex": pandas.CategoricalDtype(["m", "f"])}
        return frame.astype(kinds | ({"code": number} if code else {}))

    return prepare


def without_holes(frame):
    return frame.assign(**{"ward name": frame["ward name"].fillna("none")})


def pipeline():
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer(
        (texts, TEXTS), (numbers, ["age", "pressure", "code"]), remainder="passthrough"
    )
    return make_pipeline(columns, LogisticRegression(max_iter=500))


def boosting():
    return HistGradientBoostingClassifier(max_iter=5, categorical_features="from_dtype")


def light():
    return lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, num_threads=1)


def extreme():
    return xgboost.XGBClassifier(n_estimators=5, nthread=1, enable_categorical=True)


def cat():
    return catboost.CatBoostClassifier(
        5, verbose=False, thread_count=1, allow_writing_files=False, cat_features=[*TEXTS, "code"]
    )


MODELS = {
    "pipeline": (pipeline, as_it_is),
    "boosting": (boosting, categories()),
    "LightGBM": (light, categories()),
    "LightGBM, ordered": (light, categories(ordered=True, code=False)),
    "calibrated LightGBM": (lambda: CalibratedClassifierCV(light(), cv=2), categories()),
    "XGBoost": (extreme, categories()),
    "XGBoost, number codes": (extreme, categories(code=False)),
    "CatBoost": (cat, without_holes),
}
FITTED = {}


def fitted(name):
    if name not in FITTED:
        build, prepare = MODELS[name]
        labels = CLASSES
        if name.startswith("XGBoost"):
            labels = np.unique(CLASSES, return_inverse=True)[1]
        FITTED[name] = build().fit(prepare(TRAIN), labels)
    return FITTED[name], MODELS[name][1]


def write(path, frame):
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


def wrapped(model):
    return estimator_target(model, batch_size=50, name="the model")


@pytest.mark.parametrize("name", MODELS)
def test_a_table_gives_the_answers_of_the_bare_model_on_the_bare_frame(name, tmp_path):
    model, prepare = fitted(name)
    target = wrapped(model)
    assert isinstance(target, FrameTarget)
    assert class_names_of(target) == tuple(map(str, model.classes_))
    assert class_names_of(DefendedTarget(target, Identity())) == class_names_of(target)
    bare = torch.from_numpy(model.predict_proba(prepare(TEST))).float()
    stored = as_it_is if name != "CatBoost" else without_holes
    for suffix, declared in ((".csv", as_it_is), (".parquet", as_it_is), (".parquet", prepare)):
        own = write(tmp_path / f"own{suffix}", declared(stored(OWN)))
        turned = stored(TEST)[list(reversed(TEST.columns))]
        test = write(tmp_path / f"test{suffix}", declared(turned))
        auxiliary = load_records(own, label=None)
        records = load_records(test, label=None, encoding=auxiliary.encoding)
        columns = [column.name for column in auxiliary.encoding.columns]
        target = records_target(wrapped(model), auxiliary.encoding.decode_frame, columns=columns)
        torch.testing.assert_close(target(records.queries), bare)
        assert torch.equal(target.logits(records.queries).argmax(-1), bare.argmax(-1))


@pytest.mark.parametrize("name", ["pipeline", "LightGBM", "XGBoost", "CatBoost"])
def test_a_file_of_a_model_is_asked_with_frames_in_any_order_of_columns(name, tmp_path):
    joblib = pytest.importorskip("joblib")
    model, prepare = fitted(name)
    joblib.dump(model, tmp_path / "model.joblib")
    target = open_target(
        str(tmp_path / "model.joblib"),
        outputs=None,
        device=torch.device("cpu"),
        trust_pickle=True,
    )
    frame = prepare(TEST)
    before = frame.copy()
    turned = frame[list(reversed(frame.columns))]
    expected = torch.from_numpy(model.predict_proba(frame)).float()
    torch.testing.assert_close(target.frame_confidences(turned), expected)
    pandas.testing.assert_frame_equal(frame, before)


def test_a_category_is_matched_by_its_text_whatever_its_type():
    model, prepare = fitted("XGBoost")
    frame = prepare(TEST)
    expected = wrapped(model).frame_confidences(frame)
    for kind in (float, str, "category"):
        other = frame.assign(code=TEST["code"].astype(kind))
        assert torch.equal(wrapped(model).frame_confidences(other), expected)


def test_a_category_that_the_fit_did_not_have_is_as_for_the_bare_model():
    changed = TEST.assign(level=["4711secret", *TEST["level"][1:]])
    model, _ = fitted("XGBoost")
    with pytest.raises(
        InvalidTensorError, match=r"'level' has 1 of 60 rows .* none of the 3"
    ) as error:
        wrapped(model).frame_confidences(changed)
    assert "4711" not in str(error.value)
    model, prepare = fitted("LightGBM")
    bare = prepare(TEST)
    bare.loc[0, "level"] = np.nan
    bare = model.predict_proba(bare)
    got = wrapped(model).frame_confidences(changed)
    torch.testing.assert_close(got, torch.from_numpy(bare).float())


def test_columns_of_categories_that_cannot_be_told_apart_are_refused():
    model, _ = fitted("LightGBM, ordered")
    with pytest.raises(
        InvalidTensorError, match=r"3 columns of pandas categories, but .* 2 columns"
    ):
        wrapped(model).frame_confidences(TEST.assign(level=1))


def test_missing_and_extra_columns_are_named_before_any_query():
    model, _ = fitted("pipeline")
    changed = TEST.drop(columns="age").assign(height=1.0)
    with pytest.raises(InvalidTensorError, match=r"lacks 'age' and also has 'height'.*--drop"):
        wrapped(model).frame_confidences(changed)

    def never(_):
        pytest.fail("a model was asked before its columns were checked")

    with pytest.raises(InvalidTensorError, match="lacks 'age' and also has 'height'"):
        records_target(wrapped(model), never, columns=list(changed))
    plain = wrapped(LogisticRegression(max_iter=500).fit(TRAIN[["age", "code"]].to_numpy(), ILL))
    assert type(plain) is EstimatorTarget
    with pytest.raises(InvalidTensorError, match=r"fitted on 2 features without .* 3 columns: 'a'"):
        records_target(plain, never, columns=["a", "b", "c"])
    twice = pandas.concat([TEST, TEST[["age"]]], axis=1)
    with pytest.raises(InvalidTensorError, match="one name for several columns"):
        wrapped(model).frame_confidences(twice)
    with pytest.raises(InvalidTensorError, match="asked with a pandas DataFrame, but got list"):
        wrapped(model).frame_confidences([1])


def test_missing_values_that_a_model_cannot_take_are_named_with_the_remedy(tmp_path):
    frame = TRAIN[["age", "pressure"]]
    remedy = "Columns with missing values: 'pressure'.*fill them in"
    model = LogisticRegression(max_iter=500).fit(frame.fillna(0), ILL)
    with pytest.raises(TargetFailedError, match=remedy):
        wrapped(model).frame_confidences(TEST[["age", "pressure"]])
    records = load_records(write(tmp_path / "own.csv", OWN[["age", "pressure"]]), label=None)
    model = LogisticRegression(max_iter=500).fit(frame.fillna(0).to_numpy(), ILL)
    names, decode = ["age", "pressure"], records.encoding.decode
    with pytest.raises(TargetFailedError, match=remedy):
        records_target(wrapped(model), decode, columns=names)(records.queries)
    # A model that takes them is asked with them.
    native = HistGradientBoostingClassifier(max_iter=5).fit(frame.to_numpy(), ILL)
    target = records_target(wrapped(native), decode, columns=names, missing=["pressure"])
    expected = torch.from_numpy(native.predict_proba(OWN[["age", "pressure"]].to_numpy())).float()
    torch.testing.assert_close(target(records.queries), expected)
    other = CallableTarget(native.predict_proba)
    with pytest.raises(InvalidOptionError, match="missing values in column 'pressure', which only"):
        records_target(other, decode, columns=names, missing=["pressure"])


def test_no_message_holds_a_value_of_a_query():
    model = LogisticRegression(max_iter=500).fit(TRAIN[["age"]], ILL)
    with pytest.raises(TargetFailedError, match="have the types that the model was") as error:
        wrapped(model).frame_confidences(
            TEST[["age"]].astype(object).replace(TEST["age"][0], "ICU")
        )
    assert "ICU" in str(error.value.__cause__)
    assert "ICU" not in str(error.value)


def test_a_model_of_a_frame_of_numbers_answers_tensors_too():
    # scikit-learn would warn at every call that names are missing; warnings are errors here.
    frame = TRAIN[["age", "code"]]
    model = LogisticRegression(max_iter=500).fit(frame, ILL)
    answer = wrapped(model)(torch.tensor(frame.to_numpy(np.float64)))
    torch.testing.assert_close(answer, torch.from_numpy(model.predict_proba(frame)).float())
    with pytest.raises(InvalidTensorError, match=r"fitted on 2 features, but queries .* have 3"):
        wrapped(model)(torch.rand(2, 3))
    with pytest.raises(InvalidTensorError, match="takes tables and no numbers alone"):
        wrapped(fitted("LightGBM")[0])(torch.rand(2, 7))


@looped("kind", ["LightGBM", "XGBoost"])
def test_columns_that_are_numbered_are_found_by_their_numbers(kind):
    frame = pandas.DataFrame(TRAIN[["age", "code"]].to_numpy())
    model = MODELS[kind][0]().fit(frame, ILL.astype(int))
    expected = torch.from_numpy(model.predict_proba(frame)).float()
    for asked in (frame, frame.rename(columns=str)[["1", "0"]]):
        torch.testing.assert_close(wrapped(model).frame_confidences(asked), expected)


@looped("names", [["Column_0", "Column_1"], ["0", "1"]])
def test_names_that_a_library_makes_up_for_a_matrix_are_none(names):
    class Fitted:
        classes_ = (0, 1)
        feature_names_ = names
        n_features_in_ = 0

        def predict_proba(self, rows):
            return rows

        def predict(self, rows):
            return rows.argmax(1)

    target = wrapped(Fitted())
    assert (type(target), target.features) == (EstimatorTarget, 2)
