"""ONNX models of tables: one input for each column, as skl2onnx writes pipelines on DataFrames."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneway.checks import check_count, check_images
from oneway.errors import InvalidTensorError
from oneway.releases import Outputs, logits_of_checked, release
from oneway.targets.answers import (
    AnswerRules,
    Array,
    FrameRowsTarget,
    RuledTarget,
    to_array,
    to_float32,
)
from oneway.targets.failure import failed
from oneway.targets.fitted_columns import match_columns
from oneway.targets.onnx_scores import FLOATS, ScoreOutput, runtime_errors

NUMBERS = {
    **FLOATS,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}

TEXT = "tensor(string)"


def are_columns(inputs: Sequence[Any]) -> bool:
    """Say whether a model's inputs are two or more columns ``(N, 1)`` of numbers or text."""
    return len(inputs) > 1 and all(
        (each.type == TEXT or each.type in NUMBERS)
        and len(each.shape) == 2
        and each.shape[1] == 1
        and not isinstance(each.shape[0], int)
        for each in inputs
    )


class OnnxFrameTarget(RuledTarget, FrameRowsTarget):
    """Answers tables with a model that has one input for each column, of the column's name."""

    def __init__(
        self, scores: ScoreOutput, outputs: Outputs, *, batch_size: int, name: str
    ) -> None:
        """Wrap a session.

        Args:
            scores: The session and its output.
            outputs: What the model answers with.
            batch_size: Most rows that the model gets at once.
            name: What messages call the target.

        Raises:
            InvalidOptionError: ``batch_size`` is below 1.
        """
        check_count("batch_size", batch_size)
        self.scores, self.outputs, self.batch_size = scores, outputs, batch_size
        self.output_name = scores.name
        self._types = {each.name: each.type for each in scores.session.get_inputs()}
        self.feature_names = tuple(self._types)
        zeros = {
            name: np.full((1, 1), "", object) if kind == TEXT else np.zeros((1, 1), NUMBERS[kind])
            for name, kind in self._types.items()
        }
        self.rules = AnswerRules(name, outputs, scores.class_names(zeros))

    def _confidences(self, columns: Mapping[str, Array]) -> Tensor:
        scores = self._answers(columns)
        return to_float32(scores) if self.outputs == "confidences" else release(scores)

    def _logits(self, columns: Mapping[str, Array]) -> Tensor:
        return logits_of_checked(self._answers(columns), self.outputs).double()

    def _answers(self, columns: Mapping[str, Array]) -> Tensor:
        """Return the checked scores of all rows, batch by batch."""
        rows = len(next(iter(columns.values())))
        if not rows:
            raise InvalidTensorError(f"there must be at least one query for {self.rules.name}.")
        parts = []
        for begin in range(0, rows, self.batch_size):
            feeds = {
                name: values[begin : begin + self.batch_size] for name, values in columns.items()
            }
            count = len(next(iter(feeds.values())))
            try:
                answer = self.scores.run(feeds)
            except runtime_errors() as error:
                raise failed(self.rules.name, count, error) from error
            parts.append(torch.tensor(answer))
            self.rules.check(parts[-1], count)
        return torch.cat(parts)

    def _rows(self, images: Tensor) -> dict[str, Array]:
        check_images(images)
        rows = to_array(images).reshape(len(images), -1)
        if rows.shape[1] != len(self.feature_names):
            raise InvalidTensorError(
                f"{self.rules.name} takes the {len(self.feature_names)} columns "
                f"{', '.join(self.feature_names)}, but queries of shape {tuple(images.shape)} "
                f"have {rows.shape[1]} numbers each."
            )
        return {
            name: self._converted(name, rows[:, place])
            for place, name in enumerate(self.feature_names)
        }

    def _fitted(self, frame: Any) -> dict[str, Array]:
        columns = match_columns(self.feature_names, list(frame.columns), self.rules.name)
        return {
            name: self._converted(name, frame[column].to_numpy())
            for name, column in zip(self.feature_names, columns, strict=True)
        }

    def _converted(self, name: str, values: Array) -> Array:
        """Return a column as the model takes it, ``(N, 1)``."""
        kind = self._types[name]
        if kind == TEXT:
            others = sum(not isinstance(value, str) for value in values)
            if others:
                raise self._refused(name, "text", others, "Declare it categorical")
            return values.astype(object)[:, None]
        try:
            numbers = values.astype(np.float64)
        except (ValueError, TypeError):  # its text quotes a cell
            raise self._refused(name, "numbers", None, "Look for cells that are none") from None
        with np.errstate(over="ignore", invalid="ignore"):
            converted: Array = numbers.astype(NUMBERS[kind])
            changed = 0 if kind in FLOATS else int((converted != numbers).sum())
        if changed:
            raise self._refused(name, f"values of the type {kind}", changed, "Round or fill them")
        return converted[:, None]

    def _refused(self, name: str, wanted: str, others: int | None, remedy: str) -> Exception:
        count = "some values do" if others is None else f"{others} of its values do"
        return InvalidTensorError(
            f"column {name!r} must hold {wanted} for {self.rules.name}, but {count} not. {remedy}."
        )
