"""An MLflow model whose predictions are guarded probabilities."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.adapters.function import GuardedFunction, as_numbers, unmatched_columns
from oneway.adapters.guard import Guard
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.extras import load_extra

NEEDED = {
    "extra": "mlflow",
    "purpose": "guarding an MLflow model",
    "package": "mlflow-skinny",
}
_pyfunc: Any = load_extra("mlflow.pyfunc", **NEEDED)

LoadModel = Callable[[Mapping[str, str]], Callable[[Any], Any]]
"""Paths of the logged artifacts to a function from ``(N, ...)`` queries to ``(N, K)`` scores.

The queries are an array, or a frame: see :class:`GuardedPyfunc`.
"""

LoadGuard = Callable[[Mapping[str, str]], Guard]
"""Paths of the logged artifacts to the guard."""


class GuardedPyfunc(_pyfunc.PythonModel):  # type: ignore[misc] # MLflow is imported by name
    """Loads a model and its guard, and answers with guarded probabilities.

    Log it by ``mlflow.pyfunc.log_model(python_model=...)``. Both loaders run where the model
    serves: a secret key is read there, and does not travel with the model. It is a door, not a
    safe: whoever has the logged files has the clean model, too.

    The columns of a frame are matched by the names in the logged signature, in any order.
    """

    def __init__(
        self, load_model: LoadModel, load_guard: LoadGuard, *, frames: bool | None = None
    ) -> None:
        """Keep the functions that load model and guard.

        Args:
            load_model: Takes the artifacts' paths, and returns the function that scores queries.
            load_guard: Takes the artifacts' paths, and returns the guard.
            frames: Whether the function takes a frame as a frame, such as a model that was fitted
                on one. False: it gets a float64 array. None: as a frame if the logged signature
                has columns that are not numbers.

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
        self._frames = frames

    def load_context(self, context: Any) -> None:
        """Load model and guard, once per process.

        Raises:
            InvalidOptionError: ``load_guard`` returned no guard, or the model takes frames and
                the logged signature has no columns.
        """
        artifacts = dict(context.artifacts or {})
        self._schema = _logged_schema(artifacts)
        if self._frames and self._schema is not None and self._schema.is_tensor_spec():
            raise InvalidOptionError(
                "the model takes frames, but was logged with the signature of a tensor, for which "
                "MLflow drops the names of columns. Log it with that of its columns, as by "
                "`mlflow.models.infer_signature(frame)`."
            )
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
    ) -> NDArray[np.generic]:
        """Answer with guarded probabilities.

        Args:
            context: Not used after loading.
            model_input: ``(N, ...)`` array, or a frame with one query per row and the columns of
                the logged signature, in any order.
            params: None or empty: clients may choose nothing.

        Returns:
            ``(N, K)`` probabilities, of the type of the model's scores.

        Raises:
            InvalidOptionError: There are parameters.
            InvalidTensorError: Queries or scores cannot be used: columns are missing or too many,
                say.
            TargetFailedError: The model raised.
            DefenseFailedError: The defense failed.
        """
        if params:
            raise InvalidOptionError(
                f"a guarded model takes no parameters, but got {len(params)}. Leave them out."
            )
        queries: Any = model_input
        released: NDArray[np.generic] = self._answer(
            queries if isinstance(queries, np.ndarray) else self._rows_of(queries)
        )
        return released

    def _rows_of(self, frame: Any) -> Any:
        """Return a frame with the columns of the signature, in its order, or as an array."""
        if not hasattr(frame, "columns"):
            raise InvalidTensorError(
                "model_input must be an array, or a frame with one query per row, but is "
                f"{type(frame).__name__}. Log the model with a signature of one tensor, or of "
                "columns."
            )
        schema = self._schema
        if schema is None or schema.is_tensor_spec() or not schema.has_input_names():
            if self._frames:
                return frame
            raise InvalidTensorError(
                "the columns of a frame cannot be matched by name. Log the model with its "
                "artifacts and the signature of its columns, as by "
                "`mlflow.models.infer_signature(frame)`; or ask with an array."
            )
        names = schema.input_names()
        unmatched = unmatched_columns(frame, names, schema.required_input_names())
        if unmatched:
            raise InvalidTensorError(
                f"a frame must have the columns of the logged signature. {unmatched}"
            )
        ordered = frame[[name for name in names if name in frame.columns]]
        takes_frames = self._frames
        if takes_frames is None:
            takes_frames = any(np.dtype(kind).kind not in "fiu" for kind in schema.pandas_types())
        if takes_frames:
            return ordered
        remedy = "Pass frames=True for a model that takes frames."
        return as_numbers(ordered, reader="the model", remedy=remedy)


def _logged_schema(artifacts: Mapping[str, str]) -> Any:
    """Return the input schema of the logged model that holds the artifacts; None if unknown.

    MLflow keeps a model's signature from the model's own code, but for the file beside it.
    """
    folders = (folder for path in artifacts.values() for folder in Path(path).parents)
    logged = next((folder for folder in folders if (folder / "MLmodel").is_file()), None)
    if logged is None:
        return None
    models = load_extra("mlflow.models", **NEEDED)
    signature = models.Model.load(str(logged)).signature
    return None if signature is None else signature.inputs
