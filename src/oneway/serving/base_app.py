"""The application of a guarded server: routes, batches, health, metrics and access."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence, Sized
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

import oneway
from oneway.openinference.messages import (
    BINARY_HEADER,
    Buffer,
    InferRequest,
    ModelMetadata,
    ServerMetadata,
    binary_parts,
    parse_request,
)
from oneway.serving.admission import Admission
from oneway.serving.batching import Batcher
from oneway.serving.grpc_endpoint import REQUIRE_GUARD, GrpcEndpoint
from oneway.serving.guarded import Guarded, Released, guard_parameters
from oneway.serving.http_errors import RefusedError, traffic_changed
from oneway.serving.metrics import ServerMetrics
from oneway.serving.middleware import AccessMiddleware
from oneway.serving.openapi import model_paths, openapi_document
from oneway.serving.requests import InferenceRequest, read_body
from oneway.serving.responses import InferAnswer, infer_response, json_response
from oneway.serving.routing import Application, Endpoint, RoutedApp, Routes
from oneway.serving.settings import ServingSettings
from oneway.serving.tracing import TracingMiddleware, end_traces, tracer_provider
from oneway.serving.watching import watch_traffic

Q = TypeVar("Q", bound=Sized)
R = TypeVar("R", bound=InferenceRequest)

CLOSE_SECONDS = 1.0
"""How long a batch may go on that nobody waits for: the server has given requests their time."""

READY_SECONDS = 1.0
"""How long the admin port waits to hear whether queries can be answered."""

NUMBER_BYTES = 32
"""Most bytes of a number in JSON, with comma and blanks: FP64 takes 26."""

ENVELOPE_BYTES = 2**16
"""Most bytes of a request beside its numbers."""


class GuardedServer(ABC, Generic[Q, R]):
    """Answers queries about one model with releases of a guard.

    A subclass says how a request is read, how its release comes about, and how the answer is
    written.
    """

    extensions: Sequence[str] = ()
    """Extensions of the Open Inference Protocol that the server speaks."""

    def __init__(
        self,
        guarded: Guarded[Q],
        settings: ServingSettings,
        metadata: ModelMetadata | None,
        paths: Sequence[str],
        numbers_per_query: int | None = None,
    ) -> None:
        """Prepare a server.

        Args:
            guarded: The guarded model, which must have passed its self test.
            settings: How the server behaves.
            metadata: The model's metadata for clients; None for plain JSON.
            paths: The paths of the model.
            numbers_per_query: Numbers of one query, which limit the largest request beside the
                settings; None where that is not known, or queries hold texts.
        """
        if guarded.classes is None:
            raise RuntimeError("the model must pass its self test before it is served")
        self.guarded, self.settings = guarded, settings
        self.metadata, self.paths = metadata, paths
        self.most_bytes = settings.max_request_bytes
        if numbers_per_query is not None:
            numbers = settings.max_request_rows * numbers_per_query
            self.most_bytes = min(self.most_bytes, ENVELOPE_BYTES + NUMBER_BYTES * numbers)
        self.watch = watch_traffic(guarded.guard, settings)
        if self.watch is not None:
            guarded.count = self.watch.see
        test = None if self.watch is None else self.watch.test
        self.metrics = ServerMetrics(guard_parameters(guarded.guard), test)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.traces = tracer_provider()
        self.batcher = Batcher[Q, Released](
            self._answer_batch,
            max_batch_size=settings.max_batch_size,
            max_waiting_rows=settings.max_waiting_rows,
            longest_seconds=2 * settings.timeout_seconds,
            close_seconds=CLOSE_SECONDS,
            wait_seconds=settings.batch_wait_milliseconds / 1000,
            inline_rows=guarded.inline_rows,
        )

    @abstractmethod
    def read_infer(self, request: InferRequest, parts: Mapping[str, Buffer]) -> R:
        """Read a request of the Open Inference Protocol, however it came.

        Args:
            request: The request.
            parts: Binary data of inputs, by name.

        Raises:
            MessageError: The request cannot be used.
        """

    def read_request(self, body: bytes, json_bytes: str | None) -> R:
        """Read the body of a request.

        Args:
            body: Its body.
            json_bytes: The value of ``BINARY_HEADER``, or None.

        Raises:
            MessageError: The request cannot be used.
        """
        request, binary = parse_request(body, json_bytes)
        return self.read_infer(request, binary_parts(request, binary))

    @abstractmethod
    async def answer(self, request: R) -> tuple[Any, Released]:
        """Return an answer of the model's server, not to be shown, or None; and the release of it.

        Raises:
            RefusedError: There is no release.
        """

    @abstractmethod
    def infer_answer(self, answer: Any, released: Released, request: R) -> InferAnswer:
        """Return the client's answer, which is then written as the client wants it.

        Raises:
            RefusedError: The server's answer is not as it must be.
        """

    def write(self, answer: Any, released: Released, request: R) -> Response:
        """Return the client's answer over HTTP.

        Raises:
            RefusedError: See :meth:`infer_answer`.
        """
        return infer_response(
            self.infer_answer(answer, released, request), in_binary=request.in_binary
        )

    def check_model(self, name: str, version: str | None) -> None:
        """Refuse a request for another model, or another version.

        Raises:
            RefusedError: The request is refused.
        """
        told = self.metadata
        if told is None or name != told.name or version not in (None, *(told.versions or ())):
            raise RefusedError(404, "there is no such model, or no such version", "bad_request")

    @property
    def stopped(self) -> bool:
        """Whether nothing is released any more, since the traffic has changed."""
        if self.watch is None or not self.settings.stop_on_drift:
            return False
        return self.watch.test.drift is not None

    async def ready(self) -> bool:
        """Say whether queries are answered now."""
        return not self.stopped and await self.is_ready()

    async def is_ready(self) -> bool:
        """Say whether the model can answer now."""
        return self.batcher.alive

    def around(self) -> AbstractAsyncContextManager[Any]:
        """Return a context that is entered before the server starts, and left when it has ended."""
        return nullcontext()

    def routes(self) -> Routes:
        """Return the routes of the model."""
        routes: dict[str, tuple[str, Endpoint]] = {}
        for path in self.paths:
            routes |= {
                path: ("GET", self.model_metadata),
                f"{path}/config": ("GET", self.model_config),
                f"{path}/ready": ("GET", self.model_ready),
                f"{path}/infer": ("POST", self.infer),
            }
        return routes

    def openapi_paths(self) -> dict[str, Any]:
        """Return the paths of the model, as OpenAPI describes them."""
        return {name: value for path in self.paths for name, value in model_paths(path).items()}

    async def model_metadata(self, _: Request) -> Response:
        """Answer what the model takes and gives."""
        return json_response(self.metadata)

    def config(self) -> dict[str, Any]:
        """Return what Triton's tools ask for.

        Raises:
            RefusedError: There is no metadata, since the server takes plain JSON.
        """
        told = self.metadata
        if told is None:
            raise RefusedError(404, "there is no such path", "bad_request")
        sides = {
            side: [
                {
                    "name": tensor.name,
                    "data_type": f"TYPE_{tensor.datatype.replace('BYTES', 'STRING')}",
                    "dims": tensor.shape[1:] or [1],
                }
                for tensor in tensors
            ]
            for side, tensors in (("input", told.inputs), ("output", told.outputs))
        }
        rows = self.settings.max_request_rows
        names = {"name": told.name, "platform": told.platform, "backend": told.platform}
        parameters = {
            name: {"string_value": str(value)} for name, value in (told.parameters or {}).items()
        }
        return {**names, "max_batch_size": rows, **sides, "parameters": parameters}

    async def model_config(self, _: Request) -> Response:
        """Answer the same as Triton does, whose tools ask for it."""
        return json_response(self.config())

    async def index(self) -> list[dict[str, str]]:
        """Return which models there are; none can be loaded or unloaded."""
        told = self.metadata
        if told is None:
            return []
        state = {"state": "READY" if await self.ready() else "UNAVAILABLE", "reason": ""}
        versions = told.versions or ["1"]
        return [{"name": told.name, "version": version, **state} for version in versions]

    async def repository_index(self, _: Request) -> Response:
        """Answer which models there are."""
        return json_response(await self.index())

    async def model_ready(self, _: Request) -> Response:
        """Answer whether the model is ready."""
        ready = await self.ready()
        name = None if self.metadata is None else self.metadata.name
        return json_response({"name": name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """Answer queries."""
        self.check_guard(request.headers.getlist(REQUIRE_GUARD))
        # Nothing keeps the body: it may be many times as large as the queries in it.
        parsed = self.read_request(
            await read_body(request, self.most_bytes, self.settings.timeout_seconds),
            request.headers.get(BINARY_HEADER),
        )
        answer, released = await self.ask(parsed, request.scope["state"]["facts"])
        return self.write(answer, released, parsed)

    async def ask(self, request: R, facts: dict[str, Any]) -> tuple[Any, Released]:
        """Answer a request that has been read; note its size, and count what is released.

        Raises:
            RefusedError: There is no release.
        """
        if request.queries is not None:
            facts["queries"] = len(request.queries)
        answer, released = await self.answer(request)
        self.metrics.released.inc(len(released))
        return answer, released

    def check_guard(self, required: Sequence[str]) -> None:
        """Refuse a request that this guard does not answer.

        Args:
            required: The versions of the guard of which alone the client takes answers.

        Raises:
            RefusedError: The guard is of another version, or has stopped.
        """
        version = self.guarded.guard.version
        if not set(required) <= {version}:
            raise RefusedError(
                412, f"the guard is of version {version}, and another one is required", "version"
            )
        if self.stopped:
            raise traffic_changed()

    def _answer_batch(self, requests: Sequence[Q]) -> Sequence[Released]:
        self.metrics.batches.observe(sum(map(len, requests)))
        return self.guarded.answer(requests)

    def about(self) -> ServerMetadata:
        """Return what the server is."""
        return ServerMetadata(
            name="oneway", version=oneway.__version__, extensions=list(self.extensions)
        )

    async def server_metadata(self, _: Request) -> Response:
        """Answer what the server is."""
        return json_response(self.about())

    async def live(self, _: Request) -> Response:
        """Answer whether queries are being answered."""
        alive = self.batcher.alive
        return json_response({"live": alive}, 200 if alive else 503)

    async def health_ready(self, _: Request) -> Response:
        """Answer whether queries can be answered now."""
        ready = await self.ready()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def admin_ready(self, _: Request) -> Response:
        """Answer the same on the admin port, whose event loop is another."""
        ready = False
        if self._loop is not None:
            asked = asyncio.run_coroutine_threadsafe(self.ready(), self._loop)
            with suppress(TimeoutError):
                ready = await asyncio.wait_for(asyncio.wrap_future(asked), READY_SECONDS)
        return json_response({"ready": ready}, 200 if ready else 503)

    async def metrics_text(self, _: Request) -> Response:
        """Answer with the metrics, in Prometheus' text format."""
        self.metrics.waiting.set(self.batcher.waiting_rows)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def app(self) -> Application:
        """Return the application.

        Raises:
            InvalidOptionError: The token in the settings cannot be used, or gRPC cannot be spoken.
            MissingExtraError: A package that speaks gRPC is not installed.
        """
        settings, token = self.settings, self.settings.bearer_token()
        openapi = openapi_document(self.openapi_paths(), token=token is not None)
        admission = self._admission(token)
        grpc = None
        if settings.grpc_port is not None:
            grpc = GrpcEndpoint(self, admission)

        async def openapi_json(_: Request) -> Response:
            return json_response(openapi)

        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            async with self.around():
                self._loop = asyncio.get_running_loop()
                await self.batcher.start()
                if grpc is not None:
                    await grpc.start()
                yield
                if grpc is not None:
                    await grpc.stop()
                await self.batcher.close()
                if self.watch is not None:
                    self.watch.save()
                if self.traces is not None:
                    await end_traces(self.traces)

        routes: Routes = {
            **self.routes(),
            "/v2": ("GET", self.server_metadata),
            "/v2/health/live": ("GET", self.live),
            "/v2/health/ready": ("GET", self.health_ready),
            "/v2/repository/index": ("POST", self.repository_index),
            "/openapi.json": ("GET", openapi_json),
        }
        metrics: Routes = {"/metrics": ("GET", self.metrics_text)} if settings.metrics else {}
        admin = None
        if settings.admin_port is None:
            routes = {**metrics, **routes}
        else:
            health: Routes = {
                "/v2/health/live": ("GET", self.live),
                "/v2/health/ready": ("GET", self.admin_ready),
            }
            beside = RoutedApp({**health, **metrics})
            admin = Application(
                AccessMiddleware(beside, admission=self._admission(token), hosts=None), self
            )
        app: ASGIApp = AccessMiddleware(
            RoutedApp(routes, lifespan), admission=admission, hosts=settings.served_hosts
        )
        if self.traces is not None:
            app = TracingMiddleware(app, provider=self.traces)
        return Application(app, self, admin, grpc)

    def _admission(self, token: bytes | None) -> Admission:
        return Admission(
            token,
            self.metrics,
            most_bytes=self.settings.max_waiting_bytes,
            most_requests=self.settings.max_connections,
        )
