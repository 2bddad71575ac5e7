"""A defense as a plain function on scores, for whatever server calls it. It fails closed."""

from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import FLOATING, check_count, check_images, name_of
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import (
    Outputs,
    check_outputs,
    check_release_options,
    clean_logits_of,
    guarded_release,
)

Array = NDArray[np.generic]


class Guard:
    """Scores of a classifier in, probabilities that may be released out.

    NumPy arrays give arrays, tensors give tensors, of the same floating type and on the same
    device. Either all rows come back guarded, or an error of oneway is raised: clean scores never
    come back, and no message holds a value.

    Safe to call from several threads if the defense is; all of oneway's are that draw nothing, and
    :class:`KeyedRandomness`.
    """

    def __init__(
        self,
        defense: Defense,
        outputs: Outputs,
        *,
        decimals: int | None = None,
        batch_size: int = 512,
    ) -> None:
        """Guard scores by a defense.

        Args:
            defense: What changes them. One that may change labels, or that draws anew
                for each answer, is refused.
            outputs: What the scores are: ``"logits"``, in nats, or ``"confidences"``,
                probabilities; never guessed from their values.
            decimals: Decimals of what is released: see :func:`oneway.release`. None: all.
            batch_size: Most rows that the defense sees at once.

        Raises:
            InvalidOptionError: An option is outside its range, or ``defense`` is none, may change
                labels, or answers the same query differently.
        """
        if not isinstance(defense, Defense):
            raise InvalidOptionError(
                f"defense must be a defense, but got {type(defense).__name__}. Build one with "
                "oneway.defenses.build_defense, say."
            )
        if not defense.keeps_label:
            raise InvalidOptionError(
                f"{type(defense).__name__} may change labels, and clients would act on wrong "
                "ones. Give it keep_label=True if it has that, or take another."
            )
        if not defense.deterministic:
            raise InvalidOptionError(
                f"{type(defense).__name__} draws anew for each answer, so that a client who asks "
                "again averages it away, and workers disagree. Wrap it in "
                "oneway.defenses.KeyedRandomness."
            )
        check_outputs(outputs)
        check_count("batch_size", batch_size)
        check_release_options(torch.float32, decimals)
        self.defense, self.outputs = defense, outputs
        self.decimals, self.batch_size = decimals, batch_size

    @property
    def requires_input(self) -> bool:
        """Whether it needs the queries besides their scores."""
        return self.defense.requires_input

    @overload
    def __call__(self, scores: Tensor, queries: Tensor | Array | None = None) -> Tensor: ...

    @overload
    def __call__(self, scores: Array, queries: Tensor | Array | None = None) -> Array: ...

    def __call__(
        self, scores: Tensor | Array, queries: Tensor | Array | None = None
    ) -> Tensor | Array:
        """Guard a batch.

        Args:
            scores: ``(N, K)`` floating, K at least 2, finite: what ``outputs`` says. Not modified.
            queries: ``(N, ...)`` floating, what gave the scores, in the scale that the defense
                was made for. Needed if ``requires_input``, else ignored.

        Returns:
            ``(N, K)`` probabilities of the kind, type and device of ``scores``. The
            arg max of ``scores`` (the lowest index, if they tie) is the only maximum of each row,
            in that type and after rounding.

        Raises:
            InvalidTensorError: Scores or queries are not what they should be.
            DefenseFailedError: The defense raised, or broke its promise.
        """
        tensor = as_tensor(scores, "scores")
        asked = None
        if self.requires_input:
            if queries is None:
                raise InvalidTensorError(
                    f"queries must be given: {type(self.defense).__name__} needs them besides "
                    "their scores. Pass them, or take a defense that does not need them."
                )
            asked = as_tensor(queries, "queries").to(tensor.device)
            check_images(asked, len(tensor))
        clean = clean_logits_of(tensor, self.outputs)
        released = guarded_release(
            self.defense,
            clean,
            asked,
            dtype=tensor.dtype,
            decimals=self.decimals,
            batch_size=self.batch_size,
        ).confidences
        return released.numpy() if isinstance(scores, np.ndarray) else released


def as_tensor(values: object, name: str) -> Tensor:
    """Return floating values as a tensor without gradient, of NumPy arrays a copy.

    Args:
        values: A tensor, or a NumPy array of float16, float32 or float64.
        name: What the message calls them.

    Raises:
        InvalidTensorError: They are something else.
    """
    if isinstance(values, np.ndarray):
        if values.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
            raise InvalidTensorError(
                f"{name} must be floating (float16, float32, float64), but got an array of "
                f"{values.dtype} and shape {values.shape}. Convert it, as by "
                "`array.astype(np.float32)`."
            )
        return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
    if not isinstance(values, Tensor) or values.dtype not in FLOATING:
        got = (
            f"a tensor of {name_of(values.dtype)} and shape {tuple(values.shape)}"
            if isinstance(values, Tensor)
            else type(values).__name__
        )
        raise InvalidTensorError(
            f"{name} must be a floating torch.Tensor or NumPy array, but got {got}. Convert "
            "them, as by `np.asarray(values, np.float32)`."
        )
    return values.detach()
