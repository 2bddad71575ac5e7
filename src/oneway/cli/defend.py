"""`oneway defend`: scores and images in, probabilities to release out."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oneway.cli.common import (
    Device,
    ModelOptions,
    ModelOutputs,
    Options,
    check_suffix,
    choose_device,
    command,
    parse_options,
    progress,
)
from oneway.cli.completion import defense_names
from oneway.cli.paths import Writes
from oneway.cli.sources import Queries, Source, model_options

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from oneway.contracts import Defense

BATCH = 512
"""Rows that a defense gets at once."""

Out = Annotated[
    Path, typer.Option(help="File to write: .npy, or .npz with `confidences`."), Writes()
]
Surrogate = Annotated[
    Path | None, typer.Option(help="Surrogate inverter, from `oneway train inverter`.")
]
GuardFile = Annotated[
    Path | None, typer.Option(help="Codebook file, from `oneway codebook`, instead of --defense.")
]
DefenseName = Annotated[
    str,
    typer.Option(help="Registered defense without a fitted state.", autocompletion=defense_names),
]
Dtype = Annotated[Literal["float64", "float32", "float16"], typer.Option(help="Type to release.")]
Decimals = Annotated[int | None, typer.Option(help="Decimals to round to. [no rounding]")]


@command
def defend(
    source: Source,
    out: Out,
    queries: Queries = None,
    outputs: ModelOutputs = None,
    model_option: ModelOptions = None,
    guard: GuardFile = None,
    inverter: Surrogate = None,
    defense: DefenseName = "adversarial-noise",
    option: Options = None,
    dtype: Dtype = "float32",
    decimals: Decimals = None,
    device: Device = "auto",
) -> None:
    r"""Turn clean scores into probabilities that may be released.

    In every row one label is the only maximum, after the type and the rounding: the predicted
    label or, with a defense that may change it, another. If anything is wrong with a row, nothing
    is written.

    For example:

        oneway defend work/test.npz --inverter work/surrogate.safetensors \
            --option step_size=0.4 --out work/released.npy

        oneway defend scores.npy --outputs confidences --defense top-k --option count=2 \
            --decimals 4 --out released.npz
    """
    import torch

    from oneway.interface import read_scores
    from oneway.releases import guarded_release

    check_suffix(out, "--out", ".npy", ".npz")
    options, where = parse_options(option, "--option"), choose_device(device)
    given = defense if guard is None else guard
    defended = _opened(given, options, inverter, where)
    parts = []
    with progress() as report:
        scores = read_scores(
            source,
            queries,
            outputs=outputs,
            device=where,
            report=report,
            **model_options(model_option, "--model-option"),
        )
        logits = scores.logits.to(where)
        needed = _queries(defended, scores.queries, source)
        for begin in range(0, len(logits), BATCH):
            rows = slice(begin, begin + BATCH)
            batch = None if needed is None else needed[rows].to(where)
            parts.append(
                guarded_release(
                    defended, logits[rows], batch, dtype=getattr(torch, dtype), decimals=decimals
                )
            )
            report(f"defend {len(logits)} queries", min(1.0, (begin + BATCH) / len(logits)))
    confidences = torch.cat([part.confidences for part in parts]).cpu().numpy()
    _write(out, confidences)
    changes = sum(part.label_changes for part in parts)
    typer.echo(f"released {len(confidences)} rows, {changes} labels changed; wrote {out}")


def _opened(
    given: str | Path, options: "Mapping[str, Any]", inverter: Path | None, device: "torch.device"
) -> "Defense":
    """Return the defense of a name, or the codebook of a file."""
    from oneway.adapters import load_guard
    from oneway.errors import InvalidOptionError

    if isinstance(given, str):
        _check_defense(given, options)
        return _build(given, options, inverter, device)
    if options or inverter is not None:
        raise InvalidOptionError("--option and --inverter are for --defense, not for --guard.")
    return load_guard(given, device=device)


def _check_defense(defense: str, options: "Mapping[str, Any]") -> None:
    """Refuse a defense that is not for clients, and options that it lacks or needs."""
    from oneway.defenses import DEFENSES, TEST_SIGNALS, check_options, needs_state
    from oneway.errors import InvalidOptionError, UnknownNameError

    if defense in TEST_SIGNALS:
        raise InvalidOptionError(
            f"{defense} is a test signal that gives queries away on purpose: it is for "
            "`oneway audit`, and not for clients. Take a defense."
        )
    known = [name for name in DEFENSES if name not in TEST_SIGNALS]
    UnknownNameError.check("defense", defense, known)
    if needs_state(defense):
        instead = "Use it in Python (oneway.defenses.build_defense) or in an experiment."
        if defense == "codebook":
            instead = "Pass the file of a codebook, from `oneway codebook`, by --guard FILE."
        raise InvalidOptionError(
            f"the defense {defense!r} needs a fitted state, which this command does not make. "
            f"{instead}"
        )
    check_options(defense, options)


def _build(
    name: str, options: "Mapping[str, Any]", inverter: Path | None, device: "torch.device"
) -> "Defense":
    """Build the defense, around its surrogate if it takes one."""
    import torch

    from oneway.defenses import build_defense, load_module, needs_surrogate
    from oneway.errors import InvalidOptionError

    surrogate = None
    if needs_surrogate(name):
        if inverter is None:
            raise InvalidOptionError(
                f"{name} needs --inverter FILE: train one with `oneway train inverter`."
            )
        surrogate = load_module(inverter, "inverter").module.to(device)
    # From the operating system: an attacker who knows the seed of a random release undoes it.
    generator = torch.Generator()
    generator.seed()
    return build_defense(name, options, surrogate, generator=generator)


def _queries(defense: "Defense", queries: "Tensor | None", source: str) -> "Tensor | None":
    """Return the queries that a defense needs; None if it needs none."""
    from oneway.errors import InvalidOptionError

    if not defense.requires_input:
        return None
    if queries is None:
        raise InvalidOptionError(
            f"{type(defense).__name__} needs the queries as well as their scores, and {source} "
            "holds no array named images. Pass --queries DATA."
        )
    return queries


def _write(out: Path, confidences: "NDArray[np.generic]") -> None:
    """Write the release, whole or not at all."""
    import numpy as np

    from oneway.files import atomic_file, write_npz

    if out.suffix.lower() == ".npz":
        write_npz(out, {"confidences": confidences})
        return
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        np.save(file, confidences)
