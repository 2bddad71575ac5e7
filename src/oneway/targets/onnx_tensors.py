"""ONNX models of tensors of any types, such as tokens and their mask: served, and not audited."""

from collections.abc import Mapping

import torch
from torch import Tensor

from oneway.errors import InvalidOptionError
from oneway.openinference.tensors import Datatype, DeclaredTensor
from oneway.releases import Outputs, logits_of_checked
from oneway.targets.answers import AnswerRules, Array, RuledTarget, fixed_size
from oneway.targets.failure import failed
from oneway.targets.onnx_scores import ScoreOutput, runtime_errors

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
