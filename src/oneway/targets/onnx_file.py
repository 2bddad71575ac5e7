"""An ONNX file as a target, run by ONNX Runtime."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from oneway.contracts import Target
from oneway.errors import CorruptDataError, InvalidOptionError, UnknownNameError
from oneway.extras import load_extra
from oneway.releases import Outputs
from oneway.targets.answers import Array, fit_shape, fixed_size, require_batch, require_outputs
from oneway.targets.callables import callable_target

FLOATS = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}

DYNAMIC = (
    "Export it with a dynamic batch dimension (`dynamic_axes` or `dynamic_shapes` of "
    "`torch.onnx.export`)"
)


def open_onnx(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,
    batch_size: int,
    output_name: str | None = None,
) -> Target:
    """Open an ONNX file.

    A model that takes records ``(N, F)`` gets images flattened in row-major order.

    Args:
        where: The file.
        outputs: What the model answers with.
        device: Where the model computes; on a GPU by ONNX Runtime's CUDA provider.
        batch_size: Most queries that the model gets at once; exactly that many, if it takes one
            size only.
        output_name: The output that holds the scores; needed if several could.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        CorruptDataError: ONNX Runtime cannot load the file, or its input is no tensor of floats.
        UnknownNameError: The model has no output of that name.
        InvalidOptionError: ``outputs`` is None, several outputs could hold the scores, the output
            is no tensor of floats, or the model cannot take ``batch_size`` queries.
    """
    name = f"target {where!r}"
    outputs = require_outputs(outputs, name)
    runtime = load_extra("onnxruntime", extra="onnx", purpose="opening an .onnx file")
    session = _load(runtime, where, _providers(runtime, device))
    model = _OnnxModel(session, output_name, name)
    require_batch(model.fixed_batch, batch_size, name, DYNAMIC)
    return callable_target(
        model, outputs, batch_size=batch_size, fill_batches=model.fixed_batch is not None, name=name
    )


class _OnnxModel:
    """A session with one input, and the output that holds the scores."""

    def __init__(self, session: Any, output_name: str | None, name: str) -> None:
        self.session, self.name = session, name
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in FLOATS:
            raise CorruptDataError(
                f"{name} must take one tensor of floats, the images in [0, 1], but takes "
                f"{_listed(inputs)}. Put the conversion of the images into the model."
            )
        self.input = inputs[0]
        self.shape = tuple(self.input.shape)
        self.fixed_batch = fixed_size(self.shape[0]) if self.shape else None
        self.output_name = _choose_output(session.get_outputs(), output_name, name)

    def __call__(self, queries: Array) -> Array:
        fitted = fit_shape(queries, self.shape, self.name).astype(FLOATS[self.input.type])
        answer: Array = self.session.run([self.output_name], {self.input.name: fitted})[0]
        return answer


def _choose_output(available: Sequence[Any], requested: str | None, name: str) -> str:
    by_name = {output.name: output for output in available}
    maps = [output.name for output in available if output.type.startswith("seq(map")]
    zipmap = (
        f"{name} gives its probabilities as a list of dictionaries ({', '.join(maps)}). Convert "
        "the classifier again without ZipMap, as by "
        "`skl2onnx.to_onnx(model, X, options={'zipmap': False})`."
    )
    if requested is not None:
        if requested not in by_name:
            raise UnknownNameError(f"output of {name}", requested, by_name)
        if requested in maps:
            raise InvalidOptionError(zipmap)
        if by_name[requested].type not in FLOATS:
            raise InvalidOptionError(
                f"output {requested!r} of {name} must be a tensor of floats, but is "
                f"{by_name[requested].type}. The model has {_listed(available)}."
            )
        return requested
    fitting = [
        output.name for output in available if output.type in FLOATS and len(output.shape) in (0, 2)
    ]
    if len(fitting) == 1 and not maps:
        return str(fitting[0])
    if maps and not fitting:
        raise InvalidOptionError(zipmap)
    raise InvalidOptionError(
        f"say which output of {name} holds the scores, by output_name: {len(fitting)} of its "
        f"{len(available)} outputs are tensors of floats of shape (N, K). The model has "
        f"{_listed(available)}."
    )


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{value.name} {value.type} {tuple(value.shape)}" for value in values)


def _providers(runtime: Any, device: torch.device) -> list[Any]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type != "cuda" or "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise InvalidOptionError(
            f"ONNX Runtime cannot use device {str(device)!r} here. Pass the device 'cpu', or for "
            "CUDA install the package onnxruntime-gpu in place of onnxruntime."
        )
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]


def _load(runtime: Any, where: str, providers: list[Any]) -> Any:
    states = load_extra(
        "onnxruntime.capi.onnxruntime_pybind11_state", extra="onnx", purpose="opening an .onnx file"
    )
    options = runtime.SessionOptions()
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # its warnings are about speed
    try:
        return runtime.InferenceSession(where, options, providers=providers)
    except (
        states.Fail,
        states.InvalidArgument,
        states.InvalidGraph,
        states.InvalidProtobuf,
        states.NoSuchFile,
        states.NotImplemented,
        states.RuntimeException,
    ) as error:
        raise CorruptDataError(
            f"{where} cannot be loaded by ONNX Runtime {runtime.__version__} "
            f"({type(error).__name__}). Check it with `onnx.checker.check_model`; a model of a "
            "newer opset needs a newer runtime, and its external data must lie beside it."
        ) from error
