"""A model of tables is served with an input for each column, by name and in any order."""

import json
import random

import numpy as np
import pandas
import pytest
import torch
from tritonclient import http as triton

from guarded_servers import CPU, rounding, running, settings
from laws import looped
from oneway.contracts import FrameTarget
from oneway.defenses import ServableDefense
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import release
from oneway.serving import GuardedFrames, serving_app

ROWS = pandas.DataFrame(
    {
        "age": [71.5, 34.0, np.nan, 58.0],
        "visits": [3, 1, 7, 2],
        "ward": ["ICU", "eye", "ICU", None],
        "smoker": [True, False, False, True],
    }
)


class Hospital:
    """A model that reads each column by its name, and tells a missing value from any other."""

    feature_names = ("age", "visits", "ward", "smoker")

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        raise AssertionError(f"asked with {len(images)} numbers")

    logits = __call__

    def frame_logits(self, frame):
        self.seen.append(frame.dtypes.to_dict())
        age = frame["age"].fillna(-20).to_numpy(np.float64) / 40
        ward = frame["ward"].map({"ICU": 1.0, "eye": -1.0}).fillna(0.3).to_numpy(np.float64)
        smoker = frame["smoker"].fillna(False).to_numpy(bool)
        scores = np.stack([age, ward, frame["visits"].to_numpy(np.float64) / 4 - smoker], 1)
        frame["age"] = 0  # whatever it does to what it gets
        return torch.from_numpy(scores)

    def frame_confidences(self, frame):
        return release(self.frame_logits(frame))


def guarded(guard=None, target=None, example=ROWS, check=True, **given):
    model = GuardedFrames(
        target or Hospital(),
        guard or rounding(),
        example=example,
        device=CPU,
        batch_multiple=4,
        **given,
    )
    if check:
        model.check()
    return model


@pytest.fixture(scope="module")
def server():
    how = settings()
    with running(serving_app(guarded(), how), how, timeout=60) as started:
        yield started


def tensor(name, values, datatype=None, shape=None):
    kinds = {"age": "FP64", "visits": "INT64", "ward": "BYTES", "smoker": "BOOL"}
    return {
        "name": name,
        "shape": shape or [len(values)],
        "datatype": datatype or kinds[name],
        "data": values,
    }


def columns_of(frame):
    """Return JSON values by column; None where one is missing."""
    return {
        name: [None if value != value else value for value in frame[name].tolist()]
        for name in frame
    }


def ask(server, inputs):
    return server.client.post("/v2/models/digits/infer", json={"inputs": inputs})


def test_columns_in_any_order_and_shape_are_released_as_the_library_does(server):
    expected = rounding().defense(Hospital().frame_logits(ROWS.copy()))
    inputs = [tensor(name, values) for name, values in columns_of(ROWS).items()]
    random.Random(0).shuffle(inputs)
    inputs[0] |= {"shape": [4, 1], "data": [[value] for value in inputs[0]["data"]]}
    answer = ask(server, inputs)
    assert answer.status_code == 200, answer.text
    [output] = answer.json()["outputs"]
    released = torch.tensor(output["data"]).reshape(output["shape"])
    assert torch.equal(released, release(expected))


def test_columns_may_come_in_binary_as_tritons_client_sends_them(server):
    values = {
        "age": np.array([71.5, 34.0]),
        "visits": np.array([3.0, 1.0]),
        "ward": np.array([b"ICU", "Übergang".encode()], object),
        "smoker": np.array([True, False]),
    }
    sent = []
    for column in server.client.get("/v2/models/digits").json()["inputs"]:
        sent.append(triton.InferInput(column["name"], [2], column["datatype"]))
        sent[-1].set_data_from_numpy(values[column["name"]])
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        got = client.infer("digits", sent).as_numpy("probabilities")
    frame = pandas.DataFrame({**values, "ward": ["ICU", "Übergang"]})
    expected = release(rounding().defense(Hospital().frame_logits(frame)))
    assert np.array_equal(got, expected.numpy())


def test_metadata_names_the_columns_and_their_types(server):
    told = server.client.get("/v2/models/digits").json()["inputs"]
    assert [(column["name"], column["datatype"], column["shape"]) for column in told] == [
        ("age", "FP64", [-1]),
        ("visits", "FP64", [-1]),
        ("ward", "BYTES", [-1]),
        ("smoker", "BOOL", [-1]),
    ]


GOOD = {name: values[:2] for name, values in columns_of(ROWS).items()}


@looped(
    ("change", "message"),
    [
        ({"ward": None}, "lacks 'ward' and holds 0 others"),
        ({"zip": tensor("zip", [1, 2], "INT64")}, "lacks none and holds 1 others"),
        ({"age": tensor("age", ["71", "34"], "BYTES")}, "'age' must be FP64"),
        ({"age": tensor("age", ["71", 34.0])}, "'age' must be numbers, or null"),
        ({"age": tensor("age", [True, 34.0])}, "'age' must be numbers, or null"),
        ({"ward": tensor("ward", [3, "ICU"])}, "'ward' must be texts, or null"),
        ({"visits": tensor("visits", [10**400, 1])}, "'visits' must be finite"),
        ({"smoker": tensor("smoker", [1, 0])}, "'smoker' must be booleans, or null"),
        ({"visits": tensor("visits", [1, 2, 3])}, "'visits' must be FP64 of shape"),
        ({"visits": tensor("visits", [1], shape=[2])}, "'visits' must have 2 values"),
        ({"age": tensor("age", [], shape=[0])}, "1 to 64 rows"),
    ],
)
def test_what_is_no_row_of_the_table_is_refused_without_a_value(server, change, message):
    inputs = {name: tensor(name, values) for name, values in GOOD.items()} | change
    answer = ask(server, [value for value in inputs.values() if value is not None])
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert "71" not in answer.text
    assert "ICU" not in answer.text


def test_a_category_that_is_new_reaches_the_model_as_it_is():
    kinds = ROWS.astype({"ward": "category"})
    model = guarded(example=kinds, check=False)
    frame = model.frame(columns_of(ROWS) | {"ward": ["dental", "eye", "ICU", None]})
    assert frame["ward"].tolist()[:3] == ["dental", "eye", "ICU"]
    assert frame["ward"].isna().tolist() == [False, False, False, True]


@pytest.mark.parametrize("visits", [[0.5, 1, 2, 3], [10**20, 1, 2, 3]])
def test_numbers_that_the_examples_type_cannot_hold_reach_the_model_as_they_are(visits):
    model = guarded()
    frame = model.frame(columns_of(ROWS) | {"visits": visits})
    assert frame["visits"].tolist() == visits
    together = model.answer([ROWS[:1], frame[:1]])
    assert np.array_equal(together[1], model.answer([frame[:1]])[0])
    assert np.array_equal(together[0], model.answer([ROWS[:1]])[0])


@looped(
    ("numbers", "kind"),
    [([3, 1.0], "int8"), ([45.5, 1], "float64"), ([300, 1], "float64"), ([None, 1], "float64")],
)
def test_numbers_that_the_type_of_the_example_does_not_hold_stay_themselves(numbers, kind):
    model = guarded(example=ROWS.astype({"visits": "int8"}), check=False)
    given = {"age": [71.5, 34.0], "visits": numbers, "ward": ["ICU", "eye"], "smoker": [True] * 2}
    visits = model.frame(given)["visits"]
    assert visits.dtype == kind
    assert visits.astype(object).where(visits.notna(), None).tolist() == numbers


def test_numbers_that_are_not_finite_are_refused(server):
    for name in ("age", "visits"):
        for number in (float("nan"), float("inf")):
            inputs = GOOD | {name: tensor(name, [number, 1.0], "FP64")}
            sent = [tensor(n, v) if isinstance(v, list) else v for n, v in inputs.items()]
            body = json.dumps({"inputs": sent})
            answer = server.client.post("/v2/models/digits/infer", content=body)
            assert answer.status_code == 400


def test_requests_that_share_a_batch_get_the_answers_they_get_alone():
    model = guarded()
    frames = [model.frame(columns_of(ROWS[place : place + 1])) for place in range(4)]
    alone = [model.answer([frame])[0] for frame in frames]
    assert np.array_equal(np.concatenate(model.answer(frames)), np.concatenate(alone))


def test_a_guard_that_needs_the_queries_and_an_example_without_a_column_are_refused():
    class NeedsQueries:
        requires_input, keeps_label, deterministic = True, True, True

        def __call__(self, logits, images=None):  # noqa: ARG002
            return logits

    with pytest.raises(InvalidOptionError, match="needs the queries as numbers"):
        guarded(ServableDefense("noise", "1", NeedsQueries()))
    with pytest.raises(InvalidTensorError, match="lacks 'ward'"):
        guarded(example=ROWS.drop(columns="ward"))
    with pytest.raises(InvalidTensorError, match="0 rows"):
        guarded(example=ROWS[:0])


def test_a_model_that_takes_frames_is_one_of_tables():
    assert isinstance(Hospital(), FrameTarget)
