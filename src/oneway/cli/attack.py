"""`oneway attack`: train attackers on released scores, and say what they reconstruct."""

from pathlib import Path
from typing import Annotated

import typer

from oneway.cli.common import (
    CACHE,
    Cache,
    Device,
    Seed,
    choose_device,
    command,
    progress,
    take_array,
)


@command
def attack(
    auxiliary: Annotated[
        Path, typer.Argument(help="Attacker's images and clean scores, .npz (see train target).")
    ],
    test: Annotated[Path, typer.Argument(help="Queries to reconstruct, likewise.")],
    released_auxiliary: Annotated[
        Path | None, typer.Option(help="What was released for the attacker's images. [clean]")
    ] = None,
    released_test: Annotated[
        Path | None, typer.Option(help="What was released for the queries. [clean]")
    ] = None,
    require_gap: Annotated[
        float | None, typer.Option(help="Exit 1 if the closed gap G is below this.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the record as JSON Lines.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Also draw reconstructions, .png or .pdf.")
    ] = None,
    cache: Cache = CACHE,
    epochs: Annotated[int, typer.Option(min=1, help="Most passes over the images.")] = 24,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    r"""Train attackers on released scores, and say what they reconstruct.

    `label-only`, `static` and `retrained` attackers compete; the closed gap G is that of the
    strongest. Without released scores the clean ones are attacked.

    For example:

        oneway attack work/auxiliary.npz work/test.npz \
            --released-auxiliary work/released-auxiliary.npy --released-test work/released.npy
    """
    from rich.console import Console

    from oneway.cli.common import scores_to_confidences, scores_to_logits
    from oneway.data import image_tensor, read_npz
    from oneway.errors import InvalidOptionError
    from oneway.evaluation import Recording, Store, attack_recorded, write_records
    from oneway.inversion import TrainingSettings
    from oneway.report import attackers_table, check_figure_path, draw_reconstructions

    if (released_auxiliary is None) != (released_test is None):
        raise InvalidOptionError(
            "--released-auxiliary and --released-test go together: the attacker trains on what "
            "was released for its images, and is graded on what was released for the queries."
        )
    if figure is not None:
        check_figure_path(figure)
    where = choose_device(device)
    sides = {}
    for name, path, released in (
        ("auxiliary", auxiliary, released_auxiliary),
        ("test", test, released_test),
    ):
        arrays = read_npz(path)
        images = image_tensor(take_array(arrays, path, "images"), path).to(where)
        logits = scores_to_logits(arrays, path).to(where)
        clean = scores_to_confidences(arrays, path).to(where)
        shown = clean
        if released is not None:
            shown = scores_to_confidences(read_npz(released), released, "confidences").to(where)
        if not len(images) == len(clean) == len(shown) or shown.shape != clean.shape:
            raise InvalidOptionError(
                f"for {name} there are {len(images)} images, clean scores of shape "
                f"{tuple(clean.shape)} and released ones of shape {tuple(shown.shape)}. "
                "They must be one to one."
            )
        sides[name] = Recording(images, logits, clean, shown)
    with progress() as report:
        outcome, gallery = attack_recorded(
            sides["auxiliary"],
            sides["test"],
            store=Store(cache),
            settings=TrainingSettings(epochs=epochs),
            seed=seed,
            report=report,
        )
    record = outcome.record
    if out is not None:
        write_records(out, [record])
    if figure is not None:
        draw_reconstructions(gallery, figure, "What the released scores give away")
    console = Console()
    console.print(attackers_table(record), crop=False)
    gap = record["closed_gap"]
    console.print(
        "no gap to close: clean scores tell these attackers no more than the label"
        if gap is None
        else f"closed gap G = {gap:.3f} (strongest attacker: {record['strongest']})",
        highlight=False,
    )
    for flag in record["flags"]:
        console.print(f"flag: {flag}", highlight=False)
    missed = require_gap is not None and (gap is None or gap < require_gap)
    raise typer.Exit(1 if missed or record["label_changes"] else 0)
