"""An ONNX Runtime session that lets out guarded probabilities, and what else was listed."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from oneway.adapters.guard import Guard
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from oneway.targets.failure import failed

FLOATS = ("tensor(float16)", "tensor(float)", "tensor(double)")


class GuardedSession:
    """A session with the same ``run``, ``get_inputs`` and ``get_outputs``, and a guard behind.

    Only the guarded output and those that were listed come out: embeddings, other heads and
    clean logits stay inside. Nothing else of the session is passed on, such as its bindings.
    """

    def __init__(
        self,
        session: Any,
        defense: Defense,
        *,
        output_name: str,
        outputs: Literal["logits", "confidences"],
        also_release: Sequence[str] = (),
        input_name: str | None = None,
        decimals: int | None = None,
    ) -> None:
        """Guard a session.

        Args:
            session: An ``onnxruntime.InferenceSession``, or what has its ``run``.
            defense: What changes the scores.
            output_name: The output that holds them, a tensor of floats ``(N, K)``. Under this
                name, guarded probabilities come out.
            outputs: What it holds; never guessed.
            also_release: Outputs that come out as they are. Whatever they tell is not guarded.
            input_name: The input with the queries, for a defense that needs them; None: the
                only one.
            decimals: Decimals of what is released; None: all.

        Raises:
            UnknownNameError: The session has no output or input of a name.
            InvalidOptionError: The output is no tensor of floats, is listed in ``also_release``,
                or which input holds the queries must be said; or see :class:`Guard`.
        """
        self._guard = Guard(defense, outputs, decimals=decimals)
        self._session, self._output_name = session, output_name
        known = {output.name: output for output in session.get_outputs()}
        if isinstance(also_release, str):
            raise InvalidOptionError(
                f"also_release must be a sequence of names, but got the text {also_release!r}. "
                f"Pass ({also_release!r},)."
            )
        for name in (output_name, *also_release):
            if name not in known:
                raise UnknownNameError("output of the session", name, known)
        if known[output_name].type not in FLOATS or len(known[output_name].shape) not in (0, 2):
            raise InvalidOptionError(
                f"output {output_name!r} must be a tensor of floats of shape (N, K), but is "
                f"{known[output_name].type} {tuple(known[output_name].shape)}. For a classifier "
                "of scikit-learn, convert it without ZipMap."
            )
        if output_name in also_release:
            raise InvalidOptionError(
                f"output {output_name!r} is guarded, and cannot be released as it is, too. Take "
                "it out of also_release."
            )
        self._released = [name for name in known if name in (output_name, *also_release)]
        self._input_name = self._choose_input(input_name)

    def _choose_input(self, asked: str | None) -> str | None:
        names = [value.name for value in self._session.get_inputs()]
        if asked is not None and asked not in names:
            raise UnknownNameError("input of the session", asked, names)
        if asked is None and self._guard.requires_input and len(names) != 1:
            raise InvalidOptionError(
                f"the defense needs the queries, and the session has {len(names)} inputs "
                f"({', '.join(names)}). Say which holds them, by input_name."
            )
        return asked if asked is not None or not names else names[0]

    def get_inputs(self) -> list[Any]:
        """Return what the session takes."""
        return list(self._session.get_inputs())

    def get_outputs(self) -> list[Any]:
        """Return what comes out, in the session's order."""
        return [one for one in self._session.get_outputs() if one.name in self._released]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
    ) -> list[Any]:
        """Run the model, and guard its scores.

        Args:
            output_names: Which outputs, in this order; None or none: all that come out.
            input_feed: Arrays by the names of the inputs.
            run_options: As for the session.

        Returns:
            One value per name.

        Raises:
            UnknownNameError: An output does not come out.
            TargetFailedError: The session raised.
            InvalidTensorError: The scores, or the queries that the defense needs, cannot be used.
            DefenseFailedError: The defense failed.
        """
        wanted = list(output_names or self._released)
        for name in wanted:
            if name not in self._released:
                raise UnknownNameError("released output", name, self._released)
        needed = list(dict.fromkeys(wanted))
        queries = None if self._input_name is None else input_feed.get(self._input_name)
        try:
            found = self._session.run(needed, dict(input_feed), run_options)
        except Exception as error:  # noqa: BLE001  raised as ours, without its text
            raise failed(
                "the session", 0 if queries is None else len(queries), error, caused=False
            ) from None
        values = dict(zip(needed, found, strict=True))
        if self._output_name in values:
            values[self._output_name] = self._guarded(values[self._output_name], queries)
        return [values[name] for name in wanted]

    def _guarded(self, scores: Any, queries: Any) -> Any:
        if not isinstance(scores, np.ndarray):
            raise InvalidTensorError(
                f"output {self._output_name!r} must be an array, but is {type(scores).__name__}."
            )
        return self._guard(scores, queries)
