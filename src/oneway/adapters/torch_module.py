"""A PyTorch classifier whose forward pass gives guarded probabilities."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from oneway.adapters.function import copied, count_rows
from oneway.adapters.guard import Guard, check_rows
from oneway.checks import name_of
from oneway.contracts import Defense
from oneway.errors import InvalidOptionError
from oneway.releases import Outputs, logits_from_confidences
from oneway.targets.failure import REMEDY, ask
from oneway.targets.graphs import no_graph, refuse_graphs
from oneway.targets.modules import put_in_eval_mode, refuse_several_labels, scores_in


class GuardedModule(nn.Module):
    """A module with a guard behind it, for a server that calls modules.

    It answers in eval mode only: in training mode an answer would depend on the other queries of
    the batch. It is a door, not a safe: whoever holds this object holds ``model``, too.

    ``torch.compile`` compiles the model, and leaves the guard out. Tracing, scripting, exporting
    and ``torch.vmap`` are refused: a graph checks nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        defense: Defense,
        *,
        outputs: Outputs,
        decimals: int | None = None,
    ) -> None:
        """Guard a module, and put it in eval mode.

        Args:
            model: N queries to ``(N, K)`` scores: a tensor; an object or a dict with ``logits``;
                or a tuple, list or dict, one alone of whose tensors can be the scores. Gets
                copies of the queries.
            defense: Changes the scores. Its networks stay where they are: put them on the model's
                device first.
            outputs: What the scores are; never guessed.
            decimals: Decimals of the released probabilities; None: all.

        Raises:
            InvalidOptionError: An option is outside its range: see :class:`oneway.adapters.Guard`;
                or the model gives several labels, or has no eval mode.
        """
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InvalidOptionError(
                f"model must be a torch.nn.Module, but got {type(model).__name__}. Guard any "
                "other callable by oneway.adapters.Guard."
            )
        refuse_several_labels(model, "the model")
        self.model = put_in_eval_mode(model, "the model")
        self.guard = Guard(defense, outputs, decimals=decimals)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode.

        Raises:
            InvalidOptionError: ``mode`` is True.
        """
        if mode:
            raise InvalidOptionError(
                "a guarded module answers, and is not trained: its answers would depend on the "
                "batch. Train the model itself, then guard it."
            )
        return super().train(False)

    def __prepare_scriptable__(self) -> NoReturn:
        raise InvalidOptionError(no_graph("scripting (torch.jit.script)"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer with guarded probabilities.

        Args:
            *args: Inputs as the model takes them. The first input, by position or by name, holds
                N queries; a defense that needs queries gets it, ``(N, ...)`` floating in the
                scale that the defense was made for. Floats are cast to the type of the weights
                where the model takes no other. Not modified.
            **kwargs: Inputs by name, such as ``input_ids`` and ``attention_mask``.

        Returns:
            ``(N, K)`` probabilities, of the type and on the device of the model's scores, without
            gradient. If the model answers with an output object, as those of transformers,
            another one of its class with ``logits`` alone: loss, hidden states and attentions are
            dropped. These stay logits, for code that applies softmax: their softmax is the
            release, and their maximum is 0.

        Raises:
            InvalidOptionError: A part of the model was put back in training mode, or PyTorch
                records a graph.
            InvalidTensorError: The model gives anything but one tensor of scores, or there is no
                input whose rows can be counted.
            TargetFailedError: The model raised. Its text is left out.
            DefenseFailedError: The defense failed.
        """
        refuse_graphs()
        if any(module.training for module in self.model.modules()):
            raise InvalidOptionError(
                "a part of the model is in training mode, so that its answers depend on the "
                "batch. Call `eval()`."
            )
        queries = next((value for value in (*args, *kwargs.values()) if value is not None), None)
        rows = count_rows(queries)
        answer = ask(
            "the model",
            rows,
            lambda: self._answer(args, kwargs),
            lambda: _remedy(self.model, args, kwargs),
        )
        scores = scores_in(answer, rows, self.guard.outputs, "the model")
        check_rows(scores, rows, "the model", Tensor)
        released = self.guard(scores, queries)
        kind = _object_of_logits(answer)
        return released if kind is None else kind(logits=_as_logits(released))

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.model(*copied(args), **copied(kwargs))
        except RuntimeError:
            kind = _kind_of_weights(self.model)
            floats = {one.dtype for one in _tensors((args, kwargs)) if one.is_floating_point()}
            if kind is None or not floats - {kind}:
                raise
        # Weights of one type multiply floats of this type only, which mean the same.
        return self.model(*_cast(args, kind), **_cast(kwargs, kind))


def _object_of_logits(answer: Any) -> type | None:
    """Return the class of an output object that can hold ``logits`` alone, as of transformers."""
    kind = type(answer)
    if not hasattr(kind, "__dataclass_fields__"):
        return None
    needed = {
        field.name
        for field in fields(kind)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    }
    holds = "logits" in kind.__dataclass_fields__ and needed <= {"logits"}
    return kind if holds else None


def _as_logits(released: Tensor) -> Tensor:
    """Return logits whose softmax is the release; the maximum is 0, so that it stays the only one.

    Args:
        released: ``(N, K)`` probabilities.
    """
    logits = logits_from_confidences(released)
    return (logits - logits.amax(-1, keepdim=True)).to(released.dtype)


def _kind_of_weights(model: nn.Module) -> torch.dtype | None:
    """Return the floating type that all weights have; None if there are several or none."""
    kinds = {
        weight.dtype
        for weights in (model.parameters(), model.buffers())
        for weight in weights
        if weight.is_floating_point()
    }
    return next(iter(kinds)) if len(kinds) == 1 else None


def _tensors(inputs: Any) -> list[Tensor]:
    """Return the tensors in lists, tuples and mappings of inputs."""
    if isinstance(inputs, Tensor):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        return []
    return [tensor for part in parts for tensor in _tensors(part)]


def _cast(inputs: Any, kind: torch.dtype) -> Any:
    """Return copies of inputs, floats cast to ``kind``."""
    if isinstance(inputs, Tensor):
        return inputs.detach().to(kind if inputs.is_floating_point() else inputs.dtype, copy=True)
    if type(inputs) is dict:
        return {name: _cast(values, kind) for name, values in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(_cast(values, kind) for values in inputs)
    return copied(inputs)


def _remedy(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return what may help a model that raised: types, shapes and devices of inputs and weights."""
    given = [
        f"{name_of(tensor.dtype)} {tuple(tensor.shape)} on {tensor.device}"
        for tensor in _tensors((args, kwargs))
    ]
    weights = {f"{name_of(weight.dtype)} on {weight.device}" for weight in model.parameters()}
    remedy = f"{REMEDY} It got {', '.join(given) or 'no tensor'}"
    if weights:
        remedy += f", and its weights are {' and '.join(sorted(weights))}"
    if any(weight.is_meta for weight in model.parameters()):
        remedy += ": the meta device holds no numbers, so load the weights first"
    return f"{remedy}."
