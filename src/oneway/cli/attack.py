"""`oneway attack`: train attackers on released scores, and say what they reconstruct."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneway.cli.common import (
    CACHE,
    AsJson,
    Cache,
    Device,
    Seed,
    choose_device,
    command,
    print_json,
    print_lines,
    progress,
)
from oneway.cli.paths import Writes

if TYPE_CHECKING:
    import torch

    from oneway.evaluation import AttackRecord, Recording


Auxiliary = Annotated[
    Path, typer.Argument(help="Attacker's images and clean scores, .npz (see train target).")
]
Test = Annotated[Path, typer.Argument(help="Queries to reconstruct, same format.")]
ReleasedAuxiliary = Annotated[
    Path | None, typer.Option(help="Released scores of the attacker's images. [clean]")
]
ReleasedTest = Annotated[Path | None, typer.Option(help="Released scores of the queries. [clean]")]
RequireGap = Annotated[
    float | None,
    typer.Option(help="Exit 1 if the closed gap G, or its bound, is below this value."),
]
Out = Annotated[Path | None, typer.Option(help="Also write the record as JSON Lines."), Writes()]
Figure = Annotated[
    Path | None, typer.Option(help="Also draw reconstructions, .png or .pdf."), Writes()
]
Epochs = Annotated[
    int,
    typer.Option(
        min=1, help="Passes over the images at first; doubled until twice as many gain nothing."
    ),
]
MostEpochs = Annotated[
    int | None, typer.Option(min=1, help="Most passes over the images. [8 times --epochs]")
]


@command
def attack(
    auxiliary: Auxiliary,
    test: Test,
    released_auxiliary: ReleasedAuxiliary = None,
    released_test: ReleasedTest = None,
    require_gap: RequireGap = None,
    out: Out = None,
    figure: Figure = None,
    cache: Cache = CACHE,
    epochs: Epochs = 24,
    most_epochs: MostEpochs = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    r"""Train attackers on released scores, and say what they reconstruct.

    Every attacker that needs no more than recorded scores takes part; the closed gap G is that of
    the strongest. Without released scores the clean ones are attacked. Where no attacker does
    better than the label alone, a bound of G stands in its place, and counts for --require-gap.
    Exits 1 if the released scores change a label.

    For example:

        oneway attack work/auxiliary.npz work/test.npz \
            --released-auxiliary work/released-auxiliary.npy --released-test work/released.npy
    """
    from rich.console import Console

    from oneway.errors import InvalidOptionError
    from oneway.evaluation import Store, attack_recorded, write_records
    from oneway.inversion import TrainingSettings
    from oneway.report.audit import attackers_table
    from oneway.report.figure import check_figure_path, draw_reconstructions

    if (released_auxiliary is None) != (released_test is None):
        raise InvalidOptionError(
            "--released-auxiliary and --released-test go together: the attacker trains on what "
            "was released for its images, and is graded on what was released for the queries."
        )
    if figure is not None:
        check_figure_path(figure)
    where = choose_device(device)
    recordings = (
        _recording("auxiliary", auxiliary, released_auxiliary, where),
        _recording("test", test, released_test, where),
    )
    with progress() as report:
        outcome, gallery = attack_recorded(
            *recordings,
            store=Store(cache),
            settings=TrainingSettings(epochs=epochs),
            most_epochs=most_epochs,
            seed=seed,
            report=report,
        )
    record = outcome.record
    if out is not None:
        write_records(out, [record])
    if figure is not None:
        draw_reconstructions(gallery, figure, "What the released scores give away")
    console = Console(stderr=as_json)
    if as_json:
        print_json(record.to_json())
    console.print(attackers_table(record), crop=False)
    print_lines(console, [_summary(record), *(f"flag: {flag.detail}" for flag in record.flags)])
    gap = record.closed_gap
    if gap is not None and record.failed:
        gap = record.closed_gap_at_least
    missed = require_gap is not None and (gap is None or gap < require_gap)
    raise typer.Exit(1 if missed or record.label_changes else 0)


def _summary(record: "AttackRecord") -> str:
    """Return the closed gap in words, or what stands in its place."""
    from oneway.report.sentences import failure_sentence, gap_number

    if record.closed_gap is None:
        return "no gap to close: clean scores add nothing to the label for these attackers"
    if record.failed:
        return failure_sentence(record.closed_gap_at_least, record.detection_limit)
    gap = gap_number(record.closed_gap, 3)
    return f"closed gap G = {gap} (strongest attacker: {record.strongest})"


def _recording(name: str, path: Path, released: Path | None, device: "torch.device") -> "Recording":
    """Read images with their clean and released scores, which must be one to one."""
    from oneway.data import image_tensor, read_npz
    from oneway.errors import InvalidOptionError
    from oneway.evaluation import Recording
    from oneway.interface.models import scores_to_confidences, scores_to_logits, take_array

    arrays = read_npz(path)
    images = image_tensor(take_array(arrays, path, "images"), path)
    clean = scores_to_confidences(arrays, path)
    shown = clean
    if released is not None:
        shown = scores_to_confidences(read_npz(released), released, "confidences")
    if not len(images) == len(clean) == len(shown) or shown.shape != clean.shape:
        raise InvalidOptionError(
            f"for {name} there are {len(images)} images, clean scores of shape "
            f"{tuple(clean.shape)} and released scores of shape {tuple(shown.shape)}. They must "
            "be one to one."
        )
    logits = scores_to_logits(arrays, path)
    return Recording(*(part.to(device) for part in (images, logits, clean, shown)))
