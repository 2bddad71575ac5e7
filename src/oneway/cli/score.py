"""`oneway score`: ask a model about queries, and keep queries and scores in one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneway.cli.common import (
    Device,
    ModelOptions,
    ModelOutputs,
    check_suffix,
    choose_device,
    command,
    progress,
)
from oneway.cli.paths import Reads, Writes
from oneway.cli.sources import model_options, reads_data

if TYPE_CHECKING:
    from oneway.interface import Reading


@command
@reads_data
def score(
    model: Annotated[
        str, typer.Argument(help="The undefended model, as `oneway audit` takes it."), Reads()
    ],
    queries: Annotated[
        Path, typer.Argument(help="A folder or file of images, or a table of records.")
    ],
    out: Annotated[Path, typer.Option(help="File to write, .npz."), Writes()],
    outputs: ModelOutputs = None,
    model_option: ModelOptions = None,
    *,
    reading: "Reading",
    device: Device = "auto",
) -> None:
    """Ask a model about queries, and write queries and clean scores into one file.

    The file holds `images`, or encoded `records` and their `values`, and `logits`: what `choose`,
    `codebook`, `certify` and `defend` take. Keep it to yourself: it holds the queries and their
    clean scores.

    For example:

        oneway score model.onnx photos/ --outputs logits --size 64x64 --out scores.npz
    """
    from oneway.files import write_npz
    from oneway.interface import read_scores

    check_suffix(out, "--out", ".npz")
    with progress() as report:
        scores = read_scores(
            model,
            queries,
            outputs=outputs,
            device=choose_device(device),
            reading=reading,
            report=report,
            **model_options(model_option, "--model-option"),
        )
    logits, shown, compared = scores.logits, scores.queries, scores.compared
    assert shown is not None and compared is not None  # noqa: S101, PT018  a model is asked
    arrays = {"images" if shown.ndim == 4 else "records": shown, "logits": logits}
    if shown.ndim != 4:
        arrays["values"] = compared
    write_npz(out, {name: array.cpu().numpy() for name, array in arrays.items()})
    typer.echo(f"wrote {out}: {len(logits)} queries, {logits.shape[-1]} classes")
