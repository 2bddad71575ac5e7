"""Scores of changed copies of queries: from a file, or by asking a model again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oneway.cli.common import scores_to_logits
from oneway.cli.paths import Reads
from oneway.errors import InvalidOptionError

if TYPE_CHECKING:
    from torch import Tensor

Variants = Annotated[
    Path | None,
    typer.Option(
        help="Scores of changed copies of each query, such as frames of a video: .npy, or .npz "
        "with `logits` or `confidences`, of shape (queries, copies, classes). The certificate "
        "states what several answers tell."
    ),
]
VariantsModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Instead of --variants: the undefended model, as `oneway audit` takes it; it is asked "
        "about turned, shifted and noisy copies of the queries.",
    ),
    Reads(),
]
Repeats = Annotated[
    int, typer.Option(min=2, help="With --model: answers to each query, its own among them.")
]


def read_variants(
    variants: Path | None,
    model: str | None,
    repeats: int,
    rows: "tuple[Tensor, Tensor | None]",
    kind: str | None,
) -> "Tensor | None":
    """Return ``(N, m, K)`` logits of m changed copies of each query; None where none are known.

    Args:
        variants: File of their scores.
        model: Where the model is that is asked about ``repeats - 1`` copies; it answers with
            ``kind``, logits by default.
        repeats: Answers to each query, its own among them.
        rows: ``(N, K)`` logits, and the queries if there are any.
        kind: What the scores are.

    Raises:
        InvalidOptionError: Both a file and a model are given, or a model without queries or of
            other scores.
        InvalidTensorError: The file has scores of another shape.
    """
    import torch

    from oneway.contracts import ScoredTarget
    from oneway.targets import ask_variants, open_target

    logits, queries = rows
    if variants is not None and model is not None:
        raise InvalidOptionError("give --variants or --model, not both.")
    if variants is not None:
        return _read(variants, kind)
    if model is None:
        return None
    if queries is None:
        raise InvalidOptionError("--model needs the queries themselves. Pass --images.")
    outputs: Literal["logits", "confidences"] = "confidences" if kind == "confidences" else "logits"
    target = open_target(model, outputs=outputs, device=torch.device("cpu"))
    if not isinstance(target, ScoredTarget):
        raise InvalidOptionError(
            "--model must be the undefended model, but what it answers with may be defended. Pass "
            "a file of the model, or scores of changed copies with --variants."
        )
    # The scores of a file and of another model do not belong together.
    few = slice(0, min(len(queries), 64))
    if not torch.equal(target.logits(queries[few]).argmax(-1), logits[few].argmax(-1).cpu()):
        raise InvalidOptionError(
            f"--model must be the model that the scores come from, but of the first {few.stop} "
            "queries it predicts other labels. Pass that model."
        )
    # Always the same changes, so that nobody looks for favorable ones.
    return ask_variants(target, queries, repeats - 1, torch.Generator().manual_seed(0))


def _read(path: Path, kind: str | None) -> "Tensor":
    """Return ``(N, m, K)`` logits from a file.

    Raises:
        CorruptDataError: It holds no scores.
        InvalidOptionError: ``kind`` is missing for an .npy file.
        InvalidTensorError: The scores are not what their name says, or of another shape.
    """
    from oneway.data import read_npz

    arrays = read_npz(path)
    shapes = {name: array.shape for name, array in arrays.items() if array.ndim == 3}
    rows = {
        name: array.reshape(-1, array.shape[-1]) if name in shapes else array
        for name, array in arrays.items()
    }
    scores = scores_to_logits(rows, path, kind)
    named = next(name for name in ("logits", "confidences", "array") if name in arrays)
    return scores.view(shapes.get(named, scores.shape))
