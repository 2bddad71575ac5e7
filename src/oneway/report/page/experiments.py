"""Experiments for readers: one page, as HTML or Markdown, and the chart of a frontier."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from oneway.benchmark import Estimate, Published, Summary, summarise
from oneway.evaluation import ReleaseRecord
from oneway.report import experiments, findings, sentences
from oneway.report.experiments import (
    LEADERBOARD,
    by_experiment,
    experiment_name,
    spread,
    todays,
)
from oneway.report.frontier import AXES, GAPS, frontier, frontier_lines, gap_label
from oneway.report.page.blocks import Block, Bullets, Facts, Grid, Page, Prose, Section, flag_texts
from oneway.report.page.charts import (
    WIDTH,
    Chart,
    Legend,
    Place,
    Point,
    change_axis,
    plane_chart,
    share_axis,
)
from oneway.report.page.comparisons import BASELINES, baselines_chart, gap_chart
from oneway.report.page.pictures import Gallery, PictureRow, Pictures, picture_row, shown_size
from oneway.report.page.render import FLAG, render_markdown
from oneway.report.table import Column, Listing

FindGallery = Callable[[ReleaseRecord], Gallery | None]

IDENTIFIED = "matching true inputs"

OVERVIEW_HEIGHT = 300

FEW = 8
"""Most releases that charts name, and that pages show with the static attacker's pictures."""


def no_gallery(record: ReleaseRecord) -> Gallery | None:  # noqa: ARG001  a FindGallery
    """Return no images, for any record."""
    return None


def records_page(
    records: Sequence[ReleaseRecord],
    theirs: Mapping[str, Published],
    gallery: FindGallery = no_gallery,
) -> Page:
    """Return the page of the records of experiments.

    Args:
        records: Records of all experiments, presets and seeds.
        theirs: Printed tables of the paper, by experiment.
        gallery: Returns the pictures of a record, by attacker.
    """
    groups = {name: summarise(group) for name, group in by_experiment(records).items()}
    raised: dict[str, list[str]] = {}
    sections = [Section("gap", "How to read this", [Prose(sentences.READING)])]
    pictured, several = False, len(groups) > 1
    for number, ((experiment, preset), summaries) in enumerate(groups.items()):
        name = experiment_name(experiment, preset)
        for flag in experiments.raised_flags(summaries):
            text = f"{name}: {flag.text()}" if several else flag.text()
            raised.setdefault(flag.name, []).append(text)
        pictures = _pictures(summaries, gallery)
        pictured = pictured or pictures is not None
        parts = _sections(f"e{number}", summaries, theirs.get(experiment), pictures)
        if several:
            head = [Prose((findings.headline(todays(summaries)), *findings.notices(summaries)))]
            sections.append(Section(f"e{number}", name, head, chapter=True))
            parts = [dataclasses.replace(section, level=3) for section in parts]
        sections += parts
    if raised:
        sections.append(Section("flags", "Flags and their meaning", flag_texts(raised)))
    sections.append(
        Section("limits", "What may be claimed", [Bullets(sentences.EXPERIMENT_LIMITS)])
    )
    first = next(iter(groups.values()))
    names = {experiment_name(*key): todays(summaries) for key, summaries in groups.items()}
    notices = [sentences.LABEL_LEAKS, *([] if several else findings.notices(first))]
    return Page(
        kind="leaderboard" if {name for name, _ in groups} == {LEADERBOARD} else "experiments",
        title="Experiments" if several else next(iter(names)),
        subtitle="Releases of the same scores beside each other, under the same attackers.",
        tone="plain",
        stamp=f"{len(groups)} experiments" if several else f"{len(first)} releases compared",
        verdict=findings.overview(names) if several else findings.headline(todays(first)),
        notices=[*notices, *([sentences.CONFIDENTIAL] if pictured else [])],
        sections=sections,
        flags=list(raised),
    )


def results_page(
    records: Sequence[ReleaseRecord],
    theirs: Mapping[str, Published],
    command: str,
    images: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """Return the records of experiments as Markdown.

    Args:
        records: Records of all experiments, presets and seeds.
        theirs: Printed tables of the paper, by experiment.
        command: The command that makes this page.
        images: Address of the picture of a frontier, by experiment and preset.
    """
    parts = [
        "# Results\n",
        f"Made by `{command}` from stored records; not edited by hand. Errors are mean squared "
        "errors per pixel. Means have 95 % intervals over seeds.\n",
        *(f"{paragraph}\n" for paragraph in sentences.READING),
    ]
    for (experiment, preset), group in by_experiment(records).items():
        summaries = summarise(group)
        parts.append(f"## {experiment}" + (f", preset {preset}" if preset else "") + "\n")
        parts += [
            f"{line}\n"
            for line in (findings.headline(todays(summaries)), *findings.notices(summaries))
        ]
        sections = _sections("e", summaries, theirs.get(experiment), None)
        address = (images or {}).get((experiment, preset))
        shown = {"e-frontier": f"![G against distortion]({address})"} if address else {}
        parts.append(render_markdown(sections, level=3, images=shown))
    return FLAG.sub(r"flag [\1](flags/\1.md): \2", "\n".join(parts))


def frontier_charts(summaries: Sequence[Summary], prefix: str = "e") -> list[Chart]:
    """Return G against distortion, for each kind of distortion that releases have."""
    planes = [_plane(prefix, todays(summaries), name, "closed_gap") for name in AXES]
    return [plane for plane in planes if plane is not None]


def overview_charts(summaries: Sequence[Summary]) -> list[Chart]:
    """Return what releases hide and what they let identify, against what users pay.

    Releases that oneway adds to the field, its codebooks, stand out.

    Args:
        summaries: A leaderboard's releases, over their seeds.

    Returns:
        Two charts with the same axis across; none where fewer than two releases have both numbers.
    """
    counted = [s for s in todays(summaries) if "l1_mean" in s.values and IDENTIFIED in s.values]
    kept = [s for s in counted if s.claimed("closed_gap") is not None]
    if len(kept) < 2:
        return []
    hidden, named = list[Point](), list[Point]()
    for summary in kept:
        name, across = summary.release, summary.values["l1_mean"].mean
        ours, failed = "codebook" in summary.record.defense, "closed_gap" in summary.failed
        shape = "disc" if ours else "ring"
        low, high = (None, None) if failed else _ends(summary.values["closed_gap"])
        gap = summary.claimed("closed_gap") or 0.0
        text = gap_label(summary, "closed_gap")
        mark = "at least" if failed else shape
        hidden.append(Point(name, across, gap, low, high, ours, name, mark, text=text))
        share = summary.values[IDENTIFIED]
        low, high = _ends(share)
        named.append(Point(name, across, share.mean, low, high, ours, name, shape))
    label, size = AXES["l1_mean"], (WIDTH, OVERVIEW_HEIGHT)
    legend = (Legend("disc", "strong", "a codebook"), Legend("ring", "plain", "another release"))
    title = "Queries that an attacker names among candidates (lower is better)"
    columns = {
        "release": Column(attrgetter("name")),
        label: Column(attrgetter("across"), ".4f"),
        "share named": Column(attrgetter("up"), ".3f"),
    }
    change = change_axis(label, named, WIDTH, linear_below=1e-3, spare=0.05)
    return [
        gap_chart(
            "overview-gap",
            "What it hides: G of the strongest attacker (higher is better)",
            hidden,
            (label, "closed gap G"),
            legend=legend,
            linear_below=1e-3,
            size=size,
        ),
        plane_chart(
            "overview-identified",
            title,
            f"A plane: across, {label}; up, the share of queries that matching names.",
            named,
            (change, share_axis("named", OVERVIEW_HEIGHT)),
            lowest=0.0,
            size=size,
            numbers=Listing(title, columns, named),
            legend=legend,
        ),
    ]


def _sections(
    prefix: str,
    summaries: Sequence[Summary],
    theirs: Published | None,
    pictures: Pictures | None,
) -> list[Section]:
    """Return the sections about an experiment; charts and sentences are of today's attackers."""
    counted = todays(summaries)
    seen = [Section(f"{prefix}-seen", "What attackers see", [pictures])] if pictures else []
    planes = [
        plane
        for distortion in AXES
        for gap in GAPS
        if (plane := _plane(prefix, counted, distortion, gap)) is not None
    ]
    sections = list[Section]()
    if planes:
        blocks: list[Block] = [
            Prose(
                (
                    "A release is on the frontier if no other closes more of the gap without "
                    "changing more. Up and to the left is better.",
                )
            ),
            *planes,
            Bullets(frontier_lines(counted)),
        ]
        sections.append(
            Section(f"{prefix}-frontier", "What they hide, and what they change", blocks)
        )
    sections += seen
    sections += [
        Section(f"{prefix}-line", "Strongest attacker of each release", [_line(prefix, counted)]),
        Section(f"{prefix}-table", "All releases", [Grid(experiments.summary_table(summaries))]),
        Section(f"{prefix}-words", "In words", [Bullets(findings.findings(counted))]),
    ]
    certificates = experiments.certificates_table(summaries)
    if certificates.rows:
        sections.append(Section(f"{prefix}-certified", "What is certified", [Grid(certificates)]))
    if theirs is not None:
        beside: list[Block] = [Bullets([remark.text for remark in theirs.remarks])]
        if theirs.rows:
            beside.insert(0, Grid(experiments.published_table(theirs, summaries)))
        sections.append(Section(f"{prefix}-paper", "What the paper printed", beside))
    sections += [
        Section(f"{prefix}-costs", "What it costs", [Grid(experiments.costs_table(summaries))]),
        Section(f"{prefix}-how", "How it was measured", [Facts(experiments.how_facts(summaries))]),
    ]
    return sections


def _line(prefix: str, summaries: Sequence[Summary]) -> Chart:
    lowest = min(summary.values["adaptive_error"].mean for summary in summaries)
    places = []
    for summary in summaries:
        error = summary.values["adaptive_error"]
        strongest = error.mean == lowest
        places.append(
            Place(summary.release, error.mean, spread(error, 4), strongest, *_ends(error))
        )
    return baselines_chart(
        f"{prefix}-baselines",
        "Error of the strongest attacker on each release (further left: more was read)",
        [summaries[0].values[f"baseline {name}"].mean for name in BASELINES],
        places,
        "release",
    )


def _ends(estimate: Estimate) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of a mean over seeds; none with one seed."""
    half = estimate.half_width
    return (None, None) if half is None else (estimate.mean - half, estimate.mean + half)


def _plane(prefix: str, summaries: Sequence[Summary], distortion: str, gap: str) -> Chart | None:
    """Return gap against distortion; nothing where fewer than two releases have both."""
    best = frontier(summaries, distortion, gap)
    points = dict[str, Point]()
    for summary in summaries:
        up = summary.claimed(gap)
        if up is not None and distortion in summary.values:
            name, on, bounded = summary.release, summary in best, gap in summary.failed
            low, high = (None, None) if bounded else _ends(summary.values[gap])
            points[name] = Point(
                name,
                *(summary.values[distortion].mean, up, low, high, on),
                name,
                "at least" if bounded else "disc" if on else "ring",
                text=gap_label(summary, gap),
            )
    if len(points) < 2:
        return None
    return gap_chart(
        f"{prefix}-{distortion}-{gap}".replace("_", "-"),
        f"{GAPS[gap]} against {AXES[distortion]}",
        list(points.values()),
        (AXES[distortion], f"closed gap {GAPS[gap]}"),
        legend=(
            Legend("disc", "strong", "on the frontier"),
            Legend("ring", "plain", "another is better"),
        ),
        columns={
            "on the frontier": lambda point: "yes" if point.on else "no",
        },
        steps=[points[summary.release] for summary in best],
        linear_below=1e-3 if distortion == "l1_mean" else 1.0,
    )


def _pictures(summaries: Sequence[Summary], gallery: FindGallery) -> Pictures | None:
    """Return reconstructions of the same queries under each release, with a single seed."""
    galleries = ((summary, gallery(summary.record)) for summary in summaries)
    stored = [(summary, images) for summary, images in galleries if images is not None]
    if not stored:
        return None
    # Another seed has other queries.
    seed = stored[0][0].record.seed
    stored = [(summary, images) for summary, images in stored if summary.record.seed == seed]
    first, images = stored[0]
    rows = [_row("As it was sent", "", images["truth"])]
    for summary, seen in stored:
        errors, strongest = summary.record.errors, summary.record.strongest
        attacks = ("static", strongest) if len(stored) <= FEW else (strongest,)
        rows += [
            _row(summary.release, f"{attack}, error {errors[attack]:.4f}", seen[attack])
            for attack in dict.fromkeys(attacks)
            if attack in seen
        ]
    if "label-only" in images:
        note = f"error {first.record.baselines.label:.4f}"
        rows.append(_row("From the label alone", note, images["label-only"]))
    return Pictures(
        f"The same queries under each release, as attackers reconstruct them (seed {seed})",
        tuple(str(number) for number in range(1, len(images["truth"]) + 1)),
        tuple(rows),
        (),
        shown_size(images["truth"]),
    )


def _row(label: str, note: str, images: NDArray[np.generic]) -> PictureRow:
    text = f"{label}, {note}" if note else label
    alts = [f"Query {place}: {text}" for place in range(1, len(images) + 1)]
    return picture_row(label, note, images, alts)
