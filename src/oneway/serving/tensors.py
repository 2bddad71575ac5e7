"""A model of several tensors, or of tensors that are no floats, behind a guard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oneway.defenses import ServableDefense
from oneway.errors import InvalidOptionError
from oneway.openinference.tensors import FLOATS, LAYOUTS
from oneway.serving.guarded import GuardedHere, Released
from oneway.targets.onnx_scores import OnnxTensorTarget

MADE_UP = 8
"""Size of dimensions of any size in queries that are made up."""


@dataclass(frozen=True)
class TensorBatch:
    """N queries: ``(N, ...)`` arrays by the names of a model's inputs."""

    tensors: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of one query's tensors."""
        return tuple(each.shape[1:] for each in self.tensors.values())


class GuardedTensors(GuardedHere[TensorBatch]):
    """A model of tensors of any types behind a guard.

    A guard that needs queries sees the model's only input of floats.
    """

    def __init__(
        self,
        target: OnnxTensorTarget,
        guard: ServableDefense,
        *,
        probes: TensorBatch | None = None,
        **options: Any,
    ) -> None:
        """Put a guard before a model. Call :meth:`check` before it serves.

        Args:
            target: The undefended model.
            guard: The defense.
            probes: Queries for the self test; None: random ones are made up.
            **options: See :class:`oneway.serving.GuardedModel`.

        Raises:
            InvalidOptionError: An option is outside its range, or the guard needs queries of
                floats, and the model does not have one such input.
        """
        super().__init__(guard, **options)
        floats = [name for name, each in target.inputs.items() if each.datatype in FLOATS]
        if guard.defense.requires_input and len(floats) != 1:
            raise InvalidOptionError(
                f"the guard {guard.name} needs the queries as numbers, and this model has "
                f"{len(floats)} inputs of floats. Take a guard that needs scores alone, such as a "
                "codebook."
            )
        self.target, self.probes = target, probes
        self.seen = floats[0] if guard.defense.requires_input else None

    def _answered(self, requests: Sequence[TensorBatch]) -> tuple[list[Released], Tensor]:
        # Queries of different sizes, such as texts of different lengths, fit into no one batch.
        alike: dict[Any, list[int]] = {}
        for at, request in enumerate(requests):
            alike.setdefault(request.sizes, []).append(at)
        answers, clean = dict[int, Released](), list[Tensor]()
        for places in alike.values():
            released, scores = super()._answered([requests[at] for at in places])
            answers |= zip(places, released, strict=True)
            clean.append(scores)
        return [answers[at] for at in range(len(requests))], torch.cat(clean)

    def _join(self, requests: Sequence[TensorBatch]) -> TensorBatch:
        return TensorBatch(
            {
                name: np.concatenate([request.tensors[name] for request in requests])
                for name in self.target.inputs
            }
        )

    def _take(self, queries: TensorBatch, places: Sequence[int]) -> TensorBatch:
        return TensorBatch({name: each[list(places)] for name, each in queries.tensors.items()})

    def _clean_logits(self, queries: TensorBatch) -> Tensor:
        return self.target.tensor_logits(queries.tensors).to(self.device)

    def _images(self, queries: TensorBatch) -> Tensor | None:
        if self.seen is None:
            return None
        return torch.from_numpy(queries.tensors[self.seen].astype(np.float32)).to(self.device)

    def _probes(self, count: int) -> TensorBatch:
        if self.probes is not None:
            return self._take(self.probes, [place % len(self.probes) for place in range(count)])
        generator = np.random.default_rng(0)
        made = {}
        for name, declared in self.target.inputs.items():
            shape = count, *(MADE_UP if size < 0 else size for size in declared.shape)
            drawn = generator.random(shape)
            if declared.datatype == "BYTES":
                made[name] = np.where(drawn < 0.5, "a", "b").astype(object)
            elif declared.datatype in FLOATS:
                made[name] = drawn.astype(LAYOUTS[declared.datatype])
            else:  # such as tokens and masks of them: what every model takes
                made[name] = (drawn < 0.5).astype(LAYOUTS[declared.datatype])
        return TensorBatch(made)
