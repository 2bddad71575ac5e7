"""`oneway certify`: certify a codebook on queries that it was not fitted to."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.codebook import show_certificate
from oneway.cli.common import AsJson, check_suffix, command, command_line
from oneway.cli.paths import Writes
from oneway.cli.sources import Source, gathers, traffic_of

if TYPE_CHECKING:
    from oneway.defenses.codebook import Certificate

RequireError = Annotated[
    float | None,
    typer.Option(help="Exit 1 unless the low end of the certified error is at least this."),
]
RequireLowerBound = Annotated[
    float | None,
    typer.Option(help="Exit 1 unless the error's distribution-free lower bound is at least this."),
]
RequireBits = Annotated[
    float | None, typer.Option(help="Exit 1 if a release can reveal more bits than this.")
]
RequireCells = Annotated[
    int | None, typer.Option(help="Exit 1 if the table has more cells than this.")
]
RequireMembers = Annotated[
    int | None, typer.Option(help="Exit 1 if a vector stands for fewer queries than this.")
]
RequireGroupShare = Annotated[
    float | None,
    typer.Option(help="Exit 1 if one group has a larger share of the queries of a cell."),
]


Others = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        help="Another version, whose answers to the same queries an attacker has; repeatable.",
    ),
]
Write = Annotated[
    bool, typer.Option("--write", help="Put the new certificate into the codebook's file.")
]
Page = Annotated[
    Path | None,
    typer.Option(help="File to write the page to read to, .html. [GUARD-SOURCE.html]"),
    Writes(),
]


def requirements(
    require_error: RequireError = None,
    require_lower_bound: RequireLowerBound = None,
    require_bits: RequireBits = None,
    require_members: RequireMembers = None,
    require_cells: RequireCells = None,
    require_group_share: RequireGroupShare = None,
) -> dict[str, float]:
    """Return the requirements that are given, by flag."""
    required: dict[str, float | None] = {
        "--require-error": require_error,
        "--require-lower-bound": require_lower_bound,
        "--require-members": require_members,
        "--require-bits": require_bits,
        "--require-cells": require_cells,
        "--require-group-share": require_group_share,
    }
    return {flag: wanted for flag, wanted in required.items() if wanted is not None}


@command
@gathers(traffic=traffic_of, required=requirements)
def certify(
    context: typer.Context,
    guard: Annotated[Path, typer.Argument(help="A codebook, from `oneway codebook`.")],
    source: Source,
    *,
    traffic: dict[str, Any],
    beside: Others = None,
    write: Write = False,
    level: Annotated[float, typer.Option(help="Level of intervals and lower bounds.")] = 0.95,
    required: dict[str, float],
    as_json: AsJson = False,
    page: Page = None,
) -> None:
    """Certify what a codebook lets out, on queries that it was not fitted to.

    On rows of today's traffic, with --write, where `oneway serve` reports drift: servers then
    compare their answers with these rows.

    A page to read goes beside GUARD. Where a requirement is missed, standard error says which, and
    --write writes nothing. A file .fitted beside GUARD, from `oneway codebook`, says whether these
    queries were fitted; on such queries no requirement of an error is met. --with certifies what
    the answers of several versions reveal together.

    For example:

        oneway certify work/guard.safetensors work/other.npz --require-error 0.03

        oneway certify new.safetensors work/other.npz --with old.safetensors
    """
    from oneway.adapters import load_guard
    from oneway.errors import InvalidOptionError
    from oneway.interface import certify as certify_guard

    if page is not None:
        check_suffix(page, "--page", ".html")
    if beside and (write or "--require-members" in required):
        raise InvalidOptionError(
            "a certificate of several versions is not written into one of them, and says nothing "
            "of members. Leave out --write and --require-members, or --with."
        )
    release = load_guard(guard)
    if "--require-group-share" in required and traffic["groups"] is None:
        raise InvalidOptionError("--require-group-share needs the groups. Pass --groups.")
    certificate = certify_guard(guard, source, others=beside or (), level=level, **traffic)
    missed = list(_missed(certificate, required))
    if write and not missed:
        release.certificate = certificate
        release.save(guard)
    names = "-".join([guard.stem, *(path.stem for path in beside or ()), _stem(source)])
    place = page or guard.with_name(f"{names}.html")
    show_certificate(certificate, guard, place, command_line(context), as_json=as_json)
    for line in missed:
        typer.echo(line, err=True)
    if write and missed:
        typer.echo(f"not written: {guard} keeps the certificate that it had", err=True)
    raise typer.Exit(1 if missed else 0)


def _stem(source: str) -> str:
    """Return what a page is called after: the name of a file, or of a model."""
    return Path(re.split(r"[/:]", source)[-1]).stem


AT_MOST = ("--require-bits", "--require-cells", "--require-group-share")
OF_QUERIES = ("--require-error", "--require-lower-bound")


def _missed(certificate: "Certificate", required: dict[str, float]) -> Iterator[str]:
    """Yield which requirements a certificate misses, by flag.

    Raises:
        InvalidOptionError: A requirement is about the queries, and there are none.
    """
    from oneway.errors import InvalidOptionError

    error, identified = certificate.error, certificate.identification
    share = certificate.traffic.group_share
    got: dict[str, float] = {
        "--require-members": certificate.members_least,
        "--require-bits": certificate.bits_most or 0.0,
        "--require-group-share": 1.0 if share is None else share,
    }
    if identified is not None:
        got["--require-cells"] = identified.cells
    if error is not None:
        got |= {"--require-error": error.low, "--require-lower-bound": error.lower_bound}
    for flag, wanted in required.items():
        if flag in OF_QUERIES and error is None:
            raise InvalidOptionError(f"{flag} needs the queries themselves. Pass --queries.")
        if flag in OF_QUERIES and certificate.held_out.answer == "no":
            yield f"missed {flag}: expected queries that were not fitted, but these were"
        elif not (got[flag] <= wanted if flag in AT_MOST else got[flag] >= wanted):
            side = "at most" if flag in AT_MOST else "at least"
            yield f"missed {flag}: expected {side} {wanted:g}, but got {got[flag]:g}"
