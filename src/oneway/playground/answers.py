"""What the page is told: JSON values of a study, its answers and what is found of a setting."""

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
from oneway.playground.settings import DEFAULTS, SLIDERS, Setting
from oneway.playground.study import Finding, Study, reconstruct
from oneway.playground.workshop import Progress, Workshop
from oneway.releases import release

SIDE = 112
"""Of the canvas as it is sent."""

MOST_SETTINGS = len(SLIDERS)


def read_query(told: Any, study: Study) -> Tensor:
    """Return the image that a request asks about, ``(1, 1, 32, 32)``.

    Args:
        told: ``{"sample": NUMBER}``, or ``{"drawing": TEXT}``: 112 x 112 bytes in base64, row by
            row, ink 255 on 0.
        study: Whose samples they are.

    Raises:
        InvalidOptionError: It is something else.
        InvalidTensorError: The drawing holds no ink.
    """
    match told:
        case {"sample": int(number), **rest} if not rest and not isinstance(number, bool):
            if not 0 <= number < len(study.samples):
                raise InvalidOptionError(
                    f"sample must be from 0 to {len(study.samples) - 1}. See /api/state."
                )
            return study.samples[number : number + 1]
        case {"drawing": str(text), **rest} if not rest:
            return center_drawing(_read_drawing(text))
    raise InvalidOptionError(
        'query must be {"sample": NUMBER} or {"drawing": BASE64} and nothing more.'
    )


def _read_drawing(text: str) -> Tensor:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        # The parser's own words may quote what was drawn.
        raise InvalidOptionError("drawing must be base64, but is not. Encode the bytes.") from None
    if len(content) != SIDE * SIDE:
        raise InvalidOptionError(
            f"drawing must be {SIDE} x {SIDE} bytes, but has {len(content)}. Scale the canvas."
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(SIDE, SIDE).float() / 255


def state_json(workshop: Workshop) -> dict[str, Any]:
    """Return whether the study is ready, and what can be asked of it then."""
    study = workshop.study
    if study is None:
        progress = workshop.preparing
        return {
            "ready": False,
            "state": progress.state,
            "stage": progress.stage,
            "share": progress.share,
        }
    return {
        "ready": True,
        "samples": [
            {"label": int(label), "image": _picture(image)}
            for label, image in zip(study.sample_labels, study.samples, strict=True)
        ],
        "sliders": {
            name: {option: list(values) for option, values in sliders.items()}
            for name, sliders in SLIDERS.items()
        },
        "defaults": {name: dict(options) for name, options in DEFAULTS.items()},
        "baselines": study.baseline_errors,
        "queries": study.queries,
        "side": SIDE,
    }


def answers_json(
    workshop: Workshop, study: Study, query: Tensor, settings: Sequence[Setting]
) -> dict[str, Any]:
    """Answer one query at some settings, and say what each attacker makes of the answers.

    Args:
        workshop: What it has found so far.
        study: Who answers.
        query: ``(1, 1, 32, 32)``.
        settings: Of the defenses.
    """
    logits = study.target.logits(query)
    clean = release(logits)
    return {
        "sent": _picture(query[0]),
        "label": int(clean.argmax()),
        "clean": clean[0].tolist(),
        "from_clean": _guess(study.static.reconstructor, clean, query),
        "label_alone": _guess(study.label_alone.reconstructor, clean, query),
        "answers": [_answer_json(workshop, study, query, clean, setting) for setting in settings],
    }


def _answer_json(
    workshop: Workshop, study: Study, query: Tensor, clean: Tensor, setting: Setting
) -> dict[str, Any]:
    released = study.trace(setting, query).released
    found = workshop.finding(setting)
    # Who learned from clean scores, or from labels, has learned from just what these two release.
    known = {"none": study.static.reconstructor, "label-only": study.label_alone.reconstructor}
    exact = known.get(setting.defense, None if found is None else found.retrained)
    retrained = study.mixed[setting.defense] if exact is None else exact
    return {
        "setting": setting.as_json(),
        "label": int(released.argmax()),
        "released": released[0].tolist(),
        "l1": float((released.double() - clean.double()).abs().sum()),
        "cells": study.cells(setting),
        "static": _guess(study.static.reconstructor, released, query),
        "retrained": _guess(retrained, released, query),
        "exact": exact is not None,
        "finding": None if found is None else finding_json(found),
    }


def progress_json(progress: Progress) -> dict[str, Any]:
    """Return how far the examination of a setting is, and what is found."""
    found = progress.finding
    return {
        "state": progress.state,
        "stage": progress.stage,
        "share": progress.share,
        "finding": None if found is None else finding_json(found),
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return what is known of a setting over all test queries."""
    verdict = finding.verdict
    return {
        "final": finding.retrained is not None,
        "closed_gap": verdict.closed_gap,
        "strongest": verdict.strongest,
        "adaptive_error": verdict.adaptive_error,
        "errors": dict(finding.errors),
    }


def _guess(reconstructor: Reconstructor, released: Tensor, query: Tensor) -> dict[str, Any]:
    made = reconstruct(reconstructor, released).clamp(0, 1)
    return {"image": _picture(made[0]), "error": float(inversion_errors(query, made)[0])}


def _picture(image: Tensor) -> str:
    """Return ``(1, 32, 32)`` pixels in ``[0, 1]`` as bytes in base64, row by row."""
    pixels = (image.flatten() * 255).round().to(torch.uint8)
    return base64.b64encode(pixels.numpy().tobytes()).decode("ascii")
