"""`oneway defend`: scores and images in, probabilities to release out."""

from pathlib import Path
from typing import Annotated

import typer

from oneway.cli.common import (
    Device,
    Kind,
    Options,
    choose_device,
    command,
    images_beside,
    parse_options,
    progress,
)


@command
def defend(
    scores: Annotated[
        Path, typer.Argument(help=".npy scores, or .npz with `logits` or `confidences`.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .npy, or .npz with `confidences`.")],
    inverter: Annotated[
        Path | None, typer.Option(help="The surrogate, from `oneway train inverter`.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The queries, .npy or .npz. [the scores' file]")
    ] = None,
    kind: Kind = None,
    defense: Annotated[
        str, typer.Option(help="A registered defense that trains no network of its own.")
    ] = "adversarial-noise",
    option: Options = None,
    dtype: Annotated[
        str, typer.Option(help="Type to release: float64, float32 or float16.")
    ] = "float32",
    decimals: Annotated[
        int | None, typer.Option(help="Decimals to round to. [no rounding]")
    ] = None,
    device: Device = "auto",
) -> None:
    r"""Turn clean scores into probabilities that may be released.

    In every row one label is the only maximum, after the type and the rounding: the predicted
    one, or, with a defense that may change it, another. If anything is wrong with a
    row, nothing is written.

    For example:

        oneway defend work/test.npz --inverter work/surrogate.safetensors \
            --option step_size=0.4 --out work/released.npy

        oneway defend scores.npy --kind confidences --defense top-k --option count=2 \
            --decimals 4 --out released.npz
    """
    import numpy as np
    import torch

    from oneway.cli.common import scores_to_logits
    from oneway.data import read_npz
    from oneway.defenses import (
        DEFENSES,
        TEST_SIGNALS,
        build_defense,
        check_options,
        load_module,
        needs_state,
        needs_surrogate,
    )
    from oneway.errors import InvalidOptionError, UnknownNameError
    from oneway.files import atomic_file
    from oneway.releases import guarded_release

    dtypes = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}
    if defense in TEST_SIGNALS:
        raise InvalidOptionError(
            f"{defense} is a test signal that gives queries away on purpose: it is for "
            "`oneway audit`, and not for clients. Take a defense."
        )
    offered = [name for name in DEFENSES if name not in TEST_SIGNALS]
    for what, name, known in (
        ("defense", defense, [name for name in offered if not needs_state(name)]),
        ("dtype", dtype, list(dtypes)),
    ):
        if name not in known:
            raise UnknownNameError(what, name, known)
    if out.suffix not in (".npy", ".npz"):
        raise InvalidOptionError(f"--out must end in .npy or .npz, but is {out}.")
    options = parse_options(option, "--option")
    check_options(defense, options)
    where = choose_device(device)
    arrays = read_npz(scores)
    logits = scores_to_logits(arrays, scores, kind).to(where)
    surrogate, queries = None, None
    if needs_surrogate(defense):
        if inverter is None:
            raise InvalidOptionError(
                f"{defense} needs --inverter FILE: train one with `oneway train inverter`."
            )
        surrogate = load_module(inverter, "inverter").module.to(where)
    # From the operating system: who knows the seed of a random release undoes it.
    generator = torch.Generator()
    generator.seed()
    guard = build_defense(defense, options, surrogate, generator=generator)
    if guard.requires_input:
        queries = images_beside(arrays, scores, images)
        if queries is None:
            raise InvalidOptionError(
                f"{defense} needs the queries besides their scores, and {scores} holds no array "
                "named images. Pass --images FILE."
            )
        queries = queries.to(where)
    if queries is not None and len(queries) != len(logits):
        raise InvalidOptionError(
            f"there are {len(logits)} rows of scores, but {len(queries)} images. "
            "Pass one image per row, in the same order."
        )
    parts = []
    with progress() as report:
        for begin in range(0, len(logits), 512):
            rows = slice(begin, begin + 512)
            answer = guarded_release(
                guard,
                logits[rows],
                None if queries is None else queries[rows],
                dtype=dtypes[dtype],
                decimals=decimals,
            )
            parts.append(answer)
            report(f"defend {len(logits)} queries", min(1.0, (begin + 512) / len(logits)))
    confidences = torch.cat([part.confidences for part in parts]).cpu().numpy()
    changed = sum(part.label_changes for part in parts)
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        if out.suffix == ".npy":
            np.save(file, confidences)
        else:
            np.savez_compressed(file, confidences=confidences)
    typer.echo(f"released {len(confidences)} rows, {changed} labels changed; wrote {out}")
