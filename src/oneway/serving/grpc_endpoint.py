"""gRPC of the Open Inference Protocol, before the same model, guard and limits as HTTP."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oneway.errors import InvalidOptionError
from oneway.extras import load_extra
from oneway.openinference.grpc_messages import check_fields, packed_output, read_request
from oneway.openinference.tensors import MOST_ROWS_HEADER, REFUSED_HEADER, MessageError
from oneway.serving.admission import Admission
from oneway.serving.http_errors import RefusedError, bad_request, refusal_of, upstream_errors
from oneway.serving.responses import InferAnswer, json_response
from oneway.serving.tracing import request_span, span

if TYPE_CHECKING:
    from oneway.serving.base_app import GuardedServer

SERVICE = "inference.GRPCInferenceService"

OPEN_METHODS = ("ServerLive", "ServerReady")
"""Methods that a probe may ask without a token."""

STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    412: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Statuses of gRPC, by that of HTTP."""

CONNECTION_AGE = 10
"""How many times ``timeout_seconds`` a connection may last."""

REQUIRE_GUARD = "oneway-require-guard"
"""HTTP header, and metadata of gRPC, by which a client takes answers of one version of the guard
alone."""

Sent = Mapping[str, Sequence[str]]
"""Metadata of a request: all values of each name."""


class GrpcEndpoint:
    """Answers gRPC on a port of its own, in the event loop of the HTTP server.

    Requests are read as bytes, so that the token is checked before anything is read, and so that
    a request which does not arrive, or an answer that nobody takes, holds nothing for ever.
    """

    def __init__(self, core: "GuardedServer[Any, Any]", admission: Admission) -> None:
        """Prepare to answer; nothing listens before :meth:`bind`.

        Args:
            core: Answers requests.
            admission: Whom it admits, together with the core's HTTP.

        Raises:
            InvalidOptionError: The core does not speak the Open Inference Protocol.
            MissingExtraError: A package is not installed.
        """
        if core.metadata is None:
            raise InvalidOptionError(
                "the setting grpc_port is for the Open Inference Protocol, but this server is "
                "asked for plain JSON. Leave grpc_port out."
            )
        self.core, self.admission, self.metadata = core, admission, core.metadata
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its lines are no JSON
        load = {"extra": "grpc", "purpose": "serving over gRPC"}
        self._grpc = load_extra("grpc", package="grpcio", **load)
        self._messages = load_extra("tritonclient.grpc.service_pb2", **load)
        self._decode_error = load_extra(
            "google.protobuf.message", package="protobuf", **load
        ).DecodeError
        self._json_format = load_extra("google.protobuf.json_format", package="protobuf", **load)
        self._server: Any = None
        self.port = 0

    def bind(self) -> None:
        """Take the port, within the event loop that answers later.

        Raises:
            InvalidOptionError: The port cannot be used.
        """
        settings, grpc = self.core.settings, self._grpc
        milliseconds = int(1000 * settings.timeout_seconds)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self.core.most_bytes),
                ("grpc.so_reuseport", 0),  # another process on this port is a mistake
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: it hides a size
                ("grpc.server_handshake_timeout_ms", milliseconds),
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
                ("grpc.max_connection_idle_ms", milliseconds),
                # An answer that nobody takes stays with its connection. Clients connect anew
                # unseen, and requests under way have the time that they may take.
                ("grpc.max_connection_age_ms", CONNECTION_AGE * milliseconds),
                ("grpc.max_connection_age_grace_ms", 3 * milliseconds),
            ]
        )
        methods = {
            name: grpc.stream_stream_rpc_method_handler(self._handler(name, method))
            for name, method in self._methods().items()
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, methods)]
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if settings.tls_certificate is None or settings.tls_key is None:
                self.port = self._server.add_insecure_port(address)
            else:
                pair = settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes()
                self.port = self._server.add_secure_port(
                    address, grpc.ssl_server_credentials([pair])
                )
        except RuntimeError as error:
            raise InvalidOptionError(
                f"cannot listen on {settings.host} port {settings.grpc_port} for gRPC. Choose "
                "another by the settings host and grpc_port."
            ) from error

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def stop(self) -> None:
        """Take no more requests, and wait for those under way as long as the settings say."""
        await self._server.stop(self.core.settings.shutdown_seconds)

    def _handler(self, name: str, method: "Method") -> Callable[[Any, Any], Awaitable[None]]:
        """Return what answers the requests for a method."""

        async def serve(_: Any, context: Any) -> None:
            begin, facts = time.perf_counter(), dict[str, Any]()
            refusal, status, code = None, 0, self._grpc.StatusCode.OK
            sent: dict[str, list[str]] = {}
            for key, value in context.invocation_metadata():
                sent.setdefault(key, []).append(value)
            traced: dict[str, Any] = {"route": f"grpc_{name}", "system": "grpc"}
            traces = None if name in OPEN_METHODS else self.core.traces
            with request_span(traces, sent.get("traceparent", ()), traced):
                try:
                    await self._serve(name, method, context, sent, facts)
                    status = 200
                except asyncio.CancelledError:
                    facts["refused"], code = "disconnected", self._grpc.StatusCode.CANCELLED
                    raise
                # Closed on purpose: gRPC would send the text of an error that passes.
                except Exception as error:  # noqa: BLE001
                    refusal = refusal_of(error, facts)
                    status = refusal.status
                    code = getattr(self._grpc.StatusCode, STATUSES[status])
                finally:
                    self.admission.write(f"grpc_{name}", status, time.perf_counter() - begin, facts)
                    traced |= {**facts, "code": code.value[0], "failed": status >= 500}
            if refusal is not None:
                await context.abort(code, refusal.text, _trailing(refusal))

        return serve

    async def _serve(
        self, name: str, method: "Method", context: Any, sent: Sent, facts: dict[str, Any]
    ) -> None:
        """Admit a request, read it in time, answer it, and write the answer in time."""
        is_open = name in OPEN_METHODS
        if not is_open:
            self.admission.check([value.encode() for value in sent.get("authorization", ())])
        seconds, grpc = self.core.settings.timeout_seconds, self._grpc
        with self.admission.under_way(counts=not is_open) as take:
            try:
                with span("receive"):
                    async with asyncio.timeout(seconds):
                        body = await context.read()
                        if body is grpc.aio.EOF or await context.read() is not grpc.aio.EOF:
                            raise bad_request("a request must be one message")
            except TimeoutError:
                raise RefusedError(408, "the request did not arrive in time", "timeout") from None
            take(len(body))
            answer = await method(self._parsed(f"{name}Request", body), sent, facts)
            try:
                async with asyncio.timeout(seconds):
                    await context.write(answer.SerializeToString())
            except TimeoutError:
                raise RefusedError(408, "the answer was not taken in time", "timeout") from None

    def _parsed(self, kind: str, body: bytes) -> Any:
        check_fields(body)
        try:
            return getattr(self._messages, kind).FromString(body)
        except self._decode_error:
            raise MessageError(f"the message must be a {kind}, but is none") from None

    def _filled(self, kind: str, value: Any) -> Any:
        """Return a message from what is answered over HTTP, written as there."""
        message, text = getattr(self._messages, kind)(), json_response(value).body
        return self._json_format.Parse(text, message, ignore_unknown_fields=True)

    def _methods(self) -> dict[str, "Method"]:
        core, filled = self.core, self._filled

        async def live(*_: Any) -> Any:
            return filled("ServerLiveResponse", {"live": core.batcher.alive})

        async def ready(*_: Any) -> Any:
            return filled("ServerReadyResponse", {"ready": await core.ready()})

        async def model_ready(asked: Any, *_: Any) -> Any:
            try:
                core.check_model(asked.name, asked.version or None)
            except RefusedError:
                return filled("ModelReadyResponse", {"ready": False})
            return filled("ModelReadyResponse", {"ready": await core.ready()})

        async def about(*_: Any) -> Any:
            return filled("ServerMetadataResponse", core.about())

        async def metadata(asked: Any, *_: Any) -> Any:
            core.check_model(asked.name, asked.version or None)
            return filled("ModelMetadataResponse", self.metadata)

        async def config(asked: Any, *_: Any) -> Any:
            core.check_model(asked.name, asked.version or None)
            return filled("ModelConfigResponse", {"config": core.config()})

        async def index(asked: Any, *_: Any) -> Any:
            models = [
                model
                for model in await core.index()
                if model["state"] == "READY" or not asked.ready
            ]
            return filled("RepositoryIndexResponse", {"models": models})

        return {
            "ServerLive": live,
            "ServerReady": ready,
            "ModelReady": model_ready,
            "ServerMetadata": about,
            "ModelMetadata": metadata,
            "ModelConfig": config,
            "RepositoryIndex": index,
            "ModelInfer": self._infer,
        }

    async def _infer(self, asked: Any, sent: Sent, facts: dict[str, Any]) -> Any:
        self.core.check_model(asked.model_name, asked.model_version or None)
        self.core.check_guard(sent.get(REQUIRE_GUARD, ()))
        request = self.core.read_infer(*read_request(asked))
        answer, released = await self.core.ask(request, facts)
        return self._written(self.core.infer_answer(answer, released, request))

    def _written(self, answer: InferAnswer) -> Any:
        """Return an answer with the data of all outputs in raw form, as Triton does."""
        outputs, raw = [], []
        if answer.released is not None:
            shape = list(answer.released.shape)
            outputs.append({"name": answer.output_name, "datatype": "FP32", "shape": shape})
            raw.append(answer.released.astype("<f4").tobytes())
        with upstream_errors():
            for output in answer.outputs:
                outputs.append({key: output[key] for key in ("name", "datatype", "shape")})
                raw.append(packed_output(output))
        told = {**answer.message, "outputs": outputs}
        told["parameters"] = {
            name: {"string_param": value} for name, value in answer.message["parameters"].items()
        }
        message = self._filled("ModelInferResponse", told)
        message.raw_output_contents.extend(raw)
        return message


Method = Callable[[Any, Sent, dict[str, Any]], Awaitable[Any]]
"""Answers a message, given its metadata and the facts that the log gets, with a message."""


def _trailing(refusal: RefusedError) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata of a refusal: what HTTP says in headers."""
    trailing = [(REFUSED_HEADER, "true")]
    if refusal.retry_after is not None:
        trailing.append(("retry-after", str(refusal.retry_after)))
    if refusal.most_rows is not None:
        trailing.append((MOST_ROWS_HEADER, str(refusal.most_rows)))
    return tuple(trailing)
