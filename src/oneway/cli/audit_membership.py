"""The part of `oneway audit` that asks which rows a model was trained on."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import command_line, print_lines, progress
from oneway.errors import InvalidOptionError

if TYPE_CHECKING:
    from oneway.interface import AuditSource, MembershipResult

Members = Annotated[
    Path | None,
    typer.Option(help="For membership: rows that the model was trained on, with classes."),
]
NonMembers = Annotated[
    Path | None,
    typer.Option(help="For membership: rows that the model was not trained on, with classes."),
]
References = Annotated[
    int, typer.Option(min=0, help="For membership: reference models of the attacker, even.")
]


def audit_members(
    context: typer.Context,
    source: "AuditSource",
    data: tuple[Path | None, Path | None],
    references: int,
    controls: bool,
    seed: int,
    cache: Path,
    out: Path,
    *,
    as_json: bool,
) -> "MembershipResult":
    """Audit a model for membership inference, write ``membership.json``, and print.

    Args:
        context: The command's.
        source: Model, attacker's data and guard.
        data: Members and non-members.
        references: Number of reference models.
        controls: Whether controls are run.
        seed: Seed of the audit.
        cache: Folder of reference models.
        out: Folder of the record.
        as_json: Whether nothing is printed.

    Raises:
        OnewayError: Model or data cannot be used.
    """
    from rich.console import Console

    from oneway.interface import audit_membership
    from oneway.report.membership import membership_table

    if source.guarded is not None:
        raise InvalidOptionError(
            "a membership audit puts the guard before reference models, too, and cannot do so with "
            "--guarded. Pass the guard itself: --guard FILE, or --defense NAME."
        )
    model, options = source.model
    given: dict[str, Any] = {**options, "class_names": source.class_names}
    with progress() as report:
        result = audit_membership(
            model,
            members=data[0],
            non_members=data[1],
            attacker_data=source.auxiliary,
            guard=source.guard,
            release=source.release,
            references=references,
            controls=controls,
            reading=source.reading,
            seed=seed,
            cache=cache,
            device=source.device,
            report=report,
            **given,
        )
    result = replace(result, record=replace(result.record, command=command_line(context)))
    path = result.write(out)
    if not as_json:
        console = Console()
        print_lines(console, result.verdict.splitlines())
        console.print(membership_table(result.record), crop=False)
        print_lines(console, [f"record: {path}"])
    return result
