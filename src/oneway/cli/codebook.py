"""`oneway codebook` and `oneway choose`: fit k-anonymous scores, and choose among releases."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oneway.cli.common import (
    Device,
    Kind,
    Seed,
    check_suffix,
    choose_device,
    command,
    command_line,
    images_beside,
    progress,
    scores_to_logits,
)
from oneway.cli.paths import Writes
from oneway.cli.query_columns import Groups, Sensitive, read_groups, read_sensitive
from oneway.cli.variants import Repeats, Variants, VariantsModel, read_variants

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from oneway.defenses import ReleaseCandidate
    from oneway.defenses.codebook import Budget, Certificate
    from oneway.defenses.codebook.release import Move

Scores = Annotated[
    Path, typer.Argument(help=".npy scores, or .npz with `logits` or `confidences`.")
]
Images = Annotated[
    Path | None,
    typer.Option(help="The queries, .npy or .npz, for the certified error. [the scores' file]"),
]
Out = Annotated[Path, typer.Option(help="File to write, .safetensors."), Writes()]
MinMembers = Annotated[
    int, typer.Option(min=1, help="Distinct calibration queries behind each vector, at least.")
]
RateWeight = Annotated[
    float, typer.Option(help="L1 of probabilities that one bit is worth, without a budget.")
]
ImageWeight = Annotated[
    float, typer.Option(help="L1 that mixing a mean squared error of 1 is worth.")
]
VariantWeight = Annotated[
    float,
    typer.Option(
        help="L1 that the chance is worth that two answers to changed copies differ; needs "
        "--variants or --model."
    ),
]
MaxL1 = Annotated[float | None, typer.Option(help="Budget: mean L1 distance of probabilities.")]
MaxL1P95 = Annotated[float | None, typer.Option(help="Budget: 95 % quantile of that distance.")]
MaxLogits = Annotated[
    float | None, typer.Option(help="Budget: mean difference of centered logits, in nats.")
]
KeepTop5 = Annotated[
    float | None, typer.Option(help="Budget: share of the five likeliest classes kept.")
]
MaxBits = Annotated[float | None, typer.Option(help="Budget: bits beyond the label, measured.")]
MaxCells = Annotated[
    int | None,
    typer.Option(min=1, help="Cells of the table, at most: fewer identify fewer candidates."),
]
HeldOut = Annotated[float, typer.Option(help="Share of the queries that certify and do not fit.")]
MaxGroupShare = Annotated[
    float, typer.Option(help="Largest share of one group in a cell; cells above it are merged.")
]
Training = Annotated[
    Path | None,
    typer.Option(help="What the model was trained on, .npy or .npz: refused among the queries."),
]
ExplicitClasses = Annotated[
    int, typer.Option(min=1, help="Classes whose probabilities each label's table stores.")
]
Center = Annotated[
    str, typer.Option(help="What a cell releases: mean (calibrated) or median (least L1).")
]
SharedLevels = Annotated[
    int,
    typer.Option(min=1, help="Levels of the top score that labels with few queries share."),
]
MaxL1Worst = Annotated[
    float | None,
    typer.Option(help="Cap on each answer's L1 distance of probabilities: its share is certified."),
]
DropCopies = Annotated[
    bool,
    typer.Option(
        "--drop-copies", help="Count copies of a query once: they are an artefact of the file."
    ),
]
Refine = Annotated[
    Path | None,
    typer.Option(
        help="Codebook in use: cut its cells further and join none, so that answers of both reveal "
        "what the new one reveals."
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="Key of the digests of fitted queries, a file. [a salt beside them]"),
]
Inverters = Annotated[
    list[Path] | None,
    typer.Option(help="Surrogate inverter to plant decoys against; repeatable."),
]
DecoyL1 = Annotated[
    float, typer.Option(help="Largest move of a vector by a decoy, L1 of probabilities.")
]


@command
def codebook(
    context: typer.Context,
    scores: Scores,
    out: Out,
    images: Images = None,
    kind: Kind = None,
    min_members: MinMembers = 20,
    rate_weight: RateWeight = 0.01,
    image_weight: ImageWeight = 0.0,
    max_l1: MaxL1 = None,
    max_l1_p95: MaxL1P95 = None,
    max_logits: MaxLogits = None,
    keep_top5: KeepTop5 = None,
    max_bits: MaxBits = None,
    max_l1_worst: MaxL1Worst = None,
    max_cells: MaxCells = None,
    held_out: HeldOut = 0.2,
    explicit_classes: ExplicitClasses = 32,
    center: Center = "mean",
    shared_levels: SharedLevels = 1,
    sensitive: Sensitive = None,
    groups: Groups = None,
    max_group_share: MaxGroupShare = 1.0,
    drop_copies: DropCopies = False,
    variants: Variants = None,
    model: VariantsModel = None,
    repeats: Repeats = 16,
    variant_weight: VariantWeight = 0.0,
    training: Training = None,
    refine: Refine = None,
    key_file: KeyFile = None,
    inverter: Inverters = None,
    decoy_l1: DecoyL1 = 0.02,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Fit a codebook to the scores of unlabelled queries, and certify it on others of them.

    At least --min-members distinct calibration queries of the same label share each released
    vector; with --groups, of as many different groups. With a budget the table with fewest bits
    within it is chosen. The certificate goes into OUT, and, as a page to read, beside it. Digests
    of the fitted queries go into a file .fitted beside it: keep that file to yourself.
    Before a codebook replaces another one that serves, --refine OLD keeps what both reveal
    together at what the new one reveals.

    For example:

        oneway codebook work/test.npz --out work/guard.safetensors --max-l1 0.05

        oneway codebook scores.npy --kind confidences --images images.npy --out guard.safetensors
    """
    import torch

    from oneway.defenses import SecretKey
    from oneway.defenses.codebook import Budget, CodebookRelease, FitSettings, FittedQueries
    from oneway.errors import InvalidOptionError
    from oneway.evaluation import compare_with_clean_scores

    check_suffix(out, "--out", ".safetensors")
    limits = {"l1_mean": max_l1, "l1_quantile": max_l1_p95, "logits": max_logits}
    limits |= {"top5_kept": keep_top5, "bits": max_bits}
    budget = Budget(**limits) if any(limit is not None for limit in limits.values()) else None
    fitted: dict[str, Any] = {"min_members": min_members, "rate_weight": rate_weight}
    fitted |= {"image_weight": image_weight, "explicit_classes": explicit_classes, "center": center}
    fitted |= {"max_cells": max_cells, "max_l1_worst": max_l1_worst}
    fitted |= {"max_group_share": max_group_share, "variant_weight": variant_weight}
    fitted |= {"shared_levels": shared_levels}
    key = None if key_file is None else SecretKey.from_file(key_file)
    where = choose_device(device)
    move = _decoys(inverter or [], decoy_l1, where)
    logits, queries = read_scores(scores, images, kind)
    if move is not None and queries is None:
        raise InvalidOptionError("decoys need the queries, too. Pass --images.")
    values = read_sensitive(sensitive, len(logits))
    people = read_groups(groups, len(logits))
    changed = read_variants(variants, model, repeats, (logits, queries), kind)
    with progress(1) as report:
        release = CodebookRelease.fit(
            logits.to(where),
            None if queries is None else queries.to(where),
            generator=torch.Generator().manual_seed(seed),
            settings=FitSettings(**fitted),
            budget=budget,
            held_out=held_out,
            sensitive=values,
            groups=people,
            drop_copies=drop_copies,
            variants=None if changed is None else changed.to(where),
            training=None if training is None else images_beside({}, scores, training),
            older=None if refine is None else CodebookRelease.load(refine).state,
            move=move,
            complete=compare_with_clean_scores,
            on_share=lambda share: report("fit the codebook", share),
        )
    assert release.certificate is not None  # noqa: S101  narrows the type; fit gives one
    release.certificate = dated(release.certificate)
    release.save(out)
    rows, digests = release.fitting_rows, out.with_suffix(".fitted")
    if queries is not None and rows is not None:
        own = None if people is None else people[rows]
        FittedQueries.of(release.state.digest(), queries[rows], own, key=key).save(digests)
    else:  # those of an earlier fit would speak of another table
        digests.unlink(missing_ok=True)
    sizes = release.state.sizes
    typer.echo(f"wrote {out}: {sizes.cells} vectors for {sizes.num_classes} labels")
    show_certificate(release.certificate, out, out.with_suffix(".html"), command_line(context))
    for line in _over_budget(release.certificate, budget):
        typer.echo(f"warning: {line}", err=True)


def _decoys(inverters: list[Path], l1_budget: float, device: "torch.device") -> "Move | None":
    """Return what plants decoys against inverters from files; None if there are none."""
    from oneway.defenses import load_module
    from oneway.defenses.codebook import Codebook, plant_decoys

    surrogates = [load_module(path, "inverter").module.to(device) for path in inverters]
    if not surrogates:
        return None

    def move(book: Codebook, scores: "Tensor", queries: "Tensor | None") -> Codebook:
        assert queries is not None  # noqa: S101  narrows the type; the command refuses None
        return plant_decoys(book, scores, queries, surrogates, l1_budget=l1_budget)

    return move


def _over_budget(certificate: "Certificate", budget: "Budget | None") -> Iterator[str]:
    """Yield where the queries that certify break a budget that those which fitted it keep."""
    if budget is None:
        return
    l1, logits = certificate.distortion["l1_probabilities"], certificate.distortion["logits"]
    measured = {
        "l1_mean": l1["mean"],
        "l1_quantile": l1["p95"],
        "logits": logits["mean"],
        "bits": certificate.bits_measured,
    }
    for name in budget.broken(measured):
        yield (
            f"{name} is {measured[name]:.4g} on the queries that certify, above the limit of "
            f"{budget.limits[name]:g}, which holds on the queries that fit. Pass more queries, or "
            "lower the limit."
        )


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
        typer.Option(min=1, help="Least members of a candidate codebook; repeatable. [5 20]"),
    ] = None,
    max_cells: MaxCells = None,
    groups: Groups = None,
    drop_copies: DropCopies = False,
    seed: Seed = 0,
) -> None:
    """Find the release that hides most within a budget, among rounding, top-k and codebooks.

    Two fifths of the queries fit each candidate, and two fifths judge it by the least error of any
    attacker. The last fifth certifies the best one. Prints the Pareto-optimal candidates, the
    certificate of the best one, and the command that makes it. With --max-cells only codebooks of
    so few cells are candidates: more queries would fill more cells, and identify more.

    For example:

        oneway choose work/test.npz --max-l1 0.02
    """
    import torch
    from rich.console import Console

    from oneway.defenses import (
        certify_candidate,
        choose_candidate,
        measure_candidates,
        pareto_optimal,
    )
    from oneway.defenses.candidate_releases import MIN_MEMBERS
    from oneway.errors import InvalidOptionError
    from oneway.report import candidates_table

    logits, queries = read_scores(scores, images, kind)
    if queries is None:
        raise InvalidOptionError("choosing needs the queries, too. Pass --images.")
    traffic: dict[str, Any] = {"groups": read_groups(groups, len(logits))}
    traffic |= {"drop_copies": drop_copies}
    with progress(1) as report:
        candidates = measure_candidates(
            logits,
            queries,
            generator=torch.Generator().manual_seed(seed),
            min_members=tuple(min_members or MIN_MEMBERS),
            max_cells=max_cells,
            **traffic,
            on_share=lambda share: report("fit and judge the candidates", share),
        )
    Console().print(candidates_table(pareto_optimal(candidates)), crop=False)
    chosen = choose_candidate(candidates, max_l1)
    # The same seed as above: the rows that certify neither fitted nor judged a candidate.
    generator = torch.Generator().manual_seed(seed)
    certificate = certify_candidate(chosen, logits, queries, generator=generator, **traffic)
    given = {"--images": images, "--groups": groups, "--kind": kind, "--seed": seed or None}
    words = _way_to(chosen, scores, given, drop_copies=drop_copies)
    typer.echo(
        f"The best of {len(candidates)} candidates within {max_l1:g}, certified on "
        f"{certificate.queries:,} queries that neither fitted nor chose it: "
        f"{_error_of(certificate)} at L1 "
        f"{certificate.distortion['l1_probabilities']['mean']:.4f}. Use {shlex.join(words)}"
    )


def _error_of(certificate: "Certificate") -> str:
    error, yardsticks = certificate.error, certificate.yardsticks
    if error is None or yardsticks is None:
        return "no error (nearly every query has an answer of its own, which may tell it all)"
    return (
        f"error {error.estimate:.4f} (lower bound {error.lower_bound:.4f}; label alone: "
        f"{yardsticks.label.error:.4f})"
    )


def _way_to(
    chosen: "ReleaseCandidate", scores: Path, given: "dict[str, Any]", *, drop_copies: bool
) -> list[str]:
    """Return the command that makes a candidate, word by word.

    Args:
        chosen: The candidate.
        scores: File of the scores.
        given: Options of the running command by flag; None: not given.
        drop_copies: Whether copies were dropped.
    """
    if chosen.defense != "codebook":
        # It needs neither the queries nor a seed.
        words = ["oneway", "defend", str(scores), "--out", "released.npy"]
        words += ["--defense", chosen.defense]
        for name, value in chosen.options.items():
            words += ["--option", f"{name}={value}"]
        return words + (["--kind", given["--kind"]] if given["--kind"] else [])
    words = ["oneway", "codebook", str(scores), "--out", "guard.safetensors"]
    for name, value in chosen.options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    for flag, value in given.items():
        words += [] if value is None else [flag, str(value)]
    return words + (["--drop-copies"] if drop_copies else [])


def read_scores(
    scores: Path, images: Path | None, kind: str | None
) -> "tuple[Tensor, Tensor | None]":
    """Return ``(N, K)`` logits, and the ``(N, ...)`` queries if there are any.

    Raises:
        CorruptDataError: A file does not hold what it should.
        InvalidOptionError: ``kind`` is missing or unknown.
        InvalidTensorError: The scores are not what their name says.
    """
    from oneway.data import read_npz

    arrays = read_npz(scores)
    return scores_to_logits(arrays, scores, kind), images_beside(arrays, scores, images)


def dated(certificate: "Certificate") -> "Certificate":
    """Return a certificate that was made today."""
    return replace(certificate, certified_on=datetime.now(UTC).date().isoformat())


def show_certificate(certificate: "Certificate", guard: Path, page: Path, made_by: str) -> None:
    """Print a certificate, and write its page.

    Args:
        certificate: Printed: its sentences, its errors by label, and its assumptions.
        guard: File of the codebook.
        page: File to write.
        made_by: The command that is running.
    """
    from rich.console import Console

    from oneway.defenses.codebook import ASSUMPTIONS
    from oneway.report.page import certificate_page, write_page
    from oneway.report.page.certificate import certificate_lines, certificate_table
    from oneway.report.page.composition import composition_table
    from oneway.report.page.identification import identification_table

    # First, since whoever reads what is printed may stop early, as `head` does.
    write_page(page, certificate_page(certificate, guard.name, made_by))
    console = Console()
    for line in certificate_lines(certificate):
        console.print(line, highlight=False, markup=False)
    if certificate.identification is not None:
        console.print(identification_table(certificate.identification), crop=False)
    if certificate.composition is not None:
        console.print(composition_table(certificate, certificate.composition), crop=False)
    if certificate.error is not None:
        console.print(certificate_table(certificate), crop=False)
    for line in ("Assumptions:", *(f"• {line}" for line in ASSUMPTIONS)):
        console.print(line, highlight=False, markup=False)
    typer.echo(f"wrote {page}")
