"""An ONNX Runtime session that lets out guarded probabilities, and listed outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oneway.adapters.guard import Guard
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError, UnknownNameError
from oneway.releases import Outputs
from oneway.targets.failure import REMEDY, ask
from oneway.targets.onnx_scores import FLOATS, listed


class GuardedSession:
    """A session with the same ``run``, ``get_inputs`` and ``get_outputs``, and a guard behind.

    Only the guarded output and the listed outputs come out: embeddings, other heads and clean
    logits stay inside. Nothing else of the session is passed on, such as its bindings.
    """

    def __init__(
        self,
        session: Any,
        defense: Defense,
        *,
        output_name: str,
        outputs: Outputs,
        also_release: Sequence[str] = (),
        input_name: str | None = None,
        decimals: int | None = None,
    ) -> None:
        """Guard a session.

        Args:
            session: An ``onnxruntime.InferenceSession``, or an object with its ``run``,
                ``get_inputs`` and ``get_outputs``. Gets copies of the arrays.
            defense: Changes the scores.
            output_name: The output that holds the scores, a tensor of floats ``(N, K)``. Guarded
                probabilities come out under this name.
            outputs: What the output holds; never guessed.
            also_release: Outputs that come out as they are, unguarded.
            input_name: The input with the queries, for a defense that needs them. None: the only
                input.
            decimals: Decimals of the released probabilities; None: all.

        Raises:
            UnknownNameError: The session has no output or input of a name.
            InvalidOptionError: The output is no tensor of floats or is listed in
                ``also_release``, or ``input_name`` is missing and the session has several inputs;
                or see :class:`Guard`.
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
            UnknownNameError.check("output of the session", name, known)
        if known[output_name].type not in FLOATS or len(known[output_name].shape) not in (0, 2):
            raise InvalidOptionError(
                f"output {output_name!r} must be a tensor of floats of shape (N, K), but is "
                f"{known[output_name].type} {tuple(known[output_name].shape)}. A classifier "
                "whose probabilities are maps: convert it without ZipMap (skl2onnx: "
                "options={'zipmap': False}); of CatBoost, which has no such option, take the "
                "ZipMap node out, and let its input be the output."
            )
        if output_name in also_release:
            raise InvalidOptionError(
                f"output {output_name!r} is guarded, and cannot be released as it is, too. Take "
                "it out of also_release."
            )
        self._released = [name for name in known if name in (output_name, *also_release)]
        self._input_name = self._choose_input(input_name)

    def _choose_input(self, requested: str | None) -> str | None:
        names = [value.name for value in self._session.get_inputs()]
        if requested is not None and requested not in names:
            raise UnknownNameError("input of the session", requested, names)
        if requested is None and self._guard.requires_input and len(names) != 1:
            raise InvalidOptionError(
                f"the defense needs the queries, and the session has {len(names)} inputs "
                f"({', '.join(names)}). Say which holds them, by input_name."
            )
        return requested if requested is not None or not names else names[0]

    def get_inputs(self) -> list[Any]:
        """Return the session's inputs."""
        return list(self._session.get_inputs())

    def get_outputs(self) -> list[Any]:
        """Return the outputs that come out, in the session's order."""
        return [output for output in self._session.get_outputs() if output.name in self._released]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
    ) -> list[Any]:
        """Run the model, and guard its scores.

        Args:
            output_names: Names of outputs, in the order of the answer; None or empty: all that
                come out.
            input_feed: Arrays by the names of the inputs. Not modified.
            run_options: See ``onnxruntime.InferenceSession.run``.

        Returns:
            One value per name.

        Raises:
            UnknownNameError: A name is not among the outputs that come out.
            TargetFailedError: The session raised.
            InvalidTensorError: The scores, or the queries that the defense needs, cannot be used.
            DefenseFailedError: The defense failed.
        """
        wanted = list(output_names or self._released)
        for name in wanted:
            UnknownNameError.check("released output", name, self._released)
        needed = list(dict.fromkeys(wanted))
        queries = None if self._input_name is None else input_feed.get(self._input_name)
        feed = {
            name: value.copy() if isinstance(value, np.ndarray) else value
            for name, value in input_feed.items()
        }
        rows = len(queries) if isinstance(queries, np.ndarray) and queries.ndim else None
        answers = ask(
            "the session",
            rows,
            lambda: self._session.run(needed, feed, run_options),
            lambda: f"{REMEDY} It takes {listed(self.get_inputs())}.",
        )
        values = dict(zip(needed, answers, strict=True))
        if self._output_name in values:
            scores = values[self._output_name]
            if not isinstance(scores, np.ndarray):
                raise InvalidTensorError(
                    f"output {self._output_name!r} must be an array, but is "
                    f"{type(scores).__name__}."
                )
            values[self._output_name] = self._guard(scores, queries)
        return [values[name] for name in wanted]
