"""What every answer must be, whoever gave it, and how queries are fitted to what a model takes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import LooksLikeProbabilities, check_confidences, check_logits
from oneway.contracts import Target
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import Outputs

Array = NDArray[np.generic]

Batch = TypeVar("Batch", Array, Tensor)

DECLARE_CONFIDENCES = "Declare confidences: --outputs confidences, or outputs='confidences'."
"""The remedy where a target's logits are probabilities."""

Dimensions = Sequence[int | str | None]
"""A shape as a model declares it: -1, 0, a name or None where any size goes."""


def require_outputs(outputs: Outputs | None, name: str) -> Outputs:
    """Return ``outputs`` if they were said.

    Raises:
        InvalidOptionError: They were not.
    """
    if outputs not in ("logits", "confidences"):
        got = "" if outputs is None else f", but not {outputs!r}"
        raise InvalidOptionError(
            f"say what {name} answers with: pass --outputs logits or --outputs confidences (in "
            f"Python, outputs=){got}. It is never guessed from the values."
        )
    return outputs


def refuse_logits(outputs: Outputs | None, name: str, why: str) -> None:
    """Refuse ``outputs`` other than confidences, where the kind of target fixes them.

    Raises:
        InvalidOptionError: Logits, or something unknown, were said.
    """
    if outputs not in (None, "confidences"):
        raise InvalidOptionError(
            f"{name} answers with confidences, since {why}, but outputs are said to be "
            f"{outputs!r}. Leave outputs out."
        )


def require_batch(fixed: int | None, batch_size: int, name: str, remedy: str) -> None:
    """Refuse a model that takes one size of batch only, unless batches have that size.

    Args:
        fixed: The size that it takes; None if it takes any.
        batch_size: The size that was asked for.
        name: What the message calls the target.
        remedy: How to make the model take any size.

    Raises:
        InvalidOptionError: The sizes differ.
    """
    if fixed is not None and fixed != batch_size:
        raise InvalidOptionError(
            f"{name} takes batches of exactly {fixed}, but batch_size is {batch_size}. {remedy}, "
            f"or pass batch_size={fixed}: the last batch is then filled up."
        )


def fixed_size(dimension: int | str | None) -> int | None:
    """Return a declared size, or None where any goes."""
    return dimension if isinstance(dimension, int) and dimension > 0 else None


def fit_shape(queries: Batch, declared: Dimensions, name: str) -> Batch:
    """Give a batch the shape that a model declares: as it is, or in rows.

    Args:
        queries: ``(N, ...)``.
        declared: The model's input shape with its batch dimension; empty if it has none.
        name: What the message calls the target.

    Returns:
        The queries; in row-major order as ``(N, F)`` if the model takes records and these are
        images.

    Raises:
        InvalidTensorError: The shape cannot be fitted.
    """
    sizes = [fixed_size(dimension) for dimension in declared[1:]]
    if not declared or (
        len(sizes) == queries.ndim - 1
        and all(size in (None, got) for size, got in zip(sizes, queries.shape[1:], strict=True))
    ):
        return queries
    if len(sizes) == 1 and sizes[0] in (None, math.prod(queries.shape[1:])):
        return queries.reshape(len(queries), -1)
    wanted = ", ".join("any" if size is None else str(size) for size in sizes)
    raise InvalidTensorError(
        f"{name} takes queries of shape (N, {wanted}), but got {tuple(queries.shape)}. "
        "Prepare the queries as the model's training did (image files: --size HxW, --channels 1 or "
        "3), or put the conversion into the model."
    )


class AnswerRules:
    """Holds one target's answers to ``(N, K)`` scores of one K, all finite, of the said kind."""

    def __init__(
        self, name: str, outputs: Outputs, class_names: Sequence[str] | None = None
    ) -> None:
        """Say whose answers these are, and what they should be.

        Args:
            name: The target, as messages name it.
            outputs: What the answers are. Logits that are probabilities are refused.
            class_names: Names of the K classes; None if they are unknown.

        Raises:
            InvalidOptionError: ``class_names`` are no names, or one stands twice.
        """
        self.name = name
        self.outputs = outputs
        self._classes: int | None = None
        self._watch = LooksLikeProbabilities(f"the logits of {name}", DECLARE_CONFIDENCES)
        self.class_names = class_names

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the scores; None if they are unknown."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self._class_names = None if names is None else checked_class_names(names)

    def check(self, scores: Tensor, rows: int) -> None:
        """Refuse an answer to ``rows`` queries that breaks the line above.

        Raises:
            InvalidTensorError: It does. The message names the target.
        """
        wanted = f"({rows}, {self._classes or 'K'})"
        if scores.ndim == 1 or (scores.ndim == 2 and scores.shape[1] == 1):
            self._refuse_one_column(scores, rows)
        if scores.ndim != 2 or len(scores) != rows or self._classes not in (None, scores.shape[1]):
            raise InvalidTensorError(
                f"{self.name} must answer {rows} queries with scores of shape {wanted}, one row "
                f"per query and always as many classes, but gave {tuple(scores.shape)}."
            )
        names = self._class_names
        if names is not None and len(names) != scores.shape[1]:
            raise InvalidTensorError(
                f"{self.name} answers with {scores.shape[1]} scores, but {len(names)} class names "
                f"were given ({', '.join(names)}). Give one for each score, in its order."
            )
        of = f"the {self.outputs} of {self.name}"
        if self.outputs == "confidences":
            check_confidences(scores, of)
        else:
            check_logits(scores, of)
            self._watch.check(scores)
        self._classes = scores.shape[1]

    def _refuse_one_column(self, scores: Tensor, rows: int) -> None:
        """Refuse one number per query, as models of two classes may give."""
        if len(scores) == rows:
            column = "z" if self.outputs == "logits" else "p"
            both = "[-z / 2, z / 2]" if self.outputs == "logits" else "[1 - p, p]"
            raise InvalidTensorError(
                f"{self.name} must answer {rows} queries with scores of shape ({rows}, K), K >= 2, "
                f"but gave {tuple(scores.shape)}: one number for each. If {column} is the score "
                f"of the second of two classes, return `numpy.stack({both}, -1).reshape(-1, 2)`, "
                "as by a function that is opened as package.module:factory."
            )


class RuledTarget:
    """A target with rules for its answers, which also hold the names of its classes.

    Attributes:
        rules: The rules.
        input_name: The model's own name of its only input, or None.
        output_name: The model's own name of its scores, or None.
    """

    rules: AnswerRules
    input_name: str | None = None
    output_name: str | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the scores; None if they are unknown."""
        return self.rules.class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self.rules.class_names = names


class RowsTarget(ABC):
    """Answers queries as rows of the kind that its model takes."""

    def __call__(self, images: Tensor) -> Tensor:
        """Answer with the model's probabilities, as an undefended API does.

        Args:
            images: ``(N, C, H, W)`` or ``(N, F)`` floating, at least one query. Missing values of
                records are NaN, for an estimator. Not modified.

        Returns:
            ``(N, K)`` float32 probabilities on the images' device.

        Raises:
            InvalidTensorError: The images, or the answers, cannot be used.
            TargetFailedError: The model raised.
        """
        return self._confidences(self._rows(images)).to(images.device)

    def logits(self, images: Tensor) -> Tensor:
        """Return ``(N, K)`` float64 logits, in nats: for the defender only."""
        return self._logits(self._rows(images)).to(images.device)

    @abstractmethod
    def _rows(self, images: Tensor) -> Any:
        """Return queries as the model takes them."""

    @abstractmethod
    def _confidences(self, rows: Any) -> Tensor: ...

    @abstractmethod
    def _logits(self, rows: Any) -> Tensor: ...


class FrameRowsTarget(RowsTarget):
    """A :class:`RowsTarget` that is also asked with tables.

    Attributes:
        feature_names: The columns that the model takes, in order.
    """

    feature_names: tuple[str, ...]

    def frame_confidences(self, frame: Any) -> Tensor:
        """Return ``(N, K)`` float32 probabilities: the answers of an undefended API.

        Args:
            frame: A pandas DataFrame with the columns ``feature_names``, in any order. Texts
                become the categories that LightGBM or XGBoost was fitted on. Not modified.

        Raises:
            InvalidTensorError: Columns are missing or too many, or hold other values than the
                model takes; or the answers cannot be used.
            TargetFailedError: The model raised.
        """
        return self._confidences(self._fitted(frame))

    def frame_logits(self, frame: Any) -> Tensor:
        """Return ``(N, K)`` float64 logits of a frame's rows, in nats: for the defender only.

        Args:
            frame: As for :meth:`frame_confidences`, which says what is raised.
        """
        return self._logits(self._fitted(frame))

    @abstractmethod
    def _fitted(self, frame: Any) -> Any:
        """Return a frame's rows as the model takes them."""


def checked_class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes as a tuple of text.

    Raises:
        InvalidOptionError: They are no sequence of at least two texts, or one stands twice.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidOptionError(
            f"class_names must be a sequence of text, such as ('cat', 'dog'), but is {names!r}."
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice or len(names) < 2:
        raise InvalidOptionError(
            f"class_names must be at least two names, each of them once, but are {len(names)}"
            f"{' with ' + ', '.join(twice) + ' twice' if twice else ''}."
        )
    return tuple(names)


def to_array(images: Tensor) -> Array:
    """Copy images to a NumPy array: float64 stays, any other type becomes float32.

    It is a copy, so that a model that works in place changes no caller's images.
    """
    plain = images.detach().cpu()
    plain = plain if plain.dtype == torch.float64 else plain.float()
    return np.array(plain.numpy(), order="C")


def to_float32(confidences: Tensor) -> Tensor:
    """Cast confidences to float32 as they are, but keep the label.

    Two probabilities that differ in float64 may be one number in float32. Where that moves the
    arg max, the label's entry is lifted to the next number; nothing else is touched, so that
    ties and zeros that an API releases are seen as they are.

    Args:
        confidences: ``(N, K)`` of any floating type.
    """
    rows = confidences.float()
    label = confidences.argmax(-1, keepdim=True)
    moved = rows.argmax(-1, keepdim=True) != label
    top = rows.amax(-1, keepdim=True)
    lifted = rows.scatter(-1, label, torch.nextafter(top, torch.full_like(top, torch.inf)))
    return torch.where(moved, lifted, rows)


def lift_labels(probabilities: Array, labels: NDArray[np.int64]) -> Array:
    """Return probabilities whose only maximum in each row is that row's label.

    For models whose ``predict`` is not the arg max of their probabilities, such as those with a
    tuned threshold. Rows that already have the label strictly on top stay as they are. In other
    rows the label's entry is lifted to the next number above the maximum, and the row is divided
    by its sum.

    Args:
        probabilities: ``(N, K)`` floating, at least 0, rows summing to 1. Not modified.
        labels: ``(N)`` integers in ``[0, K)``.

    Returns:
        ``(N, K)`` of the same type.
    """
    index = np.asarray(labels)[:, None]
    rivals = probabilities.copy()
    np.put_along_axis(rivals, index, -np.inf, 1)
    top = rivals.max(1, keepdims=True)
    of_label = np.take_along_axis(probabilities, index, 1)
    behind = of_label <= top
    lifted = probabilities.copy()
    np.put_along_axis(lifted, index, np.where(behind, np.nextafter(top, np.inf), of_label), 1)
    divided = lifted / lifted.sum(1, keepdims=True)
    # The division may make the two largest entries equal again.
    np.put_along_axis(
        divided,
        index,
        np.where(behind, np.nextafter(np.take_along_axis(divided, index, 1), np.inf), 0),
        1,
    )
    return np.where(behind, divided, probabilities)


def class_names_of(target: Target) -> tuple[str, ...] | None:
    """Return the names of a target's classes, in the order of its scores; None if unknown."""
    names = getattr(target, "class_names", None)
    return None if names is None else tuple(map(str, names))


def lifts_labels(target: Target) -> bool:
    """Say whether a target's logits have labels on top that its confidences may not have.

    An estimator whose ``predict`` is not the arg max of its probabilities answers with these as
    they are, and gives a guard logits with the label lifted on top. The confidences of any other
    target are those of its logits.
    """
    return bool(getattr(target, "lifts_labels", False))
