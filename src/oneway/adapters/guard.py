"""A defense as a plain function on scores, for any server. It fails closed."""

from types import UnionType
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.checks import (
    FLOATING,
    TWO_CLASSES,
    LooksLikeProbabilities,
    check_count,
    check_images,
    name_of,
)
from oneway.contracts import Defense
from oneway.defenses.guard_versions import guard_version, refuse_other_version
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import (
    Outputs,
    check_defense,
    check_outputs,
    check_release_options,
    clean_logits_of,
    guarded_release,
)
from oneway.targets.graphs import is_exporting, no_graph, refuse_graphs

Array = NDArray[np.generic]


class Guard:
    """Turns a classifier's scores into probabilities that may be released.

    NumPy arrays give arrays, tensors give tensors, of the same floating type and on the same
    device. Either all rows come back guarded, or an error of oneway is raised whose text holds
    no value.

    Safe to call from several threads if the defense is: all of oneway's are that draw nothing,
    and so is :class:`KeyedRandomness`. ``torch.compile`` leaves a guard out of its graphs. Tracing,
    exporting and transforms such as ``torch.vmap`` are refused, since a graph checks nothing.
    """

    def __init__(
        self,
        defense: Defense,
        outputs: Outputs,
        *,
        decimals: int | None = None,
        batch_size: int = 512,
        require_version: str | None = None,
    ) -> None:
        """Guard scores by a defense.

        Args:
            defense: Changes the scores. A defense that may change labels, draws anew for each
                answer, or remembers earlier queries, is refused.
            outputs: What the scores are: ``"logits"``, in nats, or ``"confidences"``,
                probabilities; never guessed from their values.
            decimals: Decimals of the released probabilities: see :func:`oneway.release`. None: all.
            batch_size: Most rows that the defense gets at once.
            require_version: The version that the guard must have, so that no worker answers by
                another one; None: any.

        Raises:
            InvalidOptionError: An option is outside its range, or ``defense`` is no defense, may
                change labels, answers the same query differently, remembers earlier queries, or is
                of another version.
        """
        check_defense(defense)
        if not defense.keeps_label:
            raise InvalidOptionError(
                f"{type(defense).__name__} may change labels, and clients would act on wrong "
                "ones. Give it keep_label=True if it has that, or take another."
            )
        if getattr(defense, "remembers", False):
            raise InvalidOptionError(
                f"{type(defense).__name__} releases clean scores of some queries, and answers "
                "depend on which were asked before. Fit it beforehand (grows=False), or take "
                "another."
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
        self._watch = LooksLikeProbabilities("scores") if outputs == "logits" else None
        if require_version is not None:
            refuse_other_version(require_version, self.version)

    @property
    def version(self) -> str:
        """Digest of what decides the answers; see :func:`oneway.defenses.guard_version`.

        Raises:
            InvalidOptionError: It is not known of this defense.
        """
        return guard_version(self.defense, decimals=self.decimals)

    @property
    def requires_input(self) -> bool:
        """Whether the defense needs the queries as well as their scores."""
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
            scores: ``(N, K)`` floating, K at least 2, finite, of the kind ``outputs``. Not
                modified.
            queries: ``(N, ...)`` floating, the queries that gave the scores, in the scale that the
                defense was made for. Needed if ``requires_input``, else ignored. Not modified.

        Returns:
            ``(N, K)`` probabilities of the kind, type and device of ``scores``. The
            arg max of ``scores`` (the lowest index, if they tie) is the only maximum of each row,
            in that type and after rounding.

        Raises:
            InvalidTensorError: Scores or queries are not as above, or scores are declared logits
                and at least 8 rows have come, all of which were probabilities.
            InvalidOptionError: PyTorch traces or exports a graph, or transforms the call.
            DefenseFailedError: The defense raised, or broke its promise.
        """
        if torch.compiler.is_dynamo_compiling() and not is_exporting():
            # Compiled arithmetic may tie a label, and takes a key's draws for constants.
            torch._dynamo.graph_break(msg=no_graph("a full graph (torch.compile, fullgraph=True)"))
            released: Tensor | Array = torch.compiler.disable(self._guarded)(scores, queries)
            return released
        return self._guarded(scores, queries)

    def _guarded(self, scores: Tensor | Array, queries: Tensor | Array | None) -> Tensor | Array:
        refuse_graphs()
        tensor = as_tensor(scores, "scores")
        images = None
        if self.requires_input:
            if queries is None:
                raise InvalidTensorError(
                    f"queries must be given: {type(self.defense).__name__} needs them as well as "
                    "their scores. Pass them, or take a defense that does not need them."
                )
            images = as_tensor(queries, "queries").to(tensor.device)
            check_images(images, len(tensor))
        clean = clean_logits_of(tensor, self.outputs)
        if self._watch is not None:
            self._watch.check(clean)
        released = guarded_release(
            self.defense,
            clean,
            images,
            dtype=tensor.dtype,
            decimals=self.decimals,
            batch_size=self.batch_size,
        ).confidences
        return released.numpy() if isinstance(scores, np.ndarray) else released


def as_tensor(values: object, name: str) -> Tensor:
    """Return floating values as a tensor without gradient; a NumPy array is copied.

    Args:
        values: A tensor, or a NumPy array of float16, float32 or float64.
        name: What the message calls the values.

    Raises:
        InvalidTensorError: ``values`` are something else.
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
    if values.is_meta:
        raise InvalidTensorError(
            f"{name} must hold numbers, but lie on the meta device. Load the model's weights first."
        )
    return values.detach()


def check_rows(
    scores: object, rows: int, model: str, kinds: type | UnionType = np.ndarray | Tensor
) -> None:
    """Refuse a model's answer unless it is one array or tensor of scores, one row per query.

    Raises:
        InvalidTensorError: The answer is something else.
    """
    shape = tuple(getattr(scores, "shape", ())) if isinstance(scores, kinds) else None
    if shape is None or len(shape) != 2 or shape[0] != rows:
        raise InvalidTensorError(
            f"{model} must answer {rows} queries with scores of shape ({rows}, K), an array or a "
            f"tensor, but gave {shape or type(scores).__name__}. Wrap it so that it returns its "
            "scores alone, as by `np.asarray(scores, np.float32)`: other outputs would leave "
            f"unguarded.{' ' + TWO_CLASSES if shape == (rows,) else ''}"
        )
