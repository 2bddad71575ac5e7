"""Traces: what a collector gets, what a guarded server gets, and that neither holds a value."""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from endpoints import OpenInferenceServer, Reply
from endpoints import running as endpoint_running
from grpc_client import infer_message
from guarded_servers import (
    CPU,
    PATH,
    PATIENCE,
    SHAPE,
    digits_in,
    eventually,
    request_of,
    rounding,
    running,
    served_model,
    serving,
    settings,
)
from oneway.errors import InvalidOptionError, MissingExtraError
from oneway.serving import (
    GuardedScores,
    ProxyOptions,
    check_proxy,
    open_upstream,
    proxy_app,
    serving_app,
)
from oneway.serving.tracing import ATTRIBUTES, span, trace_headers, tracer_provider

QUERIES = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(8))

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {
    "traceparent": f"00-{TRACE}-{PARENT}-01",
    "tracestate": "query=0.25",
    "baggage": "query=0.25",
}

KINDS = {str: "string_value", int: "int_value"}
ALLOWED = {name: KINDS[kind] for name, kind in ATTRIBUTES.values()}


@pytest.fixture(autouse=True)
def nothing_is_asked_for(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@contextmanager
def collecting(monkeypatch):
    """Give a function that returns all spans which a collector has got, by name."""
    with endpoint_running(lambda _: Reply()) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")

        def spans():
            got = []
            for asked in collector.posts:
                assert asked.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(asked.body).resource_spans:
                    for scope in resource.scope_spans:
                        got += scope.spans
            return got

        yield spans


def attributes(one):
    return {each.key: each.value for each in one.attributes}


def check(one):
    """Nothing stands in a span but the allowed attributes, with their types."""
    assert not one.events
    assert not one.links
    assert not one.trace_state
    assert not one.status.message
    for name, value in attributes(one).items():
        assert value.WhichOneof("value") == ALLOWED[name]


def test_a_collector_gets_times_and_no_value(monkeypatch):
    with collecting(monkeypatch) as spans:
        how, model = settings(), served_model()
        with running(serving_app(model, how), how) as server:
            server.client.get("/v2/health/live")
            server.client.get("/metrics")
            answer = server.client.post(f"{PATH}/infer", json=request_of(QUERIES), headers=CONTEXT)
            assert answer.status_code == 200
            bad = server.client.post(f"{PATH}/infer?0.25", content=b'{"inputs": [0.25]}')
            assert bad.status_code == 400
            assert server.client.request("REPORT", f"/{QUERIES[0, 0, 0, 0]}").status_code >= 400
            eventually(lambda: len(spans()) == 7)
            got = spans()
            assert "0.25" not in str(got)
            assert digits_in(str(got), QUERIES) == []
        for one in got:
            check(one)
        mine = {one.name: one for one in got if one.trace_id.hex() == TRACE}
        assert mine.keys() == {"infer", "receive", "model", "guard"}
        request = mine.pop("infer")
        assert request.parent_span_id.hex() == PARENT
        facts = attributes(request)
        assert facts["http.response.status_code"].int_value == 200
        assert facts["oneway.queries"].int_value == 3
        for one in mine.values():
            assert one.parent_span_id == request.span_id
            assert request.start_time_unix_nano <= one.start_time_unix_nano
            assert one.start_time_unix_nano <= one.end_time_unix_nano
            assert one.end_time_unix_nano <= request.end_time_unix_nano
        others = [one for one in got if one.trace_id.hex() != TRACE and not one.parent_span_id]
        refused = {attributes(one)["oneway.refused"].string_value for one in others}
        assert refused == {"bad_request"}


def test_a_request_in_a_batch_has_spans_of_its_own_and_a_failure_s_text_is_in_none(monkeypatch):
    with collecting(monkeypatch) as spans:
        how, model = settings(batch_wait_milliseconds=200), served_model()
        with running(serving_app(model, how), how) as server:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(server.infer, [QUERIES[:1]] * 4))
            eventually(lambda: len(spans()) == 16)
            for name in ("model", "guard"):
                parents = {one.parent_span_id for one in spans() if one.name == name}
                assert parents == {one.span_id for one in spans() if one.name == "infer"}

            def fails(_):
                raise ValueError("0.987654321")

            monkeypatch.setattr(model, "_clean_logits", fails)
            assert server.infer(QUERIES).status_code == 503
            eventually(lambda: len(spans()) == 19)
        assert "0.98765" not in str(spans())
        for one in spans():
            check(one)


def test_a_guarded_server_gets_the_span_that_asks_it_and_nothing_else_of_a_client(monkeypatch):
    patient, guard = settings(upstream_timeout_seconds=PATIENCE), rounding(1)
    with collecting(monkeypatch) as spans, endpoint_running(OpenInferenceServer()) as upstream:
        where = upstream.address + PATH
        model = asyncio.run(open_upstream(where, patient, guard, ProxyOptions()))
        guarded = GuardedScores(guard, "confidences", device=CPU)
        asyncio.run(check_proxy(model, guarded, patient))
        assert not any("traceparent" in asked.headers for asked in upstream.asked)
        with running(proxy_app(model, guarded, patient), patient) as server:
            server.client.post(f"{PATH}/infer", json=request_of(QUERIES), headers=CONTEXT)
            eventually(lambda: len(spans()) == 4)
        (asking,) = (one for one in spans() if one.name == "upstream")
        told = {name.lower(): value for name, value in upstream.posts[-1].headers.items()}
        assert told["traceparent"] == f"00-{TRACE}-{asking.span_id.hex()}-01"
        assert not {"tracestate", "baggage"} & told.keys()
        assert {one.name for one in spans()} == {"infer", "receive", "upstream", "guard"}


def test_a_request_over_grpc_has_the_spans_of_one_over_http(monkeypatch):
    with collecting(monkeypatch) as spans, serving(grpc_port=0) as server:
        body = infer_message(request_of(QUERIES)).SerializeToString()
        assert server.grpc.call("ModelInfer", body, **CONTEXT).status_code == 200
        assert server.grpc.call("ModelInfer", b"\x0a0.25").status_code == 400
        assert server.grpc.call("ServerLive", b"").status_code == 200  # a probe has no span
        eventually(lambda: len(spans()) == 6)
        got = spans()
    for each in got:
        check(each)
    assert "0.25" not in str(got)
    assert digits_in(str(got), QUERIES) == []
    mine = {each.name: each for each in got if each.trace_id.hex() == TRACE}
    assert mine.keys() == {"grpc_ModelInfer", "receive", "model", "guard"}
    request = mine.pop("grpc_ModelInfer")
    assert request.parent_span_id.hex() == PARENT
    assert {each.parent_span_id for each in mine.values()} == {request.span_id}
    (refused,) = (each for each in got if not each.parent_span_id)
    for each, code in ((request, 0), (refused, 3)):  # OK, INVALID_ARGUMENT
        facts = attributes(each)
        assert facts["rpc.system"].string_value == "grpc"
        assert facts["rpc.grpc.status_code"].int_value == code
    assert attributes(request)["oneway.queries"].int_value == 3
    assert attributes(refused)["oneway.refused"].string_value == "bad_request"


def test_a_server_ends_in_time_without_its_collector(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("oneway.serving.tracing.END_SECONDS", 0.1)
    how = settings()
    with running(serving_app(served_model(), how), how) as server:
        assert server.infer(QUERIES).status_code == 200
        server.stop()


def test_traces_are_off_unless_the_standard_variables_want_them(monkeypatch):
    assert tracer_provider() is None
    assert trace_headers() == {}
    assert span("model") is span("guard")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "True")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert tracer_provider() is None
    wrong = {"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    for name, value in wrong.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(InvalidOptionError, match="OTLP over HTTP"):
                tracer_provider()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match="otel"):
        tracer_provider()
