"""What commands share: errors as one line, progress bars, arrays from files."""

import functools
import json
import os
import re
import shlex
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer

from oneway.cli.completion import names, release_names
from oneway.cli.paths import Shares, Writes, refuse_overwriting
from oneway.errors import (
    InvalidOptionError,
    OnewayError,
    UnknownNameError,
    where_raised,
)

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from oneway.benchmark import Cells, ExperimentSpec, Gallery
    from oneway.data import Dataset
    from oneway.evaluation import ReleaseRecord
    from oneway.report.table import Listing

P = ParamSpec("P")

Cache = Annotated[Path, typer.Option(help="Folder for trained networks."), Shares()]
DataRoot = Annotated[Path | None, typer.Option(help="Folder with the data sets' files."), Shares()]
Device = Annotated[
    str,
    typer.Option(help="cpu, cuda, or auto.", autocompletion=names("auto", "cpu", "cuda")),
]
NoImages = Annotated[
    bool,
    typer.Option("--no-images", help="Leave images of queries out of the page and its folder."),
]
ModelOptions = Annotated[
    list[str] | None, typer.Option(help="Model option, NAME=VALUE, such as output_name=scores.")
]
ModelOutputs = Annotated[
    Literal["logits", "confidences"] | None,
    typer.Option(help="What the scores are; needed where neither file nor kind of model says so."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on standard output, and nothing else."),
]
Options = Annotated[
    list[str] | None,
    typer.Option(help="Defense option, NAME=VALUE, like step_size=0.1; repeatable."),
]
Executor = Annotated[
    Literal["local", "ray"],
    typer.Option(help="local: one seed after the other. ray: seeds as tasks of a Ray cluster."),
]
Records = Annotated[
    Path,
    typer.Option(help="Folder for records and figures."),
    Writes(("*.jsonl", "*.html", "*.svg", "*.png", "*.pdf")),
]
Releases = Annotated[
    list[str] | None,
    typer.Option(help="A row to run; repeatable. [all]", autocompletion=release_names),
]
Left = Annotated[
    bool,
    typer.Option(
        "--left", help="Say which rows have no record of today's attackers, and run nothing."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random stream.")]

CACHE = Path("runs/cache")
"""Where every command keeps trained networks, unless told otherwise."""

REFUSED = 2
"""Exit code of everything that went wrong but a missed promise, which is 1."""

INTERRUPTED = 128 + 2
"""Exit code after Ctrl-C, as shells give it."""

NOBODY_READS = 128 + 13
"""Exit code where standard output was closed, as by ``| head``; as shells give it."""


@contextmanager
def errors_as_exits() -> Iterator[None]:
    """Turn every error into a message on standard error and an exit code that is never 1.

    Raises:
        typer.Exit: There was an error.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        typer.echo("interrupted: what is done is kept; run the command again", err=True)
        raise typer.Exit(INTERRUPTED) from None
    # rich ends the process itself where nobody reads on.
    except (Exception, SystemExit) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            raise typer.Exit(NOBODY_READS) from None
        if isinstance(error, SystemExit):
            raise
        if os.environ.get("ONEWAY_TRACEBACK") == "1":
            traceback.print_exc()
        typer.echo(f"error: {error_line(error)}", err=True)
        raise typer.Exit(REFUSED) from None


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Let a command end in :func:`errors_as_exits`, and refuse outputs that replace an input.

    Exit code 1 means that a promise was missed, or a flag raised: commands themselves exit with it.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        with errors_as_exits():
            # What is given twice of a repeatable option counts once.
            given: dict[str, Any] = {
                name: list(dict.fromkeys(value)) if isinstance(value, list) else value
                for name, value in kwargs.items()
            }
            refuse_overwriting(function, given)
            function(*args, **given)

    return wrapped


def error_line(error: Exception) -> str:
    """Return what to print of an error: its text only if it is known to quote no query.

    Args:
        error: An error that oneway raised on purpose, a failed call of the system, or a fault.
    """
    if isinstance(error, OnewayError):
        return str(error)
    place = _place(error)
    if isinstance(error, MemoryError):
        return f"memory ran out at {place}. Pass fewer or smaller queries."
    if isinstance(error, OSError) and error.strerror:
        file = f": {error.filename}" if isinstance(error.filename, str | os.PathLike) else ""
        return f"the system says: {error.strerror}{file} (at {place})."
    return (
        f"unexpected {type(error).__name__} at {place}. Its text is left out, since it may quote a "
        "query. This is a fault of oneway: please report it with the whole command and what "
        "`oneway doctor --json` prints. ONEWAY_TRACEBACK=1 in the environment shows all of it."
    )


def _place(error: Exception) -> str:
    """Return where an error was raised, and the line of oneway that led there."""
    package = str(Path(__file__).parents[1])
    ours = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(package)
    ]
    raised, led = where_raised(error), f"{ours[-1].filename}, line {ours[-1].lineno}"
    return raised if raised == led else f"{raised}, from {led}"


def print_notes(notes: Sequence[str]) -> None:
    """Print what loading left out, cut or converted, on standard error."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def check_suffix(path: Path, flag: str, *suffixes: str) -> str:
    """Return the suffix of an output, in lower case.

    Args:
        path: The output.
        flag: Its option, such as ``--out``.
        suffixes: Those that it may have.

    Raises:
        InvalidOptionError: It has another.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise InvalidOptionError(f"{flag} must end in {' or '.join(suffixes)}, but is {path}.")
    return suffix


def print_json(value: Any) -> None:
    """Print a result for machines: JSON with finite numbers alone."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_lines(console: "Console", lines: Sequence[str]) -> None:
    """Print sentences as they are: without markup, colours or line breaks of ours."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(total_stages: int | None = None) -> Iterator[Callable[[str, float], None]]:
    """Show the stages of a long command as they pass, on standard error.

    Args:
        total_stages: Number of stages, if known.

    Yields:
        What to call with a stage's name and the share of it that is done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    seen: dict[str, TaskID] = {}

    def report(stage: str, share: float) -> None:
        if stage not in seen:
            for task in seen.values():
                bar.update(task, completed=1.0, visible=False)
            of = f" of {total_stages}" if total_stages else ""
            seen[stage] = bar.add_task(stage, total=1.0, count=f"{len(seen) + 1}{of}")
            if not bar.console.is_terminal:
                bar.console.print(stage)
        bar.update(seen[stage], completed=share)

    with bar:
        yield report


def command_line(context: typer.Context) -> str:
    """Return the command that is running, as it could be typed again: what was given, no more."""
    words = ["oneway", *context.command_path.split()[1:]]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        given = context.params[name]
        flag = parameter.opts[0] if given is not False else parameter.secondary_opts[0]
        for value in given if isinstance(given, list | tuple) else [given]:
            if parameter.param_type_name == "argument":
                words.append(str(value))
            elif isinstance(value, bool):
                words.append(flag)
            else:
                words += [flag, str(value)]
    # Who may ask an address is nobody else's business.
    return re.sub(r"(?<=://)[^/@\s]+@", "", shlex.join(words))


def print_table(table: "Listing", lines: Sequence[str]) -> None:
    """Print a table, if it has rows, and below it what it means, line by line."""
    from rich.console import Console

    console = Console()
    if table.rows:
        console.print(table, crop=False)
    for line in lines:
        console.print(f"• {line}", highlight=False, markup=False)


def page_of_records(
    records: "Sequence[ReleaseRecord]", path: Path, cache: Path, *, no_images: bool
) -> None:
    """Write the page of records of experiments.

    Args:
        records: Records of all seeds.
        path: File to write.
        cache: Folder of trained networks, which holds the images, too.
        no_images: Whether these are left out.
    """
    from oneway.benchmark import published_of
    from oneway.report.page.experiments import records_page
    from oneway.report.page.render import write_page

    gallery = galleries_in(cache, no_images=no_images)
    write_page(path, records_page(records, published_of(records), gallery))


def galleries_in(cache: Path, *, no_images: bool) -> "Callable[[ReleaseRecord], Gallery | None]":
    """Return what finds the images of a record that was run with a cache; it may find none."""
    from oneway.benchmark import stored_gallery
    from oneway.evaluation import Store
    from oneway.report.page.experiments import no_gallery

    store = Store(cache)
    return no_gallery if no_images else lambda record: stored_gallery(store, record.cell)


def choose_device(name: str) -> "torch.device":
    """Return the device of that name; ``auto`` takes a GPU if there is one.

    Raises:
        InvalidOptionError: There is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOptionError(
            f"device {name!r} cannot be used here. Use 'cpu', 'cuda' where there is a GPU, or "
            "'auto'."
        ) from error
    return device


def chosen_releases(spec: "ExperimentSpec", names: Sequence[str] | None) -> set[str] | None:
    """Return which releases of an experiment are wanted; None: all.

    Raises:
        UnknownNameError: It has no release of a name.
    """
    known = [row.name for row in spec.releases]
    for name in names or ():
        UnknownNameError.check(f"release of {spec.name}", name, known)
    return set(names) if names else None


def print_left(
    runs: "Sequence[tuple[ExperimentSpec, set[str] | None]]",
    out: Path,
    cache: Path,
    *,
    as_json: bool,
) -> None:
    """Print which releases of which seeds have no record of today's attackers.

    Args:
        runs: Experiments with their seeds, each with the releases that are wanted; None: all.
        out: Folder of records.
        cache: Folder for trained networks.
        as_json: Whether to print the names by file as JSON, and nothing else.
    """
    all_left = {}
    for spec, only in runs:
        cells = cells_of(spec, out, cache)
        wanted = len(spec.releases) if only is None else len(only)
        all_left[str(cells.path)] = left = cells.left(only)
        if as_json:
            continue
        typer.echo(f"{cells.path}: {len(left)} of {wanted} left{': ' if left else ''}", nl=False)
        typer.echo("; ".join(left))
    count = sum(map(len, all_left.values()))
    if as_json:
        print_json(all_left)
    else:
        advice = ". The same command without --left runs them." if count else "."
        typer.echo(f"{count} cell{'s' * (count != 1)} left{advice}")


def run_seeds(
    runs: "Sequence[tuple[ExperimentSpec, set[str] | None]]",
    data_root: Path | None,
    out: Path,
    cache: Path,
    device: "torch.device",
    *,
    executor: str = "local",
) -> "Iterator[list[ReleaseRecord]]":
    """Run what is missing of several seeds; give all records of each, in order, when it is done.

    Args:
        runs: Experiments with their seeds, each with the releases that are wanted; None: all.
        data_root: Folder with the files of the data sets.
        out: Folder for records.
        cache: Folder for trained networks.
        device: Device for training.
        executor: ``"local"`` or ``"ray"``.
    """
    if executor == "local":
        for spec, only in runs:
            yield run_seed(spec, data_root, out, cache, device, only)[1]
        return
    from oneway.benchmark import CellsJob, run_on_ray

    jobs = [CellsJob(cells_of(spec, out, cache), data_root, device, only) for spec, only in runs]
    found: dict[int, list[ReleaseRecord]] = {}
    given = 0
    for number, records in run_on_ray(jobs):
        found[number] = records
        typer.echo(f"{len(found)} of {len(jobs)} done: {jobs[number].cells.path}", err=True)
        while given in found:
            yield found[given]
            given += 1


def cells_of(spec: "ExperimentSpec", out: Path, cache: Path) -> "Cells":
    """Return the cells of one seed of an experiment, in the file that is theirs."""
    from oneway.benchmark import Cells
    from oneway.evaluation import Store

    name = "-".join(part for part in (spec.name, spec.preset, f"seed{spec.seed}") if part)
    return Cells(spec, out / f"{name}.jsonl", Store(cache))


def run_seed(
    spec: "ExperimentSpec",
    data_root: Path | None,
    out: Path,
    cache: Path,
    device: "torch.device",
    only: set[str] | None,
    *,
    drawn: bool = False,
) -> "tuple[Cells, list[ReleaseRecord]]":
    """Run what is missing of one seed of an experiment, with progress; return all its records.

    Args:
        spec: The experiment, with its seed.
        data_root: Folder with the files of the data sets.
        out: Folder for records.
        cache: Folder for trained networks.
        device: Device for training.
        only: Releases that are wanted; None: all.
        drawn: Whether their reconstructions must be there, too.
    """
    from oneway.benchmark import count_stages, load_data

    cells = cells_of(spec, out, cache)
    with progress(count_stages(spec)) as report:

        def load() -> "tuple[Dataset, Dataset | None]":
            loaded = load_data(spec.data, data_root, report)
            for dataset in filter(None, loaded):
                print_notes(dataset.notes)
            return loaded

        records = cells.run(
            load,
            device=device,
            only=only,
            drawn=drawn,
            report=report,
        )
    return cells, records


def parse_options(pairs: Sequence[str] | None, flag: str) -> dict[str, Any]:
    """Return ``{"step_size": 0.1}`` of ``["step_size=0.1"]``; values are read as TOML, or text.

    Raises:
        InvalidOptionError: One is not NAME=VALUE.
    """
    options: dict[str, Any] = {}
    for name, value in parse_pairs(pairs, flag).items():
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):  # also numbers and lists that Python cannot hold
            options[name] = value
    return options


def parse_pairs(pairs: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Return ``{"port": "8080"}`` of ``["port=8080"]``.

    Raises:
        InvalidOptionError: One is not NAME=VALUE.
    """
    texts = {}
    for pair in pairs or ():
        name, found, value = pair.partition("=")
        if not found or not name.isidentifier():
            raise InvalidOptionError(f"{flag} must be NAME=VALUE, but got {pair!r}.")
        texts[name] = value
    return texts
