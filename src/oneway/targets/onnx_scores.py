"""The output of an ONNX model that holds the scores: a matrix, or a dictionary for each row."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from oneway.extras import load_extra
from oneway.targets.answers import Array

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
