"""Traces for OpenTelemetry: where a request's time goes, and nothing of its queries or scores.

They are off unless the standard variables OTEL_* say where spans go. Of a client's headers only
``traceparent`` is read, and only that is passed on: what else stands there is a client's text.
Events and exceptions, whose texts may quote a value, are never recorded.
"""

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneway.errors import InvalidOptionError
from oneway.extras import load_extra
from oneway.serving.middleware import OPEN_ROUTES

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ATTRIBUTES: Mapping[str, tuple[str, type]] = {
    "method": ("http.request.method", str),
    "status": ("http.response.status_code", int),
    "system": ("rpc.system", str),
    "code": ("rpc.grpc.status_code", int),
    "route": ("oneway.route", str),
    "queries": ("oneway.queries", int),
    "refused": ("oneway.refused", str),
    "error": ("error.type", str),
}
"""All attributes that a span may have, with their types, by the names of facts in the log."""

PARENT = b"traceparent"

METHODS = ("GET", "HEAD", "POST")
"""Methods that a span names; any other is a client's text."""

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")

END_SECONDS = 1.0
"""Longest wait for a collector when the server ends: without one, an exporter waits longer."""

Parents = tuple[tuple["Tracer", "Context"], ...]
"""The spans under which the work at hand stands: one request's, or those of a batch."""

_parents: ContextVar[Parents] = ContextVar("oneway_trace_parents", default=())
_OFF: AbstractContextManager[None] = nullcontext()


def current_parents() -> Parents:
    """Return the spans under which the work at hand stands; none if traces are off."""
    return _parents.get()


@contextmanager
def under(parents: Parents) -> Iterator[None]:
    """Let the work of the block stand under these spans: a batch's, on another thread."""
    token = _parents.set(parents)
    try:
        yield
    finally:
        _parents.reset(token)


def span(name: str) -> AbstractContextManager[None]:
    """Measure the block as a part of each request that it works for; nothing if traces are off."""
    parents = _parents.get()
    return _child_spans(name, parents) if parents else _OFF


@contextmanager
def _child_spans(name: str, parents: Parents) -> Iterator[None]:
    from opentelemetry.trace import SpanKind, set_span_in_context

    kind = SpanKind.CLIENT if name == "upstream" else SpanKind.INTERNAL
    spans = [tracer.start_span(name, context, kind) for tracer, context in parents]
    pairs = zip(parents, spans, strict=True)
    try:
        with under(tuple((tracer, set_span_in_context(one)) for (tracer, _), one in pairs)):
            yield
    finally:
        for one in spans:
            one.end()


def trace_headers() -> dict[str, str]:
    """Return the header that tells another server which span asks it; none if traces are off."""
    parents = _parents.get()
    if not parents:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, parents[0][1])
    return {name: value for name, value in carrier.items() if name == "traceparent"}


def tracer_provider() -> "TracerProvider | None":
    """Return what the variables OTEL_* ask for, or None if they ask for no traces.

    Raises:
        InvalidOptionError: They ask for another exporter or protocol than is there.
        MissingExtraError: The extra is not installed.
    """
    told = os.environ
    exporter = told.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(told.get(name) for name in ENDPOINTS) else "none"
    )
    if exporter == "none" or told.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    asked = [told[name] for name in PROTOCOLS if told.get(name)]
    if exporter != "otlp" or any(protocol != "http/protobuf" for protocol in asked):
        raise InvalidOptionError(
            "traces go out by OTLP over HTTP alone. Set OTEL_TRACES_EXPORTER to otlp or none, and "
            "OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf, or leave them out."
        )
    load_extra("opentelemetry.sdk.trace", extra="otel", purpose="traces")
    sent = load_extra(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel", purpose="traces"
    )
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = told.get("OTEL_SERVICE_NAME") or "service.name=" in told.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if named else {"service.name": "oneway"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(sent.OTLPSpanExporter()))
    return provider


@contextmanager
def request_span(
    provider: "TracerProvider | None", given: Sequence[str], facts: Mapping[str, Any]
) -> Iterator[None]:
    """Measure the block as a request, over HTTP or gRPC; nothing if traces are off.

    Args:
        provider: Where spans go; None: traces are off.
        given: All that the client sends as ``traceparent``.
        facts: Read when the block has ended: what :data:`ATTRIBUTES` names, ``route`` among it.
            ``failed`` says whether the fault is the server's.
    """
    if provider is None:
        yield
        return
    from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("oneway")
    carrier = {"traceparent": given[0]} if len(given) == 1 else {}
    # An empty context: this one's own would be that of a request before.
    parent = TraceContextTextMapPropagator().extract(carrier)
    request = tracer.start_span("request", parent, SpanKind.SERVER)
    try:
        with under(((tracer, set_span_in_context(request)),)):
            yield
    finally:
        for fact, (name, kind) in ATTRIBUTES.items():
            if isinstance(facts.get(fact), kind):
                request.set_attribute(name, facts[fact])
        request.update_name(facts["route"])
        if facts["failed"]:
            request.set_status(StatusCode.ERROR)
        request.end()


class TracingMiddleware:
    """Makes a span of each request but probes; it stands before all other layers."""

    def __init__(self, app: ASGIApp, *, provider: "TracerProvider") -> None:
        """Wrap an application."""
        self.app, self.provider = app, provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in (*OPEN_ROUTES, "/metrics"):
            await self.app(scope, receive, send)
            return
        facts, status = dict[str, Any](), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        given = [value.decode("latin-1") for name, value in scope["headers"] if name == PARENT]
        with request_span(self.provider, given, facts):
            try:
                await self.app(scope, receive, watched)
            finally:
                facts |= scope.get("state", {}).get("facts", {})
                facts |= {
                    "method": scope["method"] if scope["method"] in METHODS else "_OTHER",
                    "status": status,
                    "route": getattr(scope.get("endpoint"), "__name__", "other"),
                    "failed": status >= 500,
                }


async def end_traces(provider: "TracerProvider") -> None:
    """Send the last spans, within ``END_SECONDS``."""
    ending = threading.Thread(target=provider.shutdown, name="oneway-traces", daemon=True)
    ending.start()
    await asyncio.to_thread(ending.join, END_SECONDS)
