"""Endpoints as targets: a real server's answers, and none that is not what it should be."""

import json
import math
import re
from itertools import product

import numpy as np
import pytest
import torch

from endpoints import (
    OpenInferenceServer,
    Reply,
    as_json,
    no_environment,
    running,
    served_confidences,
    served_logits,
)
from oneway.checks import sorted_scores
from oneway.contracts import ScoredTarget
from oneway.errors import (
    InvalidOptionError,
    InvalidTensorError,
    OnewayError,
    TargetFailedError,
    UnknownNameError,
)
from oneway.releases import release
from oneway.targets import class_names_of, open_target
from rows import same_bits
from surrogates import random_images

IMAGES = random_images(1, 7, (1, 4, 4))

CONFIDENCES = torch.tensor(served_confidences(IMAGES.numpy())).float()

PATH = "/v2/models/digits"


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    no_environment(monkeypatch)


def opened(where, outputs="confidences", **options):
    quick = {"backoff_seconds": 0.01}
    return open_target(where, outputs=outputs, device=torch.device("cpu"), **(quick | options))


@pytest.fixture
def v2():
    server = OpenInferenceServer()
    with running(server) as endpoint:
        endpoint.server = server
        yield endpoint


def test_open_inference_answers_are_the_model_s(v2):
    wanted = ["/v2/models/digits/ready", "/v2/models/digits", "/v2/models/digits/infer"]
    for nested in (False, True):
        v2.server.nested = nested
        for ending in ("", "/", "/infer", "?key=1"):
            v2.asked.clear()
            target = opened(f"{v2.address}{PATH}{ending}")
            assert not isinstance(target, ScoredTarget), ending
            assert same_bits(target(IMAGES), CONFIDENCES), (nested, ending)
            query = ending if ending.startswith("?") else ""
            assert [asked.path for asked in v2.asked] == [path + query for path in wanted], ending


def test_a_request_is_what_the_protocol_says(v2):
    opened(f"{v2.address}{PATH}")(IMAGES[:2])
    (asked,) = v2.posts
    assert asked.json == {
        "inputs": [
            {
                "name": "image",
                "shape": [2, 1, 4, 4],
                "datatype": "FP32",
                "data": IMAGES[:2].flatten().tolist(),
            }
        ],
        "outputs": [{"name": "probabilities"}],
    }


def test_a_version_is_part_of_the_address():
    path = f"{PATH}/versions/3"
    with running(OpenInferenceServer(path)) as endpoint:
        assert same_bits(opened(f"{endpoint.address}{path}")(IMAGES), CONFIDENCES)


def test_logits_make_a_target_with_logits(v2):
    v2.server.model = served_logits
    target = opened(f"{v2.address}{PATH}", "logits")
    assert isinstance(target, ScoredTarget)
    wanted = torch.tensor(served_logits(IMAGES.numpy())).float()
    assert same_bits(target.logits(IMAGES), wanted)
    assert same_bits(target(IMAGES), release(wanted))


def test_queries_are_split_into_requests_of_the_batch_size(v2):
    for batch_size in (1, 3, 7):
        v2.asked.clear()
        target = opened(f"{v2.address}{PATH}", batch_size=batch_size)
        assert same_bits(target(IMAGES), CONFIDENCES), batch_size
        sizes = [asked.json["inputs"][0]["shape"][0] for asked in v2.posts]
        assert sizes == [len(part) for part in IMAGES.split(batch_size)]


def test_queries_are_sent_in_the_datatype_of_the_model(v2):
    for kind, dtype in (("FP16", np.float16), ("FP32", np.float32), ("FP64", np.float64)):
        v2.asked.clear()
        v2.server.inputs[0]["datatype"] = kind
        target = opened(f"{v2.address}{PATH}")
        images = IMAGES.double() / 3
        wanted = torch.tensor(served_confidences(images.numpy().astype(dtype))).float()
        torch.testing.assert_close(target(images), wanted)
        tensor = v2.posts[0].json["inputs"][0]
        assert tensor["datatype"] == kind
        assert tensor["data"] == images.numpy().astype(dtype).ravel().tolist(), kind


def test_queries_that_the_datatype_cannot_hold_are_refused(v2):
    v2.server.inputs[0]["datatype"] = "FP16"
    with pytest.raises(InvalidTensorError, match="takes FP16, which is too small"):
        opened(f"{v2.address}{PATH}")(IMAGES * 1e6)
    assert not v2.posts


def test_a_model_of_records_gets_images_in_row_major_order(v2):
    for shape in ([-1, 16], [-1, -1]):
        v2.server.inputs[0]["shape"] = shape
        assert same_bits(opened(f"{v2.address}{PATH}")(IMAGES), CONFIDENCES), shape
        assert v2.posts[-1].json["inputs"][0]["shape"] == [7, 16], shape


def test_images_of_another_shape_are_not_sent(v2):
    with pytest.raises(InvalidTensorError, match=r"\(N, 1, 4, 4\), but got \(2, 1, 8, 8\)"):
        opened(f"{v2.address}{PATH}")(random_images(1, 2))
    assert not v2.posts


def test_a_model_of_one_batch_size_needs_that_size_and_is_filled_up(v2):
    v2.server.inputs[0]["shape"] = [4, 1, 4, 4]
    with pytest.raises(InvalidOptionError, match="exactly 4, but batch_size is 512"):
        opened(f"{v2.address}{PATH}")
    assert same_bits(opened(f"{v2.address}{PATH}", batch_size=4)(IMAGES), CONFIDENCES)
    assert [asked.json["inputs"][0]["shape"][0] for asked in v2.posts] == [4, 4]


def test_a_random_api_is_seen_to_be_random_and_each_query_is_asked(v2):
    generator = np.random.default_rng(1)
    v2.server.model = lambda queries: generator.dirichlet(np.ones(3), len(queries))
    target = opened(f"{v2.address}{PATH}")
    once, again = target(IMAGES[[0, 0]]), target(IMAGES[[0, 0]])
    assert not torch.equal(once, again)
    assert not torch.equal(once[0], once[1])
    assert len(v2.posts) == 2


def test_a_deterministic_api_answers_the_same_whoever_else_asks(v2):
    target = opened(f"{v2.address}{PATH}", batch_size=3)
    assert same_bits(target(IMAGES), target(IMAGES))
    assert same_bits(target(IMAGES)[4:5], target(IMAGES[4:5]))


def test_zeros_and_ties_that_an_api_releases_are_seen_as_they_are(v2):
    v2.server.model = lambda queries: np.tile([0.5, 0.5, 0.0], (len(queries), 1))
    assert torch.equal(opened(f"{v2.address}{PATH}")(IMAGES), torch.tensor([[0.5, 0.5, 0]] * 7))


def test_a_server_that_is_not_ready_is_not_opened(v2):
    v2.server.ready = 400
    with pytest.raises(TargetFailedError, match=rf"{PATH}' failed: it answered with status 400"):
        opened(f"{v2.address}{PATH}")
    v2.server.ready = 503
    with pytest.raises(TargetFailedError, match=r"failed 2 times.*status 503"):
        opened(f"{v2.address}{PATH}", attempts=2)


def test_a_fault_on_the_way_is_survived(v2):
    target = opened(f"{v2.address}{PATH}")
    v2.faults.extend([Reply(503), Reply(429, headers={"Retry-After": "0"})])
    assert same_bits(target(IMAGES), CONFIDENCES)
    assert len(v2.posts) == 3


def test_one_of_several_outputs_must_be_named(v2):
    v2.server.outputs.append({"name": "embedding", "datatype": "FP32", "shape": [-1, 8]})
    with pytest.raises(InvalidOptionError, match=r"output_name: 2 of its 3 .*label INT64 \[-1\]"):
        opened(f"{v2.address}{PATH}")
    assert same_bits(
        opened(f"{v2.address}{PATH}", output_name="probabilities")(IMAGES), CONFIDENCES
    )
    with pytest.raises(UnknownNameError, match="Did you mean 'probabilities'"):
        opened(f"{v2.address}{PATH}", output_name="probability")


def test_a_server_that_says_nothing_of_its_tensors_is_told_their_names(v2):
    for outputs in ([], None):
        v2.asked.clear()
        v2.server.inputs, v2.server.outputs = outputs, outputs
        with pytest.raises(InvalidOptionError, match=r"names 0 inputs \(none\). Say .* input_name"):
            opened(f"{v2.address}{PATH}")
        for name in (None, "probabilities"):
            target = opened(f"{v2.address}{PATH}", input_name="pixels", output_name=name)
            assert same_bits(target(IMAGES), CONFIDENCES)
        assert [asked.json["inputs"][0]["name"] for asked in v2.posts] == ["pixels"] * 2
        asked_for = [asked.json.get("outputs") for asked in v2.posts]
        assert asked_for == [None, [{"name": "probabilities"}]]


def test_one_of_several_inputs_must_be_named(v2):
    v2.server.inputs.append({"name": "mask", "datatype": "BOOL", "shape": [-1]})
    with pytest.raises(
        InvalidOptionError, match=r"names 2 inputs \(image, mask\)\. .* column of a table"
    ):
        opened(f"{v2.address}{PATH}")
    assert same_bits(opened(f"{v2.address}{PATH}", input_name="image")(IMAGES), CONFIDENCES)
    with pytest.raises(UnknownNameError, match="Did you mean 'image'"):
        opened(f"{v2.address}{PATH}", input_name="images")
    with pytest.raises(InvalidOptionError, match=r"input 'mask' .* one of FP16.*but is BOOL"):
        opened(f"{v2.address}{PATH}", input_name="mask")


def output(**changes):
    def change(answer):
        answer["outputs"][0].update(changes)
        return answer

    return change


def twice(answer):
    return answer | {"outputs": answer["outputs"] * 2}


def test_answers_that_are_not_what_the_protocol_says_are_refused(v2):
    target = opened(f"{v2.address}{PATH}")
    for change, message in (
        (output(shape=[3, 7]), r"answer 7 queries with scores of shape \(7, K\).* gave \(3, 7\)"),
        (output(shape=[7]), "as its shape says, 7 numbers, but sends 21"),
        (output(shape=[-7, -3]), "a shape of whole numbers"),
        (output(shape=[7, "0.125"]), "a shape of whole numbers"),
        (output(shape=[7, 3, 1]), r"gave \(7, 3, 1\)"),
        (output(shape=None), "name, datatype and shape"),
        (output(data=[0.125] * 20), "21 numbers, but sends 20"),
        (output(data=[0.125] * 21), "must be probabilities.* 7 of 7 rows"),
        (output(data=[math.nan] * 21), "must be finite"),
        (output(data=[math.inf, *[0.125] * 20]), "must be finite, but 1 of 7 rows"),
        (output(data=[[0.125], [0.125, 0.125]]), "rows of numbers of one length"),
        (output(data=["0.125"] * 21), "rows of numbers of one length"),
        (output(data=[0.125, "x"]), "rows of numbers of one length"),
        (output(data=[True] * 21), "rows of numbers of one length"),
        (output(data=[True, *[0.125] * 20]), "rows of numbers of one length"),
        (output(data=[[0.125] * 7] * 3), "flat or nested as its shape says"),
        (output(shape=[7, 3.0]), "a shape of whole numbers"),
        (output(datatype="BF16"), "a datatype of the protocol"),
        (output(parameters={"a": {"0.125": 1}}), "plain parameters"),
        (twice, "each of its outputs once"),
        (output(data=[None] * 21), "rows of numbers of one length"),
        (output(data=[10**400] * 21), "rows of numbers of one length"),
        (output(data=None), "rows of numbers of one length"),
        (output(data={"0.125": 1}), "data in a list"),
        (output(datatype="INT64"), "output 'probabilities' is INT64"),
        (output(name="0.125"), "answer with the output 'probabilities', but answers with 1"),
        (lambda answer: answer["outputs"], "an object whose 'outputs' are a list"),
        (lambda answer: answer | {"outputs": {"a": 0.125}}, "'outputs' are a list"),
        (lambda answer: answer | {"outputs": [0.125]}, "'outputs' are a list"),
        (lambda _: {"error": "0.125"}, "'outputs' are a list"),
    ):
        v2.server.change = change
        with pytest.raises(OnewayError, match=message) as caught:
            target(IMAGES)
        assert f"{v2.address}{PATH}" in str(caught.value), message
        assert "0.125" not in str(caught.value), message


def test_metadata_that_is_something_else_is_refused(v2):
    v2.server.inputs = [{"name": "image"}]
    with pytest.raises(TargetFailedError, match="'inputs' are a list of objects with name"):
        opened(f"{v2.address}{PATH}")


def test_rows_of_another_length_in_a_later_batch_are_refused(v2):
    v2.server.model = lambda queries: np.full(
        (len(queries), 1 + len(queries)), 1 / (1 + len(queries))
    )
    with pytest.raises(InvalidTensorError, match=r"shape \(1, 4\).*but gave \(1, 2\)"):
        opened(f"{v2.address}{PATH}", batch_size=3)(IMAGES)


# Plain JSON


def plain(wrap, model=served_confidences, take=lambda request: request["instances"]):
    return running(lambda asked: as_json(wrap(model(take(asked.json)).tolist())))


TAKES = {
    "instances": lambda request: request["instances"],
    "inputs.0.data": lambda request: request["inputs"][0]["data"],
    "": lambda request: request,
}

WRAPS = {
    "predictions": lambda rows: {"predictions": rows, "model": "digits"},
    "outputs.0.data": lambda rows: {"outputs": [{"data": rows}, 1]},
    "answers.*.scores": lambda rows: {"answers": [{"scores": row} for row in rows]},
    "": lambda rows: rows,
}


def test_plain_json_goes_and_comes_where_the_keys_say():
    for keys in product(TAKES, WRAPS):
        take, wrap = TAKES[keys[0]], WRAPS[keys[1]]
        with plain(wrap, take=take) as endpoint:
            target = opened(
                f"{endpoint.address}/predict?key=1",
                request_key=keys[0],
                response_key=keys[1],
                batch_size=3,
            )
            assert not endpoint.asked, keys
            assert same_bits(target(IMAGES), CONFIDENCES), keys
            taken = [take(asked.json) for asked in endpoint.asked]
            assert taken == [part.tolist() for part in IMAGES.split(3)], keys
            assert {asked.path for asked in endpoint.asked} == {"/predict?key=1"}, keys


KEYS = {"request_key": "instances", "response_key": "predictions"}


def test_plain_json_of_logits_and_of_records():
    with plain(lambda rows: {"predictions": rows}, served_logits) as endpoint:
        target = opened(endpoint.address, "logits", **KEYS)
        wanted = torch.tensor(served_logits(IMAGES.numpy()))
        assert same_bits(target.logits(IMAGES.flatten(1)), wanted)


def test_whole_numbers_are_probabilities_too():
    with running(lambda _: as_json({"predictions": [[0, 1], [1, 0]]})) as endpoint:
        answer = opened(endpoint.address, **KEYS)(IMAGES[:2])
    assert torch.equal(answer, torch.tensor([[0.0, 1], [1, 0]]))


def test_an_address_of_the_protocol_with_keys_gets_plain_json():
    with plain(lambda rows: {"predictions": rows}) as endpoint:
        assert same_bits(opened(f"{endpoint.address}{PATH}", **KEYS)(IMAGES), CONFIDENCES)
        assert [asked.method for asked in endpoint.asked] == ["POST"]


def test_plain_answers_that_cannot_be_used_are_refused():
    for answer, message in (
        ({"prediction": [[0.125]]}, "with 'predictions' of .* there is an object without it"),
        ([[0.125]], "with 'predictions' .* but there is a list"),
        ("0.125", "with 'predictions' .* but there is a single value"),
        ({"error": "0.125 failed"}, "an object without it, but with 'error'"),  # with status 200
        ({"predictions": "0.125"}, "rows of numbers of one length, but the scores hold texts"),
        ({"predictions": [["0.125", 1], [None, 0]]}, "hold null and texts"),
        ({"predictions": [{"0.125": 1}] * 2}, "hold objects"),
        ({"predictions": [[0.125, 0.875], [1]]}, "hold lists of different lengths"),
        ({"predictions": [[0.125, 0.875]]}, r"answer 2 queries .* but gave \(1, 2\)"),
        ({"predictions": [0.125, 0.875]}, r"but gave \(2,\)"),
        ({"predictions": [[0.125, 0.125]] * 2}, "must be probabilities"),
        ({"predictions": [[1.125, -0.125]] * 2}, "must be probabilities"),
        ({"predictions": [[math.nan, 0.125]] * 2}, "must be finite"),
        ({"predictions": []}, r"but gave \(0,\)"),
        ({"predictions": [[True, 0.125]] * 2}, "hold true or false"),
    ):
        with running(lambda _, answer=answer: as_json(answer)) as endpoint:
            where = f"{endpoint.address}/ask"
            with pytest.raises(OnewayError, match=message) as caught:
                opened(f"{where}?key=s3cret", **KEYS)(IMAGES[:2])
        assert where in str(caught.value), message
        assert "0.125" not in str(caught.value), message
        assert "s3cret" not in str(caught.value), message


def test_a_place_that_the_answer_does_not_have_is_named():
    with running(lambda _: as_json({"outputs": [{"x": 1}]})) as endpoint:
        for key in ("outputs.1.data", "outputs.x", "outputs.*.data", "outputs.\u00b2.data"):
            target = opened(endpoint.address, request_key="instances", response_key=key)
            said = f"of the key '{re.escape(key)}', but there is"
            with pytest.raises(TargetFailedError, match=said):
                target(IMAGES)


CLASSES = ("fox", "cat", "dog")


def by_label(rows, order=lambda row: (-row).argsort(), name=CLASSES.__getitem__):
    """Return scores as servers of text and image classifiers do: sorted, with labels."""
    return [[{"label": name(at), "score": float(row[at])} for at in order(row)] for row in rows]


LABELLED = {"request_key": "inputs", "response_key": "*.*.score", "label_key": "*.*.label"}


def labelled(answer):
    def reply(asked):
        return as_json(answer(served_confidences(np.array(asked.json["inputs"]))))

    return running(reply)


def test_scores_that_a_server_sorts_are_read_by_label():
    with labelled(by_label) as endpoint:
        target = opened(endpoint.address, class_names=CLASSES, batch_size=3, **LABELLED)
        assert class_names_of(target) == CLASSES
        assert same_bits(target(IMAGES), CONFIDENCES)
        turned = ("dog", "fox", "cat")
        other = opened(endpoint.address, class_names=turned, **LABELLED)
        assert same_bits(other(IMAGES), CONFIDENCES[:, [2, 0, 1]])
        unlabelled = LABELLED | {"label_key": None}
        many = random_images(2, 8, (1, 4, 4))
        assert sorted_scores(opened(endpoint.address, **unlabelled)(many))
        assert not sorted_scores(target(many))
    with labelled(lambda rows: by_label(rows, name=int)) as endpoint:
        target = opened(endpoint.address, class_names=("0", "1", "2"), **LABELLED)
        assert same_bits(target(IMAGES), CONFIDENCES)


def test_scores_that_are_not_one_for_each_class_are_refused():
    for answer, message in (
        (
            lambda rows: by_label(rows, lambda row: (-row).argsort()[:2]),
            r"one score for each of the 3 classes \(fox, cat, dog\), but 7 of 7 rows .* top k",
        ),
        (lambda rows: by_label(rows, lambda _: [0, 1, 1]), "7 of 7 rows have other labels"),
        (lambda rows: by_label(rows, name=str), "7 of 7 rows have other labels"),
        (lambda rows: by_label(rows, name=lambda _: None), "must answer with rows of labels"),
        (lambda rows: by_label(rows)[:3], "answer 7 queries"),
        (
            lambda rows: [{"label": "fox", "score": 1.0} for _ in rows],
            r"of the key '\*\.\*\.score'",
        ),
        (lambda _: [[{"label": "fox"}]], "there is an object without it"),
        (lambda _: [], "answer 7 queries|rows of numbers"),
    ):
        with labelled(answer) as endpoint:
            target = opened(endpoint.address, class_names=CLASSES, **LABELLED)
            with pytest.raises(OnewayError, match=message):
                target(IMAGES)
    for options in ({**LABELLED}, {"label_key": "*.*.label", "class_names": CLASSES}):
        with pytest.raises(InvalidOptionError, match=r"label_key|plain JSON"):
            opened("http://127.0.0.1:9/ask", **options)


def test_logits_that_are_probabilities_are_refused(v2):
    v2.server.inputs[0]["shape"] = [-1, 1, 4, 4]
    with plain(lambda rows: {"predictions": rows}) as endpoint:
        for target in (
            opened(f"{v2.address}{PATH}", "logits"),
            opened(endpoint.address, "logits", **KEYS),
        ):
            with pytest.raises(InvalidTensorError, match=r"declared logits.*--outputs confidences"):
                target(torch.cat([IMAGES, IMAGES]))


def limited(most, status, headers=None, body=b""):
    """Refuse requests of more queries than ``most``."""

    def reply(asked):
        rows = asked.json["instances"]
        if len(rows) > most:
            return Reply(status, body, headers or {})
        return as_json({"predictions": served_confidences(np.array(rows)).tolist()})

    return running(reply)


def test_requests_that_are_too_large_are_asked_again_in_parts():
    limit = {"Oneway-Max-Request-Rows": "3"}
    for status, headers, sizes in (
        (400, limit, [7, 3, 3, 1]),
        (413, limit, [7, 3, 3, 1]),
        (413, {}, [7, 3, 3, 1]),
        (413, {"Oneway-Max-Request-Rows": "9"}, [7, 3, 3, 1]),
        (413, {"Oneway-Max-Request-Rows": "x"}, [7, 3, 3, 1]),
    ):
        with limited(3, status, headers) as endpoint:
            target = opened(endpoint.address, **KEYS)
            assert same_bits(target(IMAGES), CONFIDENCES), (status, headers)
            asked = [len(post.json["instances"]) for post in endpoint.posts]
            assert asked == sizes, (status, headers)
            endpoint.asked.clear()
            assert same_bits(target(IMAGES), CONFIDENCES)
            assert [len(post.json["instances"]) for post in endpoint.posts] == [3, 3, 1]
    for status, headers in ((413, {}), (413, limit)):
        with limited(0, status, headers) as endpoint:
            with pytest.raises(TargetFailedError, match="status 413"):
                opened(endpoint.address, **KEYS)(IMAGES)
            assert len(endpoint.posts) <= 4
    with limited(3, 400) as endpoint:
        with pytest.raises(TargetFailedError, match="status 400"):
            opened(endpoint.address, **KEYS)(IMAGES)
        assert len(endpoint.posts) == 1


def test_a_limit_in_the_metadata_is_kept():
    class Limited(OpenInferenceServer):
        def __call__(self, asked):
            answer = super().__call__(asked)
            if asked.method == "GET" and asked.path == PATH:
                return as_json(json.loads(answer.body) | {"parameters": self.parameters})
            return answer

    for parameters, sizes in (
        ({"max_request_rows": 3}, [3, 3, 1]),
        ({"max_request_rows": "3"}, [7]),
        ({"max_request_rows": 0}, [7]),
        (None, [7]),
    ):
        server = Limited()
        server.parameters = parameters
        with running(server) as endpoint:
            target = opened(f"{endpoint.address}{PATH}")
            assert same_bits(target(IMAGES), CONFIDENCES)
            asked = [post.json["inputs"][0]["shape"][0] for post in endpoint.posts]
            assert asked == sizes, parameters


def test_options_that_do_not_fit_are_refused_before_anything_is_asked():
    for options, message in (
        ({}, r"asked for plain JSON, unless .*/v2/models/NAME.* both of request_key and"),
        ({"request_key": "instances"}, "both of request_key and response_key"),
        ({"response_key": "predictions"}, "both of request_key and response_key"),
        ({**KEYS, "output_name": "a"}, "Give those of one"),
        ({**KEYS, "input_name": "a"}, "Give those of one"),
        ({"request_key": "a..b", "response_key": "c"}, r"separated by dots, but got 'a\.\.b'"),
        ({"request_key": "a.1", "response_key": "c"}, "names and 0, .* but got '1'"),
        ({"request_key": "a.*", "response_key": "c"}, r"names and 0, .* but got '\*'"),
        ({**KEYS, "attempts": 0}, "attempts must be a whole number"),
    ):
        with pytest.raises(InvalidOptionError, match=message):
            opened("http://127.0.0.1:9/ask", **options)


def test_what_is_no_address_is_refused():
    for where in (
        *("http://", "https:///path", "http://host:port/", "http://host:99999/", "http://[::1"),
        *("http://host/ask\n", "http://host/a\tsk"),  # as pasted, or read from a file
    ):
        with pytest.raises(InvalidOptionError, match="must be like https://host/v2/models/NAME"):
            opened(where, **KEYS)


def test_a_password_in_the_address_is_refused_and_not_shown():
    for user in ("user:s3cret@", "s3cret@"):
        with pytest.raises(InvalidOptionError, match="ONEWAY_TOKEN") as caught:
            opened(f"http://{user}host/ask", **KEYS)
        assert "s3cret" not in str(caught.value)


def test_what_the_answers_are_must_be_said():
    for outputs in (None, "scores"):
        with pytest.raises(InvalidOptionError, match=r"say what target 'http://\[::1\]:9/ask' ans"):
            opened("http://[::1]:9/ask?key=1", outputs, **KEYS)
