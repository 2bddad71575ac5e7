"""JSON values of the page: the session's state, answers to queries, findings."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from oneway.contracts import Reconstructor
from oneway.errors import InvalidOptionError
from oneway.metrics import inversion_errors
from oneway.playground.drawing import center_drawing
from oneway.playground.session import Finding, Session, reconstruct
from oneway.playground.settings import DEFAULTS, SLIDERS, Setting
from oneway.playground.worker import Progress, Worker
from oneway.releases import release

SIDE = 112
"""Side in pixels of a drawing in a request."""

MOST_SETTINGS = len(SLIDERS)
"""Most settings in a request: one of each defense."""


def read_query(value: Any, session: Session) -> Tensor:
    """Return the image of a request, ``(1, 1, 32, 32)`` in ``[0, 1]``.

    Args:
        value: ``{"sample": NUMBER}``, or ``{"drawing": TEXT}``: 112 x 112 bytes in base64, row by
            row, ink 255 on 0.
        session: Holds the samples.

    Raises:
        InvalidOptionError: The value has another form.
        InvalidTensorError: The drawing holds no ink.
    """
    match value:
        case {"sample": int(number), **rest} if not rest and not isinstance(number, bool):
            if not 0 <= number < len(session.samples):
                raise InvalidOptionError(
                    f"sample must be from 0 to {len(session.samples) - 1}. See /api/state."
                )
            return session.samples[number : number + 1]
        case {"drawing": str(text), **rest} if not rest:
            return center_drawing(_read_drawing(text))
    raise InvalidOptionError(
        'query must be {"sample": NUMBER} or {"drawing": BASE64} and nothing more.'
    )


def _read_drawing(text: str) -> Tensor:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        # The parser's message may quote the drawing.
        raise InvalidOptionError("drawing must be base64, but is not. Encode the bytes.") from None
    if len(content) != SIDE * SIDE:
        raise InvalidOptionError(
            f"drawing must be {SIDE} x {SIDE} bytes, but has {len(content)}. Scale the canvas."
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(SIDE, SIDE).float() / 255


def state_json(worker: Worker) -> dict[str, Any]:
    """Return whether the session is ready, and then the samples, sliders and baselines."""
    session = worker.session
    if session is None:
        return {"ready": False, "failure": worker.failure}
    return {
        "ready": True,
        "samples": [
            {"label": int(label), "image": _picture(image)}
            for label, image in zip(session.sample_labels, session.samples, strict=True)
        ],
        "sliders": {
            name: {option: list(values) for option, values in sliders.items()}
            for name, sliders in SLIDERS.items()
        },
        "defaults": {name: dict(options) for name, options in DEFAULTS.items()},
        "baselines": dict(session.baseline_errors),
        "queries": session.queries,
        "side": SIDE,
    }


def answers_json(
    worker: Worker, session: Session, query: Tensor, settings: Sequence[Setting]
) -> dict[str, Any]:
    """Answer one query at several settings, and reconstruct it from each answer.

    Args:
        worker: Holds the findings so far.
        session: Holds the target, the defenses and the attackers.
        query: ``(1, 1, 32, 32)`` in ``[0, 1]``.
        settings: Defenses and their options.
    """
    logits = session.target.logits(query)
    clean = release(logits)
    return {
        "sent": _picture(query[0]),
        "label": int(clean.argmax()),
        "clean": clean[0].tolist(),
        "from_clean": _guess(session.static.reconstructor, clean, query),
        "label_alone": _guess(session.label_alone.reconstructor, clean, query),
        "answers": [_answer_json(worker, session, query, clean, setting) for setting in settings],
    }


def _answer_json(
    worker: Worker, session: Session, query: Tensor, clean: Tensor, setting: Setting
) -> dict[str, Any]:
    released = session.trace(setting, query).released
    finding = worker.finding(setting)
    exact = session.trained_for(setting)
    if exact is None and finding is not None:
        exact = finding.retrained
    retrained = session.mixed[setting.defense] if exact is None else exact
    return {
        "setting": setting.as_json(),
        "label": int(released.argmax()),
        "released": released[0].tolist(),
        "l1": float((released.double() - clean.double()).abs().sum()),
        "cells": session.cells(setting),
        "static": _guess(session.static.reconstructor, released, query),
        "retrained": _guess(retrained, released, query),
        "exact": exact is not None,
        "finding": None if finding is None else finding_json(finding),
    }


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return the progress of a setting's examination, and its newest finding."""
    finding = progress.finding
    return {
        "state": progress.state,
        "stage": progress.stage,
        "share": progress.share,
        "finding": None if finding is None else finding_json(finding),
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return the results at a setting over all test queries.

    Where the attack failed, G is not measured, and null.
    """
    verdict = finding.verdict
    failed = verdict.attack_failed and verdict.closed_gap is not None
    return {
        "final": finding.retrained is not None,
        "closed_gap": None if failed else verdict.closed_gap,
        "attack_failed": failed,
        "strongest": verdict.strongest,
        "adaptive_error": verdict.adaptive_error,
        "errors": dict(finding.errors),
    }


def _guess(reconstructor: Reconstructor, released: Tensor, query: Tensor) -> dict[str, Any]:
    images = reconstruct(reconstructor, released).clamp(0, 1)
    return {"image": _picture(images[0]), "error": float(inversion_errors(query, images)[0])}


def _picture(image: Tensor) -> str:
    """Return ``(1, 32, 32)`` pixels in ``[0, 1]`` as bytes in base64, row by row."""
    pixels = (image.flatten() * 255).round().to(torch.uint8)
    return base64.b64encode(pixels.numpy().tobytes()).decode("ascii")
