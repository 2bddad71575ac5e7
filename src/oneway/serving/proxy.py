"""A guard before a server that runs already: only what is listed passes."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.responses import Response

from oneway.errors import TargetFailedError
from oneway.openinference.messages import Buffer, InferRequest
from oneway.openinference.tensors import MessageError
from oneway.serving.base_app import GuardedServer
from oneway.serving.guarded import GuardedScores, Released, Scored
from oneway.serving.http_errors import RefusedError
from oneway.serving.openapi import operation
from oneway.serving.protocol_adapters import OpenInferenceAdapter, ProxyRequest
from oneway.serving.proxied_model import ProxiedModel
from oneway.serving.responses import InferAnswer
from oneway.serving.routing import Application, Routes
from oneway.serving.settings import ServingSettings
from oneway.serving.tracing import span
from oneway.serving.upstream import Upstream


async def check_proxy(
    model: ProxiedModel, guarded: GuardedScores, settings: ServingSettings
) -> None:
    """Ask the server as a client would, guard its answer, and refuse to serve if it is amiss.

    Args:
        model: The server.
        guarded: The guard before its scores.
        settings: How the proxy behaves.

    Raises:
        OnewayError: The server does not answer, its answer lacks the guarded output, or the guard
            does not work on it.
    """
    adapter = model.adapter
    try:
        async with Upstream(settings) as upstream:
            requests = [adapter.read_request(probe) for probe in model.probes]
            answers = [
                await upstream.post_json(model.infer_url, request.upstream)
                for request in (*requests, requests[0])
            ]
            scores = [
                adapter.read_scores(answer, request)
                for answer, request in zip(answers, (*requests, requests[0]), strict=True)
            ]
            probes = [
                Scored(rows, request.queries)
                for rows, request in zip(scores, requests, strict=False)
            ]
            guarded.check(probes, scores[-1])
            (released,) = guarded.answer(probes[:1])
            adapter.write(answers[0], released, requests[0])
    except (MessageError, RefusedError) as error:
        if isinstance(error.__cause__, MessageError):
            raise TargetFailedError(f"the server to guard {error.__cause__}") from None
        reason = "bad_request" if isinstance(error, MessageError) else error.reason
        raise TargetFailedError(
            f"the server to guard does not answer a probe as it must: {error} ({reason}). Check "
            "the names of its input and output, its shape, and what its scores are."
        ) from None


def proxy_app(
    model: ProxiedModel, guarded: GuardedScores, settings: ServingSettings
) -> Application:
    """Return the proxy of a server that has passed its self test.

    Args:
        model: The server.
        guarded: The guard before its scores; :func:`check_proxy` must have been called.
        settings: How the proxy behaves.

    Raises:
        InvalidOptionError: A secret cannot be used.
    """
    return _ProxyServer(model, guarded, settings).app()


class _ProxyServer(GuardedServer[Scored, ProxyRequest]):
    def __init__(
        self, model: ProxiedModel, guarded: GuardedScores, settings: ServingSettings
    ) -> None:
        super().__init__(guarded, settings, model.metadata, model.paths)
        self.model, self.upstream = model, Upstream(settings)
        self.extensions = () if model.metadata is None else ("binary_tensor_data",)

    def around(self) -> AbstractAsyncContextManager[Any]:
        return self.upstream

    async def is_ready(self) -> bool:
        url = self.model.ready_url
        return self.batcher.alive and (url is None or await self.upstream.is_ready(url))

    def routes(self) -> Routes:
        if self.metadata is not None:
            return super().routes()
        return dict.fromkeys(self.paths, ("POST", self.infer))

    def openapi_paths(self) -> dict[str, Any]:
        if self.metadata is not None:
            return super().openapi_paths()
        return {path: {"post": operation("Ask", {}, body={})} for path in self.paths}

    def read_request(self, body: bytes, json_bytes: str | None) -> ProxyRequest:
        return self._checked(self.model.adapter.read_request(body, json_bytes))

    def read_infer(self, request: InferRequest, parts: Mapping[str, Buffer]) -> ProxyRequest:
        return self._checked(self._protocol.read(request, parts))

    @property
    def _protocol(self) -> OpenInferenceAdapter:
        adapter = self.model.adapter
        if not isinstance(adapter, OpenInferenceAdapter):
            raise TypeError("plain JSON comes over HTTP alone")
        return adapter

    def _checked(self, request: ProxyRequest) -> ProxyRequest:
        most = self.settings.max_request_rows
        if request.queries is None and self.guarded.guard.defense.requires_input:
            raise MessageError("the queries must be rows of numbers, but could not be read as such")
        if request.rows is not None and not 1 <= request.rows <= most:
            raise MessageError(
                f"a request may hold from 1 to {most} queries, but holds {request.rows}",
                most_rows=most if request.rows > most else None,
            )
        return request

    async def answer(self, request: ProxyRequest) -> tuple[Any, Released]:
        with span("upstream"):
            answer = await self.upstream.post_json(self.model.infer_url, request.upstream)
        scored = Scored(self.model.adapter.read_scores(answer, request), request.queries)
        return answer, await self.batcher.ask(scored, self.settings.timeout_seconds)

    def infer_answer(self, answer: Any, released: Released, request: ProxyRequest) -> InferAnswer:
        return self._protocol.infer_answer(answer, released, request)

    def write(self, answer: Any, released: Released, request: ProxyRequest) -> Response:
        return self.model.adapter.write(answer, released, request)
