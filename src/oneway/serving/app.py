"""The server of a model in this process: the Open Inference Protocol over a guarded model."""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from torch import Tensor

from oneway.openinference import tensor_message
from oneway.openinference.messages import (
    BINARY_HEADER,
    ModelMetadata,
    TensorMetadata,
    parse_request,
    read_queries,
    wants_binary,
)
from oneway.serving.base_app import GuardedServer
from oneway.serving.guarded import GuardedModel, Released
from oneway.serving.http_errors import RefusedError, json_response
from oneway.serving.settings import ServingSettings


def serving_app(model: GuardedModel, settings: ServingSettings) -> Starlette:
    """Return the server of a model that has passed its self test.

    Args:
        model: The guarded model; :meth:`GuardedModel.check` must have been called.
        settings: How the server behaves.

    Raises:
        InvalidOptionError: A secret in ``settings`` cannot be used.
    """
    return _ModelServer(model, settings).app()


@dataclass(frozen=True)
class _Request:
    queries: Tensor
    id: str | None
    in_binary: bool


class _ModelServer(GuardedServer[Tensor, _Request]):
    extensions = ("binary_tensor_data",)

    def __init__(self, model: GuardedModel, settings: ServingSettings) -> None:
        path = f"/v2/models/{settings.model_name}"
        self.input_shape = model.input_shape
        self.parameters = model.guard.parameters
        declared = [
            (settings.input_name, [-1, *model.input_shape]),
            (settings.output_name, [-1, model.classes or 0]),
        ]
        inputs, outputs = (
            [TensorMetadata(name=name, datatype="FP32", shape=shape)] for name, shape in declared
        )
        metadata = ModelMetadata(
            name=settings.model_name,
            versions=[settings.model_version],
            platform="oneway",
            inputs=inputs,
            outputs=outputs,
            parameters=dict(self.parameters),
        )
        super().__init__(
            model, settings, metadata, (path, f"{path}/versions/{settings.model_version}")
        )
