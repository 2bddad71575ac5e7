"""A guard from its file, and around a model of whatever kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from oneway.adapters.endpoint import GuardedEndpoint
from oneway.adapters.function import GuardedFunction
from oneway.adapters.guard import Guard
from oneway.adapters.hugging_face import GuardedPipeline
from oneway.adapters.onnx_session import GuardedSession
from oneway.adapters.torch_module import GuardedModule
from oneway.contracts import Defense, ScoredTarget
from oneway.defenses import open_guard_file
from oneway.defenses.codebook import CodebookRelease
from oneway.errors import InvalidOptionError
from oneway.options import check_keywords, keywords_of
from oneway.releases import Outputs
from oneway.targets import open_target
from oneway.targets.modules import names_its_logits
from oneway.targets.objects import is_estimator, is_pipeline, is_pyfunc, is_session
from oneway.targets.onnx_file import choose_output
from oneway.targets.opening import MODEL_OPTIONS

OPTIONS = {*MODEL_OPTIONS, *keywords_of(GuardedSession), *keywords_of(Guard), "class_names"}
"""What :func:`protect` takes beside its own parameters, depending on the kind of model."""


def load_guard(path: str | Path, *, device: torch.device | None = None) -> CodebookRelease:
    """Read a guard that ``save`` wrote.

    Args:
        path: The file.
        device: Where its table goes; None: the CPU.

    Raises:
        MissingDataError: The file is not there.
        CorruptDataError: The file is something else, or damaged.
    """
    guard = open_guard_file(Path(path), device=device or torch.device("cpu")).defense
    assert isinstance(guard, CodebookRelease)  # noqa: S101  narrows the type
    return guard


def protect(
    model: Any,
    guard: Defense | str | Path,
    *,
    outputs: Outputs | None = None,
    decimals: int | None = None,
    **options: Any,
) -> Any:
    """Put a guard behind a model; what comes back is used like the model.

    For example::

        guarded = oneway.protect(model, guard, outputs="logits")
        confidences = guarded(images)

    ==============================================  ==========================================
    ``model``                                       what comes back
    ==============================================  ==========================================
    a ``torch.nn.Module``, of timm or transformers  a module: :class:`oneway.adapters.GuardedModule`
    a pipeline of transformers that classifies      a pipeline: ``oneway.adapters.GuardedPipeline``
    an ONNX Runtime session                         a session: ``oneway.adapters.GuardedSession``
    a fitted classifier with ``predict_proba``      a classifier:
                                                    ``oneway.adapters.scikit_learn.GuardedClassifier``
    an address of a server                          a function of arrays or tensors
    a path of a model's file                        a function of arrays or tensors
    an MLflow model, or any function                a function: ``oneway.adapters.GuardedFunction``
    ==============================================  ==========================================

    All of them fail closed: guarded scores, or an error without a value. Whoever holds the result
    holds the model, too: it protects what clients are told.

    Args:
        model: The model.
        guard: A defense, such as a codebook from :func:`oneway.fit_codebook`; or a codebook's file.
        outputs: What the model's scores are, ``"logits"`` or ``"confidences"``. Needed unless the
            kind of model says so: classifiers with ``predict_proba``, models of transformers, and
            addresses.
        decimals: Decimals of the released probabilities; None: all.
        **options: Of the kind of what comes back, such as ``output_name`` of a session.

    Raises:
        OnewayError: The model is of another kind, or cannot be guarded.
    """
    check_keywords(protect, options, OPTIONS)
    defense = load_guard(guard) if isinstance(guard, str | Path) else guard
    chosen: dict[str, Any] = {"decimals": decimals, **options}
    if isinstance(model, str | Path):
        return _opened(str(model), defense, outputs, decimals, options)
    if is_pipeline(model):
        _refuse_other(outputs, "logits", "a pipeline of transformers guards its model's logits")
        return GuardedPipeline(model, defense, **chosen)
    if isinstance(model, nn.Module):
        if outputs is None and names_its_logits(model):
            outputs = "logits"
        return GuardedModule(model, defense, outputs=_declared(outputs), **chosen)
    if is_session(model):
        output = choose_output(model.get_outputs(), options.get("output_name"), "the session")
        chosen["output_name"] = output.name
        return GuardedSession(model, defense, outputs=_declared(outputs), **chosen)
    if is_estimator(model):
        _refuse_other(outputs, "confidences", "predict_proba gives confidences")
        from oneway.adapters.scikit_learn import GuardedClassifier

        return GuardedClassifier.of_fitted(model, defense, **chosen)
    score = model.predict if is_pyfunc(model) else model
    if not callable(score) or isinstance(score, type):
        raise InvalidOptionError(
            "model must be a torch.nn.Module, a pipeline of transformers, an ONNX Runtime session, "
            "a fitted classifier with predict_proba, an MLflow model, an address, a path or a "
            f"function, but is {type(model).__name__}. Pass the function that gives its scores."
        )
    return GuardedFunction(score, Guard(defense, _declared(outputs), **chosen))


def _opened(
    place: str,
    defense: Defense,
    outputs: Outputs | None,
    decimals: int | None,
    options: dict[str, Any],
) -> Any:
    """Return the guard before an address, or before the model of a file."""
    if place.startswith(("http://", "https://")):
        declared = outputs or "confidences"
        return GuardedEndpoint(place, defense, outputs=declared, decimals=decimals, **options)
    target = open_target(place, outputs=outputs, device=torch.device("cpu"), **options)
    score: Callable[[torch.Tensor], torch.Tensor] = target
    said: Outputs = "confidences"
    if isinstance(target, ScoredTarget):
        score, said = target.logits, "logits"

    def ask(queries: Any) -> Any:
        scores = score(torch.as_tensor(queries))
        return scores if isinstance(queries, torch.Tensor) else scores.numpy()

    return GuardedFunction(ask, Guard(defense, said, decimals=decimals))


def _refuse_other(outputs: Outputs | None, fixed: Outputs, why: str) -> None:
    if outputs not in (None, fixed):
        raise InvalidOptionError(f"outputs must be {fixed!r}, since {why}, but are {outputs!r}.")


def _declared(outputs: Outputs | None) -> Outputs:
    if outputs is None:
        raise InvalidOptionError(
            "say what the model's scores are: outputs='logits' or outputs='confidences'. It is "
            "never guessed from their values."
        )
    return outputs
