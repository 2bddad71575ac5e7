"""An MLflow model whose predictions are guarded probabilities."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from oneway.adapters.function import GuardedFunction
from oneway.adapters.guard import Array, Guard
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.extras import load_extra

_pyfunc: Any = load_extra(
    "mlflow.pyfunc", extra="mlflow", purpose="guarding an MLflow model", package="mlflow-skinny"
)

LoadModel = Callable[[Mapping[str, str]], Callable[[Array], Any]]
"""Paths of the logged artifacts to a function from ``(N, ...)`` queries to ``(N, K)`` scores."""

LoadGuard = Callable[[Mapping[str, str]], Guard]
"""Paths of the logged artifacts to the guard."""


class GuardedPyfunc(_pyfunc.PythonModel):  # type: ignore[misc] # MLflow is imported by name
    """Loads a model and its guard, and answers with guarded probabilities.

    Log it by ``mlflow.pyfunc.log_model(python_model=...)``. Both loaders run where the model
    serves: a secret key is read there, and does not travel with the model. It is a door, not a
    safe: whoever has the logged files has the clean model, too.
    """

    def __init__(self, load_model: LoadModel, load_guard: LoadGuard) -> None:
        """Keep the functions that load model and guard.

        Args:
            load_model: Takes the artifacts' paths, and returns the function that scores queries.
            load_guard: Takes the artifacts' paths, and returns the guard.

        Raises:
            InvalidOptionError: An argument is no function.
        """
        for name, load in (("load_model", load_model), ("load_guard", load_guard)):
            if not callable(load):
                raise InvalidOptionError(
                    f"{name} must be a function of the artifacts' paths, but got "
                    f"{type(load).__name__}. It runs where the model serves."
                )
        self._load_model, self._load_guard = load_model, load_guard

    def load_context(self, context: Any) -> None:
        """Load model and guard, once per process.

        Raises:
            InvalidOptionError: ``load_guard`` returned no guard.
        """
        artifacts = dict(context.artifacts or {})
        guard = self._load_guard(artifacts)
        if not isinstance(guard, Guard):
            raise InvalidOptionError(
                f"load_guard must return an oneway.adapters.Guard, but gave {type(guard).__name__}."
            )
        self._answer = GuardedFunction(self._load_model(artifacts), guard)

    def predict(
        self,
        context: Any,  # noqa: ARG002  MLflow's interface
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> Array:
        """Answer with guarded probabilities.

        Args:
            context: Not used after loading.
            model_input: ``(N, ...)`` array, or a frame of numbers with one query per row.
            params: None or empty: clients may choose nothing.

        Returns:
            ``(N, K)`` probabilities, of the type of the model's scores.

        Raises:
            InvalidOptionError: There are parameters.
            InvalidTensorError: Queries or scores cannot be used.
            TargetFailedError: The model raised.
            DefenseFailedError: The defense failed.
        """
        if params:
            raise InvalidOptionError(
                f"a guarded model takes no parameters, but got {len(params)}. Leave them out."
            )
        released: Array = self._answer(_as_queries(model_input))
        return released


def _as_queries(model_input: Any) -> Array:
    if isinstance(model_input, np.ndarray):
        return model_input
    if hasattr(model_input, "columns") and all(kind.kind in "fiu" for kind in model_input.dtypes):
        queries: Array = model_input.to_numpy(np.float64)
        return queries
    raise InvalidTensorError(
        "model_input must be an array, or a frame of numbers with one query per row, but is "
        f"{type(model_input).__name__}. Log the model with a signature of one tensor."
    )
