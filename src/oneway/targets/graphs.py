"""What PyTorch records of a guard holds none of its checks: it is refused."""

import torch

from oneway.errors import InvalidOptionError


def refuse_graphs() -> None:
    """Refuse to take part in a graph that PyTorch records, or in a transform of its calls.

    A graph holds operations alone: it would release scores that are not finite, keep the draws of
    the traced queries as constants, and check no label.

    Raises:
        InvalidOptionError: A graph is traced or exported, or the call is transformed.
    """
    if is_exporting():
        what = "exporting (torch.export, torch.onnx.export)"
    elif torch.compiler.is_dynamo_compiling():
        return  # what compiles can call a guard as it is
    elif torch._C._is_tracing():
        what = "tracing (torch.jit.trace, torch.onnx.export)"
    elif torch._C._are_functorch_transforms_active():
        what = "a transform (torch.vmap, torch.func)"
    else:
        return
    raise InvalidOptionError(no_graph(what))


def is_exporting() -> bool:
    """Return whether PyTorch exports this call."""
    if hasattr(torch.compiler, "is_exporting"):  # since PyTorch 2.7
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def no_graph(what: str) -> str:
    """Return the message for somebody who would record a guard in a graph."""
    return (
        f"a guard cannot take part in {what}: it checks every answer, and a graph checks nothing. "
        "Trace or export the model itself, and call the guard behind it; or write a codebook as "
        "operators behind an ONNX model by `oneway export`."
    )
