"""Guards around models as servers hold them. Each fails closed: guarded scores, or an error.

What needs an optional package lives in a module of its own: ``oneway.adapters.scikit_learn``,
``oneway.adapters.mlflow``, ``oneway.adapters.ray``, ``oneway.adapters.ray_codebooks`` and
``oneway.adapters.art``.
"""

from oneway.adapters.endpoint import GuardedEndpoint
from oneway.adapters.function import GuardedFunction
from oneway.adapters.guard import Guard
from oneway.adapters.hugging_face import GuardedPipeline
from oneway.adapters.onnx_session import GuardedSession
from oneway.adapters.protection import load_guard, protect
from oneway.adapters.torch_module import GuardedModule
from oneway.defenses import KeyedRandomness, SecretKey

__all__ = [
    "Guard",
    "GuardedEndpoint",
    "GuardedFunction",
    "GuardedModule",
    "GuardedPipeline",
    "GuardedSession",
    "KeyedRandomness",
    "SecretKey",
    "load_guard",
    "protect",
]
