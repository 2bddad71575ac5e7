"""A defense as a plain function on scores, for whatever server calls it. It fails closed."""

from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import FLOATING, check_count, check_images, check_logits, name_of
from oneway.contracts import Defense
from oneway.errors import DefenseFailedError, InvalidOptionError, InvalidTensorError, OnewayError
from oneway.releases import logits_from_confidences, release
from oneway.targets.defended import checked_release
from oneway.targets.failure import where_raised

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
        outputs: Literal["logits", "confidences"],
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
        if outputs not in ("logits", "confidences"):
            raise InvalidOptionError(
                f"outputs must be 'logits' or 'confidences', but got {outputs!r}. Say which the "
                "model gives; it is never guessed from the values."
            )
        check_count("batch_size", batch_size)
        release(torch.zeros(1, 2), decimals=decimals)  # refuses decimals that it cannot do
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
        given = as_tensor(scores, "scores")
        asked = None
        if self.requires_input:
            if queries is None:
                raise InvalidTensorError(
                    f"queries must be given: {type(self.defense).__name__} needs them besides "
                    "their scores. Pass them, or take a defense that does not need them."
                )
            asked = as_tensor(queries, "queries").to(given.device)
        # Servers call in inference mode, whose tensors take no part in a gradient.
        with torch.inference_mode(False), torch.no_grad():
            released = self._guarded(given.clone(), None if asked is None else asked.clone())
        return released.numpy() if isinstance(scores, np.ndarray) else released

    def _guarded(self, scores: Tensor, queries: Tensor | None) -> Tensor:
        if scores.ndim != 2:
            raise InvalidTensorError(
                f"scores must have shape (N, K), but got {tuple(scores.shape)}. Add the missing "
                "axis for a single query, as by `scores[None]`."
            )
        clean = self._logits_of(scores)
        if queries is not None:
            check_images(queries, len(scores))
        if not len(scores):
            return scores
        parts = []
        for begin in range(0, len(scores), self.batch_size):
            rows = slice(begin, begin + self.batch_size)
            some = clean[rows]
            defended = self._defended(some, None if queries is None else queries[rows])
            parts.append(
                checked_release(
                    self.defense, some, defended, dtype=scores.dtype, decimals=self.decimals
                )
            )
        return torch.cat(parts)

    def _logits_of(self, scores: Tensor) -> Tensor:
        if self.outputs == "confidences":
            return logits_from_confidences(scores)
        check_logits(scores)
        return scores if scores.dtype == torch.float64 else scores.float()

    def _defended(self, clean: Tensor, queries: Tensor | None) -> Tensor:
        try:
            # A defense that writes into what it was given must not move the label it is held to.
            return self.defense(clean.clone(), queries)
        except OnewayError:
            raise
        except Exception as error:  # noqa: BLE001  raised as ours
            # Not `from error`: a server logs the cause too, and its text may quote a query.
            raise DefenseFailedError(
                f"{type(self.defense).__name__} raised {type(error).__name__} "
                f"({where_raised(error)}) for {len(clean)} rows; nothing is released. Its own "
                "message is left out, since it may quote a query."
            ) from None


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
