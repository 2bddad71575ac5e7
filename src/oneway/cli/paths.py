"""Paths of commands: no output replaces an input, and a TOML file may give the options."""

import fnmatch
import inspect
import os
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from oneway.errors import InvalidOptionError, OnewayError, UnknownNameError


@dataclass(frozen=True)
class Reads:
    """Marks a parameter that names an input; parameters of the type ``Path`` need no mark.

    Attributes:
        files: Of a folder: the pattern of the names that are read.
        below: The parameter with the folder that the path is relative to, if it is.
    """

    files: str = "*"
    below: str | None = None


@dataclass(frozen=True)
class Writes:
    """Marks a parameter that names an output.

    Attributes:
        files: Patterns of the names that are written into the folder. Empty: the path is a file.
    """

    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shares:
    """Marks a folder whose files no output can be: trained networks, or published data sets."""


def refuse_overwriting(command: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Refuse outputs that cannot be written, or would replace an input or another output.

    Folders of trained networks and of data sets must be folders, or be missing.

    Args:
        command: The function of the command; the annotations of its parameters say what is read
            and written.
        given: Values of its parameters, by name.

    Raises:
        InvalidOptionError: An output is refused.
    """
    outputs: list[tuple[str, Path]] = []
    inputs: list[tuple[str, Path, str]] = []
    for name, value, mark in _marked(command, given):
        flag = _flag(command, name)
        if isinstance(mark, Writes):
            for each in map(Path, _several(value)):
                _refuse_unwritable(flag, each, folder=bool(mark.files))
                outputs += [(flag, path) for path in _written(each, mark)]
        elif isinstance(mark, Shares):
            _refuse_misplaced(flag, value, folder=True)
        elif isinstance(mark, Reads):
            folder = Path(given.get(mark.below) or "") if mark.below else Path()
            inputs += [(flag, folder / each, mark.files) for each in _several(value)]
    for place, (flag, path) in enumerate(outputs):
        for other, read, files in inputs:
            if _is_same(path, read) or _is_inside(path, read, files):
                raise InvalidOptionError(
                    f"{flag} would overwrite {path}, which {other} reads. Write to another place."
                )
        for other, written in outputs[:place]:
            if _is_same(path, written):
                raise InvalidOptionError(
                    f"{other} and {flag} would both write {path}. Write to two places."
                )


def existing_file(text: str) -> Path | None:
    """Return the file that a text names; None if the text names none, or is no path at all."""
    try:
        return Path(text) if Path(text).is_file() else None
    except OSError:  # the text is longer than any name
        return None


def _marked(
    command: Callable[..., None], given: Mapping[str, Any]
) -> Iterator[tuple[str, Any, object]]:
    """Yield name, value and mark of each parameter that names a path and was given."""
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        value = given.get(name)
        if value is None or name == "return":
            continue
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, MARKS)]
        if marks or any(isinstance(each, Path) for each in _several(value)):
            yield name, value, marks[0] if marks else Reads()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


MARKS = (Reads, Writes, Shares)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _flag(command: Callable[..., None], name: str) -> str:
    """Return how a parameter is named on the command line."""
    hint = inspect.get_annotations(command)[name]
    for info in getattr(hint, "__metadata__", ()):
        words = (getattr(info, "default", None), *(getattr(info, "param_decls", None) or ()))
        for word in words:
            if isinstance(word, str) and word.startswith("--"):
                return word
        if type(info).__name__ == "ArgumentInfo":
            return name.upper()
    return f"--{name.replace('_', '-')}"


def _written(path: Path, mark: Writes) -> list[Path]:
    """Return the files that an output is, or will hold."""
    if not mark.files:
        return [path]
    exact = [path / name for name in mark.files if "*" not in name]
    return exact + [file for name in mark.files if "*" in name for file in path.glob(name)]


def _refuse_misplaced(flag: str, path: Path, *, folder: bool) -> Path:
    """Refuse a path at which something else stands; return what it is, or is made in."""
    kind = "a folder" if folder else "a file"
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise InvalidOptionError(f"{flag} must be {kind}, but {path} is something else.")
    made_in = next(each for each in (path, *path.absolute().parents) if each.exists())
    if made_in != path and not made_in.is_dir():
        raise InvalidOptionError(f"{flag} must lie in a folder, but {made_in} is none.")
    return made_in


def _refuse_unwritable(flag: str, path: Path, *, folder: bool) -> None:
    """Refuse an output that cannot be made where it should be."""
    made_in = _refuse_misplaced(flag, path, folder=folder)
    into = made_in if made_in.is_dir() else made_in.absolute().parent
    if not os.access(into, os.W_OK | os.X_OK):
        raise InvalidOptionError(f"{flag} must be writable, but nothing can be written to {into}.")


def _is_same(path: Path, other: Path) -> bool:
    """Say whether two paths are one file, by links of either kind, too."""
    if _exists(path) and _exists(other):
        return path.samefile(other)
    return path.resolve() == other.resolve()


def _is_inside(path: Path, folder: Path, files: str) -> bool:
    """Say whether a path is one of the files that are read from a folder."""
    if not (_exists(folder) and folder.is_dir()):
        return False
    return path.resolve().is_relative_to(folder.resolve()) and fnmatch.fnmatch(path.name, files)


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
