"""Open a model as a target, from a file, a Python function or an address."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneway.checks import check_count
from oneway.contracts import Target
from oneway.errors import InvalidOptionError, MissingDataError, UnknownNameError
from oneway.options import keywords_of
from oneway.releases import Outputs
from oneway.targets.answers import checked_class_names, class_names_of
from oneway.targets.estimator import open_pickle, open_skops
from oneway.targets.http_endpoint import open_endpoint
from oneway.targets.objects import open_entry_point
from oneway.targets.onnx_file import open_onnx, open_onnx_tensors
from oneway.targets.onnx_scores import OnnxTensorTarget
from oneway.targets.torch_files import open_exported, open_torchscript

ENTRY_POINT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

COMMON = ("outputs", "device", "batch_size", "class_names")
"""Options of every kind of model."""


@dataclass(frozen=True)
class _Kind:
    name: str
    open: Callable[..., Target]

    def options(self) -> list[str]:
        """Return the names of the options that this kind alone has."""
        return [name for name in keywords_of(self.open) if name not in COMMON]


ENDPOINT = _Kind("an endpoint", open_endpoint)
FACTORY = _Kind("a factory", open_entry_point)
TORCHSCRIPT = _Kind("a TorchScript file", open_torchscript)
PICKLE = _Kind("a pickle", open_pickle)

FILES = {
    ".joblib": PICKLE,
    ".onnx": _Kind("an ONNX file", open_onnx),
    ".pickle": PICKLE,
    ".pkl": PICKLE,
    ".pt": TORCHSCRIPT,
    ".pt2": _Kind("an exported program", open_exported),
    ".skops": _Kind("a skops file", open_skops),
    ".torchscript": TORCHSCRIPT,
    ".ts": TORCHSCRIPT,
}

MODEL_OPTIONS = frozenset(name for kind in (ENDPOINT, *FILES.values()) for name in kind.options())
"""Options that at least one kind of model has."""


def open_target(
    where: str,
    *,
    outputs: Outputs | None,
    device: torch.device,
    batch_size: int = 512,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Target:
    """Open a model as a target.

    ============================================  ============================================
    ``where``                                     kind; options
    ============================================  ============================================
    ``package.module:factory``                    a function of yours that returns the model
    ``*.pt``, ``*.ts``, ``*.torchscript``         TorchScript
    ``*.pt2``                                     an exported program
    ``*.onnx``                                    ONNX; ``output_name``
    ``*.skops``                                   scikit-learn; ``trusted``
    ``*.joblib``, ``*.pkl``, ``*.pickle``         scikit-learn; ``trust_pickle``
    ``https://host/v2/models/NAME``               Open Inference Protocol; ``input_name``,
                                                  ``output_name``, and those of HTTP
    ``https://host/any/path``                     plain JSON; ``request_key``,
                                                  ``response_key``, ``label_key``, and those
                                                  of HTTP:
                                                  ``timeout_seconds``, ``attempts``,
                                                  ``backoff_seconds``, ``most_bytes``
    ============================================  ============================================

    A model that gives logits becomes a :class:`oneway.contracts.ScoredTarget`; PyTorch networks
    stay differentiable as ``.module``. An endpoint may already be defended.

    Args:
        where: The file, function or address.
        outputs: What the model answers with, ``"logits"`` or ``"confidences"``; never guessed
            from the values. None where the kind fixes it: scikit-learn, and a factory that
            returns a target.
        device: Where a network of PyTorch or ONNX computes.
        batch_size: Most queries that the model gets at once.
        class_names: Names of the K classes, in the order of the scores, for a model that does not
            know them. None: the model's own, if it has any: see
            :func:`oneway.targets.class_names_of`.
        **options: See the table, and the ``open_`` function of each kind.

    Returns:
        ``(N, C, H, W)`` images in ``[0, 1]`` or ``(N, F)`` records to ``(N, K)`` float32
        probabilities.

    Raises:
        OnewayError: The model cannot be opened. The message says why, and what to do.
    """
    check_count("batch_size", batch_size)
    kind = _kind_of(where)
    known = _checked_options(kind, options)
    names = None if class_names is None else checked_class_names(class_names)
    if "class_names" in known:
        options["class_names"] = names
    target = kind.open(where, outputs=outputs, device=device, batch_size=batch_size, **options)
    return target if names is None else named_target(target, names, where)


def open_served(
    where: str, *, outputs: Outputs | None, device: torch.device, batch_size: int, **options: Any
) -> Target | OnnxTensorTarget:
    """Open a model for a server, as :func:`open_target` does, and ONNX files of any inputs.

    Args:
        where: The file or function.
        outputs: What the model answers with.
        device: Where a network of PyTorch or ONNX computes.
        batch_size: Most queries that the model gets at once.
        **options: See :func:`open_target`.

    Raises:
        OnewayError: The model cannot be opened. The message says why, and what to do.
    """
    kind = _kind_of(where)
    common: dict[str, Any] = {"outputs": outputs, "device": device, "batch_size": batch_size}
    if kind.open is not open_onnx:
        return open_target(where, **common, **options)
    _checked_options(kind, options)
    return open_onnx_tensors(where, **common, **options)


def _checked_options(kind: _Kind, options: Mapping[str, Any]) -> Collection[str]:
    """Return the parameters of what opens a kind of model.

    Raises:
        InvalidOptionError: It takes no options, and got some.
        UnknownNameError: It has no option of a name.
    """
    known = kind.options()
    for option in options:
        if not known:
            raise InvalidOptionError(f"{kind.name} takes no options, but got {option!r}.")
        UnknownNameError.check(f"option of {kind.name}", option, known)
    return inspect.signature(kind.open).parameters


def named_target(target: Target, names: tuple[str, ...], where: str) -> Target:
    """Give a target the names of its classes.

    Raises:
        InvalidOptionError: It has other names, or can be given none.
    """
    own = class_names_of(target)
    # Numbers are codes of classes, as XGBoost asks for: whoever made them knows their names.
    unnamed = own is None or own == tuple(map(str, range(len(names))))
    if not unnamed and own != names:
        raise InvalidOptionError(
            f"target {where!r} has the classes {', '.join(own or ())}, in this order, but the "
            f"names given are {', '.join(names)}. Leave out --classes (class_names=...), or give "
            "these; classes that are numbers from 0 take as many other names."
        )
    if unnamed:
        try:
            setattr(target, "class_names", names)  # noqa: B010  no attribute of every target
        except AttributeError as error:
            raise InvalidOptionError(
                f"target {where!r} is a {type(target).__name__}, which takes no class_names. Give "
                "its class an attribute class_names."
            ) from error
    return target


def target_kind(where: str) -> str:
    """Return the kind of model that :func:`open_target` opens, such as ``"an ONNX file"``.

    Raises:
        OnewayError: There is no such file, or no kind fits.
    """
    return _kind_of(where).name


def _kind_of(where: str) -> _Kind:
    if re.match(r"https?://", where, re.IGNORECASE):
        return ENDPOINT
    path = Path(where)
    kind = FILES.get(path.suffix.lower())
    if kind is not None:
        if not path.is_file():
            state = "is a folder" if path.is_dir() else "is not there"
            raise MissingDataError(f"{where} must be {kind.name}, but {state}. Check the path.")
        return kind
    if ENTRY_POINT.fullmatch(where):
        return FACTORY
    raise InvalidOptionError(
        f"cannot tell what the target {where!r} is. Give package.module:factory, an address that "
        f"begins with http:// or https://, or a file that ends in one of {', '.join(FILES)}. For "
        "any other model, and for a state dict, write a factory that builds and loads it. Scores "
        "that were recorded are for oneway codebook, choose, certify, defend and attack."
    )
