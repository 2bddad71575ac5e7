"""Options that say where scores, queries and a model come from, the same in every command."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from oneway.cli.common import parse_options, parse_pairs
from oneway.cli.paths import Reads
from oneway.errors import InvalidOptionError

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


READING = {
    "size": Size,
    "channels": Channels,
    "label": Label,
    "categorical": Categorical,
    "drop": Drop,
    "missing_value": MissingValues,
}
"""The options that say how data is read, by name."""


def reads_data(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of ``READING``, which it gets together as ``reading``.

    Args:
        function: The command; its keyword ``reading`` is an ``oneway.interface.Reading``.
    """
    signature = inspect.signature(function)
    shown: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        options = [each.replace(name=n, annotation=h, default=None) for n, h in READING.items()]
        shown += options if each.name == "reading" else [each]

    @functools.wraps(function)
    def wrapped(**given: Any) -> None:
        from oneway.interface import Reading

        size, channels, label, *lists = (given.pop(name) for name in READING)
        parts = (tuple(each or ()) for each in lists)
        function(reading=Reading(parse_size(size), channels, label, *parts), **given)

    # Whoever asks what the command takes must not look behind this function.
    del wrapped.__wrapped__
    wrapped.__dict__["__signature__"] = signature.replace(parameters=shown)
    wrapped.__annotations__ = {each.name: each.annotation for each in shown}
    return wrapped


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
