"""Scores of ONNX models of any inputs: which output holds them, and a target of any tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneway.errors import InvalidOptionError
from oneway.extras import load_extra
from oneway.openinference.tensors import Datatype, DeclaredTensor
from oneway.releases import Outputs, logits_of_checked
from oneway.targets.answers import AnswerRules, Array, RuledTarget, fixed_size
from oneway.targets.failure import failed

FLOATS = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


def listed(values: Sequence[Any]) -> str:
    """Return the inputs or outputs of a session with their types and shapes, for a message."""
    return ", ".join(f"{value.name} {value.type} {tuple(value.shape)}" for value in values)


def is_map(output: Any) -> bool:
    """Say whether an output is a list of dictionaries from classes to scores: that of ZipMap."""
    return str(output.type).startswith("seq(map(") and "float" in output.type


class ScoreOutput:
    """A session of ONNX Runtime, and the one of its outputs that holds the scores."""

    def __init__(self, session: Any, output: Any) -> None:
        """Keep a session and one of its ``get_outputs()``: a matrix of floats, or of ZipMap."""
        self.session, self.name, self._is_map = session, output.name, is_map(output)

    def run(self, feeds: dict[str, Array]) -> Array:
        """Return the ``(N, K)`` scores of a batch, in the order of :meth:`class_names`."""
        answer = self.session.run([self.name], feeds)[0]
        if not self._is_map:
            scores: Array = answer
            return scores
        # The dictionaries of all rows have the same classes, in the same order.
        return np.array([[*row.values()] for row in answer], np.float32)

    def class_names(self, feeds: dict[str, Array]) -> tuple[str, ...] | None:
        """Return the classes that ZipMap names; None for a matrix.

        Args:
            feeds: A batch of any values. If the model refuses it, the names stay unknown.
        """
        if not self._is_map:
            return None
        try:
            rows = self.session.run([self.name], feeds)[0]
        except runtime_errors():
            return None
        return tuple(map(str, rows[0]))


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises where it cannot load a file, or run it."""
    states = load_extra(
        "onnxruntime.capi.onnxruntime_pybind11_state", extra="onnx", purpose="opening an .onnx file"
    )
    return (
        states.Fail,
        states.InvalidArgument,
        states.InvalidGraph,
        states.InvalidProtobuf,
        states.NoSuchFile,
        states.NotImplemented,
        states.RuntimeException,
    )


DATATYPES: dict[str, Datatype] = {
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
}
"""Datatypes of the Open Inference Protocol, by ONNX Runtime's types."""


class OnnxTensorTarget(RuledTarget):
    """Answers queries of one or more tensors, by the names of a model's inputs.

    Attributes:
        inputs: The inputs, by name.
    """

    def __init__(self, scores: ScoreOutput, outputs: Outputs, *, name: str) -> None:
        """Wrap a session.

        Raises:
            InvalidOptionError: An input has no batch dimension of any size, or a type that the
                Open Inference Protocol has not.
        """
        self.scores, self.outputs, self.output_name = scores, outputs, scores.name
        self.rules = AnswerRules(name, outputs)
        taken = scores.session.get_inputs()
        refused = [
            each.name
            for each in taken
            if each.type not in DATATYPES or not each.shape or fixed_size(each.shape[0]) is not None
        ]
        if refused:
            raise InvalidOptionError(
                f"each input of {name} must be a tensor whose first dimension is a batch of any "
                f"size, but {', '.join(refused)} is not. Export it with a dynamic batch dimension."
            )
        self.inputs = {
            each.name: DeclaredTensor(
                DATATYPES[each.type], tuple(fixed_size(size) or -1 for size in each.shape[1:])
            )
            for each in taken
        }

    def tensor_logits(self, tensors: Mapping[str, Array]) -> Tensor:
        """Return ``(N, K)`` float64 logits, in nats: for the defender only.

        Args:
            tensors: ``(N, ...)`` arrays by the names of the inputs, in their types; of BYTES
                arrays of ``str`` objects.

        Raises:
            InvalidTensorError: The answer cannot be used.
            TargetFailedError: The model raised.
        """
        rows = len(next(iter(tensors.values())))
        try:
            scores = torch.tensor(self.scores.run(dict(tensors)))
        except runtime_errors() as error:
            raise failed(self.rules.name, rows, error) from error
        self.rules.check(scores, rows)
        return logits_of_checked(scores, self.outputs).double()
