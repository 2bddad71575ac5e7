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
"""Operators that pass their input on."""

INPUT, OUTPUT = "logits", "probabilities"


def codebook_to_onnx(guard: CodebookRelease) -> "onnx.ModelProto":
    """Return a graph from ``logits``, ``(N, K)`` float32, to ``probabilities``, ``(N, K)`` float32.

    It answers like :meth:`CodebookRelease.probabilities`. It cannot refuse scores that are not
    finite: it answers them with the first vector of some label.

    Raises:
        MissingExtraError: The package onnx is not installed.
    """
    graph = _Graph()
    # A copy on the CPU: the guard's own table stays where it answers.
    book = Codebook(**guard.state.architecture)
    book.load_state_dict(guard.state.state_dict())
    rows, classes = _project(graph, book)
    box = _first_box(graph, book, rows)
    table = guard.released_values().cpu()
    if book.is_dense:
        table = book.scatter(table, book.classes[book.labels])
    values = graph.constant("table", table[book.assignment.flatten()])
    _scatter(graph, book, graph.add("Gather", [values, box], "chosen", axis=0), classes)
    return graph.model(book.sizes.num_classes)


class _Graph:
    """Nodes and constants of a graph that is being built."""

    def __init__(self) -> None:
        self.types = load_extra("onnx", **NEEDED).TensorProto
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: Tensor) -> str:
        numpy_helper = load_extra("onnx.numpy_helper", **NEEDED)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name))
        return name

    def number(self, name: str, value: int) -> str:
        return self.constant(name, torch.tensor([value]))

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        helper = load_extra("onnx.helper", **NEEDED)
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def model(self, classes: int) -> "onnx.ModelProto":
        helper = load_extra("onnx.helper", **NEEDED)
        ends = [
            helper.make_tensor_value_info(name, self.types.FLOAT, ["N", classes])
            for name in (INPUT, OUTPUT)
        ]
        graph = helper.make_graph(self.nodes, "oneway_codebook", ends[:1], ends[1:], self.constants)
        return helper.make_model(  # type: ignore[no-any-return]
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="oneway"
        )


def _project(graph: _Graph, book: Codebook) -> tuple[str, str]:
    """Add what :func:`oneway.defenses.codebook.table.project` does; return rows and classes.

    Rows of a dense table stay in the classes' own order.
    """
    graph.add("ArgMax", [INPUT], "labels", axis=-1, keepdims=0)
    graph.add("Cast", [INPUT], "wide", to=graph.types.DOUBLE)
    rows = graph.add("Softmax", ["wide"], "rows", axis=-1)
    if book.is_dense:
        return rows, ""
    one, zero = (torch.full((1,), value, dtype=torch.float64) for value in (1, 0))
    classes = graph.constant("classes", book.classes)
    classes = graph.add("Gather", [classes, "labels"], "label_classes", axis=0)
    graph.add("GatherElements", [rows, classes], "explicit", axis=-1)
    graph.add("ReduceSum", ["explicit", graph.number("last", -1)], "explicit_sum", keepdims=1)
    graph.add("Sub", [graph.constant("one", one), "explicit_sum"], "left")
    graph.add("Max", ["left", graph.constant("zero", zero)], "rest")
    return graph.add("Concat", ["explicit", "rest"], "projected", axis=-1), classes


def _first_box(graph: _Graph, book: Codebook, rows: str) -> str:
    """Add what :meth:`Codebook.boxes_of` does with rows; return the number of the box."""
    graph.add("Unsqueeze", [rows, graph.number("middle", 1)], "beside")
    edges = graph.constant("edges", book.search_edges())
    graph.add("Gather", [edges, "labels"], "label_edges", axis=0)
    graph.add("LessOrEqual", ["beside", "label_edges"], "within")
    graph.add("Cast", ["within"], "within_numbers", to=graph.types.INT32)
    graph.add("ReduceMin", ["within_numbers", graph.number("width", -1)], "fits", keepdims=0)
    graph.add("ArgMax", ["fits"], "box", axis=-1, keepdims=0)
    graph.add("Mul", ["labels", graph.number("boxes", book.sizes.boxes)], "start")
    return graph.add("Add", ["start", "box"], "place")


def _scatter(graph: _Graph, book: Codebook, chosen: str, classes: str) -> None:
    """Add what :meth:`Codebook.scatter` does, to the output; a dense table is laid out already."""
    if book.is_dense:
        graph.add("Identity", [chosen], OUTPUT)
        return
    explicit = book.sizes.explicit_classes
    start, end = graph.number("from", explicit), graph.number("to", explicit + 1)
    axis = graph.number("axis", -1)
    graph.add("Slice", [chosen, start, end, axis], "other")
    graph.add("Shape", [INPUT], "shape")
    graph.add("Expand", ["other", "shape"], "others")
    graph.add("Slice", [chosen, graph.number("begin", 0), start, axis], "kept")
    graph.add("ScatterElements", ["others", classes, "kept"], OUTPUT, axis=-1)


def guard_onnx_model(
    model: "onnx.ModelProto", guard: CodebookRelease, output: str
) -> "onnx.ModelProto":
    """Put a codebook behind a model: only guarded probabilities come out.

    Args:
        model: Its ``output`` gives ``(N, K)`` float32 logits. All its other outputs are dropped,
            since they would bypass the guard.
        guard: Fitted to scores of this model.
        output: Name of the output to guard.

    Raises:
        InvalidOptionError: The model has no such output, or it is not float32, is not over the
            guard's classes, or comes out of a softmax.
        MissingExtraError: The package onnx is not installed.
    """
    _check_output(model, output, guard.state.sizes.num_classes)
    compose = load_extra("onnx.compose", **NEEDED)
    converter = load_extra("onnx.version_converter", **NEEDED)
    versions = {opset.domain: opset.version for opset in model.opset_import}
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


def _check_output(model: "onnx.ModelProto", output: str, classes: int) -> None:
    """Refuse an output that is not ``(N, classes)`` float32 logits."""
    outputs = {each.name: each for each in model.graph.output}
    if output not in outputs:
        raise InvalidOptionError(
            f"the model has no output {output!r}; it has {', '.join(outputs)}. Name one of them."
        )
    types = load_extra("onnx", **NEEDED).TensorProto
    tensor = outputs[output].type.tensor_type
    if tensor.elem_type != types.FLOAT:
        raise InvalidOptionError(
            f"output {output!r} must be FLOAT (float32), but is "
            f"{types.DataType.Name(tensor.elem_type)}. Name a float32 output, or cast it in the "
            "model."
        )
    if _is_softmax(model, output):
        raise InvalidOptionError(
            f"output {output!r} comes out of a softmax, but the guard takes logits. Name the "
            "output before the softmax; if the model has none, add it to its outputs."
        )
    shape = [dim.dim_value or None for dim in tensor.shape.dim]
    if len(shape) != 2 or shape[1] not in (None, classes):
        raise InvalidOptionError(
            f"output {output!r} must have shape (N, {classes}), as the guard was fitted to, but "
            f"has {tuple(shape)}."
        )


def _is_softmax(model: "onnx.ModelProto", output: str) -> bool:
    """Return whether an output is that of a softmax, perhaps cast or reshaped."""
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
