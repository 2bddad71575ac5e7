"""Guards on a real Ray: before a deployment over HTTP and by handle, and over stored scores."""

import asyncio
import json
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from endpoints import PATIENCE
from faulty_defenses import REFUSED, Faulty
from laws import looped
from oneway.adapters import Guard, KeyedRandomness, SecretKey
from oneway.adapters.ray import (
    GuardRows,
    answer_together,
    as_queries,
    guard_dataset,
    guard_deployment,
    instances_of,
)
from oneway.adapters.ray_codebooks import fit_dataset
from oneway.defenses import build_defense
from oneway.defenses.codebook import fit_codebook
from oneway.defenses.codebook.sample import sample_rows
from oneway.defenses.dirichlet_noise import DirichletNoise
from oneway.defenses.rounding import Rounding
from oneway.errors import (
    DefenseFailedError,
    InvalidOptionError,
    InvalidTensorError,
    OnewayError,
    TargetFailedError,
    UnknownNameError,
)
from optional import later
from surrogates import small_inverter

SECRET = b"0123456789abcdef"
WEIGHTS = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
QUERIES = np.random.default_rng(2).random((24, 1, 4, 4)).astype(np.float32)


def scores_of(queries):
    return queries.reshape(len(queries), -1) @ WEIGHTS


def load_guard():
    # In earnest the key is read from the worker's environment.
    made = KeyedRandomness(
        lambda generator: DirichletNoise(keep_label=True, generator=generator), SecretKey(SECRET)
    )
    return Guard(made, "logits", decimals=3)


QUOTED = 7654321.0
"""A score that a defense fails on and quotes: no process, actor or address has all its digits."""


class Shouting:
    """A defense that fails on one query, and quotes it."""

    requires_input, keeps_label, deterministic = False, True, True

    def __call__(self, logits, images=None):  # noqa: ARG002
        if (logits[:, 0] == QUOTED).any():
            raise RuntimeError(f"cannot defend {logits.tolist()}")
        return load_guard().defense(logits)


class Model:
    """Cannot score a query of ones, and gives NaN for one of threes.

    Of a query of twos, its guard cannot guard the scores.
    """

    async def __call__(self, queries):
        if (queries == 1).all():
            raise RuntimeError(f"cannot score {queries}")
        if (queries == 3).all():
            return scores_of(queries) * np.nan
        scores = scores_of(queries)
        scores[(queries == 2).all((1, 2, 3)), 0] = QUOTED
        return scores


@pytest.fixture(scope="module")
def workers(cluster):
    """Workers have oneway, but not these tests: they get them by value."""
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return cluster


@pytest.fixture(scope="module")
def served(workers):  # noqa: ARG001
    serve = later("ray.serve")
    with socket.socket() as reserved:
        # Bound, so that no other process gets the port; Serve binds it as well, and listens.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        serve.start(http_options={"port": port, "host": "127.0.0.1"})
        guard = guard_deployment(
            lambda: Guard(Shouting(), "logits", decimals=3),
            autoscaling_config={"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 8},
            batch_wait_seconds=0.2,
            max_batch_size=8,
            ray_actor_options={"num_cpus": 0},  # it stays up beside the other tests of the cluster
        )
        handle = serve.run(
            guard.bind(serve.deployment(Model, ray_actor_options={"num_cpus": 0}).bind())
        )
        answer = handle.answer  # each look makes another handle, with threads of its own
        yield SimpleNamespace(answer=answer, port=port)  # it ends with the cluster: that is faster
        answer.shutdown()


def post(port, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/",
        data=body if isinstance(body, bytes) else json.dumps(body).encode(),
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.slow
def test_a_deployment_answers_with_what_the_guard_releases_in_any_batch(served):
    expected = load_guard()(scores_of(QUERIES))
    released = served.answer.remote(QUERIES).result(timeout_s=PATIENCE)
    np.testing.assert_array_equal(released, expected)
    np.testing.assert_array_equal(released.argmax(1), scores_of(QUERIES).argmax(1))
    status, told = post(served.port, {"instances": QUERIES.tolist()})
    assert status == 200
    assert set(told) == {"predictions"}
    np.testing.assert_array_equal(np.array(told["predictions"], np.float32), expected)
    # Many clients at once, one query each, are answered together.
    with ThreadPoolExecutor(24) as clients:
        asked = [
            clients.submit(post, served.port, {"instances": [one]}) for one in QUERIES.tolist()
        ]
        alone = [one.result()[1]["predictions"] for one in asked]
    np.testing.assert_array_equal(np.concatenate(alone).astype(np.float32), expected)


@pytest.mark.slow
def test_over_http_what_is_no_query_is_400_and_a_model_that_fails_503(served):
    for body in (
        b"not json",
        {"inputs": [[1.0]]},
        {"instances": []},
        {"instances": [[1.0], [1.0, 2.0]]},
        {"instances": [["text"]]},
        b'{"instances": [[1e99]]}',
    ):
        status, told = post(served.port, body)
        assert status == 400
        assert set(told) == {"error"}
    for value in (1, 3):
        body = {"instances": np.full_like(QUERIES[:1], value).tolist()}
        status, told = post(served.port, body)
        assert status == 503
        assert told == {"error": "the guard or its model failed; nothing is released"}


@pytest.mark.slow
def test_a_guard_that_fails_lets_nothing_out(served):
    twos = np.full_like(QUERIES[:1], 2)
    status, told = post(served.port, {"instances": twos.tolist()})
    assert (status, told) == (503, {"error": "the guard or its model failed; nothing is released"})
    with pytest.raises(DefenseFailedError, match="nothing is released") as raised:
        served.answer.remote(twos).result(timeout_s=PATIENCE)
    assert "cannot defend" not in str(raised.value)
    assert "7654321" not in str(raised.value)


def together(requests, guard, model=scores_of):
    async def ask(queries):
        return model(queries)

    return asyncio.run(answer_together(requests, ask, guard))


def test_requests_are_asked_together_and_get_their_own_rows():
    asked = []

    def model(queries):
        asked.append(len(queries))
        return scores_of(queries)

    parts = np.split(QUERIES, [1, 5, 6, 20])
    answers = together(parts, load_guard(), model)
    assert asked == [24]
    np.testing.assert_array_equal(np.concatenate(answers), load_guard()(scores_of(QUERIES)))
    assert [len(answer) for answer in answers] == [len(part) for part in parts]


def test_a_request_of_another_shape_fails_alone():
    odd = np.zeros((2, 7), np.float32)
    first, wrong, last = together([QUERIES[:2], odd, QUERIES[2:5]], load_guard())
    assert isinstance(wrong, TargetFailedError)
    np.testing.assert_array_equal(
        np.concatenate([first, last]), load_guard()(scores_of(QUERIES[:5]))
    )


@looped("fails", ["the model", "the guard"])
def test_a_query_that_breaks_something_fails_alone(fails):
    broken = QUERIES[5, 0, 0, 0]

    def model(queries):
        scores = scores_of(queries)
        if fails == "the model":
            scores[queries[:, 0, 0, 0] == broken] = np.nan
        else:
            scores[queries[:, 0, 0, 0] == broken, 0] = QUOTED
        return scores

    guard = Guard(Shouting(), "logits", decimals=3)
    answers = together(np.split(QUERIES, 24), guard, model)
    expected = load_guard()(scores_of(QUERIES))
    for at, answer in enumerate(answers):
        if at == 5:
            assert isinstance(answer, OnewayError)
        else:
            np.testing.assert_array_equal(answer, expected[at : at + 1])


def test_a_guard_out_of_memory_is_an_error_without_its_text(monkeypatch):
    def short(*_):
        raise MemoryError(f"no room for {WEIGHTS}")

    monkeypatch.setattr("oneway.adapters.guard.clean_logits_of", short)
    for answer in together([QUERIES[:2], QUERIES[2:]], load_guard()):
        assert isinstance(answer, TargetFailedError)
        assert_without(answer, "room")


def assert_without(error, text):
    while error is not None:
        assert text not in str(error)
        error = error.__cause__ or error.__context__


def test_a_model_that_raises_an_error_of_ours_is_quoted_no_more_than_another():
    def model(queries):
        raise InvalidTensorError(f"as Ray gives it, with the remote traceback of {queries}")

    for answer in together([QUERIES[:2], QUERIES[2:]], load_guard(), model):
        assert isinstance(answer, TargetFailedError)
        assert_without(answer, "remote traceback")


def test_a_body_of_lists_in_lists_is_no_request():
    class Deep:
        async def json(self):
            return json.loads(b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")

    with pytest.raises(InvalidTensorError, match="instances"):
        asyncio.run(instances_of(Deep()))


@looped("fault", ["raises ValueError", "NaN", "another label"])
def test_each_fault_of_a_defense_is_an_error_for_each_request(fault):
    guard = Guard(Faulty(REFUSED[fault]), "logits")
    for answer in together([QUERIES[:2], QUERIES[2:]], guard):
        assert isinstance(answer, DefenseFailedError)


@looped("model", [lambda _: "scores", lambda queries: scores_of(queries)[1:], lambda _: None])
def test_a_model_that_answers_otherwise_is_an_error(model):
    for answer in together([QUERIES], load_guard(), model):
        assert isinstance(answer, OnewayError)


def test_a_defense_that_needs_the_queries_is_given_them():
    surrogate = small_inverter(classes=3, image_shape=(1, 4, 4))
    guard = Guard(build_defense("adversarial-noise", {"step_size": 1.0}, surrogate), "logits")
    (answer,) = together([QUERIES], guard)
    np.testing.assert_array_equal(answer, guard(scores_of(QUERIES), QUERIES))


def test_queries_are_numbers_of_one_row_each():
    assert as_queries([[1, 2]]).dtype == np.float32
    for wrong in ([], [1.0], [[True]], [["a"]], [[1.0], [1.0, 2.0]], 3.0, None, [[float("nan")]]):
        with pytest.raises(InvalidTensorError):
            as_queries(wrong)


class Narrow(Rounding):
    """Fails where more rows come at once than were asked for: they would all lie in memory."""

    def __call__(self, logits, images=None):
        if len(logits) > 256:
            raise MemoryError
        return super().__call__(logits, images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")  # of Ray Data, about its own settings
def test_stored_scores_are_guarded_in_bulk_and_the_rest_is_dropped(workers):  # noqa: ARG001
    logits = np.random.default_rng(3).normal(size=(3000, 5)).astype(np.float32)
    stored = later("ray.data").from_items(
        [{"id": number, "secret": number, "logits": row} for number, row in enumerate(logits)],
        override_num_blocks=3,
    )
    load = lambda: Guard(Narrow(decimals=1), "logits", batch_size=10_000)  # noqa: E731
    guarded = guard_dataset(stored, load, scores="logits", keep=["id"], batch_size=256)
    found = guarded.to_pandas().sort_values("id")
    assert list(found.columns) == ["id", "confidences"]
    np.testing.assert_array_equal(found["id"], np.arange(3000))
    expected = Guard(Rounding(decimals=1), "logits")(logits)
    np.testing.assert_array_equal(np.stack(found["confidences"].to_list()), expected)
    for options, kind in (
        ({"scores": "logit"}, UnknownNameError),
        ({"scores": "logits", "queries": "images"}, UnknownNameError),
        ({"scores": "logits", "keep": ["logits"]}, InvalidOptionError),
        ({"scores": "logits", "keep": "id"}, InvalidOptionError),
        ({"scores": "logits", "workers": 0}, InvalidOptionError),
    ):
        with pytest.raises(kind):
            guard_dataset(stored, load, **options)


def test_a_worker_guards_columns_and_keeps_no_clean_one():
    surrogate = small_inverter(classes=3, image_shape=(1, 4, 4))
    defense = build_defense("adversarial-noise", {"step_size": 1.0}, surrogate)
    rows = GuardRows(lambda: Guard(defense, "logits"), "logits", "images", ("id",), "confidences")
    batch = {"id": np.arange(24), "logits": scores_of(QUERIES), "images": QUERIES}
    told = rows(batch)
    assert set(told) == {"id", "confidences"}
    expected = Guard(defense, "logits")(torch.from_numpy(scores_of(QUERIES)), QUERIES)
    np.testing.assert_array_equal(told["confidences"], expected.numpy())
    lists = np.empty(24, object)
    lists[:] = list(scores_of(QUERIES))
    np.testing.assert_array_equal(rows({**batch, "logits": lists})["confidences"], expected.numpy())


def test_a_key_is_not_sent_to_a_worker():
    guard = load_guard()
    with pytest.raises(InvalidOptionError, match="not pickled"):
        later("ray.cloudpickle").dumps(lambda: guard)


@looped("options", [{"max_batch_size": 0}, {"batch_wait_seconds": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidOptionError):
        guard_deployment(load_guard, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")  # of Ray Data, about its own settings
def test_a_codebook_of_blocks_is_that_of_all_rows_though_a_worker_dies_on_ray(workers, tmp_path):  # noqa: ARG001
    logits = np.random.default_rng(4).normal(size=(900, 3)).astype(np.float32) * 3
    stored = later("ray.data").from_numpy(np.array_split(logits, 2))
    marker = str(tmp_path / "died")

    def pass_on(batch):
        # The first worker is lost at once, with its block.
        import os

        if not os.path.exists(marker):  # noqa: PTH110
            open(marker, "w").close()  # noqa: PTH123
            os._exit(1)
        return batch

    found = fit_dataset(stored.map_batches(pass_on, batch_size=None), scores="data", most_rows=250)
    kept = torch.from_numpy(logits)
    kept = kept[torch.cat(sample_rows(kept, 250))]
    wanted = fit_codebook(kept)
    assert (tmp_path / "died").exists()
    assert len(kept) == 750
    assert found.sizes == wanted.sizes
    assert torch.equal(found.members.sort().values, wanted.members.sort().values)
    released = [book.expand(book.values, book(kept)) for book in (found, wanted)]
    torch.testing.assert_close(*released, rtol=2**-11, atol=2**-11)
    with pytest.raises(UnknownNameError):
        fit_dataset(stored, scores="logits")
