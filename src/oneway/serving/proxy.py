"""A proxy that guards a server which is there already, and passes nothing on that is not listed."""

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from oneway.errors import InvalidOptionError, TargetFailedError
from oneway.serving.batching import Batcher
from oneway.serving.dialects import Asked
from oneway.serving.edge import as_json, read_body, while_connected
from oneway.serving.frame import framed_app
from oneway.serving.guarded_model import Released
from oneway.serving.guarded_scores import GuardedScores, Scored
from oneway.serving.metrics import ServerMetrics
from oneway.serving.openapi import model_paths, openapi_document, operation
from oneway.serving.protocol import BINARY_HEADER
from oneway.serving.proxied_model import ProxiedModel
from oneway.serving.refusals import RefusedError, bad_request
from oneway.serving.settings import ServingSettings
from oneway.serving.upstream import Upstream


async def check_proxy(
    model: ProxiedModel, guarded: GuardedScores, settings: ServingSettings
) -> int:
    """Ask the guarded server as a client would, guard its answer, and refuse what is amiss.

    Returns:
        K, the number of classes.

    Raises:
        OnewayError: The server does not answer, its answer lacks the guarded output, or the guard
            does not work on it.
    """
    try:
        async with Upstream(settings) as upstream:
            asked = model.dialect.read_request(model.probe)
            answer = await upstream.post_json(model.infer_url, asked.upstream)
            scores = model.dialect.read_scores(answer)
            again = model.dialect.read_scores(
                await upstream.post_json(model.infer_url, asked.upstream)
            )
            classes = guarded.check(Scored(scores, asked.queries), again)
            (released,) = guarded.answer([Scored(scores, asked.queries)])
            model.dialect.write(answer, released, asked)
            return classes
    except RefusedError as error:
        raise TargetFailedError(
            f"the server to guard does not answer a probe as it must: {error.text} "
            f"({error.reason}). Check the names of its input and output, its shape, and what its "
            "scores are."
        ) from None


def proxy_app(model: ProxiedModel, guarded: GuardedScores, settings: ServingSettings) -> Starlette:
    """Return the proxy of a server that has passed its self test.

    Args:
        model: What is guarded.
        guarded: By what; :func:`check_proxy` must have been called.
        settings: How.

    Raises:
        InvalidOptionError: A secret cannot be used.
    """
    return _Proxy(model, guarded, settings).app()


class _Proxy:
    def __init__(
        self, model: ProxiedModel, guarded: GuardedScores, settings: ServingSettings
    ) -> None:
        if guarded.classes is None:
            raise InvalidOptionError("the proxy must pass its self test before it serves.")
        self.model, self.guarded, self.settings = model, guarded, settings
        self.metrics = ServerMetrics()
        self.upstream = Upstream(settings)
        self.batcher = Batcher[Scored, Released](
            self._answer,
            lambda scored: len(scored.scores),
            max_batch_size=settings.max_batch_size,
            max_waiting_rows=settings.max_waiting_rows,
            longest_seconds=2 * settings.timeout_seconds,
            close_seconds=settings.shutdown_seconds,
        )

    def app(self) -> Starlette:
        routes = []
        paths = {}
        for path in self.model.paths:
            if self.model.metadata is None:
                routes.append(Route(path, self.infer, methods=["POST"]))
                paths[path] = {"post": operation("Ask", {}, body={})}
                continue
            routes += [
                Route(path, self.model_metadata),
                Route(f"{path}/ready", self.model_ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
            paths |= model_paths(path)
        return framed_app(
            routes,
            self.settings,
            batcher=self.batcher,
            metrics=self.metrics,
            openapi=openapi_document(paths, token=self.settings.bearer_token() is not None),
            ready=self.upstream_ready,
            around=self.upstream,
        )

    def _answer(self, requests: Sequence[Scored]) -> Sequence[Released]:
        self.metrics.batches.observe(sum(len(one.scores) for one in requests))
        return self.guarded.answer(requests)

    async def upstream_ready(self) -> bool:
        """Say whether the guarded server is ready, where it can be asked."""
        url = self.model.ready_url
        return url is None or await self.upstream.is_ready(url)

    async def model_ready(self, _: Request) -> Response:
        can = self.batcher.alive and await self.upstream_ready()
        return as_json({"name": self.model.name, "ready": can}, 200 if can else 503)

    async def model_metadata(self, _: Request) -> Response:
        return as_json(self.model.metadata)

    async def infer(self, request: Request) -> Response:
        settings, dialect = self.settings, self.model.dialect
        if BINARY_HEADER in request.headers:
            raise bad_request("binary data does not pass this proxy; send JSON")
        body = await read_body(request, settings.max_request_bytes, settings.timeout_seconds)
        asked = dialect.read_request(body)
        if asked.queries is not None:
            if not 1 <= len(asked.queries) <= settings.max_request_rows:
                raise bad_request(
                    f"a request may hold from 1 to {settings.max_request_rows} queries, but holds "
                    f"{len(asked.queries)}"
                )
            request.scope["state"]["facts"]["queries"] = len(asked.queries)
        elif self.guarded.guard.defense.requires_input:
            raise bad_request("the queries must be rows of numbers, but could not be read as such")
        answer, released = await while_connected(request, self._released(asked))
        self.metrics.released.inc(len(released))
        guard = self.guarded.guard
        headers = {"Oneway-Guard": guard.name, "Oneway-Guard-Version": guard.version}
        return as_json(
            dialect.write(answer, released, asked),
            headers=headers if self.model.metadata is None else None,
        )

    async def _released(self, asked: Asked) -> tuple[Any, Released]:
        """Return the guarded server's answer, not to be shown, and what is released of it."""
        answer = await self.upstream.post_json(self.model.infer_url, asked.upstream)
        scored = Scored(self.model.dialect.read_scores(answer), asked.queries)
        return answer, await self.batcher.ask(scored, self.settings.timeout_seconds)
