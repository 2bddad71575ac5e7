"""The page of experiments: releases beside each other, under the same attackers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markdown_it import MarkdownIt
from markupsafe import Markup
from numpy.typing import NDArray

from oneway.audit import SEEDS
from oneway.benchmark import Estimate, Gallery, Published, Summary, summarise
from oneway.evaluation import flag_named
from oneway.report.frontier import AXES, GAPS, LOWEST, frontier, frontier_lines
from oneway.report.page.blocks import Block, Bullets, Facts, Grid, Key, Page, Prose, Section
from oneway.report.page.charts import NEAR, Chart, Level, Place, Point, line_chart, plane_chart
from oneway.report.page.flags import flag_texts
from oneway.report.page.pictures import PictureRow, Pictures, picture_row, shown_size
from oneway.report.page.words import CONFIDENTIAL, GAP_WORDS, environment_facts, seeds_notice
from oneway.report.results import LEADERBOARD, by_experiment, command_of, seeds_of, verdict_lines
from oneway.report.summary import (
    certificates_table,
    costs_table,
    published_table,
    spread,
    summary_remarks,
    summary_table,
)
from oneway.report.table import LABEL_LEAKS, Listing, knows

Record = Mapping[str, Any]

HIDDEN = 0.9
"""A release that closes so much of the gap is said to hide what there is."""

FEW = 8
"""Most releases that figures name, and of which the static attacker's pictures are shown, too."""


def no_gallery(record: Record) -> Gallery | None:  # noqa: ARG001  one of two ways to find images
    """Find no images of any record."""
    return None


def records_page(
    records: Sequence[Record],
    theirs: Mapping[str, Published],
    gallery: Callable[[Record], Gallery | None] = no_gallery,
) -> Page:
    """Return the page of the records of experiments.

    Args:
        records: Of all experiments, presets and seeds.
        theirs: What the paper printed, by experiment.
        gallery: Finds what the attackers made of the shown queries of a record.
    """
    groups = {name: summarise(group) for name, group in by_experiment(records).items()}
    raised: dict[str, list[str]] = {}
    sections = [Section("gap", "How to read this", [Prose(GAP_WORDS)])]
    pictured, several = False, len(groups) > 1
    for number, ((experiment, preset), summaries) in enumerate(groups.items()):
        name = _name(experiment, preset)
        for flag, told in _flags(summaries).items():
            prefix = f"{name}: " if several else ""
            raised.setdefault(flag, []).extend(f"{prefix}{one}" for one in told)
        pictures = _pictures(summaries, gallery)
        pictured = pictured or pictures is not None
        own = _sections(f"e{number}", summaries, theirs.get(experiment), pictures)
        if several:
            sentence = _verdict(summaries)
            head: list[Block] = [Prose((sentence, *_seed_notices(summaries)))]
            sections.append(Section(f"e{number}", name, head, chapter=True))
            own = [dataclasses.replace(section, level=3) for section in own]
        sections += own
    if raised:
        sections.append(Section("flags", "Flags, and what they mean", flag_texts(raised)))
    sections.append(Section("limits", "What may be claimed", [Bullets(LIMITS)]))
    notices = [LABEL_LEAKS]
    first = next(iter(groups.values()))
    if several:
        verdict, stamp = _overview(groups), f"{len(groups)} experiments"
        title = "Experiments"
    else:
        verdict = _verdict(first)
        stamp = f"{len(first)} releases compared"
        title = _name(*next(iter(groups)))
        notices += _seed_notices(first)
    if pictured:
        notices.append(CONFIDENTIAL)
    experiments = {experiment for experiment, _ in groups}
    return Page(
        kind="leaderboard" if experiments == {LEADERBOARD} else "experiments",
        title=title,
        subtitle="Releases of the same scores beside each other, under the same attackers.",
        tone="plain",
        stamp=stamp,
        verdict=verdict,
        notices=notices,
        sections=sections,
        flags=list(raised),
    )


LIMITS = (
    "Decoders of these sizes, trained on so many queried images, reconstruct no better than this. "
    "A stronger attacker may exist: never say that a release prevents reconstruction.",
    "Not that the label is safe: no label-preserving release can help against attacks that read "
    "only the label.",
    f"Nothing from fewer than {SEEDS} seeds. Intervals are of means over seeds of splits, target, "
    "defense and attackers, by Student's t.",
    "Not that another model, other data or more auxiliary images would give the same.",
)


def _name(experiment: str, preset: str) -> str:
    name = f"{experiment}, {preset}" if preset else experiment
    return f"{name[0].upper()}{name[1:]}"


def _defended(summaries: Sequence[Summary]) -> list[Summary]:
    """Return the releases to choose from: not no defense, nor the label alone.

    Nor those of too few seeds, unless there are no others.
    """
    able = [
        summary
        for summary in summaries
        if summary.record["defense"] not in ("none", "label-only")
        and {"closed_gap", "l1_mean"} <= summary.values.keys()
    ]
    return [summary for summary in able if len(summary.seeds) >= SEEDS] or able


def _verdict(summaries: Sequence[Summary]) -> str:
    """Return which release hides most, and which hides enough at least change."""
    able = _defended(summaries)
    if not able:
        return (
            "There is no gap to close: clean scores tell these attackers no more than the label, "
            "or no defense was run."
        )
    best = max(able, key=lambda one: one.values["closed_gap"].mean)
    enough = [one for one in able if one.values["closed_gap"].mean >= HIDDEN]
    told = f"Of {_count(able)}, “{best.release}” hides most: {_at(best)}"
    if enough:
        least = min(enough, key=lambda one: one.values["l1_mean"].mean)
        if least is not best:
            told += (
                f"; “{least.release}” changes least of those that close {HIDDEN:g} or more: "
                f"{_at(least)}"
            )
    else:
        told += f"; none closes {HIDDEN:g} of the gap"
    worse = [one for one in able if _end(one.values["closed_gap"]) < 0]
    if worse:
        least = min(worse, key=lambda one: one.values["closed_gap"].mean)
        told += (
            f". More than clean scores did {'tells' if len(worse) == 1 else 'tell'} "
            f"{len(worse)} of them, “{least.release}” most: G = "
            f"{spread(least.values['closed_gap'], 2)}"
        )
    return f"{told}."


def _end(gap: Estimate) -> float:
    """Return the upper end of an interval; of one seed, the number itself."""
    return gap.mean + (gap.half_width or 0.0)


def _count(able: Sequence[Summary]) -> str:
    seeds = min(len(summary.seeds) for summary in able)
    of = f" with {SEEDS} seeds or more" if seeds >= SEEDS else ""
    return f"{len(able)} defense{'s' if len(able) > 1 else ''}{of}"


def _at(summary: Summary) -> str:
    gap, moved = summary.values["closed_gap"], summary.values["l1_mean"]
    return f"G = {spread(gap, 2)} of the gap at an L1 distance of {spread(moved, 4)}"


def _overview(groups: Mapping[tuple[str, str], Sequence[Summary]]) -> str:
    parts = []
    for (experiment, preset), summaries in groups.items():
        able = _defended(summaries)
        if able:
            best = max(able, key=lambda one: one.values["closed_gap"].mean)
            gap = spread(best.values["closed_gap"], 2)
            parts.append(f"{_name(experiment, preset)}: “{best.release}” (G = {gap})")
    return f"What hides most, by experiment: {'; '.join(parts)}." if parts else "No gap to close."


def _seed_notices(summaries: Sequence[Summary]) -> list[str]:
    """Say which rows are not to be quoted."""
    few: dict[int, list[str]] = {}
    for summary in summaries:
        if len(summary.seeds) < SEEDS:
            few.setdefault(len(summary.seeds), []).append(summary.release)
    everybody = len(summaries)
    return [
        seeds_notice(count)
        + ("" if len(names) == everybody else f" This is about: {'; '.join(names)}.")
        for count, names in few.items()
    ]


def _sections(
    prefix: str,
    summaries: Sequence[Summary],
    theirs: Published | None,
    pictures: Pictures | None,
) -> list[Section]:
    """Return the parts of one experiment."""
    planes = [
        chart
        for distortion in AXES
        for gap in GAPS
        if (chart := _plane(prefix, summaries, distortion, gap)) is not None
    ]
    seen = [] if pictures is None else [Section(f"{prefix}-seen", "What attackers see", [pictures])]
    few = len(summaries) <= FEW
    found = list[Section](seen if few else ())
    if planes:
        blocks: list[Block] = [
            Prose(
                (
                    "The frontier are the releases that no other beats in both: how much of the "
                    "gap they close, and how little they change. Up and to the left is better.",
                )
            ),
            *(() if few else (Key([summary.release for summary in summaries]),)),
            *planes,
            Bullets(frontier_lines(summaries)),
        ]
        found.append(Section(f"{prefix}-frontier", "What they hide, and what they change", blocks))
    found += [
        *(() if few else seen),
        Section(
            f"{prefix}-line", "Where the strongest attacker stands", [_line(prefix, summaries)]
        ),
        Section(
            f"{prefix}-table",
            "All releases",
            [Grid(summary_table(summaries, "Means, with 95 % intervals over seeds"))],
        ),
    ]
    words = [*map(_emphasis, verdict_lines(summaries)), *summary_remarks(summaries)[:-1]]
    found.append(Section(f"{prefix}-words", "In words", [Bullets(words)]))
    certificates = certificates_table(summaries)
    if certificates.rows:
        note = (
            "The least error of any attacker, estimated on calibration queries that fitted nothing."
        )
        found.append(
            Section(f"{prefix}-certified", "What is certified", [Grid(certificates, note)])
        )
    if theirs is not None:
        beside: list[Block] = [Bullets([remark.text for remark in theirs.remarks])]
        if theirs.rows:
            beside.insert(0, Grid(published_table(theirs, summaries)))
        found.append(Section(f"{prefix}-paper", "What the paper printed", beside))
    note = "Milliseconds depend on what else the machine did: compare them with those of none."
    found += [
        Section(f"{prefix}-costs", "What it costs", [Grid(costs_table(summaries), note)]),
        Section(f"{prefix}-how", "How it was measured", [Facts(_how(summaries))]),
    ]
    return found


def _emphasis(line: str) -> Markup:
    """Return a line of ours whose stars stand for emphasis; all else in it is text."""
    parser = MarkdownIt("zero").enable("emphasis")
    return Markup(parser.renderInline(line))  # noqa: S704  it escapes


def _line(prefix: str, summaries: Sequence[Summary]) -> Chart:
    first = summaries[0].values
    levels = [
        Level(told, first[f"baseline {name}"].mean)
        for name, told in (
            ("clean", "clean scores"),
            ("label", "the label alone"),
            ("prior", "the mean image"),
        )
    ]
    lowest = min(summary.values["adaptive_error"].mean for summary in summaries)
    places = []
    for summary in summaries:
        error = summary.values["adaptive_error"]
        places.append(
            Place(
                summary.release,
                error.mean,
                spread(error, 4),
                strongest=error.mean == lowest,
                low=None if error.half_width is None else error.mean - error.half_width,
                high=None if error.half_width is None else error.mean + error.half_width,
            )
        )
    columns: dict[str, Callable[[tuple[str, str]], str]] = {
        "baseline or release": lambda row: row[0],
        "error": lambda row: row[1],
    }
    rows = [(f"baseline: {one.told}", f"{one.value:.4f}") for one in levels]
    rows += [(one.told, one.text) for one in places]
    title = "Error of the strongest attacker on each release (left: more was read)"
    return line_chart(
        f"{prefix}-baselines",
        title,
        "A line of mean squared errors. The shaded band reaches from the best attack on clean "
        f"scores, {levels[0].value:.4f}, to the best given the label alone, "
        f"{levels[1].value:.4f}; {len(places)} releases lie on it, all listed below.",
        levels,
        places,
        numbers=Listing(title, columns, rows),
    )


def _plane(prefix: str, summaries: Sequence[Summary], distortion: str, gap: str) -> Chart | None:
    """Return gap against distortion; nothing where no release has both."""
    best = frontier(summaries, distortion, gap)
    points = {}
    for number, summary in enumerate(summaries, start=1):
        if {gap, distortion} <= summary.values.keys():
            up, on = summary.values[gap], summary in best
            half = up.half_width
            points[summary.release] = Point(
                summary.release,
                summary.values[distortion].mean,
                up.mean,
                low=None if half is None else up.mean - half,
                high=None if half is None else up.mean + half,
                on=on,
                label=summary.release if len(summaries) <= FEW else str(number),
                mark="disc" if on else "ring",
            )
    if len(points) < 2:
        return None
    columns: dict[str, Callable[[tuple[int, Summary]], str]] = {
        "release": lambda row: row[1].release,
        "number": lambda row: str(row[0]),
        AXES[distortion]: lambda row: spread(row[1].values.get(distortion), 4),
        GAPS[gap]: lambda row: spread(row[1].values.get(gap), 2),
        "on the frontier": lambda row: "yes" if row[1] in best else "no",
    }
    rows = [
        (number, summary)
        for number, summary in enumerate(summaries, start=1)
        if summary.release in points
    ]
    title = f"{GAPS[gap]} against {AXES[distortion]}"
    clipped = any(one.up < LOWEST for one in points.values())
    lowest = LOWEST if any(one.up < NEAR for one in points.values()) else NEAR
    return plane_chart(
        f"{prefix}-{distortion}-{gap}".replace("_", "-"),
        title,
        f"A plane: across, {AXES[distortion]}; up, {GAPS[gap]}. On the frontier: "
        + "; ".join(
            f"{one.release}, {one.values[gap].mean:.2f} at {one.values[distortion].mean:.3g}"
            for one in best
        )
        + ".",
        list(points.values()),
        across=AXES[distortion],
        up=f"closed gap {GAPS[gap]}",
        levels=(Level("1: no more than the label", 1.0), Level("0: as without a defense", 0.0)),
        lowest=lowest,
        linear_below=1e-3 if distortion == "l1_mean" else 1.0,
        steps=[points[one.release] for one in best],
        numbers=Listing(title, columns, rows),
        legend=(
            ("disc", "strong", "on the frontier"),
            ("ring", "plain", "another is better"),
            *((("below", "plain", f"below {LOWEST:g}, with its number"),) if clipped else ()),
        ),
    )


def _pictures(
    summaries: Sequence[Summary], gallery: Callable[[Record], Gallery | None]
) -> Pictures | None:
    """Return what attackers of the first seed made of the same queries, release by release."""
    found = [(one, images) for one in summaries if (images := gallery(one.record)) is not None]
    # Another seed asks other queries.
    seed = found[0][0].record["seed"] if found else 0
    found = [(one, images) for one, images in found if one.record["seed"] == seed]
    if not found:
        return None
    first, images = found[0]
    numbers = tuple(str(number) for number in range(1, len(images["truth"]) + 1))
    rows = [_row("As it was sent", "", images["truth"])]
    for summary, images in found:
        errors, strongest = summary.record["errors"], summary.record["strongest"]
        shown = ("static", strongest) if len(found) <= FEW else (strongest,)
        for attack in dict.fromkeys(shown):
            if attack in images:
                note = f"{attack}, error {errors[attack]:.4f}"
                rows.append(_row(summary.release, note, images[attack]))
    label = found[0][1].get("label-only")
    if label is not None:
        floor = first.record["baselines"]["label"]
        rows.append(_row("From the label alone", f"error {floor:.4f}", label))
    return Pictures(
        f"The same queries under each release, as attackers reconstruct them (seed {seed})",
        numbers,
        tuple(rows),
        (),
        shown_size(found[0][1]["truth"]),
    )


def _row(told: str, note: str, images: NDArray[np.generic]) -> PictureRow:
    said = f"{told}, {note}" if note else told
    return picture_row(
        told, note, images, [f"Query {place}: {said}" for place in range(1, len(images) + 1)]
    )


def _flags(summaries: Sequence[Summary]) -> dict[str, list[str]]:
    """Return what raised each flag, by its name."""
    raised: dict[str, list[str]] = {}
    for summary in summaries:
        for detail, count in summary.flags.items():
            name = flag_named(detail)
            if name is not None:
                of = f"{count} of {len(summary.seeds)} seeds"
                raised.setdefault(name, []).append(f"{summary.release}: {detail} ({of})")
    return raised


def _how(summaries: Sequence[Summary]) -> list[tuple[str, str]]:
    first = summaries[0].record
    spec, data = first["spec"], first["spec"]["data"]
    attackers = {name: None for summary in summaries for name in summary.record["errors"]}
    facts = [
        ("Command", command_of(first["experiment"], first["preset"])),
        (
            "Data",
            f"{data['private']:,} private, {data['auxiliary']:,} auxiliary images, "
            f"{data['test']:,} queries"
            + (f", scaled to {data['side']} x {data['side']}" if data.get("side") else ""),
        ),
        ("Attackers", "; ".join(f"{name}: {knows(name)}" for name in attackers)),
    ]
    for told, key in (("Input transforms", "input_transforms"), ("Decoder widths", "widths")):
        if spec["attackers"].get(key):
            facts.append((told, ", ".join(map(str, spec["attackers"][key]))))
    if spec["attackers"].get("training"):
        facts.append(("Epochs", f"at most {spec['attackers']['training']['epochs']}"))
    facts.append(("Seeds", seeds_of(summaries)))
    found = {
        name: None
        for summary in summaries
        for one in summary.environments
        for name in environment_facts(one)
    }
    return [*facts, *found]
