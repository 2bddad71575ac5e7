"""Where model or guard fail, a client gets an error, and no clean score stands anywhere.

Clean scores are looked for in what a client gets, in the log and in the metrics, as digits.
"""

import asyncio
import logging
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from guarded_servers import (
    PATIENCE,
    SHAPE,
    digits_in,
    eventually,
    linear_model,
    logged,
    running,
    served_model,
    serving,
    settings,
)
from oneway.defenses import ServableDefense
from oneway.defenses.rounding import Rounding
from oneway.errors import OnewayError
from oneway.releases import release
from oneway.serving import serving_app
from oneway.targets import TorchTarget

QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))


class Faulty:
    """A guard, and a model's hook, that do as they should until a fault is planted."""

    requires_input, keeps_label, deterministic = False, True, True

    def __init__(self):
        self.fault, self.inner = None, Rounding(decimals=1)

    def __call__(self, logits, images=None):  # noqa: ARG002
        if self.fault is None:
            return self.inner(logits)
        return self.fault(logits)


class Panic(BaseException):
    """As what a library in Rust raises when it panics: no Exception."""


def raises(kind):
    def fault(scores):
        raise kind(f"scores were {scores.tolist()}")

    return fault


def tells(logits):
    logging.getLogger("somebody.else").error("scores were %s", logits.tolist())
    warnings.warn(f"scores were {logits.tolist()}", stacklevel=1)
    raise ValueError(logits.tolist())


FAULTS = {
    "raises": raises(ValueError),
    "no memory": raises(MemoryError),
    "exits": raises(SystemExit),
    "panics": raises(Panic),
    "is cancelled": raises(asyncio.CancelledError),
    "oneway's own error": raises(OnewayError),
    "tells the log": tells,
    "NaN": lambda logits: logits * torch.nan,
    "infinity": lambda logits: logits + torch.inf,
    "fewer rows": lambda logits: logits[:1],
    "another class": lambda logits: torch.cat([logits, logits[:, :1]], 1),
    "turned": lambda logits: logits.T,
    "nothing": lambda _: None,
    "a list": lambda logits: logits.tolist(),
    "whole numbers": lambda logits: logits.long(),
    "flipped labels": lambda logits: -logits,
}


@pytest.fixture(scope="module")
def faulty():
    return Faulty()


@pytest.fixture(scope="module", params=["http", "grpc"])
def ports(request):
    """Settings of a server that is asked over HTTP, or over gRPC."""
    return {} if request.param == "http" else {"grpc_port": 0}


@pytest.fixture(scope="module")
def server(faulty, ports):
    with serving(ServableDefense("faulty", "1", faulty), **ports) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_fault_stays(faulty):
    yield
    faulty.fault = None


@pytest.mark.hostile("a guard that fails", len(FAULTS), "503 and no score")
def test_a_guard_that_fails_releases_nothing(server, faulty):
    expected = release(faulty.inner(TorchTarget(linear_model()).logits(QUERIES)))
    for name, fault in FAULTS.items():
        faulty.fault = fault
        answer = server.infer(QUERIES)
        assert answer.status_code == 503, name
        assert answer.json() == {"error": "no scores can be released for this request"}, name
        assert digits_in(server.everything(answer), QUERIES) == [], name
        faulty.fault = None
        assert torch.equal(server.release(QUERIES), expected), name


def test_the_search_for_clean_scores_finds_them_where_there_is_no_guard(ports):
    """Else the search above would pass on anything."""
    from oneway.defenses.identity import Identity

    with serving(ServableDefense("none", "1", Identity()), **ports) as server:
        answer = server.infer(QUERIES)
        said = server.everything(answer)
    assert len(digits_in(said, QUERIES)) >= 9


@pytest.mark.hostile("a model that fails", 8, "503 and no score")
def test_a_model_that_fails_releases_nothing(ports):
    class Model(torch.nn.Module):
        fault = None

        def __init__(self):
            super().__init__()
            self.inner = linear_model()

        def forward(self, images):
            scores = self.inner(images)
            return scores if self.fault is None else self.fault(scores)

    model = Model()
    with serving(target=TorchTarget(model), **ports) as server:
        for name in (
            *("raises", "no memory", "exits", "panics", "tells the log", "NaN", "fewer rows"),
            "nothing",
        ):
            Model.fault = staticmethod(FAULTS[name])
            answer = server.infer(QUERIES)
            assert answer.status_code == 503, name
            assert digits_in(server.everything(answer), QUERIES) == [], name


def test_the_log_says_what_was_raised_where_and_not_what_it_said(server, faulty):
    before = len(server.log.getvalue())
    faulty.fault = FAULTS["raises"]
    server.infer(QUERIES)
    said = server.log.getvalue()[before:]
    assert '"error": "ValueError"' in said
    assert re.search(r'"raised": "[^"]*test_fails_closed\.py, line \d+"', said)
    assert "scores were" not in said


def test_warnings_are_logged_without_their_text_if_python_shows_them():
    with logged() as log:
        warnings.warn("an open file", ResourceWarning, stacklevel=1)
        assert log.getvalue() == ""
        warnings.warn("a score", RuntimeWarning, stacklevel=1)
        assert '"py.warnings"' in log.getvalue()
        assert "a score" not in log.getvalue()


@pytest.mark.hostile("a query that makes the guard fail on its batch", 1, "503 for that query only")
def test_one_query_that_breaks_the_guard_takes_nobody_else_down(ports):
    """Requests of one batch: the poisonous one fails, its neighbours get what they would alone."""
    entered, go = threading.Event(), threading.Event()

    class Gate(Faulty):
        def __call__(self, logits, images=None):  # noqa: ARG002
            if self.fault is not None:
                self.fault(logits)
            return self.inner(logits)

    gate = Gate()
    clean = TorchTarget(linear_model()).logits(QUERIES)

    def hold(logits):
        entered.set()
        assert go.wait(PATIENCE)
        if any(torch.allclose(row, clean[1]) for row in logits):
            raise ValueError("poison")

    with (
        serving(ServableDefense("gate", "1", gate), **ports) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        gate.fault = hold
        first = pool.submit(server.infer, QUERIES[:1])
        assert entered.wait(PATIENCE)
        others = [pool.submit(server.infer, QUERIES[at : at + 1]) for at in (0, 1, 2)]
        eventually(lambda: server.metric("oneway_waiting_queries 3.0"))
        go.set()
        assert [answer.result().status_code for answer in (first, *others)] == [200, 200, 503, 200]
        assert server.metric("oneway_batch_queries_sum 7.0")


def test_a_server_that_cannot_go_on_says_so(ports):
    """A fault in oneway's own code must not let clients wait, nor tell them anything."""
    how, model = settings(**ports), served_model()
    app = serving_app(model, how)

    def broken(queries):
        raise RuntimeError(f"queries were {queries}")

    model.answer = broken
    with running(app, how) as dead:
        assert [dead.infer(QUERIES).status_code for _ in range(2)] == [503, 503]
        for path in ("live", "ready"):
            assert dead.client.get(f"/v2/health/{path}").status_code == 503
        assert '"event": "answering_ended", "error": "RuntimeError"' in dead.log.getvalue()
        assert "queries were" not in dead.log.getvalue()
