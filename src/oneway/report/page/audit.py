"""The page of an audit: verdict, pictures, numbers, and how they were measured."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.audit import SEEDS, AuditRecord
from oneway.report import audit, sentences
from oneway.report.page.blocks import (
    Block,
    Bullets,
    Facts,
    Figure,
    Figures,
    Grid,
    Page,
    Prose,
    Section,
)
from oneway.report.page.charts import Chart, Legend, Place, Point, reliability_chart
from oneway.report.page.comparisons import BASELINES, baselines_chart, gap_chart
from oneway.report.page.flags import flag_texts
from oneway.report.page.pictures import Gallery, Pictures, picture_row, shown_size
from oneway.report.table import Column, Listing


def audit_page(record: AuditRecord, pictures: Gallery | None = None) -> Page:
    """Return the page of an audit.

    Args:
        record: From ``audit.json``.
        pictures: From ``pictures.npz``, beside it; None: no images on the page.
    """
    judged, raised = audit.headline(record), dict[str, list[str]]()
    for flag in record.flags:
        raised.setdefault(flag.name, []).append(flag.detail)
    notices = [sentences.LABEL_LEAKS]
    if len(record.seeds) < SEEDS:
        notices.append(sentences.seeds_notice(len(record.seeds)))
    if audit.is_stale(record):
        notices.append(sentences.STALE_AUDIT)
    if not record.controls:
        notices.append(sentences.NO_CONTROLS)
    if pictures:
        notices.append(sentences.CONFIDENTIAL)
    sections = [
        Section("numbers", "In numbers", [_figures(record), Prose(sentences.READING)]),
        *_examples(record, pictures),
        Section("baselines", "Attackers between the baselines", [_baselines(record)]),
        *_frontier(record),
        Section("words", "In words", [Bullets(audit.verdict(record)[1:-1])]),
        Section(
            "attackers",
            "Attackers and reconstructions",
            [Grid(audit.attackers_table(record)), Grid(audit.privacy_table(record), PRIVACY_NOTE)],
        ),
        Section("controls", "Controls of the attackers", _controls(record)),
        Section("users", "Utility and cost", _utility(record)),
    ]
    if raised:
        sections.append(Section("flags", "Flags and their meaning", flag_texts(raised)))
    sections += [
        *_understood(record),
        Section("how", "How it was measured", [Facts(_how(record))]),
        Section("limits", "What may be claimed", [Bullets(sentences.audit_limits(record))]),
    ]
    return Page(
        kind="audit",
        title=_title(record),
        subtitle=f"{record.queries:,} test queries ({_shape(record)}), {record.classes} "
        f"classes; the attackers had {record.auxiliary:,} examples of their own.",
        tone=judged.tone,
        stamp=judged.stamp,
        verdict=judged.sentence,
        notices=notices,
        sections=sections,
        flags=list(raised),
    )


PRIVACY_NOTE = (
    "The lower an error, the better a query was reconstructed. Re-identified at rank 1: of all "
    "true inputs, the nearest to the reconstruction is the query itself. Worst queries: those that "
    "were reconstructed best."
)


def _title(record: AuditRecord) -> str:
    if record.defense == "none":
        return "Audit of a model without a defense"
    if record.defense == "guarded endpoint":
        return "Audit of a guarded endpoint"
    options = ", ".join(f"{name} {value}" for name, value in record.options.items())
    return f"Audit of {record.release}" + (f" ({options})" if options else "")


def _shape(record: AuditRecord) -> str:
    shape = record.shape
    if len(shape) != 3:
        return f"records of {shape[0]} numbers"
    color = {1: "gray ", 3: "color "}.get(shape[0], "")
    return f"{color}images of {shape[1]} x {shape[2]} pixels"


def _figures(record: AuditRecord) -> Figures:
    utility, percent = record.utility, audit.reidentified(record)
    gallery, baselines = record.privacy["released"]["gallery"], record.baselines
    items = [
        _gap_figure(
            "Closed gap G",
            audit.closed_gap(record),
            "0: nothing is hidden. 1: no more is revealed than the label",
        ),
        _gap_figure(
            "G, least confident 5 %",
            audit.closed_gap_least_confident(record),
            f"The {record.least_confident_queries} queries that the model was least sure of",
        ),
        Figure(
            f"{percent['released']:.1f} %",
            "Queries re-identified",
            f"among {gallery}; {percent['clean']:.1f} % from clean scores, "
            f"{percent['label']:.1f} % from the label alone",
        ),
        Figure(
            f"{record.adaptive_error:.4f}",
            "Strongest attacker's error",
            f"{', '.join(sorted(set(record.strongest)))}; clean {baselines.clean:.4f}, label "
            f"alone {baselines.label:.4f}",
        ),
        Figure(
            f"{utility['l1_mean']:.4f}",
            "Probabilities moved",
            f"L1 distance, from 0 to 2; at most {utility['l1_max']:.4f}",
        ),
        Figure(str(record.label_changes), "Labels changed", f"of {record.queries:,}"),
    ]
    before, after = utility["clean"]["top_1"], utility["released"]["top_1"]
    if after is not None:
        items.append(Figure(f"{100 * after:.2f} %", "Accuracy", f"undefended {100 * before:.2f} %"))
    cost, bare = (utility["cost"][kind]["p50_milliseconds"] for kind in ("guarded", "bare"))
    if cost is not None:
        note = "" if bare is None else f"undefended {bare:.2f} ms"
        items.append(Figure(f"{cost:.2f} ms", "One answer, median", note))
    return Figures(items)


def _gap_figure(label: str, gap: audit.Gap, note: str) -> Figure:
    value = "none" if gap.value is None else f"{gap.value:.2f}"
    return Figure(value, label, f"95 %: {gap.interval()}. {note}" if gap.interval() else note)


def _baselines(record: AuditRecord) -> Chart:
    strongest = set(record.strongest)
    places = [
        Place(
            f"{name}, the strongest" if name in strongest else name,
            error,
            f"{error:.4f}",
            name in strongest,
        )
        for name, error in sorted(record.errors.items(), key=itemgetter(1))
    ]
    return baselines_chart(
        "baselines-chart",
        "Error of each attacker on the release (further left: more was read)",
        [getattr(record.baselines, name) for name in BASELINES],
        places,
        "attacker",
    )


ROWS = {
    "truth": ("As it was sent", ""),
    "clean": ("From clean scores", "before any defense, {attack}"),
    "static": ("Static attacker", "trained before the defense was there"),
    "strongest": ("Strongest attacker", "{attack}"),
    "label": ("From the label alone", "whatever the scores"),
}
"""Rows of pictures, with a note about each attacker."""


def _examples(record: AuditRecord, pictures: Gallery | None) -> list[Section]:
    """Return queries beside their reconstructions, and the queries that were read best."""
    examples = record.examples
    shown, worst = examples["shown"], examples["worst"]
    sections = []
    if pictures:
        first = {source: images[: len(shown)] for source, images in pictures.items()}
        title = "Some queries, and what attackers make of them"
        strips = _strips(title, first, shown, examples["attackers"], record.queries)
        sections.append(Section("seen", "What attackers see", [strips]))
    title = "Queries that the strongest attacker reconstructs best"
    blocks: list[Block] = [
        Prose(
            (
                "An average hides the few queries that are recognized. These are the "
                f"{len(worst)} of {record.queries:,} queries that the strongest attacker of the "
                "first seed reconstructs best, and how sure the model was of each.",
            )
        )
    ]
    if pictures:
        last = {source: images[len(shown) :] for source, images in pictures.items()}
        blocks.append(_strips(title, last, worst, examples["attackers"], record.queries))
    else:
        blocks.append(Grid(Listing(title, WORST, worst)))
    return [*sections, Section("worst", "The worst cases", blocks)]


def _error_of(attacker: str) -> Column:
    return Column(lambda row: row["errors"][attacker], ".4f")


WORST = {
    "query": Column(itemgetter("query")),
    "strongest attacker's error": _error_of("strongest"),
    "from clean scores": _error_of("clean"),
    "from the label alone": _error_of("label"),
    "confidence": Column(itemgetter("confidence"), ".3f"),
}


def _strips(
    title: str,
    images: Mapping[str, NDArray[np.generic]],
    queries: Sequence[Mapping[str, Any]],
    attackers: Mapping[str, str],
    total: int,
) -> Pictures:
    rows = [
        picture_row(
            label,
            note.format(attack=attackers.get(source, "")),
            images[source],
            [f"Query {query['query']}: {label[0].lower()}{label[1:]}" for query in queries],
        )
        for source, (label, note) in ROWS.items()
    ]
    shown: dict[str, Callable[[Any], str]] = {
        "Strongest attacker's error": WORST["strongest attacker's error"],
        "Model's confidence": WORST["confidence"],
    }
    return Pictures(
        f"{title} (numbers of {total:,} test queries, from 0)",
        tuple(f"no. {query['query']}" for query in queries),
        tuple(rows),
        tuple((label, tuple(map(show, queries))) for label, show in shown.items()),
        shown_size(images["truth"]),
    )


def _frontier(record: AuditRecord) -> list[Section]:
    """Return the release on a plane; nothing for a model without a defense."""
    if record.defense == "none":
        return []
    moved = record.utility["l1_mean"]
    whole, tail = audit.closed_gap(record), audit.closed_gap_least_confident(record)
    points = [Point("undefended", 0.0, 0.0, label="undefended")]
    points += [
        Point(
            *(name, moved, gap.value, gap.low, gap.high),
            on=True,
            label=f"{gap.value:.2f}",
            shape=shape,
            nudge=nudge,
        )
        for name, gap, shape, nudge in (
            ("this release", whole, "disc", -9),
            ("this release, least confident 5 % of queries", tail, "diamond", 9),
        )
        if gap.value is not None
    ]
    chart = gap_chart(
        "frontier-chart",
        "How much of the gap is closed, against how far probabilities move",
        points,
        ("mean L1 distance of probabilities", "closed gap G"),
        legend=(
            Legend("disc", "strong", "all queries"),
            Legend("diamond", "strong", "the least confident 5 %"),
            Legend("ring", "plain", "no defense"),
        ),
        size=(440, 320),
        spare=0.25,
    )
    return [Section("frontier", "What it hides, and what it changes", [chart])]


def _controls(record: AuditRecord) -> list[Block]:
    if not record.controls:
        return [Prose((sentences.NO_CONTROLS,))]
    return [
        Prose(
            (
                "The same attackers also attacked releases whose leak is known. If they miss a "
                "leak that is there, or see a leak where there is none, the audit is void.",
            )
        ),
        Grid(audit.controls_table(record)),
    ]


def _utility(record: AuditRecord) -> list[Block]:
    reliability = record.utility.get("reliability") or {}
    blocks: list[Block] = [
        Grid(audit.utility_table(record)),
        Prose((audit.distortion_line(record),)),
    ]
    if not reliability.get("clean") or not reliability.get("released"):
        return blocks
    series = [
        (Legend("ring", "plain", "clean scores"), reliability["clean"]),
        (Legend("disc", "strong", "the release"), reliability["released"]),
    ]
    columns = {
        "scores": Column(itemgetter(0)),
        "queries": Column(lambda row: row[1]["count"]),
        "how sure": Column(lambda row: row[1]["confidence"], ".3f"),
        "how often right": Column(lambda row: row[1]["accuracy"], ".3f"),
    }
    title = "Do probabilities mean what they say? On the dashed line they do"
    errors = [
        record.utility[scores]["expected_calibration_error"] for scores in ("clean", "released")
    ]
    rows = [(legend.label, bin_) for legend, bins in series for bin_ in bins]
    chart = reliability_chart(
        "reliability-chart",
        title,
        "A square: across, how sure answers say they are; up, how often they are right, in 15 "
        f"bins. Expected calibration error: clean {errors[0]:.4f}, released {errors[1]:.4f}.",
        [
            (legend, [(bin_["confidence"], bin_["accuracy"]) for bin_ in bins])
            for legend, bins in series
        ],
        numbers=Listing(title, columns, rows),
    )
    return [*blocks, chart]


def _understood(record: AuditRecord) -> list[Section]:
    """Return what was understood of model and data; nothing for a record that lacks it."""
    understanding = record.understanding
    if understanding is None:
        return []
    tables = [Grid(table) for table in audit.understanding_tables(understanding)]
    facts = Facts(audit.understanding_facts(understanding))
    return [Section("understood", "What was understood of model and data", [facts, *tables])]


def _how(record: AuditRecord) -> list[tuple[str, str]]:
    plan = record.plan
    twice = "gained nothing" if record.plateau_shown else "were not seen to gain nothing"
    return [
        *([("Command", record.command)] if record.command else []),
        ("Data", f"{record.auxiliary:,} auxiliary rows, {record.queries:,} test queries"),
        sentences.attackers_fact(list(record.errors)),
        ("Input transforms", ", ".join(plan.input_transforms)),
        ("Decoder widths", ", ".join(map(str, plan.widths))),
        ("Epochs", f"{record.epochs}; twice as many {twice}"),
        ("Seeds", ", ".join(map(str, record.seeds))),
        ("Left out for lack of time", "; ".join(plan.left_out) or "nothing"),
        ("Answers", "random" if record.random else "the same every time"),
        ("Run time", f"{record.seconds / 60:.1f} minutes"),
        *sentences.provenance_facts(record.provenance),
        *sentences.environment_facts(record.environment),
    ]
