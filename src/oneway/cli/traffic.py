"""Options that say which queries a codebook is fitted to, or certified on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import ModelOptions, ModelOutputs
from oneway.cli.sources import Groups, Queries, Sensitive, model_options, reads_data

if TYPE_CHECKING:
    from torch import Tensor

    from oneway.interface import Reading

DropCopies = Annotated[
    bool,
    typer.Option(
        "--drop-copies", help="Count copies of a query once: they are an artefact of the file."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="Key of the digests of fitted queries, a file. [a salt beside them]"),
]
MaxL1Worst = Annotated[
    float | None,
    typer.Option(help="Cap on each answer's L1 distance of probabilities: its share is certified."),
]

Variants = Annotated[
    Path | None,
    typer.Option(
        help="Scores of changed copies of each query, such as frames of a video: .npy, or .npz "
        "with `logits` or `confidences`, of shape (queries, copies, classes). The certificate "
        "states what several answers tell."
    ),
]
Repeats = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Instead of --variants, of a model: answers to each query, its own among them. It is "
        "asked about turned, shifted and noisy copies.",
    ),
]


@reads_data
def traffic_of(
    queries: Queries = None,
    outputs: ModelOutputs = None,
    model_option: ModelOptions = None,
    sensitive: Sensitive = None,
    groups: Groups = None,
    max_l1_worst: MaxL1Worst = None,
    variants: Variants = None,
    repeats: Repeats = None,
    key_file: KeyFile = None,
    *,
    drop_copies: DropCopies = False,
    reading: "Reading",
) -> dict[str, Any]:
    """Return what :func:`oneway.fit_codebook` and :func:`oneway.certify` both take."""
    from oneway.defenses import SecretKey

    return {
        "queries": queries,
        "outputs": outputs,
        "model_options": model_options(model_option, "--model-option"),
        "sensitive": sensitive,
        "groups": groups,
        "max_l1_worst": max_l1_worst,
        "variants": read_variants(variants, outputs),
        "repeats": repeats,
        "key": None if key_file is None else SecretKey.from_file(key_file),
        "drop_copies": drop_copies,
        "reading": reading,
    }


def read_variants(path: Path | None, outputs: str | None) -> "Tensor | None":
    """Return ``(N, m, K)`` logits of m changed copies of each query; None without a file.

    Raises:
        CorruptDataError: It holds no scores.
        InvalidOptionError: ``outputs`` is missing for an .npy file.
        InvalidTensorError: The scores are not what their name says, or of another shape.
    """
    from oneway.data import read_npz
    from oneway.interface.models import scores_to_logits

    if path is None:
        return None
    arrays = read_npz(path)
    shapes = {name: array.shape for name, array in arrays.items() if array.ndim == 3}
    rows = {
        name: array.reshape(-1, array.shape[-1]) if name in shapes else array
        for name, array in arrays.items()
    }
    scores = scores_to_logits(rows, path, outputs)
    named = next(name for name in ("logits", "confidences", "array") if name in arrays)
    return scores.view(shapes.get(named, scores.shape))
