"""A codebook as ONNX operators, alone or behind a model: a guarded model without any Python."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from oneway.defenses.codebook import Codebook, CodebookRelease
from oneway.errors import InvalidOptionError
from oneway.extras import load_extra

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""Version of the operators: what runtimes of 2023 and later have."""

NEEDED = {"extra": "export", "purpose": "writing ONNX"}

CARRIERS = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that hand on what they are given."""

INPUT, OUTPUT = "logits", "probabilities"


def codebook_to_onnx(guard: CodebookRelease) -> "onnx.ModelProto":
    """Return a graph from ``logits``, ``(N, K)`` float32, to ``probabilities``, ``(N, K)`` float32.

    It gives what :meth:`CodebookRelease.probabilities` does. It cannot refuse scores that are not
    finite: it answers them with the first vector of some label.

    Raises:
        MissingExtraError: The package onnx is not installed.
    """
    helper = load_extra("onnx.helper", **NEEDED)
    # A copy on the CPU: the guard's own table stays where it answers.
    book = Codebook(**guard.network.architecture)
    book.load_state_dict(guard.network.state_dict())
    sizes = book.sizes
    types = load_extra("onnx", **NEEDED).TensorProto
    constants: list[Any] = []

    def constant(name: str, value: Tensor) -> str:
        numpy_helper = load_extra("onnx.numpy_helper", **NEEDED)
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], name=output, **attributes)

    owner = book.owner.flatten()
    edges, listed = book.edges, ["rows"]
    nodes = [
        node("ArgMax", [INPUT], "labels", axis=-1, keepdims=0),
        node("Cast", [INPUT], "wide", to=types.DOUBLE),
        node("Softmax", ["wide"], "rows", axis=-1),
    ]
    if book.is_dense:
        edges = book.edges_by_class()
    else:
        listed = ["seen"]
        nodes += [
            node("Gather", [constant("classes", book.classes), "labels"], "own_classes", axis=0),
            node("GatherElements", ["rows", "own_classes"], "own", axis=-1),
            node("ReduceSum", ["own", constant("last", torch.tensor([-1]))], "told", keepdims=1),
            node("Sub", [constant("one", torch.ones(1, dtype=torch.float64)), "told"], "left"),
            node("Max", ["left", constant("zero", torch.zeros(1, dtype=torch.float64))], "rest"),
            node("Concat", ["own", "rest"], "seen", axis=-1),
        ]
    nodes += [
        node("Unsqueeze", [*listed, constant("middle", torch.tensor([1]))], "beside"),
        node("Gather", [constant("edges", edges), "labels"], "own_edges", axis=0),
        node("LessOrEqual", ["beside", "own_edges"], "within"),
        node("Cast", ["within"], "within_numbers", to=types.INT32),
        node(
            "ReduceMin",
            ["within_numbers", constant("width", torch.tensor([-1]))],
            "fits",
            keepdims=0,
        ),
        node("ArgMax", ["fits"], "box", axis=-1, keepdims=0),
        node("Mul", ["labels", constant("boxes", torch.tensor([sizes.boxes]))], "start"),
        node("Add", ["start", "box"], "place"),
    ]
    table = guard.released_values().cpu()
    if book.is_dense:
        table = book.laid_out(table, book.classes[book.labels])
    nodes.append(node("Gather", [constant("table", table[owner]), "place"], "chosen", axis=0))
    if book.is_dense:
        nodes.append(node("Identity", ["chosen"], OUTPUT))
    else:
        ends = [
            constant(name, torch.tensor([at]))
            for name, at in (("from", sizes.listed), ("to", sizes.listed + 1))
        ]
        nodes += [
            node("Slice", ["chosen", *ends, constant("axis", torch.tensor([-1]))], "other"),
            node("Shape", [INPUT], "shape"),
            node("Expand", ["other", "shape"], "others"),
            node(
                "Slice", ["chosen", constant("begin", torch.tensor([0])), ends[0], "axis"], "kept"
            ),
            node("ScatterElements", ["others", "own_classes", "kept"], OUTPUT, axis=-1),
        ]
    told = helper.make_tensor_value_info(INPUT, types.FLOAT, ["N", sizes.num_classes])
    out = helper.make_tensor_value_info(OUTPUT, types.FLOAT, ["N", sizes.num_classes])
    graph = helper.make_graph(nodes, "oneway_codebook", [told], [out], constants)
    return helper.make_model(  # type: ignore[no-any-return]
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="oneway"
    )


def guard_onnx_model(
    model: "onnx.ModelProto", guard: CodebookRelease, output: str
) -> "onnx.ModelProto":
    """Put a codebook behind a model: its scores go in, and nothing but probabilities comes out.

    Args:
        model: Whose ``output`` gives ``(N, K)`` float32 logits. All its other outputs are
            dropped, since they would bypass the guard.
        guard: Fitted to scores of this model.
        output: Name of the output to guard.

    Raises:
        InvalidOptionError: The model has no such output, or it is not float32, is not over the
            guard's classes, or comes out of a softmax.
        MissingExtraError: The package onnx is not installed.
    """
    compose = load_extra("onnx.compose", **NEEDED)
    converter = load_extra("onnx.version_converter", **NEEDED)
    outputs = {one.name: one for one in model.graph.output}
    if output not in outputs:
        raise InvalidOptionError(
            f"the model has no output {output!r}; it has {', '.join(outputs)}. Name one of them."
        )
    types = load_extra("onnx", **NEEDED).TensorProto
    found = outputs[output].type.tensor_type.elem_type
    if found != types.FLOAT:
        raise InvalidOptionError(
            f"output {output!r} must be FLOAT (float32), but is {types.DataType.Name(found)}. Name "
            "a float32 output, or cast it in the model."
        )
    if _comes_of_softmax(model, output):
        raise InvalidOptionError(
            f"output {output!r} comes out of a softmax, but the guard takes logits. Name the "
            "output before the softmax; if the model has none, add it to its outputs."
        )
    shape = [dim.dim_value or None for dim in outputs[output].type.tensor_type.shape.dim]
    classes = guard.network.sizes.num_classes
    if len(shape) != 2 or shape[1] not in (None, classes):
        raise InvalidOptionError(
            f"output {output!r} must have shape (N, {classes}), as the guard was fitted to, but "
            f"has {tuple(shape)}."
        )
    versions = {one.domain: one.version for one in model.opset_import}
    if versions.get("") != OPSET:
        model = converter.convert_version(model, OPSET)
    tail = compose.add_prefix(codebook_to_onnx(guard), "oneway_")
    # Both must be of one version of the format itself.
    tail.ir_version = model.ir_version
    return compose.merge_models(  # type: ignore[no-any-return]
        model,
        tail,
        io_map=[(output, f"oneway_{INPUT}")],
        outputs=[f"oneway_{OUTPUT}"],
    )


def _comes_of_softmax(model: "onnx.ModelProto", output: str) -> bool:
    """Say whether an output is what a softmax gives, cast or laid out otherwise, or not."""
    makers = {name: node for node in model.graph.node for name in node.output}
    kinds = list[str]()
    while output in makers:
        node = makers[output]
        if node.op_type not in CARRIERS:
            kinds.append(node.op_type)
        if kinds and kinds != ["Exp"]:
            break
        output = node.input[0]
    return kinds in (["Softmax"], ["Exp", "LogSoftmax"])
