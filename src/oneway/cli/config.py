"""Options of a command from a TOML file, which is kept beside the model."""

import inspect
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from oneway.cli.paths import MARKS, existing_file
from oneway.errors import InvalidOptionError, OnewayError, UnknownNameError


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options that the command line does not give from a file.

    Keys are names of options without the dashes in front, and ``model`` for the argument MODEL. An
    option that may be repeated takes a list of texts. Paths are relative to the file's folder.

    Args:
        context: The command's.
        path: The file, TOML; None: no file.

    Raises:
        BadParameter: The file cannot be read, or a key or a value is wrong.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            given = tomllib.load(file)
        context.default_map = _defaults(context, given, path.parent)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # no TOML, no UTF-8, or ours
        what = str(error) if isinstance(error, OnewayError) else f"it is no TOML: {error}."
        raise typer.BadParameter(f"{path}: {what}") from None
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        help="File of options, TOML, such as `minutes = 20`; the command line overrides it.",
        callback=read_config,
        is_eager=True,
    ),
]


def _defaults(context: typer.Context, given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return values by the Python names of parameters.

    Raises:
        UnknownNameError: A key is no option of the command.
        InvalidOptionError: A value is of another kind than the option's.
    """
    command = inspect.unwrap(context.command.callback or read_config)
    hints = typing.get_type_hints(command, include_extras=True)
    known = {
        parameter.opts[0].lstrip("-"): parameter
        for parameter in context.command.params
        if "--config" not in parameter.opts
    }
    values: dict[str, Any] = {}
    for key, value in given.items():
        UnknownNameError.check("option", key, known)
        name = str(known[key].name)
        kind, *marks = typing.get_args(hints[name])
        is_path = kind is Path or Path in typing.get_args(kind)
        _check_kind(known[key], key, value, is_path=is_path)
        if is_path or (isinstance(value, str) and any(isinstance(mark, MARKS) for mark in marks)):
            value = _beside(folder, value, is_path=is_path)
        values[name] = value
    return values


def _check_kind(parameter: Any, key: str, value: Any, *, is_path: bool) -> None:
    """Refuse a value of another kind; ranges and choices are checked as on the command line."""
    if parameter.multiple:
        must = "a list of texts"
        fits = isinstance(value, list) and all(isinstance(each, str) for each in value)
    elif getattr(parameter, "is_bool_flag", False):
        must, fits = "true or false", isinstance(value, bool)
    elif is_path:
        must, fits = "a path as a text", isinstance(value, str)
    else:
        must = "a text or a number"
        fits = isinstance(value, str | int | float) and not isinstance(value, bool)
    if not fits:
        raise InvalidOptionError(f"{key} must be {must}, but is of type {type(value).__name__}.")


def _beside(folder: Path, value: str, *, is_path: bool) -> str:
    """Return a path relative to a folder; an address, a factory and names of classes stay."""
    path = str(folder / value)
    looks_like_file = Path(value).suffix and not set(value) & set(":,")
    return path if is_path or looks_like_file or existing_file(path) else value
