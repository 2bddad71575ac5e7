"""Argument checks, shared by all packages.

A message shows a shape, a type, a count or a row number, and never a value of a tensor. Each check
costs at most one synchronisation with the device.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oneway.errors import InvalidOptionError, InvalidTensorError

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The floating types that scores may have, and that confidences may be released in."""

NUMBERS_AT_ONCE = 2**17
"""Numbers that are looked at together: what is made of them stays in a processor's cache."""

SCORES = "Pass scores, not class numbers or pixels."

TWO_CLASSES = (
    "Of a model of two classes with one logit z pass `torch.stack([-z / 2, z / 2], -1).reshape"
    "(-1, 2)`, with one probability p `torch.stack([1 - p, p], -1).reshape(-1, 2)`."
)


def name_of(dtype: torch.dtype) -> str:
    """Return ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def class_name(label: Any) -> str:
    """Return the text by which a class is known, whatever type its label has.

    Models, tables and files of the same classes store them in different types. All compare them
    by this text: ``1``, ``1.0`` and NumPy's ``float32(1)`` are ``"1"``; ``True`` is ``"True"``.

    Args:
        label: A text, number, boolean, or scalar of NumPy.
    """
    plain = label.item() if isinstance(label, np.generic) else label
    if isinstance(plain, float | np.floating) and plain == np.rint(plain):
        plain = int(plain)
    return str(plain)


SHOWN = 10
"""Most names in a message."""


def first_names(names: Sequence[str]) -> str:
    """Return names for a message, the first 10 of many."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, … ({len(names)} in all)"


def _require_floating(tensor: Tensor, name: str, remedy: str = SCORES) -> None:
    if not isinstance(tensor, Tensor):
        raise InvalidTensorError(
            f"{name} must be a torch.Tensor, but got {type(tensor).__name__}. "
            "Pass it through `torch.as_tensor`."
        )
    if tensor.dtype not in FLOATING:
        raise InvalidTensorError(
            f"{name} must be floating ({', '.join(map(name_of, FLOATING))}), but got "
            f"{name_of(tensor.dtype)} of shape {tuple(tensor.shape)}. {remedy}"
        )


def in_parts(rows: Tensor) -> tuple[Tensor, ...]:
    """Return ``(n, D)`` parts of ``(N, D)`` rows, small enough for a cache; all, on a device."""
    if rows.device.type != "cpu":
        return (rows,)
    parts: tuple[Tensor, ...] = rows.split(max(1, NUMBERS_AT_ONCE // max(1, rows.shape[-1])))
    return parts


def filled(found: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """Write parts into a tensor, one after the other along its last dimension, and return it.

    Small results that are kept while large ones come and go leave holes in a process's memory,
    which may add up to several times the data. So there is room for all of them before.
    """
    place = 0
    for part in parts:
        found[..., place : place + part.shape[-1]] = part
        place += part.shape[-1]
    return found


def _require_finite(tensor: Tensor, name: str) -> None:
    # One sum is a fifth of the cost. It is finite only if all are; finite numbers may overflow it.
    if math.isfinite(tensor.sum().item()):
        return
    whole = tensor.reshape(len(tensor) if tensor.ndim > 1 else 1, -1)
    if not all(rows.isfinite().all() for rows in in_parts(whole)):
        rows = torch.cat([rows.isfinite().all(-1) for rows in in_parts(whole)])
        bad = (~rows).nonzero().flatten()
        raise InvalidTensorError(
            f"{name} must be finite, but {len(bad)} of {len(rows)} rows hold NaN or infinity, "
            f"row {int(bad[0])} first. Find out why the model emits them; do not replace them."
        )


def check_logits(logits: Tensor, name: str = "logits") -> None:
    """Refuse anything but finite floating scores of shape ``(..., K)`` with ``K >= 2``.

    Raises:
        InvalidTensorError: The scores are anything else.
    """
    _require_floating(logits, name)
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise InvalidTensorError(
            f"{name} must have shape (..., K) with K >= 2 classes, but got "
            f"{tuple(logits.shape)}. A score vector over one class has nothing to protect. "
            f"{TWO_CLASSES}"
        )
    _require_finite(logits, name)


def check_logits_to_fit(logits: Tensor, name: str = "logits") -> None:
    """Refuse logits that a release is fitted to or certified on, unless they can be logits.

    Args:
        logits: ``(N, K)`` scores.
        name: What the message calls the scores.

    Raises:
        InvalidTensorError: See :func:`check_logits`; or all of two rows or more are probabilities.
    """
    check_logits(logits, name)
    remedy = "Pass `oneway.releases.logits_from_confidences(confidences)`."
    refuse_probabilities(logits, name, remedy)


def check_same_shape(tensor: Tensor, name: str, logits: Tensor) -> None:
    """Refuse ``tensor`` unless it is finite, floating and of the shape of ``logits``.

    Args:
        tensor: The tensor.
        name: What the message calls the tensor.
        logits: ``(..., K)`` clean logits.

    Raises:
        InvalidTensorError: The tensor is anything else.
    """
    _require_floating(tensor, name)
    if tensor.shape != logits.shape:
        raise InvalidTensorError(
            f"{name} must have the shape of the clean logits, {tuple(logits.shape)}, "
            f"but got {tuple(tensor.shape)}."
        )
    _require_finite(tensor, name)


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels unless they are int64, one per row of ``(..., K)`` logits, in ``[0, K)``.

    Raises:
        InvalidTensorError: The labels are anything else.
    """
    rows, classes = tuple(logits.shape[:-1]), logits.shape[-1]
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != rows:
        got = (
            f"{name_of(labels.dtype)} of shape {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        )
        raise InvalidTensorError(
            f"labels must be int64 of shape {rows}, one per row of logits "
            f"{tuple(logits.shape)}, but got {got}. Pass `logits.argmax(-1)`."
        )
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        count = int(outside.sum())
        raise InvalidTensorError(
            f"labels must lie in [0, {classes}), one of the {classes} classes of logits "
            f"{tuple(logits.shape)}, but {count} of {labels.numel()} do not. "
            "Pass `logits.argmax(-1)`."
        )


def check_confidences(confidences: Tensor, name: str = "confidences") -> None:
    """Refuse anything but rows of probabilities, ``(..., K)`` with ``K >= 2``.

    Rows may sum to 1 within 0.05, since servers round their releases.

    Raises:
        InvalidTensorError: The rows are logits, percentages, truncated vectors or anything else.
    """
    check_logits(confidences, name)
    sums = confidences.double().sum(-1)
    bad = ((confidences < 0).any(-1) | ((sums - 1).abs() > 0.05)).flatten()
    if bad.any():
        raise InvalidTensorError(
            f"{name} must be probabilities, at least 0 and summing to 1 (within 0.05) in each "
            f"row, but {int(bad.sum())} of {bad.numel()} rows are not, row "
            f"{int(bad.nonzero()[0])} first. If these are logits, say so (--outputs logits), or "
            "pass `logits.softmax(-1)`."
        )


def check_images(images: Tensor, rows: int | None = None) -> None:
    """Refuse images unless they are finite, floating, and one per row of scores.

    Args:
        images: ``(N, ...)``: images ``(N, C, H, W)`` or records ``(N, features)``.
        rows: The number of score rows that the images belong to, if known.

    Raises:
        InvalidTensorError: The images are anything else.
    """
    _require_floating(images, "images", "Pass `images / 255` if they hold bytes.")
    if images.ndim < 2:
        raise InvalidTensorError(
            f"images must have shape (N, C, H, W), or (N, features) for records, "
            f"but got {tuple(images.shape)}. Pass `images.unsqueeze(0)` for a single image."
        )
    if rows is not None and len(images) != rows:
        raise InvalidTensorError(
            f"images must be one per row of scores, {rows}, but got {len(images)}."
        )
    _require_finite(images, "images")


def check_above(name: str, value: float, bound: float) -> None:
    """Refuse an option unless it is a finite number above ``bound``.

    Raises:
        InvalidOptionError: The option is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidOptionError(f"{name} must be a finite number, but got {value!r}.")
    if not value > bound:
        wanted = "positive" if bound == 0 else f"above {bound}"
        raise InvalidOptionError(f"{name} must be {wanted}, but got {value}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Refuse an option unless it is a whole number of at least ``least``.

    Raises:
        InvalidOptionError: The option is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOptionError(
            f"{name} must be a whole number of at least {least}, but got {value!r}."
        )


def check_weight(name: str, value: float) -> None:
    """Refuse an option unless it is a finite number of at least 0.

    Raises:
        InvalidOptionError: The option is anything else.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise InvalidOptionError(f"{name} must be finite and at least 0, but got {value!r}.")


def check_level(level: float) -> None:
    """Refuse the level of an interval or bound unless it is between 0 and 1.

    Raises:
        InvalidOptionError: The option is anything else.
    """
    if isinstance(level, bool) or not isinstance(level, float) or not 0 < level < 1:
        raise InvalidOptionError(f"level must be between 0 and 1, but got {level!r}.")


def check_switch(name: str, value: bool) -> None:
    """Refuse an option unless it is True or False: a text such as "no" would count as True.

    Raises:
        InvalidOptionError: The option is anything else.
    """
    if not isinstance(value, bool):
        raise InvalidOptionError(f"{name} must be true or false, but got {value!r}.")


def check_generator(generator: torch.Generator | None, drawn: str = "noise is") -> None:
    """Refuse anything but a generator on the CPU.

    Args:
        generator: The generator.
        drawn: The subject and verb of the message: "noise is".

    Raises:
        InvalidOptionError: ``generator`` is anything else.
    """
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise InvalidOptionError(
            f"generator must be a torch.Generator on the CPU; {drawn} drawn there and then "
            "moved. Seed it so that no client can guess its draws."
        )


class LooksLikeProbabilities:
    """Watches scores that are declared logits, and refuses them if all are probabilities.

    A softmax of probabilities raises no error: the label stays, but every score, budget and
    certificate is wrong. No model gives logits that are non-negative and sum to 1 in every row.

    Once a row is no probability vector, further calls do nothing. Instances may be pickled, and
    several threads may use one.
    """

    LEAST_ROWS = 8
    """Rows that must have come before anything is refused: a single row may sum to 1 by chance."""

    def __init__(self, name: str, remedy: str = "Declare them as confidences.") -> None:
        """Set the words of the message.

        Args:
            name: What the message calls the scores, such as ``"the logits of the module"``.
            remedy: What to do if the scores are probabilities: a sentence.
        """
        self.name, self.remedy = name, remedy
        # Appending is one step: no lock, which could not be pickled, is needed.
        self._rows: list[int] = []
        self._settled = False

    def check(self, logits: Tensor) -> None:
        """Look at more rows.

        Args:
            logits: ``(..., K)`` finite floating scores. Not modified.

        Raises:
            InvalidTensorError: At least 8 rows have come, and each was a probability vector.
        """
        if self._settled or not logits.numel():
            return
        total = _total_of_probabilities(logits.detach())
        if total is None:
            self._settled = True
            return
        if sum(self._rows) < self.LEAST_ROWS:
            self._rows.append(logits.numel() // logits.shape[-1])
        rows = sum(self._rows)
        if rows >= self.LEAST_ROWS:
            raise _probabilities_as_logits(self.name, rows, total, self.remedy)


def refuse_probabilities(logits: Tensor, name: str, remedy: str) -> None:
    """Refuse scores that are declared logits, all of them at hand, if all are probabilities.

    Args:
        logits: ``(N, K)`` finite floating scores. A single row is never refused: it may sum to 1
            by chance.
        name: What the message calls the scores.
        remedy: What to do if the scores are probabilities: a sentence.

    Raises:
        InvalidTensorError: There are two rows or more, and each is a probability vector.
    """
    total = _total_of_probabilities(logits.detach()) if len(logits) > 1 else None
    if total is not None:
        raise _probabilities_as_logits(name, len(logits), total, remedy)


def _probabilities_as_logits(name: str, rows: int, total: int, remedy: str) -> InvalidTensorError:
    """Return the error for probabilities, or percentages, that are declared logits."""
    remedy = remedy if total == 1 else f"Divide them by {total}. {remedy}"
    return InvalidTensorError(
        f"{name} are declared logits, but look like confidences: all of {rows} rows are "
        f"non-negative and sum to {total}. {remedy} If they really are logits, add a constant to "
        "each row, which changes no softmax."
    )


def _total_of_probabilities(scores: Tensor) -> int | None:
    """Return the sum of all rows, as far as their digits allow: 1, or 100 for percentages.

    None: the scores are no probabilities.
    """
    rows = scores.reshape(-1, scores.shape[-1])
    # Of logits the first part says so.
    if any(bool((part < 0).any()) for part in in_parts(rows)):
        return None
    for total in (1, 100):
        is_rounded = all(
            bool(((thousandths - thousandths.round()).abs() < 0.01).all())
            for part in in_parts(rows)
            for thousandths in (part.double() * (1000 / total),)
        )
        tolerance = 0.05 if is_rounded else max(1e-3, torch.finfo(scores.dtype).eps)
        if all(
            bool(((part.double().sum(-1) / total - 1).abs() <= tolerance).all())
            for part in in_parts(rows)
        ):
            return total
    return None


def sorted_scores(scores: Tensor) -> bool:
    """Say whether scores look sorted row by row, so that a position stands for no class.

    Some servers sort the scores of each query: the first entry is then always the largest.

    Args:
        scores: ``(N, K)`` floating scores of different queries. Not modified.

    Returns:
        True if there are at least 8 rows of at least 3 classes, and no row ascends anywhere.
        False, too, if all rows have equal entries throughout.
    """
    if len(scores) < LooksLikeProbabilities.LEAST_ROWS or scores.shape[-1] < 3:
        return False
    steps = scores[..., 1:] - scores[..., :-1]
    return bool((steps <= 0).all() and (steps < 0).any())
