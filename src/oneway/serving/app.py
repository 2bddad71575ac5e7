"""The server: the Open Inference Protocol over a guarded model."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from torch import Tensor

from oneway.serving.batching import Batcher
from oneway.serving.edge import as_json, read_body, while_connected
from oneway.serving.frame import framed_app
from oneway.serving.guarded_model import GuardedModel, Released
from oneway.serving.metrics import ServerMetrics
from oneway.serving.openapi import model_paths, openapi_document
from oneway.serving.protocol import (
    BINARY_HEADER,
    ModelMetadata,
    TensorMetadata,
    parse_request,
    read_queries,
    wants_binary,
)
from oneway.serving.refusals import RefusedError
from oneway.serving.settings import ServingSettings


def serving_app(model: GuardedModel, settings: ServingSettings) -> Starlette:
    """Return the server of a model that has passed its self test.

    Args:
        model: What is served; :meth:`GuardedModel.check` must have been called.
        settings: How.

    Raises:
        InvalidOptionError: A secret in ``settings`` cannot be used.
    """
    server = _Server(model, settings)
    return server.app()


class _Server:
    def __init__(self, model: GuardedModel, settings: ServingSettings) -> None:
        if model.classes is None:
            raise RuntimeError("the model must pass its self test before it is served")
        self.model, self.settings = model, settings
        self.metrics = ServerMetrics()
        self.batcher = Batcher[Tensor, Released](
            self._answer,
            len,
            max_batch_size=settings.max_batch_size,
            max_waiting_rows=settings.max_waiting_rows,
            longest_seconds=2 * settings.timeout_seconds,
            close_seconds=settings.shutdown_seconds,
            wait_seconds=settings.batch_wait_milliseconds / 1000,
        )
        self.told = {"guard": model.guard.name, "guard_version": model.guard.version}

    def app(self) -> Starlette:
        name, version = self.settings.model_name, self.settings.model_version
        routes = []
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(path, self.model_metadata),
                Route(f"{path}/ready", self.model_ready),
                Route(f"{path}/infer", self.infer, methods=["POST"]),
            ]
        paths = model_paths(f"/v2/models/{name}")
        paths |= model_paths(f"/v2/models/{name}/versions/{version}")
        return framed_app(
            routes,
            self.settings,
            batcher=self.batcher,
            metrics=self.metrics,
            openapi=openapi_document(paths, token=self.settings.bearer_token() is not None),
            extensions=["binary_tensor_data"],
            ready=self.always,
        )

    async def always(self) -> bool:
        """Return True: a model in this process is ready as long as it is asked."""
        return True

    def _answer(self, queries: Sequence[Tensor]) -> Sequence[Released]:
        self.metrics.batches.observe(sum(map(len, queries)))
        return self.model.answer(queries)

    async def model_ready(self, request: Request) -> Response:
        self._check_name(request)
        alive = self.batcher.alive
        told = {"name": self.settings.model_name, "ready": alive}
        return as_json(told, 200 if alive else 503)

    async def model_metadata(self, request: Request) -> Response:
        self._check_name(request)
        settings, classes = self.settings, self.model.classes
        return as_json(
            ModelMetadata(
                name=settings.model_name,
                versions=[settings.model_version],
                platform="oneway",
                inputs=[
                    TensorMetadata(
                        name=settings.input_name,
                        datatype="FP32",
                        shape=[-1, *self.model.input_shape],
                    )
                ],
                outputs=[
                    TensorMetadata(
                        name=settings.output_name, datatype="FP32", shape=[-1, classes or 0]
                    )
                ],
                parameters=dict(self.told),
            )
        )

    async def infer(self, request: Request) -> Response:
        self._check_name(request)
        settings = self.settings
        body = await read_body(request, settings.max_request_bytes, settings.timeout_seconds)
        asked, binary = parse_request(body, request.headers.get(BINARY_HEADER))
        in_binary = wants_binary(asked, settings.output_name)
        queries = read_queries(
            asked,
            binary,
            input_name=settings.input_name,
            input_shape=self.model.input_shape,
            most_rows=settings.max_request_rows,
        )
        request.scope["state"]["facts"]["queries"] = len(queries)
        told_id = asked.id
        del body, asked, binary  # they may be many times as large as the queries in them
        released = await while_connected(
            request, self.batcher.ask(queries, settings.timeout_seconds)
        )
        self.metrics.released.inc(len(queries))
        return self._told(told_id, released, in_binary)

    def _told(self, told_id: str | None, released: Released, in_binary: bool) -> Response:
        output: dict[str, Any] = {
            "name": self.settings.output_name,
            "shape": list(released.shape),
            "datatype": "FP32",
        }
        if in_binary:
            output["parameters"] = {"binary_data_size": released.nbytes}
        else:
            output["data"] = released.ravel().tolist()
        answer: dict[str, Any] = {
            "model_name": self.settings.model_name,
            "model_version": self.settings.model_version,
            "parameters": self.told,
            "outputs": [output],
        }
        if told_id is not None:
            answer["id"] = told_id
        if not in_binary:
            return as_json(answer)
        head = to_json(answer)
        return Response(
            head + released.astype("<f4").tobytes(),
            headers={BINARY_HEADER: str(len(head))},
            media_type="application/octet-stream",
        )

    def _check_name(self, request: Request) -> None:
        version = request.path_params.get("version", self.settings.model_version)
        if (request.path_params["name"], version) != (
            self.settings.model_name,
            self.settings.model_version,
        ):
            raise RefusedError(404, "there is no such model, or no such version", "bad_request")
