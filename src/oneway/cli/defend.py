"""`oneway defend`: scores and images in, probabilities to release out."""

from pathlib import Path
from typing import Annotated

import typer

from oneway.cli.common import choose_device, command, progress, take_array, to_images


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
    kind: Annotated[
        str | None, typer.Option(help="What an .npy file holds: logits or confidences.")
    ] = None,
    defense: Annotated[
        str, typer.Option(help="adversarial-noise, label-only or none.")
    ] = "adversarial-noise",
    step_size: Annotated[float, typer.Option(help="Nats per step; the paper: 0.1 or 0.4.")] = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="Steps; the paper: 10.")] = 10,
    budget: Annotated[
        float | None, typer.Option(help="Most that a row's noise may measure, in nats. [no limit]")
    ] = None,
    norm: Annotated[str, typer.Option(help="Norm of the budget: 1, 2 or inf.")] = "1",
    update: Annotated[
        str, typer.Option(help="project (Algorithms 1 and 2) or rescale (Equation 3).")
    ] = "project",
    search: Annotated[
        str, typer.Option(help="Steps: sign (the paper), momentum, or random-start.")
    ] = "sign",
    dtype: Annotated[
        str, typer.Option(help="Type to release: float64, float32 or float16.")
    ] = "float32",
    decimals: Annotated[
        int | None, typer.Option(help="Decimals to round to. [no rounding]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    r"""Turn clean scores into probabilities that may be released.

    In every row the predicted label is the only maximum, after the type and the rounding. If
    anything is wrong with a row, nothing is written.

    For example:

        oneway defend work/test.npz --inverter work/surrogate.safetensors --out work/released.npy

        oneway defend scores.npy --kind confidences --images images.npy \
            --inverter surrogate.safetensors --step-size 0.4 --decimals 4 --out released.npz
    """
    import numpy as np
    import torch

    from oneway.cli.common import scores_to_logits
    from oneway.confidences import release
    from oneway.data import read_npz
    from oneway.errors import DefenseFailedError, InvalidOptionError, UnknownNameError
    from oneway.guards import DEFENSES, build_defense, load_network, needs_network, needs_surrogate
    from oneway.metrics import flips
    from oneway.tensor_files import atomic_file

    norms = {"1": 1, "2": 2, "inf": float("inf")}
    dtypes = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}
    for what, name, known in (
        ("defense", defense, [name for name in DEFENSES if not needs_network(name)]),
        ("norm", norm, list(norms)),
        ("dtype", dtype, list(dtypes)),
    ):
        if name not in known:
            raise UnknownNameError(what, name, known)
    if out.suffix not in (".npy", ".npz"):
        raise InvalidOptionError(f"--out must end in .npy or .npz, but is {out}.")
    where = choose_device(device)
    arrays = read_npz(scores)
    logits = scores_to_logits(arrays, scores, kind).to(where)
    options, surrogate, queries = {}, None, None
    if needs_surrogate(defense):
        if inverter is None:
            raise InvalidOptionError(
                f"{defense} needs --inverter FILE: train one with `oneway train inverter`."
            )
        surrogate = load_network(inverter, "inverter").network.to(where)
        source = images or scores
        stored = arrays if images is None else read_npz(images)
        if images is None and "images" not in stored:
            raise InvalidOptionError(
                f"{defense} needs the queries besides their scores, and {scores} holds no array "
                "named images. Pass --images FILE."
            )
        queries = to_images(take_array(stored, source, "images"), source).to(where)
        options = {
            "step_size": step_size,
            "steps": steps,
            "budget": budget,
            "norm": norms[norm],
            "update": update,
            "search": search,
        }
    # From the operating system: who knows the seed of a random start undoes it.
    generator = torch.Generator()
    generator.seed()
    guard = build_defense(defense, options, surrogate, generator=generator)
    if queries is not None and len(queries) != len(logits):
        raise InvalidOptionError(
            f"there are {len(logits)} rows of scores, but {len(queries)} images. "
            "Pass one image per row, in the same order."
        )
    parts = []
    with progress() as report:
        for begin in range(0, len(logits), 512):
            rows = slice(begin, begin + 512)
            noisy = guard(logits[rows], None if queries is None else queries[rows])
            parts.append(release(noisy, dtype=dtypes[dtype], decimals=decimals))
            report(f"defend {len(logits)} queries", min(1.0, (begin + 512) / len(logits)))
    released = torch.cat(parts)
    changed = flips(logits, released)
    if changed and guard.keeps_label:
        raise DefenseFailedError(f"{changed} labels would have changed; nothing was written.")
    confidences = released.cpu().numpy()
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        if out.suffix == ".npy":
            np.save(file, confidences)
        else:
            np.savez_compressed(file, confidences=confidences)
    typer.echo(f"released {len(released)} rows, {changed} labels changed; wrote {out}")
