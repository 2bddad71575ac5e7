"""`oneway certify`: certify a codebook on queries that it was not fitted to."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneway.cli.codebook import Images, Scores, read_scores, show_certificate
from oneway.cli.common import Kind, Seed, check_suffix, command, command_line
from oneway.cli.paths import Writes

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
RequireMembers = Annotated[
    int | None, typer.Option(help="Exit 1 if a vector stands for fewer queries than this.")
]


@command
def certify(
    context: typer.Context,
    guard: Annotated[Path, typer.Argument(help="A codebook, from `oneway codebook`.")],
    scores: Scores,
    images: Images = None,
    kind: Kind = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the new certificate into the codebook's file.")
    ] = False,
    level: Annotated[float, typer.Option(help="Level of intervals and lower bounds.")] = 0.95,
    require_error: RequireError = None,
    require_lower_bound: RequireLowerBound = None,
    require_bits: RequireBits = None,
    require_members: RequireMembers = None,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", help="File to write the certificate to, JSON."),
        Writes(),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="File to write the page to read to, .html. [GUARD-SCORES.html]"),
        Writes(),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Certify what a codebook lets out, on queries that it was not fitted to.

    A page to read goes beside GUARD. Where a requirement is missed, standard error says which, and
    --write writes nothing.

    For example:

        oneway certify work/guard.safetensors work/other.npz --require-error 0.03
    """
    import json

    import torch

    from oneway.defenses.codebook import CodebookRelease
    from oneway.defenses.codebook import certify as certify_table
    from oneway.errors import InvalidOptionError
    from oneway.evaluation import compare_with_clean_scores
    from oneway.files import atomic_file

    if page is not None:
        check_suffix(page, "--page", ".html")
    release = CodebookRelease.load(guard)
    logits, queries = read_scores(scores, images, kind)
    required = {"--require-error": require_error, "--require-lower-bound": require_lower_bound}
    for flag, wanted in required.items():
        if wanted is not None and queries is None:
            raise InvalidOptionError(f"{flag} needs the queries themselves. Pass --images.")
    required |= {"--require-members": require_members, "--require-bits": require_bits}
    certificate = certify_table(
        release.state,
        logits,
        queries,
        independent=True,
        generator=torch.Generator().manual_seed(seed),
        level=level,
    )
    if queries is not None:
        certificate = compare_with_clean_scores(certificate, release.state, (logits, queries))
    if json_out is not None:
        with atomic_file(json_out) as path:
            path.write_text(json.dumps(certificate.as_json(), indent=2) + "\n", encoding="utf-8")
    place = page or guard.with_name(f"{guard.stem}-{scores.stem}.html")
    show_certificate(certificate, guard, place, command_line(context))
    missed = list(_missed(certificate, required))
    for line in missed:
        typer.echo(line, err=True)
    if write and missed:
        typer.echo(f"not written: {guard} keeps the certificate that it had", err=True)
    elif write:
        release.certificate = certificate
        release.save(guard)
    raise typer.Exit(1 if missed else 0)


def _missed(certificate: "Certificate", required: "dict[str, float | None]") -> Iterator[str]:
    """Yield which requirements a certificate misses, by flag."""
    error, most = certificate.error, "--require-bits"
    got = {"--require-members": certificate.members_least, most: certificate.bits_most or 0.0}
    if error is not None:
        got |= {"--require-error": error.low, "--require-lower-bound": error.lower_bound}
    for flag, wanted in required.items():
        if wanted is None:
            continue
        if not (got[flag] <= wanted if flag == most else got[flag] >= wanted):
            side = "at most" if flag == most else "at least"
            yield f"missed {flag}: expected {side} {wanted:g}, but got {got[flag]:g}"
