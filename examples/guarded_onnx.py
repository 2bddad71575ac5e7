"""Guard an ONNX Runtime session: the same `run`, and only what may come out comes out.

    python examples/guarded_onnx.py model.onnx

Without a file it makes a small model of its own. Needs `pip install 'oneway[onnx]'`, and `onnx` for
that model.
"""

import sys
from typing import Any

import numpy as np
import onnxruntime

from oneway.adapters import GuardedSession
from oneway.defenses import build_defense


def small_model() -> bytes:
    """Return a model with logits ``(N, 10)``, and an embedding that must stay inside."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["image"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
    ]

    def tensor(name: str, width: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])

    graph = helper.make_graph(
        nodes,
        "small",
        [tensor("image", 64)],
        [tensor("embedding", 64), tensor("logits", 10)],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = helper.make_opsetid("", 17)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    return model


def main(source: str | bytes) -> None:
    """Guard the session, and run it."""
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    defense = build_defense("rounding", {"decimals": 2}, None)
    guarded = GuardedSession(session, defense, output_name="logits", outputs="logits")
    images = np.random.default_rng(1).random((5, 64)).astype(np.float32)
    (released,) = guarded.run(None, {"image": images})
    print("comes out:", [output.name for output in guarded.get_outputs()])
    print("rows sum to 1:", bool(np.allclose(released.sum(1), 1)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else small_model())
