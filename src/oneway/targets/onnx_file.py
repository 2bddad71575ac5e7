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
from oneway.targets.onnx_frames import OnnxFrameTarget, are_columns
from oneway.targets.onnx_scores import (
    FLOATS,
    OnnxTensorTarget,
    ScoreOutput,
    is_map,
    listed,
    runtime_errors,
)

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

    A model that takes records ``(N, F)`` gets images flattened in row-major order. A model with
    one input for each column of a table, as skl2onnx writes for a pipeline that was fitted on a
    DataFrame, becomes a :class:`~oneway.contracts.FrameTarget`. Probabilities in a dictionary for
    each row (ZipMap) are read by class.

    Args:
        where: The file.
        outputs: What the model answers with.
        device: Where the model computes; on a GPU by ONNX Runtime's CUDA provider.
        batch_size: Most queries that the model gets at once; exactly that many, if it takes one
            size only.
        output_name: The output that holds the scores; needed if several could.

    Raises:
        CorruptDataError: The model's inputs are neither one tensor of floats nor the columns of a
            table.
        OnewayError: See :func:`open_onnx_tensors`.
    """
    target = open_onnx_tensors(
        where, outputs=outputs, device=device, batch_size=batch_size, output_name=output_name
    )
    return _of_floats(target)


def _of_floats(target: Target | OnnxTensorTarget) -> Target:
    """Return a target that takes one tensor of floats, or columns.

    Raises:
        CorruptDataError: It takes other inputs.
    """
    if not isinstance(target, OnnxTensorTarget):
        return target
    inputs = target.scores.session.get_inputs()
    remedy = (
        "Open a function that converts the queries, as by "
        "`(255 * images).round().astype(numpy.uint8)`, and asks the model: package.module:factory."
        if len(inputs) == 1 and "int" in inputs[0].type
        else "Put the conversion of the queries into the model."
    )
    raise CorruptDataError(
        f"{target.rules.name} must take one tensor of floats, the images in [0, 1], or one input "
        f"of shape (N, 1) for each column of a table, but takes {listed(inputs)}. {remedy} "
        "`oneway serve` takes the model as it is."
    )


def open_onnx_tensors(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,
    batch_size: int,
    output_name: str | None = None,
) -> Target | OnnxTensorTarget:
    """Open an ONNX file, also one that takes several tensors, or tensors that are no floats.

    Args:
        where: The file.
        outputs: See :func:`open_onnx`.
        device: See :func:`open_onnx`.
        batch_size: See :func:`open_onnx`.
        output_name: See :func:`open_onnx`.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        CorruptDataError: ONNX Runtime cannot load the file.
        UnknownNameError: The model has no output of that name.
        InvalidOptionError: ``outputs`` is None, several outputs could hold the scores, the output
            is no tensor of floats, or the model cannot take ``batch_size`` queries.
    """
    name = f"target {where!r}"
    outputs = require_outputs(outputs, name)
    runtime = load_extra("onnxruntime", extra="onnx", purpose="opening an .onnx file")
    session = _load(runtime, where, _providers(runtime, device))
    return _asked(session, outputs, batch_size=batch_size, output_name=output_name, name=name)


def session_target(session: Any, outputs: Outputs, **options: Any) -> Target:
    """Take an ONNX Runtime session as a target; see :func:`open_onnx`.

    Raises:
        OnewayError: The model's inputs or outputs do not fit.
    """
    return _of_floats(_asked(session, outputs, **options))


def _asked(
    session: Any,
    outputs: Outputs,
    *,
    batch_size: int,
    output_name: str | None = None,
    name: str,
) -> Target | OnnxTensorTarget:
    inputs = session.get_inputs()
    scores = ScoreOutput(session, choose_output(session.get_outputs(), output_name, name))
    if are_columns(inputs):
        return OnnxFrameTarget(scores, outputs, batch_size=batch_size, name=name)
    if len(inputs) != 1 or inputs[0].type not in FLOATS:
        return OnnxTensorTarget(scores, outputs, name=name)
    model = _OnnxModel(scores, inputs[0], name)
    require_batch(model.fixed_batch, batch_size, name, DYNAMIC)
    target = callable_target(
        model, outputs, batch_size=batch_size, fill_batches=model.fixed_batch is not None, name=name
    )
    target.class_names = model.class_names()
    target.input_name, target.output_name = inputs[0].name, scores.name
    return target


class _OnnxModel:
    """A session with one input of floats."""

    def __init__(self, scores: ScoreOutput, taken: Any, name: str) -> None:
        self.scores, self.input, self.name = scores, taken, name
        self.shape = tuple(taken.shape)
        self.fixed_batch = fixed_size(self.shape[0]) if self.shape else None

    def __call__(self, queries: Array) -> Array:
        fitted = fit_shape(queries, self.shape, self.name).astype(FLOATS[self.input.type])
        return self.scores.run({self.input.name: fitted})

    def class_names(self) -> tuple[str, ...] | None:
        """Return the classes that the model names, if it can be asked with zeros."""
        sizes = [fixed_size(size) for size in self.shape[1:]]
        zeros = np.zeros((self.fixed_batch or 1, *(size or 1 for size in sizes)))
        feeds = {self.input.name: zeros.astype(FLOATS[self.input.type])}
        return self.scores.class_names(feeds) if None not in sizes else None


def choose_output(available: Sequence[Any], requested: str | None, name: str) -> Any:
    """Return the output that holds the scores: that of a name, or the only one that can.

    Args:
        available: The session's outputs.
        requested: The output's name; None: the only output that is a matrix of floats or a ZipMap.
        name: What messages call the model.

    Raises:
        UnknownNameError: The model has no output of that name.
        InvalidOptionError: Several outputs could hold the scores, or the named output cannot.
    """
    by_name = {output.name: output for output in available}
    if requested is not None:
        UnknownNameError.check(f"output of {name}", requested, by_name)
        chosen = by_name[requested]
        if chosen.type not in FLOATS and not is_map(chosen):
            raise InvalidOptionError(
                f"output {requested!r} of {name} must be a tensor of floats, but is "
                f"{chosen.type}. The model has {listed(available)}."
            )
        return chosen
    fitting = [
        output
        for output in available
        if is_map(output) or (output.type in FLOATS and len(output.shape) in (0, 2))
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise InvalidOptionError(
        f"say which output of {name} holds the scores, by output_name: {len(fitting)} of its "
        f"{len(available)} outputs are tensors of floats of shape (N, K). The model has "
        f"{listed(available)}."
    )


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
    options = runtime.SessionOptions()
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # its warnings are about speed
    try:
        return runtime.InferenceSession(where, options, providers=providers)
    except runtime_errors() as error:
        raise CorruptDataError(
            f"{where} cannot be loaded by ONNX Runtime {runtime.__version__} "
            f"({type(error).__name__}). Check it with `onnx.checker.check_model`; a model of a "
            "newer opset needs a newer runtime, and its external data must lie beside it."
        ) from error
