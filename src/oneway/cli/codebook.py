"""`oneway codebook` and `oneway choose`: fit k-anonymous scores, and choose among releases."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oneway.cli.common import (
    CACHE,
    AsJson,
    Cache,
    Device,
    ModelOptions,
    ModelOutputs,
    Seed,
    check_suffix,
    choose_device,
    command,
    command_line,
    print_json,
    print_table,
    progress,
)
from oneway.cli.paths import Writes
from oneway.cli.sources import (
    DropCopies,
    Groups,
    Queries,
    Source,
    gathers,
    model_options,
    reads_data,
    traffic_of,
)

if TYPE_CHECKING:
    from oneway.defenses import ReleaseCandidate
    from oneway.defenses.codebook import Budget, Certificate
    from oneway.interface import Choice, Reading

Out = Annotated[Path, typer.Option(help="File to write, .safetensors."), Writes()]
NOT_DATA = ("--groups", "--seed")
"""Options of a choice that say neither what the queries are nor how they are read."""

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
        "--variants or --repeats."
    ),
]
MaxL1 = Annotated[
    float | None, typer.Option(min=0, max=2, help="Budget: mean L1 distance of probabilities.")
]
MaxL1P95 = Annotated[
    float | None, typer.Option(min=0, max=2, help="Budget: 95 % quantile of that distance.")
]
MaxLogits = Annotated[
    float | None,
    typer.Option(min=0, help="Budget: mean difference of centered logits, in nats."),
]
KeepTop5 = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Budget: share of the five likeliest classes kept."),
]
MaxBits = Annotated[
    float | None, typer.Option(min=0, help="Budget: bits beyond the label, measured.")
]
MaxCells = Annotated[
    int | None,
    typer.Option(min=1, help="Cells of the table, at most: fewer identify fewer candidates."),
]
HeldOut = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the queries that certify and do not fit.")
]
MaxGroupShare = Annotated[
    float, typer.Option(help="Largest share of one group in a cell; cells above it are merged.")
]
Training = Annotated[
    Path | None,
    typer.Option(help="What the model was trained on, as --queries: refused among them."),
]
ExplicitClasses = Annotated[
    int, typer.Option(min=1, help="Classes whose probabilities each label's table stores.")
]
Center = Annotated[
    Literal["mean", "median"],
    typer.Option(help="What a cell releases: mean (calibrated) or median (least L1)."),
]
SharedLevels = Annotated[
    int,
    typer.Option(min=1, help="Levels of the top score that labels with few queries share."),
]
Refine = Annotated[
    Path | None,
    typer.Option(
        help="Codebook in use: cut its cells further and join none, so that answers of both reveal "
        "what the new one reveals."
    ),
]
Inverters = Annotated[
    list[Path] | None,
    typer.Option(help="Surrogate inverter to plant decoys against; repeatable."),
]
DecoyL1 = Annotated[
    float, typer.Option(help="Largest move of a vector by a decoy, L1 of probabilities.")
]


def fit_settings(
    min_members: MinMembers = 20,
    rate_weight: RateWeight = 0.01,
    image_weight: ImageWeight = 0.0,
    max_cells: MaxCells = None,
    explicit_classes: ExplicitClasses = 32,
    center: Center = "mean",
    shared_levels: SharedLevels = 1,
    max_group_share: MaxGroupShare = 1.0,
    variant_weight: VariantWeight = 0.0,
) -> dict[str, Any]:
    """Return settings of a fit, by name."""
    return locals()


def budget_of(
    max_l1: MaxL1 = None,
    max_l1_p95: MaxL1P95 = None,
    max_logits: MaxLogits = None,
    keep_top5: KeepTop5 = None,
    max_bits: MaxBits = None,
) -> "Budget | None":
    """Return the budget of the limits that are given; None without any."""
    from oneway.defenses.codebook import Budget

    limits = {"l1_mean": max_l1, "l1_quantile": max_l1_p95, "logits": max_logits}
    limits |= {"top5_kept": keep_top5, "bits": max_bits}
    return Budget(**limits) if any(limit is not None for limit in limits.values()) else None


@command
@gathers(traffic=traffic_of, settings=fit_settings, budget=budget_of)
def codebook(
    context: typer.Context,
    source: Source,
    *,
    out: Out,
    traffic: dict[str, Any],
    settings: dict[str, Any],
    budget: "Budget | None",
    held_out: HeldOut = 0.2,
    training: Training = None,
    refine: Refine = None,
    inverter: Inverters = None,
    decoy_l1: DecoyL1 = 0.02,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    r"""Fit a codebook to the scores of unlabelled queries, and certify it on others of them.

    At least --min-members distinct calibration queries of the same label share each released
    vector; with --groups, of as many different groups. With a budget the table with fewest bits
    within it is chosen. The certificate goes into OUT, and, as a page to read, beside it. Digests
    of the fitted queries go into a file .fitted beside it: keep that file to yourself.
    Before a codebook replaces another one that serves, --refine OLD keeps what both reveal
    together at what the new one reveals. Exits 1 if a budget that the queries which fit keep is
    missed on those that certify.

    For example:

        oneway codebook work/test.npz --out work/guard.safetensors --max-l1 0.05

        oneway codebook model.onnx --outputs logits --queries photos/ --size 64x64 \
            --out guard.safetensors --max-l1 0.1

        oneway codebook scores.npy --outputs confidences --queries images.npy \
            --out guard.safetensors
    """
    from oneway.defenses import load_module
    from oneway.interface import fit_codebook

    check_suffix(out, "--out", ".safetensors")
    where = choose_device(device)
    with progress() as report:
        release = fit_codebook(
            source,
            budget=budget,
            training=training,
            older=refine,
            held_out=held_out,
            inverters=[load_module(path, "inverter").module.to(where) for path in inverter or ()],
            decoy_l1=decoy_l1,
            seed=seed,
            device=where,
            report=report,
            **traffic,
            **settings,
        )
    release.save(out)
    sizes, certificate = release.state.sizes, release.certificate
    assert certificate is not None  # noqa: S101  narrows the type; fit gives one
    typer.echo(f"wrote {out}: {sizes.cells} vectors for {sizes.num_classes} labels", err=as_json)
    page = out.with_suffix(".html")
    show_certificate(certificate, out, page, command_line(context), as_json=as_json)
    missed = list(_over_budget(certificate, budget))
    for line in missed:
        typer.echo(f"missed: {line}", err=True)
    raise typer.Exit(1 if missed else 0)


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
        "top5_kept": certificate.top5_kept or 0.0,
    }
    for name in budget.broken(measured):
        yield (
            f"{name} is {measured[name]:.4g} on the queries that certify, beyond the limit "
            f"of {budget.limits[name]:g}, which holds on the queries that fit. Pass more queries, "
            "or set a stricter limit."
        )


ChoiceMaxL1 = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Mean L1 distance of probabilities that users may lose. [what nine tenths of what "
        "the best candidate hides cost]",
    ),
]
Goal = Annotated[
    Literal["inversion", "membership", "all"],
    typer.Option(
        help="What to hide: queries (inversion), rows that the model was trained on "
        "(membership), or both (all)."
    ),
]
Members = Annotated[
    Path | None,
    typer.Option(help="Rows that the model was trained on, with classes; not for inversion."),
]
NonMembers = Annotated[
    Path | None,
    typer.Option(help="Rows that it was not trained on, with classes; not for inversion."),
]
AttackerData = Annotated[
    Path | None,
    typer.Option(help="The attacker's own rows, with classes; not for inversion."),
]
References = Annotated[
    int | None,
    typer.Option(min=0, help="Reference models of the attacker, even; not for inversion. [4]"),
]
CandidateMembers = Annotated[
    list[int] | None,
    typer.Option(min=1, help="Least members of a candidate codebook; repeatable. [5 20]"),
]


def membership_data(
    members: Members = None,
    non_members: NonMembers = None,
    attacker_data: AttackerData = None,
    references: References = None,
) -> dict[str, Any]:
    """Return what judges a release by the members that it reveals."""
    return locals()


@command
@reads_data
@gathers(judging=membership_data)
def choose(
    source: Source,
    max_l1: ChoiceMaxL1 = None,
    goal: Goal = "inversion",
    *,
    judging: dict[str, Any],
    queries: Queries = None,
    outputs: ModelOutputs = None,
    model_option: ModelOptions = None,
    min_members: CandidateMembers = None,
    max_cells: MaxCells = None,
    groups: Groups = None,
    drop_copies: DropCopies = False,
    reading: "Reading",
    seed: Seed = 0,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    r"""Find the release that hides most within a budget: rounding, top entries or a codebook.

    Two fifths of the queries fit each candidate, and two fifths judge it by the least error of any
    attacker. The last fifth certifies the best one. Prints the Pareto-optimal candidates, what the
    best one is certified to do, and the command that makes it. With --max-cells only codebooks of
    so few cells are candidates: more queries would fill more cells, and identify more. With --goal
    membership or all, attackers also ask which rows the model was trained on, from each candidate.

    For example:

        oneway choose work/test.npz

        oneway choose work/test.npz --max-l1 0.02

        oneway choose model.pt --outputs logits --queries own_queries.npz --goal membership \
            --members trained_on.npz --non-members new.npz --attacker-data own.npz
    """
    from rich.console import Console

    from oneway.defenses.candidate_releases import MIN_MEMBERS
    from oneway.interface import choose as choose_release
    from oneway.report.candidates import candidates_table

    with progress() as report:
        found = choose_release(
            source,
            queries,
            max_l1=max_l1,
            outputs=outputs,
            goal=goal,
            cache=cache,
            min_members=min_members or MIN_MEMBERS,
            max_cells=max_cells,
            groups=groups,
            drop_copies=drop_copies,
            seed=seed,
            reading=reading,
            report=report,
            model_options=model_options(model_option, "--model-option"),
            **judging,
        )
    given = {
        "--queries": queries,
        "--outputs": outputs,
        "--groups": groups,
        "--size": reading.size and "x".join(map(str, reading.size)),
        "--channels": reading.channels,
        "--label": reading.label,
        "--seed": seed or None,
        "--model-option": model_option,
        "--categorical": reading.categorical,
        "--drop": reading.drop,
        "--missing-value": reading.missing_values,
    }
    words = _way_to(found.candidate, source, given, drop_copies=drop_copies)
    if as_json:
        print_json({**_plain_choice(found), "command": words})
        return
    table = candidates_table(found.frontier, found.candidate)
    print_table(table, table.notes())
    console = Console()
    for line in _recommendation(found, max_l1, goal):
        console.print(line, highlight=False, markup=False)
    typer.echo(f"Make it: {shlex.join(words)}")


HIDDEN = {
    "inversion": "certified error",
    "membership": "G_mem",
    "all": "smaller of G_mem and the certified error as a share of the largest",
}
"""What a choice maximises, by goal."""


def _recommendation(found: "Choice", max_l1: float | None, goal: str) -> Iterator[str]:
    """Yield which candidate was chosen, why, and what it is certified to do."""
    best, certificate = found.candidate, found.certificate
    count, largest = len(found.candidates), max(each.hidden for each in found.frontier)
    if max_l1 is None:
        why = (
            f"the smallest L1 of {count} candidates with at least 9/10 of the largest "
            f"{HIDDEN[goal]}, {largest:.4f}. Pass --max-l1 to set the L1 that users may lose"
        )
    else:
        why = f"the largest {HIDDEN[goal]} of {count} candidates with an L1 of at most {max_l1:g}"
    yield f"Recommended: the {best.defense} with L1 {best.l1_mean:.4f}, {why}."
    if best.members is not None:
        yield (
            f"Members: G_mem {best.members.closed:.2f} (area under the ROC curve "
            f"{best.members.area:.3f}), on the rows that chose it, which favors it: audit it with "
            "others."
        )
    yield (
        f"Certified on {certificate.queries:,} queries that neither fitted nor chose it: "
        f"{_error_of(certificate)}, at a mean L1 of "
        f"{certificate.distortion['l1_probabilities']['mean']:.4f}."
    )
    yield from _unbounded(found)


def _unbounded(found: "Choice") -> Iterator[str]:
    """Yield a warning if nothing bounds how many queries the chosen release identifies."""
    best, codebook = found.candidate, found.bounded
    if best.cells is not None:
        return
    other = (
        "No candidate codebook moves probabilities as little."
        if codebook is None
        else f"The best codebook with no larger L1 has {codebook.cells} cells, L1 "
        f"{codebook.l1_mean:.4f} and certified error {codebook.certified:.4f}."
    )
    yield (
        f"Warning: the {best.defense} has no table, so nothing bounds how many queries its answers "
        f"identify. {other} Pass --max-cells to choose among codebooks alone."
    )


def _plain_choice(found: "Choice") -> dict[str, Any]:
    """Return a choice as JSON values."""
    return {
        "frontier": [_plain(each) for each in found.frontier],
        "chosen": [_plain(found.candidate)],
        "certificate": found.certificate.as_json(),
        "warnings": list(_unbounded(found)),
    }


def _plain(candidate: "ReleaseCandidate") -> dict[str, Any]:
    """Return a candidate's figures as JSON values."""
    members = None if candidate.members is None else vars(candidate.members)
    plain = {name: value for name, value in vars(candidate).items() if name != "release"}
    return {**plain, "members": members}


def _error_of(certificate: "Certificate") -> str:
    error, yardsticks = certificate.error, certificate.yardsticks
    if error is None or yardsticks is None:
        return "no error (nearly every query has an answer of its own, which may reveal all of it)"
    return (
        f"error {error.estimate:.4f} (lower bound {error.lower_bound:.4f}; label alone: "
        f"{yardsticks.label.error:.4f})"
    )


def _way_to(
    chosen: "ReleaseCandidate", source: str, given: Mapping[str, Any], *, drop_copies: bool
) -> list[str]:
    """Return the command that makes a candidate, word by word.

    Args:
        chosen: The candidate.
        source: Scores or model.
        given: Options of the running command by flag, those that may be repeated as sequences;
            None: not given.
        drop_copies: Whether copies were dropped.
    """
    if chosen.defense == "codebook":
        words = ["oneway", "codebook", source, "--out", "guard.safetensors"]
        for name, value in chosen.options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
    else:
        words = ["oneway", "defend", source, "--out", "released.npy"]
        words += ["--defense", chosen.defense]
        for name, value in chosen.options.items():
            words += ["--option", f"{name}={value}"]
        given = {flag: value for flag, value in given.items() if flag not in NOT_DATA}
    for flag, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [word for each in values if each is not None for word in (flag, str(each))]
    return words + (["--drop-copies"] if drop_copies and chosen.defense == "codebook" else [])


def show_certificate(
    certificate: "Certificate", guard: Path, page: Path, made_by: str, *, as_json: bool
) -> None:
    """Print a certificate, and write its page.

    Args:
        certificate: Printed: its sentences, its errors by label, and its assumptions.
        guard: File of the codebook.
        page: File to write.
        made_by: The command that is running.
        as_json: Whether to print JSON.
    """
    from rich.console import Console

    from oneway.defenses.codebook import ASSUMPTIONS
    from oneway.report.page.certificate import (
        certificate_lines,
        certificate_page,
        certificate_table,
        certificate_verdict,
    )
    from oneway.report.page.composition import composition_table
    from oneway.report.page.identification import identification_table
    from oneway.report.page.render import write_page

    # First, since whoever reads what is printed may stop early, as `head` does.
    write_page(page, certificate_page(certificate, guard.name, made_by))
    if as_json:
        print_json(certificate.as_json())
        return
    console = Console()
    console.print(f"{certificate_verdict(certificate)[1]}.", style="bold", markup=False)
    for line in certificate_lines(certificate):
        console.print(f"• {line}", highlight=False, markup=False)
    if certificate.identification is not None:
        console.print(identification_table(certificate.identification), crop=False)
    if certificate.composition is not None:
        console.print(composition_table(certificate, certificate.composition), crop=False)
    if certificate.error is not None:
        console.print(certificate_table(certificate), crop=False)
    for line in ("Assumptions:", *(f"• {line}" for line in ASSUMPTIONS)):
        console.print(line, highlight=False, markup=False)
    typer.echo(f"wrote {page}")
