"""`oneway codebook` and `oneway certify`: fit k-anonymous scores, and say what they let out."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from oneway.cli.common import (
    Device,
    Kind,
    Seed,
    choose_device,
    command,
    command_line,
    images_beside,
    progress,
    scores_to_logits,
)

if TYPE_CHECKING:
    from torch import Tensor

    from oneway.defenses.codebook import Certificate

Scores = Annotated[
    Path, typer.Argument(help=".npy scores, or .npz with `logits` or `confidences`.")
]
Images = Annotated[
    Path | None,
    typer.Option(help="The queries, .npy or .npz, for the certified error. [the scores' file]"),
]


@command
def codebook(
    context: typer.Context,
    scores: Scores,
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    images: Images = None,
    kind: Kind = None,
    min_members: Annotated[
        int, typer.Option(min=1, help="Calibration queries behind each vector, at least.")
    ] = 20,
    rate_weight: Annotated[
        float, typer.Option(help="L1 of probabilities that one bit is worth, without a budget.")
    ] = 0.01,
    image_weight: Annotated[
        float, typer.Option(help="L1 that mixing a mean squared error of 1 is worth.")
    ] = 0.0,
    max_l1: Annotated[
        float | None, typer.Option(help="Budget: mean L1 distance of probabilities.")
    ] = None,
    max_l1_p95: Annotated[
        float | None, typer.Option(help="Budget: 95 % quantile of that distance.")
    ] = None,
    max_logits: Annotated[
        float | None, typer.Option(help="Budget: mean difference of centered logits, in nats.")
    ] = None,
    keep_top5: Annotated[
        float | None, typer.Option(help="Budget: share of the five likeliest classes kept.")
    ] = None,
    max_bits: Annotated[
        float | None, typer.Option(help="Budget: bits beyond the label, measured.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the queries that certify and are not fitted to.")
    ] = 0.2,
    listed: Annotated[
        int, typer.Option(min=1, help="Classes that each label's table tells apart.")
    ] = 32,
    center: Annotated[
        str, typer.Option(help="What a cell releases: mean (calibrated) or median (least L1).")
    ] = "mean",
    inverter: Annotated[
        list[Path] | None,
        typer.Option(help="A surrogate to plant decoys against; give it several times."),
    ] = None,
    decoy_l1: Annotated[
        float, typer.Option(help="Most that a decoy moves a vector, L1 of probabilities.")
    ] = 0.02,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fit a codebook to the scores of unlabelled queries, and certify it on others of them.

    Every released vector is then one that at least --min-members calibration queries of the same
    label share. With a budget the table with fewest bits within it is chosen. The certificate goes
    into OUT, and, as a page to read, beside it.

    For example:

        oneway codebook work/test.npz --out work/guard.safetensors --max-l1 0.05

        oneway codebook scores.npy --kind confidences --images images.npy --out guard.safetensors
    """
    import torch

    from oneway.defenses import load_module
    from oneway.defenses.codebook import (
        Budget,
        Codebook,
        CodebookRelease,
        FitSettings,
        plant_decoys,
    )
    from oneway.errors import InvalidOptionError

    if out.suffix != ".safetensors":
        raise InvalidOptionError(f"--out must end in .safetensors, but is {out}.")
    told = {
        "l1_mean": max_l1,
        "l1_quantile": max_l1_p95,
        "logits": max_logits,
        "top5_kept": keep_top5,
        "bits": max_bits,
    }
    budget = Budget(**told) if any(value is not None for value in told.values()) else None
    settings = FitSettings(
        min_members,
        rate_weight,
        image_weight,
        listed=listed,
        center=cast("Any", center),  # refused there if it is neither
    )
    where = choose_device(device)
    surrogates = [load_module(path, "inverter").module.to(where) for path in inverter or ()]
    logits, queries = _read(scores, images, kind)
    logits, queries = logits.to(where), None if queries is None else queries.to(where)
    if surrogates and queries is None:
        raise InvalidOptionError("decoys need the queries besides their scores. Pass --images.")

    def move(book: Codebook, fitted: torch.Tensor, asked: torch.Tensor | None) -> Codebook:
        if not surrogates or asked is None:
            return book
        return plant_decoys(book, fitted, asked, surrogates, l1_budget=decoy_l1)

    with progress(1) as report:
        release = CodebookRelease.fit(
            logits,
            queries,
            generator=torch.Generator().manual_seed(seed),
            settings=settings,
            budget=budget,
            held_out=held_out,
            move=move,
            on_share=lambda share: report("fit the codebook", share),
        )
    release.save(out)
    cells = release.network.sizes
    typer.echo(f"wrote {out}: {cells.cells} vectors for {cells.num_classes} labels")
    assert release.certificate is not None  # noqa: S101  narrows the type; fit gives one
    _show(release.certificate)
    _write_page(out.with_suffix(".html"), release.certificate, out, command_line(context))
    for line in _over_budget(release.certificate, told):
        typer.echo(f"warning: {line}", err=True)


def _over_budget(certificate: "Certificate", budget: Mapping[str, float | None]) -> Iterator[str]:
    """Say where the queries that certify break a budget that those which fitted it keep."""
    moved, logits = certificate.distortion["l1_probabilities"], certificate.distortion["logits"]
    found = {
        "l1_mean": moved["mean"],
        "l1_quantile": moved["p95"],
        "logits": logits["mean"],
        "bits": certificate.bits_measured,
    }
    for name, value in found.items():
        limit = budget[name]
        if limit is not None and value > limit:
            yield (
                f"{name} is {value:.4g} on the queries that certify, above the {limit:g} that is "
                "kept on those it was fitted to. Pass more queries, or ask for less."
            )


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
    level: Annotated[float, typer.Option(help="Of intervals and lower bounds.")] = 0.95,
    require_error: Annotated[
        float | None,
        typer.Option(help="Exit 1 unless the certified error's low end is at least this."),
    ] = None,
    require_lower_bound: Annotated[
        float | None,
        typer.Option(
            help="Exit 1 unless the error's lower bound, for any distribution, is at least this."
        ),
    ] = None,
    require_bits: Annotated[
        float | None, typer.Option(help="Exit 1 if a release can tell more bits than this.")
    ] = None,
    require_members: Annotated[
        int | None, typer.Option(help="Exit 1 if a vector stands for fewer queries than this.")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="File to write the certificate to, JSON.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="File to write the page to read to, .html. [GUARD-SCORES.html]"),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Say what a codebook lets out, on queries that it was not fitted to.

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
    from oneway.files import atomic_file

    release = CodebookRelease.load(guard)
    logits, queries = _read(scores, images, kind)
    for flag, asked in (
        ("--require-error", require_error),
        ("--require-lower-bound", require_lower_bound),
    ):
        if asked is not None and queries is None:
            raise InvalidOptionError(f"{flag} needs the queries themselves. Pass --images.")
    found = certify_table(
        release.network,
        logits,
        queries,
        independent=True,
        generator=torch.Generator().manual_seed(seed),
        level=level,
    )
    if json_out is not None:
        with atomic_file(json_out) as path:
            path.write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
    _show(found)
    place = page or guard.with_name(f"{guard.stem}-{scores.stem}.html")
    _write_page(place, found, guard, command_line(context))
    error, missed = found.error, list[str]()
    for flag, wanted, got in (
        ("--require-error", require_error, None if error is None else error.low),
        (
            "--require-lower-bound",
            require_lower_bound,
            None if error is None else error.lower_bound,
        ),
        ("--require-members", require_members, found.members_least),
    ):
        if wanted is not None and (got is None or not got >= wanted):
            missed.append(f"missed {flag}: wanted at least {wanted:g}, but got {got:g}")
    if require_bits is not None and not (found.bits_most or 0.0) <= require_bits:
        got = found.bits_most
        missed.append(f"missed --require-bits: wanted at most {require_bits:g}, but got {got:g}")
    for line in missed:
        typer.echo(line, err=True)
    if write and missed:
        typer.echo(f"not written: {guard} keeps the certificate that it had", err=True)
    elif write:
        release.certificate = found
        release.save(guard)
    raise typer.Exit(1 if missed else 0)


@command
def choose(
    scores: Scores,
    max_l1: Annotated[
        float, typer.Option(min=0, help="Mean L1 distance of probabilities that users may lose.")
    ],
    images: Images = None,
    kind: Kind = None,
    min_members: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Least members of codebooks; give it several times. [5 20]"),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Find the release that hides most within a budget, among all that map many scores to one.

    Codebooks, the largest entries rounded, everything rounded: each is fitted on half of the
    queries, and judged on the other half by the least error of any attacker. Shown are those that
    no other beats in both, and how to get the chosen one.

    For example:

        oneway choose work/test.npz --max-l1 0.02
    """
    import torch
    from rich.console import Console

    from oneway.defenses import best_members, choose_member, measure_family
    from oneway.defenses.candidate_releases import MEMBERS
    from oneway.errors import InvalidOptionError
    from oneway.report import family_table

    logits, queries = _read(scores, images, kind)
    if queries is None:
        raise InvalidOptionError("choosing needs the queries besides their scores. Pass --images.")
    with progress(1) as report:
        family = measure_family(
            logits,
            queries,
            generator=torch.Generator().manual_seed(seed),
            members=tuple(min_members or MEMBERS),
            on_share=lambda share: report("fit and judge the family", share),
        )
    console = Console()
    console.print(family_table(best_members(family)))
    chosen = choose_member(family, max_l1)
    judged = f"and the best of {len(family)} was picked"
    if chosen.defense == "codebook":
        way = ["oneway", "codebook", str(scores), "--out", "guard.safetensors"]
        for name, value in chosen.options.items():
            way += [f"--{name.replace('_', '-')}", str(value)]
        if images is not None:
            way += ["--images", str(images)]
        if seed:
            way += ["--seed", str(seed)]
        how = (
            "judged on the half that it was not fitted to; the refitted codebook's own certificate "
            f"counts, {judged}"
        )
    else:
        # It needs neither the queries nor a seed.
        way = ["oneway", "defend", str(scores), "--out", "released.npy"]
        way += ["--defense", chosen.defense]
        for name, value in chosen.options.items():
            way += ["--option", f"{name}={value}"]
        how = f"judged on half of the queries, {judged}"
    if kind is not None:
        way += ["--kind", kind]
    typer.echo(
        f"Within {max_l1:g}: certified error {chosen.certified:.4f} at L1 {chosen.l1_mean:.4f}, "
        f"{how}. Use {shlex.join(way)}"
    )


@command
def export(
    guard: Annotated[Path, typer.Argument(help="A codebook, from `oneway codebook`.")],
    out: Annotated[Path, typer.Option(help="File to write, .onnx.")],
    model: Annotated[
        Path | None, typer.Option(help="An .onnx model to put the codebook behind.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Which of its outputs to guard: float32 logits.")
    ] = None,
) -> None:
    """Write a codebook as ONNX operators, alone or behind a model, to serve without Python.

    Behind a model nothing but the guarded probabilities comes out: all its other outputs are
    dropped. The graph cannot refuse scores that are not finite, as oneway does.

    For example:

        oneway export work/guard.safetensors --model model.onnx --output logits --out guarded.onnx
    """
    from oneway.defenses import codebook_to_onnx, guard_onnx_model
    from oneway.defenses.codebook import CodebookRelease
    from oneway.errors import CorruptDataError, InvalidOptionError, MissingDataError
    from oneway.extras import load_extra
    from oneway.files import atomic_file

    if out.suffix != ".onnx":
        raise InvalidOptionError(f"--out must end in .onnx, but is {out}.")
    needed = {"extra": "export", "purpose": "writing ONNX"}
    onnx = load_extra("onnx", **needed)
    broken = load_extra("google.protobuf.message", **needed, package="protobuf").DecodeError
    if (model is None) != (output is None):
        raise InvalidOptionError("--model and --output go together: which output is guarded?")
    release = CodebookRelease.load(guard)
    if model is None:
        graph = codebook_to_onnx(release)
    else:
        if not model.is_file():
            raise MissingDataError(f"there is no model file {model}.")
        try:
            loaded = onnx.load(model)
        except broken as error:
            raise CorruptDataError(
                f"{model} is not an ONNX model ({type(error).__name__}). Export it again."
            ) from error
        graph = guard_onnx_model(loaded, release, str(output))
    with atomic_file(out) as path:
        onnx.save(graph, path)
    typer.echo(f"wrote {out}")


def _read(scores: Path, images: Path | None, kind: str | None) -> "tuple[Tensor, Tensor | None]":
    """Return logits, and the queries if they are at hand."""
    from oneway.data import read_npz

    arrays = read_npz(scores)
    return scores_to_logits(arrays, scores, kind), images_beside(arrays, scores, images)


def _write_page(path: Path, certificate: "Certificate", guard: Path, made_by: str) -> None:
    from oneway.report.page import certificate_page, write_page

    write_page(path, certificate_page(certificate, guard.name, made_by))
    typer.echo(f"wrote {path}")


def _show(certificate: "Certificate") -> None:
    from rich.console import Console

    from oneway.defenses.codebook import ASSUMPTIONS
    from oneway.report import certificate_lines, certificate_table

    console = Console()
    for line in certificate_lines(certificate):
        console.print(line, highlight=False, markup=False)
    if certificate.error is not None:
        console.print(certificate_table(certificate))
    console.print("It rests on this:", highlight=False)
    for line in ASSUMPTIONS:
        console.print(f"• {line}", highlight=False, markup=False)
