"""Modules of other people: what a target may ask of them, and where the scores are in an answer."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from oneway.checks import FLOATING, name_of
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.releases import Outputs

FACTORY = (
    "Write a module that takes the images alone and calls this one, and open it by a function, as "
    "package.module:factory."
)


def check_module(module: object, name: str) -> None:
    """Refuse a module that cannot be asked with images alone, before it is asked.

    Raises:
        InvalidOptionError: It is no ``torch.nn.Module``, or a class of them; it has lazy layers
            that have seen no input; it takes several inputs, or token ids; or it gives several
            labels.
    """
    if not isinstance(module, nn.Module):
        got = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise InvalidOptionError(
            f"{name} must be an instance of torch.nn.Module, but is {got}. Wrap a function of "
            "NumPy arrays in CallableTarget or, for logits, ScoredCallableTarget."
        )
    if any(nn.parameter.is_lazy(weight) for weight in (*module.parameters(), *module.buffers())):
        raise InvalidOptionError(
            f"{name} has lazy layers whose weights do not exist before the first input. Ask the "
            "module once, or load its weights."
        )
    if getattr(module, "main_input_name", None) == "input_ids":
        raise InvalidOptionError(
            f"{name} takes token ids (input_ids), but a target is asked with images or records, "
            f"which are floating. {FACTORY}"
        )
    refuse_several_labels(module, name)
    needed = _needed_inputs(module)
    if len(needed) > 1:
        raise InvalidOptionError(
            f"{name} must take one tensor of images, but its forward needs {len(needed)} inputs "
            f"({', '.join(needed)}). {FACTORY}"
        )


def put_in_eval_mode(module: nn.Module, name: str) -> nn.Module:
    """Return a module after its ``eval()``.

    Raises:
        InvalidOptionError: It is what ``module()`` of an exported program gives, which has no mode.
    """
    try:
        return module.eval()
    except NotImplementedError:
        pass
    raise InvalidOptionError(
        f"{name} is the module of an exported program, and cannot be put in eval mode. Write the "
        "program by `torch.export.save`, and pass the path of the file, which ends in .pt2."
    )


def refuse_several_labels(module: nn.Module, name: str) -> None:
    """Refuse a module whose configuration, as of transformers, says that it gives no single class.

    A softmax of such scores means nothing: each is an answer of its own, through a sigmoid.

    Raises:
        InvalidOptionError: ``config.problem_type`` is for several labels, or for numbers.
    """
    problem = getattr(getattr(module, "config", None), "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        raise InvalidOptionError(
            f"{name} must give each query one class, but its configuration says {problem!r}. Of a "
            "model with several labels for each query, wrap one label as two classes: "
            "`torch.stack([-z / 2, z / 2], -1)`."
        )


def _needed_inputs(module: nn.Module) -> list[str]:
    """Return the names of the arguments that ``forward`` cannot do without."""
    schema = getattr(module.forward, "schema", None)
    if schema is not None:  # TorchScript
        return [each.name for each in schema.arguments[1:] if not each.has_default_value()]
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return []
    return [
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind not in variadic
    ]


def names_its_logits(module: nn.Module) -> bool:
    """Say whether a module is a classifier of transformers, whose answers name their logits."""
    return hasattr(getattr(module, "config", None), "id2label")


def named_in_config(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names in a module's ``config.id2label``, as models of transformers have one.

    Returns:
        The names in the order of the scores; None without names, or with placeholders such as
        ``LABEL_0`` alone.
    """
    labels = getattr(getattr(module, "config", None), "id2label", None)
    if not isinstance(labels, Mapping) or len(labels) < 2:
        return None
    try:
        names = tuple(str(labels[at]) for at in range(len(labels)))
    except KeyError:
        return None
    placeholders = tuple(f"LABEL_{at}" for at in range(len(labels)))
    return None if names == placeholders or len(set(names)) < len(names) else names


def scores_in(answer: Any, rows: int, outputs: Outputs, name: str) -> Tensor:
    """Return the one tensor of scores in a module's answer.

    Args:
        answer: A tensor; an object or a dictionary with ``logits``; or a tuple, list or
            dictionary with one tensor, or with one alone that is ``(rows, K)`` floating, K from 2.
        rows: The number of queries.
        outputs: What the scores are said to be.
        name: What the message calls the module.

    Raises:
        InvalidTensorError: The answer is anything else, or has ``logits`` though ``outputs`` are
            confidences.
    """
    if isinstance(answer, Tensor):
        return answer
    is_mapping = isinstance(answer, Mapping)
    logits = answer.get("logits") if is_mapping else getattr(answer, "logits", None)
    if isinstance(logits, Tensor):
        if outputs != "logits":
            raise InvalidTensorError(
                f"{name} answers with logits, as its {type(answer).__name__} says, but "
                "confidences are declared. Declare logits: --outputs logits, or outputs='logits'."
            )
        return logits
    if is_mapping or (isinstance(answer, Sequence) and not isinstance(answer, str)):
        names = getattr(answer, "_fields", range(len(answer)))  # those of a named tuple
        members = dict(answer.items() if is_mapping else zip(names, answer, strict=True))
        tensors = {key: member for key, member in members.items() if isinstance(member, Tensor)}
        if len(members) == len(tensors) == 1:
            return next(iter(tensors.values()))
        # An output object of transformers without `logits` is that of a model without classes,
        # whose pooled states only look like scores.
        guessed = () if is_dataclass(answer) else tensors.values()
        fitting = [each for each in guessed if _could_be_scores(each, rows)]
        if len(fitting) == 1:
            return fitting[0]
        held = ", ".join(f"{key}: {_kind(member)}" for key, member in members.items())
        raise InvalidTensorError(
            f"{name} must answer with one tensor of scores, but gave {type(answer).__name__} of "
            f"{len(members)} ({held}), {len(fitting)} of which could be the scores. Wrap the "
            "module in one that returns the scores alone."
        )
    remedy = (
        "Convert it, as by `torch.from_numpy`, or wrap a function of arrays in CallableTarget."
        if type(answer).__module__ == "numpy"
        else "Wrap the module in one that returns the scores alone."
    )
    raise InvalidTensorError(
        f"{name} must answer with one tensor of scores, but gave {type(answer).__name__}. {remedy}"
    )


def _could_be_scores(tensor: Tensor, rows: int) -> bool:
    shape = tensor.shape
    return tensor.dtype in FLOATING and len(shape) == 2 and shape[0] == rows and shape[1] > 1


def _kind(member: object) -> str:
    if isinstance(member, Tensor):
        return f"{name_of(member.dtype)} {tuple(member.shape)}"
    return type(member).__name__
