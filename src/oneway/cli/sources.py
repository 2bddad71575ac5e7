"""Options that say where scores, queries and a model come from, the same in every command."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from oneway.cli.common import ModelOptions, ModelOutputs, parse_options, parse_pairs
from oneway.cli.paths import Reads
from oneway.errors import InvalidOptionError

if TYPE_CHECKING:
    from torch import Tensor

    from oneway.interface import Reading

T = TypeVar("T")

PANEL = "How data is read"

Source = Annotated[
    str,
    typer.Argument(
        help="The model's scores of the queries, .npy, or .npz with `logits` or `confidences`. Or "
        "the undefended model itself, as `oneway audit` takes it, with --queries."
    ),
    Reads(),
]
Queries = Annotated[
    Path | None,
    typer.Option(
        help="Queries like those to come: a folder or file of images, or a table. [those in the "
        "file of scores]"
    ),
]
Groups = Annotated[
    Path | None,
    typer.Option(
        help="Person, account or device behind each query: .npy, .npz or .csv with `groups`."
    ),
]
Sensitive = Annotated[
    Path | None,
    typer.Option(
        help="A sensitive value of each query, such as a diagnosis: .npy, or .npz or .csv with "
        "`sensitive`. The certificate states how well an answer reveals it."
    ),
]
Size = Annotated[
    str | None, typer.Option(help="Scale image files to HxW pixels.", rich_help_panel=PANEL)
]
Channels = Annotated[
    int | None, typer.Option(help="Channels of image files: 1 or 3.", rich_help_panel=PANEL)
]
Label = Annotated[
    str | None,
    typer.Option(help="Column of a table that holds the classes.", rich_help_panel=PANEL),
]
Categorical = Annotated[
    list[str] | None,
    typer.Option(help="Column of a table that holds codes; repeatable.", rich_help_panel=PANEL),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(help="Column of a table that is no input; repeatable.", rich_help_panel=PANEL),
]
MissingValues = Annotated[
    list[str] | None,
    typer.Option(
        help="Text that means a missing value in a table; repeatable.", rich_help_panel=PANEL
    ),
]


def gathers(**groups: Callable[..., Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command the options of other functions, each group of options as one keyword.

    Args:
        groups: By keyword of the command: a function whose parameters are options. The command
            gets what the function returns.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(function)
        options = {name: inspect.signature(group).parameters for name, group in groups.items()}
        shown = [
            option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for each in signature.parameters.values()
            for option in (options[each.name].values() if each.name in groups else [each])
        ]

        @functools.wraps(function)
        def wrapped(**given: Any) -> T:
            for name, group in groups.items():
                given[name] = group(**{option: given.pop(option) for option in options[name]})
            return function(**given)

        # Whoever asks what the command takes must not look behind this function.
        del wrapped.__wrapped__
        wrapped.__dict__["__signature__"] = signature.replace(parameters=shown)
        wrapped.__annotations__ = {each.name: each.annotation for each in shown}
        return wrapped

    return decorate


def reading_of(
    size: Size = None,
    channels: Channels = None,
    label: Label = None,
    categorical: Categorical = None,
    drop: Drop = None,
    missing_value: MissingValues = None,
) -> "Reading":
    """Return how data is read, from the options that say so."""
    from oneway.interface import Reading

    lists = (tuple(each or ()) for each in (categorical, drop, missing_value))
    return Reading(parse_size(size), channels, label, *lists)


reads_data = gathers(reading=reading_of)
"""Gives a command the options of :func:`reading_of`, together as ``reading``."""


def parse_size(size: str | None) -> tuple[int, int] | None:
    """Return ``(32, 48)`` of ``"32x48"``.

    Raises:
        InvalidOptionError: The text has another form.
    """
    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise InvalidOptionError(f"--size must be HxW in pixels, such as 32x32, but got {size!r}.")
    return int(height), int(width)


def model_options(given: list[str] | None, flag: str) -> dict[str, Any]:
    """Return a model's options, ``NAME=VALUE``, its keys as text: ``0`` is a place in a list."""
    texts = parse_pairs(given, flag)
    return {
        name: texts[name] if name.endswith("_key") and not isinstance(value, str) else value
        for name, value in parse_options(given, flag).items()
    }


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
        "states what several answers reveal."
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
