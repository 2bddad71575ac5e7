"""The server of a model in this process: the Open Inference Protocol over a guarded model."""

from abc import abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from oneway.errors import InvalidOptionError
from oneway.openinference.frames import DATATYPES, read_columns
from oneway.openinference.inputs import read_inputs
from oneway.openinference.messages import (
    Buffer,
    InferRequest,
    ModelMetadata,
    TensorMetadata,
    read_queries,
    wants_binary,
)
from oneway.openinference.tensors import MOST_ROWS, DeclaredTensor, MessageError
from oneway.serving.base_app import GuardedServer
from oneway.serving.frames import GuardedFrames
from oneway.serving.guarded import GuardedModel, Released, guard_parameters
from oneway.serving.requests import InferenceRequest
from oneway.serving.responses import InferAnswer
from oneway.serving.routing import Application
from oneway.serving.settings import ServingSettings
from oneway.serving.tensors import GuardedTensors, TensorBatch


def serving_app(
    model: GuardedModel | GuardedFrames | GuardedTensors, settings: ServingSettings
) -> Application:
    """Return the server of a model that has passed its self test.

    Args:
        model: The guarded model; its ``check`` must have been called.
        settings: How the server behaves.

    Raises:
        InvalidOptionError: A secret in ``settings`` cannot be used.
    """
    kinds: dict[type[Any], type[_ModelServer]] = {
        GuardedModel: _TensorServer,
        GuardedFrames: _FrameServer,
        GuardedTensors: _InputsServer,
    }
    return kinds[type(model)](model, settings).app()


class _ModelServer(GuardedServer[Any, InferenceRequest]):
    """Serves a model in this process; a subclass says what a request holds."""

    extensions = ("binary_tensor_data",)

    def __init__(self, model: Any, settings: ServingSettings) -> None:
        self.model, self.parameters = model, guard_parameters(model.guard)
        self.name = settings.model_name or "model"
        own = getattr(model.target, "output_name", None)
        self.output_name: str = settings.output_name or own or "probabilities"
        metadata = ModelMetadata(
            name=self.name,
            versions=[settings.model_version],
            platform="oneway",
            inputs=self.inputs(settings),
            outputs=[_floats(self.output_name, model.classes or 0)],
            parameters={**self.parameters, MOST_ROWS: settings.max_request_rows},
        )
        path = f"/v2/models/{self.name}"
        paths = path, f"{path}/versions/{settings.model_version}"
        super().__init__(model, settings, metadata, paths, self.numbers_per_query())

    def numbers_per_query(self) -> int | None:
        """Return how many numbers a query has; None if its columns may hold texts."""
        return None

    @abstractmethod
    def inputs(self, settings: ServingSettings) -> list[TensorMetadata]:
        """Return the inputs that a request must have."""

    @abstractmethod
    def read_queries(self, request: InferRequest, parts: Mapping[str, Buffer]) -> Any:
        """Return the queries of a request.

        Raises:
            MessageError: The request holds anything else.
        """

    def read_infer(self, request: InferRequest, parts: Mapping[str, Buffer]) -> InferenceRequest:
        output_name = self.output_name
        if any(output.name != output_name for output in request.outputs or ()):
            raise MessageError(f"the only output is {output_name!r}")
        in_binary = wants_binary(request, output_name)
        return InferenceRequest(self.read_queries(request, parts), request.id, in_binary=in_binary)

    async def answer(self, request: InferenceRequest) -> tuple[None, Released]:
        return None, await self.batcher.ask(request.queries, self.settings.timeout_seconds)

    def infer_answer(
        self,
        answer: None,  # noqa: ARG002
        released: Released,
        request: InferenceRequest,
    ) -> InferAnswer:
        message = {
            "model_name": self.name,
            "model_version": self.settings.model_version,
            "parameters": self.parameters,
        }
        if request.id is not None:
            message["id"] = request.id
        return InferAnswer(message, self.output_name, released)


class _TensorServer(_ModelServer):
    """Takes one input, a tensor of queries."""

    def inputs(self, settings: ServingSettings) -> list[TensorMetadata]:
        own = getattr(self.model.target, "input_name", None)
        self.input_name: str = settings.input_name or own or "input"
        return [_floats(self.input_name, *self.model.input_shape)]

    def numbers_per_query(self) -> int:
        return prod(self.model.input_shape)

    def read_queries(self, request: InferRequest, parts: Mapping[str, Buffer]) -> torch.Tensor:
        queries = read_queries(
            request,
            parts,
            input_name=self.input_name,
            input_shape=self.model.input_shape,
            most_rows=self.settings.max_request_rows,
        )
        return torch.from_numpy(queries)


class _FrameServer(_ModelServer):
    """Takes an input for each column of a table."""

    def inputs(self, settings: ServingSettings) -> list[TensorMetadata]:  # noqa: ARG002
        return [
            TensorMetadata(name=name, datatype=DATATYPES[kind], shape=[-1])
            for name, kind in self.model.columns.items()
        ]

    def read_queries(self, request: InferRequest, parts: Mapping[str, Buffer]) -> Any:
        most_rows = self.settings.max_request_rows
        columns = read_columns(request, parts, columns=self.model.columns, most_rows=most_rows)
        return self.model.frame(columns)


class _InputsServer(_ModelServer):
    """Takes the tensors that the model declares."""

    def inputs(self, settings: ServingSettings) -> list[TensorMetadata]:
        declared = self.model.target.inputs
        if settings.input_name is not None:
            raise InvalidOptionError(
                f"the setting input_name is for a model of one tensor of floats, but this one has "
                f"the inputs {', '.join(declared)}. They keep these names."
            )
        return [
            TensorMetadata(name=name, datatype=each.datatype, shape=[-1, *each.shape])
            for name, each in declared.items()
        ]

    def numbers_per_query(self) -> int | None:
        declared: list[DeclaredTensor] = [*self.model.target.inputs.values()]
        sizes = [size for each in declared for size in each.shape]
        if min(sizes, default=1) < 0 or any(each.datatype == "BYTES" for each in declared):
            return None
        return sum(prod(each.shape) for each in declared)

    def read_queries(self, request: InferRequest, parts: Mapping[str, Buffer]) -> TensorBatch:
        declared, most = self.model.target.inputs, self.settings.max_request_rows
        return TensorBatch(read_inputs(request, parts, declared=declared, most_rows=most))


def _floats(name: str, *sizes: int) -> TensorMetadata:
    return TensorMetadata(name=name, datatype="FP32", shape=[-1, *sizes])
