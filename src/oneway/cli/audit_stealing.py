"""The part of `oneway audit` that copies the model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneway.cli.common import command_line, print_lines, progress

if TYPE_CHECKING:
    from oneway.interface import AuditSource, StealingResult

Public = Annotated[
    Path | None,
    typer.Option(help="For stealing: inputs of another kind, for a thief without others."),
]
Budgets = Annotated[
    list[int] | None,
    typer.Option(
        "--budget", min=1, help="For stealing: queries of a thief; repeatable. [100 400 2000]"
    ),
]


def audit_thieves(
    context: typer.Context,
    source: "AuditSource",
    public: Path | None,
    budgets: list[int] | None,
    seeds: int,
    seed: int,
    cache: Path,
    out: Path,
    *,
    as_json: bool,
) -> "StealingResult":
    """Audit a model against thieves, write ``stealing.json``, and print unless ``as_json``.

    Args:
        context: The command's.
        source: Model, data and guard.
        public: Inputs of another kind, or None.
        budgets: Numbers of queries; None: the usual ones.
        seeds: Number of seeds.
        seed: First of the seeds.
        cache: Folder of trained networks.
        out: Folder of the record.
        as_json: Whether nothing is printed.

    Raises:
        OnewayError: Model or data cannot be used.
    """
    from rich.console import Console

    from oneway.auditing.stealing import StealingSettings
    from oneway.interface import run_stealing
    from oneway.report.stealing import stealing_table

    settings = StealingSettings(tuple(budgets or StealingSettings.budgets), seeds)
    with progress() as report:
        result = run_stealing(source, settings, public, seed=seed, cache=cache, report=report)
    result = replace(result, record=replace(result.record, command=command_line(context)))
    path = result.write(out)
    if not as_json:
        console = Console()
        print_lines(console, result.verdict.splitlines())
        console.print(stealing_table(result.record), crop=False)
        print_lines(console, [f"record: {path}"])
    return result
