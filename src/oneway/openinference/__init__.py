"""Messages of the Open Inference Protocol, version 2, and of plain JSON, for clients and servers.

Source:
    https://github.com/open-inference/open-inference-protocol, REST; and Triton's extension for
    binary tensor data.
"""

from oneway.openinference.addresses import EndpointOptions, ModelAddress, shown_address
from oneway.openinference.key_paths import KeyPath, mask
from oneway.openinference.tensors import (
    DATATYPES,
    FLOATS,
    MessageError,
    MessageTensor,
    choose_output,
    read_numbers,
    read_scores,
    read_tensors,
    tensor_message,
)

__all__ = [
    "DATATYPES",
    "FLOATS",
    "EndpointOptions",
    "KeyPath",
    "MessageError",
    "MessageTensor",
    "ModelAddress",
    "choose_output",
    "mask",
    "read_numbers",
    "read_scores",
    "read_tensors",
    "shown_address",
    "tensor_message",
]
