"""`oneway audit`: attack somebody's model, with or without a defense, and say what leaks."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oneway.cli.common import (
    CACHE,
    AsJson,
    Cache,
    Device,
    Executor,
    ModelOptions,
    ModelOutputs,
    NoImages,
    choose_device,
    command,
    command_line,
    parse_options,
    print_json,
    print_lines,
    progress,
)
from oneway.cli.completion import defense_names
from oneway.cli.paths import ConfigFile, Reads, Writes, existing_file
from oneway.cli.sources import gathers, model_options, reads_data
from oneway.errors import InvalidOptionError

if TYPE_CHECKING:
    from oneway.auditing import AuditRecord, Understanding
    from oneway.interface import AuditSource, Reading, ThreatSettings

RELEASE, ATTACKS = "Release", "Attacks"
"""Headings in help texts of the options that say what is released, and how it is attacked."""

Model = Annotated[
    str,
    typer.Argument(
        help="The undefended model: package.module:factory, a .pt, .pt2, .onnx, .skops or "
        ".joblib file, or an address (Open Inference Protocol v2, or plain JSON)."
    ),
    Reads(),
]
AttackerData = Annotated[
    Path, typer.Option(help="The attacker's data: .npz or folder of images, or a table.")
]
Queries = Annotated[
    Path | None,
    typer.Option(
        help="Queries that attacks are graded on, in the same formats; not for membership."
    ),
]
Threats = Annotated[
    str,
    typer.Option(
        help="Threats to audit, separated by commas: inversion, membership, stealing.",
        rich_help_panel=ATTACKS,
    ),
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
    int | None,
    typer.Option(
        min=0,
        help="For membership: reference models of the attacker, even. [8]",
        rich_help_panel=ATTACKS,
    ),
]
Public = Annotated[
    Path | None,
    typer.Option(help="For stealing: inputs of another kind, for a thief without others."),
]
Budgets = Annotated[
    list[int] | None,
    typer.Option(
        "--budget",
        min=1,
        help="For stealing: queries of a thief; repeatable. [100 400 2000]",
        rich_help_panel=ATTACKS,
    ),
]
AuditedDefense = Annotated[
    str,
    typer.Option(
        help="Registered defense to audit.", autocompletion=defense_names, rich_help_panel=RELEASE
    ),
]
DefenseOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="Defense option, NAME=VALUE, like step_size=0.1; repeatable.",
        rich_help_panel=RELEASE,
    ),
]
GuardFile = Annotated[
    Path | None,
    typer.Option(
        help="Codebook file to audit, from `oneway codebook`, instead.", rich_help_panel=RELEASE
    ),
]
Guarded = Annotated[
    str | None,
    typer.Option(
        help="Model that gives defended answers instead, like MODEL.", rich_help_panel=RELEASE
    ),
    Reads(),
]
GuardedOutputs = Annotated[
    Literal["logits", "confidences"],
    typer.Option(help="Output of the guarded model.", rich_help_panel=RELEASE),
]
GuardedOptions = Annotated[
    list[str] | None,
    typer.Option(
        help="Option of the guarded model, NAME=VALUE; repeatable.", rich_help_panel=RELEASE
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Names of the model's classes in the order of its scores: cat,dog,fox, or a file "
        "with one name on each line. [the model's own]"
    ),
    Reads(),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        help="Target run time of all threats together, in minutes. [no limit]",
        rich_help_panel=ATTACKS,
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of seeds; use at least 3 for results that you share.",
        rich_help_panel=ATTACKS,
    ),
]
Controls = Annotated[
    bool,
    typer.Option(help="Run the controls, which test the attackers.", rich_help_panel=ATTACKS),
]
RequireGap = Annotated[
    float | None,
    typer.Option(help="Exit 1 if the closed gap G of a threat, or its bound, is below this."),
]
Out = Annotated[
    Path,
    typer.Option(help="Folder for the report."),
    Writes(
        (
            "audit.json",
            "queries.parquet",
            "pictures.npz",
            "figure.png",
            "report.html",
        )
    ),
]
FirstSeed = Annotated[int, typer.Option(min=0, help="First of the seeds.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Most queries in one call of the model.")]


@reads_data
def audit_source(
    model: Model,
    *,
    attacker_data: AttackerData,
    queries: Queries = None,
    members: Members = None,
    non_members: NonMembers = None,
    public: Public = None,
    outputs: ModelOutputs = None,
    defense: AuditedDefense = "none",
    option: DefenseOptions = None,
    guard: GuardFile = None,
    guarded: Guarded = None,
    guarded_outputs: GuardedOutputs = "confidences",
    guarded_option: GuardedOptions = None,
    model_option: ModelOptions = None,
    reading: "Reading",
    classes: Classes = None,
    batch_size: BatchSize = 512,
    device: Device = "auto",
) -> "AuditSource":
    """Return the model, its defense and the data of an audit."""
    from oneway.evaluation import ReleaseSpec
    from oneway.interface import AuditSource

    given = None
    if guarded is not None:
        options = model_options(guarded_option, "--guarded-option")
        given = guarded, {"outputs": guarded_outputs, **options}
    name = "as it is" if defense == "none" else defense
    return AuditSource(
        (model, {"outputs": outputs, **model_options(model_option, "--model-option")}),
        attacker_data,
        queries,
        ReleaseSpec(name, defense, parse_options(option, "--option")),
        guard,
        given,
        parse_classes(classes),
        reading,
        choose_device(device),
        batch_size,
        members,
        non_members,
        public,
    )


def threat_settings(
    threats: Threats = "inversion",
    references: References = None,
    budget: Budgets = None,
    minutes: Minutes = None,
    seeds: Seeds = 3,
    *,
    controls: Controls = True,
) -> "ThreatSettings":
    """Return the threats and sizes that the options say.

    Raises:
        UnknownNameError: There is no such threat.
        InvalidOptionError: An option is outside its range, or of a threat that is not audited.
    """
    from oneway.auditing import MembershipSettings, StealingSettings
    from oneway.interface import ThreatSettings
    from oneway.interface.threats import check_options, parse_threats

    if minutes is not None and not minutes > 0:
        raise InvalidOptionError(f"--minutes must be positive, but got {minutes}.")
    chosen = parse_threats(threats)
    members, thieves = MembershipSettings(), StealingSettings()
    settings = ThreatSettings(
        chosen,
        seeds,
        minutes,
        controls,
        members if references is None else replace(members, references=references),
        replace(thieves, budgets=tuple(budget)) if budget else thieves,
    )
    check_options(chosen, {"--references": references, "--budget": budget or None})
    return settings


@command
@gathers(source=audit_source, settings=threat_settings)
def audit(
    context: typer.Context,
    *,
    source: "AuditSource",
    settings: "ThreatSettings",
    config: ConfigFile = None,  # noqa: ARG001  its callback reads the file
    require_gap: RequireGap = None,
    out: Out = Path("runs/audit"),
    cache: Cache = CACHE,
    seed: FirstSeed = 0,
    executor: Executor = "local",
    no_images: NoImages = False,
    as_json: AsJson = False,
) -> None:
    r"""Attack a model's scores, with or without a defense, and say what leaks.

    The verdict comes with the attackers behind it, controls that test them, and flags. The
    folder OUT gets report.html, the page to read, and audit.json and queries.parquet; for images
    also pictures.npz and figure.png. Exits 1 if a threat's G, or its bound where the trained
    attackers failed, is below --require-gap, or if a flag is raised that nothing explains: --seeds
    1 explains too-few-seeds, and a bound of G explains attack-failed.

    For example:

        oneway audit model.pt --outputs logits --attacker-data own.npz --queries queries.npz \
            --guard guard.safetensors --minutes 20

        oneway audit --config audit.toml --require-gap 0.9

        RAY_ADDRESS=auto oneway audit package.models:classifier --attacker-data own.npz \
            --queries queries.npz --executor ray

        oneway audit model.pt --outputs logits --attacker-data own.npz --queries queries.npz \
            --threats inversion,membership,stealing --members trained_on.npz \
            --non-members new.npz --guard guard.safetensors --minutes 20
    """
    from oneway.interface import run_audit

    _check_options(require_gap)

    def begin(understanding: "Understanding | None") -> None:
        if not as_json:
            print_understanding(understanding, settings)
        _make_folder(out)

    with progress() as report:
        result = run_audit(
            source,
            settings,
            seed=seed,
            cache=cache,
            executor=executor,
            understood=begin,
            report=report,
        )
    result = replace(result, record=replace(result.record, command=command_line(context)))
    result.write(out, images=not no_images)
    if as_json:
        print_json(result.record.to_json())
    else:
        _print(result.record, out)
    raise typer.Exit(1 if result.missed(require_gap) else 0)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidOptionError(
            f"--out must be a folder, but {out} cannot be made ({type(error).__name__})."
        ) from error


def _check_options(require_gap: float | None) -> None:
    """Refuse what would fail only after the work."""
    from oneway.extras import load_extra

    if require_gap is not None and not require_gap <= 1:
        raise InvalidOptionError(f"--require-gap must be at most 1, but got {require_gap}.")
    for module, package, purpose in (
        ("pyarrow", "pyarrow", "keeping every query"),
        ("PIL.Image", "pillow", "drawing pictures"),
    ):
        load_extra(module, extra="audit", purpose=purpose, package=package)


def print_understanding(understanding: "Understanding | None", settings: "ThreatSettings") -> None:
    """Print what was understood of a model and its data, and what is planned."""
    from rich.console import Console

    from oneway.report.audit import understanding_lines, understanding_tables

    console = Console()
    if understanding is not None:
        print_lines(console, understanding_lines(understanding))
        for table in understanding_tables(understanding):
            console.print(table, crop=False)
    print_lines(console, settings.plan())


def _print(record: "AuditRecord", out: Path) -> None:
    """Print the verdicts first, then the sentences and tables of each threat."""
    from rich.console import Console

    from oneway.report.audit import distortion_line, flag_lines
    from oneway.report.threats import OF_THREAT, verdict_of_threats

    console, inversion = Console(), record.inversion
    print_lines(console, verdict_of_threats(record).splitlines())
    for threat in record.threats:
        own = getattr(record, threat)
        print_lines(console, OF_THREAT[threat].lines(own))
        for table in OF_THREAT[threat].tables(own):
            console.print(table, crop=False)
    if inversion is not None:
        print_lines(console, [distortion_line(inversion), *flag_lines(inversion)])
    print_lines(console, [f"report: {out / 'report.html'}"])


def parse_classes(classes: str | None) -> tuple[str, ...] | None:
    """Return ``("cat", "dog")`` of ``"cat,dog"``, or the lines of a file.

    Raises:
        InvalidOptionError: A name is empty, or stands twice, or the file is not text in UTF-8.
    """
    if classes is None:
        return None
    path = existing_file(classes)
    try:
        text = classes.split(",") if path is None else path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InvalidOptionError(
            f"--classes must be names or a text file in UTF-8, but {path} is in another encoding. "
            "Save it as UTF-8."
        ) from None
    names = tuple(name.strip() for name in text)
    if not all(names) or len(set(names)) != len(names):
        raise InvalidOptionError(
            f"--classes must name each class once, such as cat,dog,fox, but {len(names)} names "
            "hold an empty or a repeated one."
        )
    return names
