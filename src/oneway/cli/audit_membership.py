"""The part of `oneway audit` that asks which rows a model was trained on."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import command_line, print_json, print_lines, progress
from oneway.errors import InvalidOptionError, UnknownNameError

if TYPE_CHECKING:
    from oneway.interface import AuditSource

THREATS = ("inversion", "membership")

Threats = Annotated[
    str, typer.Option(help="Threats to audit, separated by commas: inversion, membership.")
]
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


def parse_threats(
    threats: str, queries: Path | None, members: Path | None, non_members: Path | None
) -> tuple[str, ...]:
    """Return the threats, after a check that each has its data.

    Raises:
        UnknownNameError: There is no such threat.
        InvalidOptionError: Data of a threat is missing, or given without its threat.
    """
    chosen = tuple(name.strip() for name in threats.split(","))
    for name in chosen:
        if name not in THREATS:
            raise UnknownNameError("threat", name, THREATS)
    needs = (
        ("inversion", "--queries", queries),
        ("membership", "--members", members),
        ("membership", "--non-members", non_members),
    )
    for threat, option, given in needs:
        if (given is None) is (threat in chosen):
            raise InvalidOptionError(
                f"{option} must be given for the threat {threat!r} and for no other, but the "
                f"threats are {', '.join(chosen)}. "
                + (f"Pass {option} DATA." if given is None else f"Add --threats {threat}.")
            )
    return chosen


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
    least: float | None,
    as_json: bool,
) -> bool:
    """Audit a model for membership inference, print, and write ``membership.json``.

    Args:
        context: The command's.
        source: Model, attacker's data and guard.
        data: Members and non-members.
        references: Number of reference models.
        controls: Whether controls are run.
        seed: Seed of the audit.
        cache: Folder of reference models.
        out: Folder of the record.
        least: Least G_mem, or None.
        as_json: Whether the record is printed, and nothing else.

    Returns:
        Whether the release missed what was asked for, or a control failed.

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
    if as_json:
        print_json(result.record.to_json())
    else:
        console = Console()
        print_lines(console, result.verdict.splitlines())
        console.print(membership_table(result.record), crop=False)
        print_lines(console, [f"record: {path}"])
    return bool(result.missed(least))
