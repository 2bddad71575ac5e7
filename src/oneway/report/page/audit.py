"""The page of an audit: verdict, pictures, numbers, and how they were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.attacks import identification_attacks
from oneway.auditing import SEEDS, AuditRecord, InversionRecord
from oneway.report import audit, sentences, threats
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
    flag_texts,
)
from oneway.report.page.certificate import certificate_lines
from oneway.report.page.charts import Chart, Legend, Place, Point, reliability_chart
from oneway.report.page.comparisons import BASELINES, baselines_chart, gap_chart
from oneway.report.page.filing import filing_section
from oneway.report.page.groups import group_sections
from oneway.report.page.pictures import Gallery, Pictures, picture_row, shown_size
from oneway.report.table import Column, Listing


def audit_page(record: AuditRecord, pictures: Gallery | None = None) -> Page:
    """Return the page of an audit: verdicts first, what is filed, then threat by threat.

    Args:
        record: From ``audit.json``.
        pictures: From ``pictures.npz``, beside it; None: no images on the page.
    """
    judged, inversion = threats.overall(record), record.inversion
    raised = dict[str, list[str]]()
    for flag in () if inversion is None else inversion.flags:
        raised.setdefault(flag.name, []).append(flag.detail)
    sections = [Section("threats", "Threats", [_verdicts(record)])]
    sections += _parts(record, pictures)
    if len(record.threats) == 1:
        sections = sections[inversion is not None :]
    if raised:
        sections.append(Section("flags", "Flags and their meaning", flag_texts(raised)))
    if record.certificate is not None:
        lines = certificate_lines(record.certificate)
        sections.append(Section("certificate", "Certificate of the guard", [Bullets(lines)]))
    if inversion is not None:
        sections += [
            *_understood(inversion),
            Section("how", "How it was measured", [Facts(_how(inversion))]),
            Section("limits", "What may be claimed", [Bullets(sentences.audit_limits(inversion))]),
        ]
    return Page(
        kind="audit",
        title=_title(record),
        subtitle=_subtitle(record),
        tone=judged.tone,
        stamp=judged.stamp,
        verdict=judged.sentence,
        notices=_notices(record, pictures),
        sections=sections,
        flags=list(raised),
    )


def _notices(record: AuditRecord, pictures: Gallery | None) -> list[str]:
    """Return what a reader must know before using the verdict."""
    notices, inversion = [sentences.LABEL_LEAKS], record.inversion
    if inversion is not None:
        if len(inversion.seeds) < SEEDS:
            notices.append(sentences.seeds_notice(len(inversion.seeds)))
        if audit.is_stale(inversion):
            notices.append(sentences.STALE_AUDIT)
        if not inversion.controls:
            notices.append(sentences.NO_CONTROLS)
    if pictures:
        notices.append(sentences.CONFIDENTIAL)
    return notices


def _verdicts(record: AuditRecord) -> Figures:
    """Return a card for each threat: its gap, its verdict, and what labels alone leak."""
    items = []
    for threat, judged in threats.headlines(record).items():
        own, words = getattr(record, threat), threats.OF_THREAT[threat]
        gap = words.gap(own)
        sure = f" (95 %: {gap.interval()})" if gap.bounded else ""
        value = f"{threats.SYMBOLS[threat]} {gap.text()}"
        items.append(
            Figure(value, threat.capitalize(), f"{judged.stamp}{sure}. {words.floor(own)}.")
        )
    return Figures(items)


def _parts(record: AuditRecord, pictures: Gallery | None) -> list[Section]:
    """Return what is filed, and the sections of each threat: chapters if there are several."""
    filed, several = filing_section(record), len(record.threats) > 1
    sections = [filed] if several or record.inversion is None else []
    for threat in record.threats:
        own, words = getattr(record, threat), threats.OF_THREAT[threat]
        if threat == "inversion":
            parts = _inversion(own, pictures)
            parts[1:1] = [] if several else [filed]
        else:
            parts = [
                Section(f"{threat}-words", "In words", [Bullets(words.lines(own))]),
                Section(f"{threat}-attackers", "Attackers", [*map(Grid, words.tables(own))]),
            ]
        if several:
            sentence = Prose((words.headline(own).sentence,))
            sections.append(Section(threat, threat.capitalize(), [sentence], chapter=True))
            parts = [replace(part, level=3) for part in parts]
        sections += parts
    return sections


def _inversion(record: InversionRecord, pictures: Gallery | None) -> list[Section]:
    """Return the sections about what answers reveal of queries."""
    return [
        Section("numbers", "In numbers", [_figures(record)]),
        Section("reading", "How to read this", [Prose(sentences.READING)]),
        *_examples(record, pictures),
        *group_sections(record),
        Section("baselines", "Attackers between the baselines", [_baselines(record)]),
        *_frontier(record),
        Section("words", "In words", [Bullets(audit.verdict(record)[1:-1])]),
        Section(
            "attackers",
            "Attackers and reconstructions",
            [
                Grid(audit.attackers_table(record)),
                Grid(audit.privacy_table(record), PRIVACY_NOTE),
                *([Grid(audit.matching_table(record), MATCHING_NOTE)] if record.matching else []),
            ],
        ),
        Section("controls", "Controls of the attackers", _controls(record)),
        Section("users", "Utility and cost", _utility(record)),
    ]


CHANCE = (
    "Gains also vary by chance from training to training: the largest are above 0 even where only "
    "the label is released."
)

PRIVACY_NOTE = (
    "The lower an error, the better a query was reconstructed. Re-identified at rank 1: of all "
    "true inputs, the nearest to the reconstruction is the query itself. Gain beyond the label: "
    "the label-only attacker's error less this attacker's, on the same query. Queries with the "
    "lowest errors are often those that look like their class; queries with the largest gains are "
    f"those of which the scores reveal most. {CHANCE}"
)


MATCHING_NOTE = (
    "An attacker with a gallery that holds the query asks the service about each candidate, and "
    "compares the answers with the released scores. Of candidates that tie, one is named at "
    "random. Noisy copies: Gaussian noise of standard deviation 0.05 on every pixel or number."
)


def _title(record: AuditRecord) -> str:
    inversion = record.inversion
    if inversion is None:
        name = getattr(record, record.threats[0]).release
        return "Audit of a model without a defense" if name == "as it is" else f"Audit of {name}"
    if inversion.defense == "none":
        return "Audit of a model without a defense"
    if inversion.defense == "guarded endpoint":
        return "Audit of a guarded endpoint"
    options = ", ".join(f"{name} {value}" for name, value in inversion.options.items())
    return f"Audit of {inversion.release}" + (f" ({options})" if options else "")


def _subtitle(record: AuditRecord) -> str:
    """Return what was audited with which data, in words."""
    parts = []
    if record.inversion is not None:
        own = record.inversion
        parts.append(
            f"{own.queries:,} test queries ({_shape(own)}), {own.classes} classes; the attackers "
            f"had {own.auxiliary:,} examples of their own"
        )
    if record.membership is not None:
        rows = record.membership
        parts.append(f"{rows.members:,} members and {rows.non_members:,} non-members")
    if record.stealing is not None and record.inversion is None:
        parts.append(f"copies graded on {record.stealing.queries:,} queries")
    return "; ".join(parts) + "."


def _shape(record: InversionRecord) -> str:
    shape = record.shape
    if len(shape) != 3:
        return f"records of {shape[0]} numbers"
    color = {1: "gray ", 3: "color "}.get(shape[0], "")
    return f"{color}images of {shape[1]} x {shape[2]} pixels"


def _figures(record: InversionRecord) -> Figures:
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
        *_matched(record),
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


def _matched(record: InversionRecord) -> list[Figure]:
    """Return the share of queries that matching identifies; nothing in older records."""
    return [
        Figure(
            f"{100 * result.rank_1:.1f} %",
            f"Identified among {name}",
            f"by asking about each of {result.gallery}; {100 * result.clean_rank_1:.1f} % from "
            f"clean scores, {100 * result.label_rank_1:.1f} % from the label alone",
        )
        for name, result in list(record.matching.items())[:1]
    ]


def _gap_figure(label: str, gap: audit.Gap, note: str) -> Figure:
    if gap.failed:
        note = f"The trained attackers failed. {note}"
    return Figure(gap.text(), label, f"95 %: {gap.interval()}. {note}" if gap.interval() else note)


def _baselines(record: InversionRecord) -> Chart:
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


def _examples(record: InversionRecord, pictures: Gallery | None) -> list[Section]:
    """Return queries beside their reconstructions, and those that leak most beyond the label.

    Records from before gains were measured have other worst cases, which are left out.
    """
    examples = record.examples
    shown, worst = examples["shown"], examples["worst"]
    sections = []
    if pictures:
        first = {source: images[: len(shown)] for source, images in pictures.items()}
        title = "Some queries, and what attackers make of them"
        numbers = (
            "strongest attacker's error",
            "from the label alone",
            "gain beyond the label",
            "model's confidence",
        )
        strips = _strips(title, first, shown, numbers, record)
        sections.append(Section("seen", "What attackers see", [strips]))
    if any("gains" not in query for query in worst):
        return sections
    blocks: list[Block] = [Prose((_worst_sentence(len(worst), record.queries),))]
    title = "Queries of which the release reveals most beyond the label"
    if worst and pictures:
        last = {source: images[len(shown) :] for source, images in pictures.items()}
        gains = (
            "gain beyond the label",
            "gain from clean scores",
            "strongest attacker's error",
            "from the label alone",
            "model's confidence",
        )
        blocks.append(_strips(title, last, worst, gains, record))
    elif worst:
        blocks.append(Grid(Listing(title, QUERY, worst)))
    return [*sections, Section("worst", "The worst cases", blocks)]


def _worst_sentence(worst: int, queries: int) -> str:
    """Return what the worst cases are; ``worst`` is their number."""
    if not worst:
        return (
            "There is none: the strongest attacker of the first seed reconstructs no query better "
            "than the label-only attacker does."
        )
    return (
        f"An average hides the few queries that leak most. These are the {worst} of {queries:,} "
        "queries with the largest gain beyond the label: the label-only attacker's error less the "
        f"strongest attacker's, on the same query and the first seed. {CHANCE}"
    )


def _error_of(attacker: str) -> Column:
    return Column(lambda row: row["errors"][attacker], ".4f")


def _gain_of(attacker: str) -> Column:
    return Column(lambda row: row["gains"][attacker], ".4f")


QUERY = {
    "query": Column(itemgetter("query")),
    "gain beyond the label": _gain_of("strongest"),
    "gain from clean scores": _gain_of("clean"),
    "strongest attacker's error": _error_of("strongest"),
    "from clean scores": _error_of("clean"),
    "from the label alone": _error_of("label"),
    "model's confidence": Column(itemgetter("confidence"), ".3f"),
}
"""Columns of a table of queries."""


def _strips(
    title: str,
    images: Mapping[str, NDArray[np.generic]],
    queries: Sequence[Mapping[str, Any]],
    numbers: Sequence[str],
    record: InversionRecord,
) -> Pictures:
    """Return queries side by side; ``numbers`` are columns of ``QUERY`` that stand below them."""
    attackers = record.examples["attackers"]
    rows = [
        picture_row(
            label,
            note.format(attack=attackers.get(source, "")),
            images[source],
            [f"Query {query['query']}: {label[0].lower()}{label[1:]}" for query in queries],
        )
        for source, (label, note) in ROWS.items()
        if source in images
    ]
    return Pictures(
        f"{title} (numbers of {record.queries:,} test queries, from 0)",
        tuple(f"no. {query['query']}" for query in queries),
        tuple(rows),
        tuple(
            (f"{name[0].upper()}{name[1:]}", tuple(map(QUERY[name], queries))) for name in numbers
        ),
        shown_size(images["truth"]),
    )


def _frontier(record: InversionRecord) -> list[Section]:
    """Return the release on a plane; nothing without a defense, or without a claim about G."""
    moved = record.utility["l1_mean"]
    whole, tail = audit.closed_gap(record), audit.closed_gap_least_confident(record)
    if record.defense == "none" or whole.claimed is tail.claimed is None:
        return []
    points = [Point("undefended", 0.0, 0.0, label="undefended")]
    points += [
        Point(
            *(name, moved, gap.claimed, gap.low, gap.high),
            on=True,
            label=gap.text(),
            shape="at least" if gap.failed else shape,
            nudge=nudge,
            text=gap.text(),
        )
        for name, gap, shape, nudge in (
            ("this release", whole, "disc", -9),
            ("this release, least confident 5 % of queries", tail, "diamond", 9),
        )
        if gap.claimed is not None
    ]
    chart = gap_chart(
        "frontier-chart",
        "How much of the gap is closed, against how far probabilities move",
        points,
        ("mean L1 distance of probabilities", "closed gap G"),
        legend=[
            legend
            for legend in (
                Legend("disc", "strong", "all queries"),
                Legend("diamond", "strong", "the least confident 5 %"),
                Legend("ring", "plain", "no defense"),
            )
            if legend.shape in {point.shape for point in points}
        ],
        size=(440, 320),
        spare=0.25,
    )
    return [Section("frontier", "What it hides, and what it changes", [chart])]


def _controls(record: InversionRecord) -> list[Block]:
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


def _utility(record: InversionRecord) -> list[Block]:
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


def _understood(record: InversionRecord) -> list[Section]:
    """Return what was understood of model and data; nothing for a record that lacks it."""
    understanding = record.understanding
    if understanding is None:
        return []
    tables = [Grid(table) for table in audit.understanding_tables(understanding)]
    facts = Facts(audit.understanding_facts(understanding))
    return [Section("understood", "What was understood of model and data", [facts, *tables])]


def _identifying(record: InversionRecord) -> list[str]:
    return list(identification_attacks()) if record.matching else []


def _how(record: InversionRecord) -> list[tuple[str, str]]:
    plan = record.plan
    return [
        ("Data", f"{record.auxiliary:,} auxiliary rows, {record.queries:,} test queries"),
        sentences.attackers_fact([*record.errors, *_identifying(record)]),
        ("Input transforms", ", ".join(plan.input_transforms)),
        ("Decoder widths", ", ".join(map(str, plan.widths)) if plan.decoders else "no decoders"),
        ("Epochs", sentences.epochs_of(record) if plan.decoders else "no decoders"),
        ("Seeds", ", ".join(map(str, record.seeds))),
        ("Re-identified by", record.embedder),
        ("Left out for lack of time", "; ".join(plan.left_out) or "nothing"),
        ("Answers", "random" if record.random else "the same every time"),
        ("Run time", f"{record.seconds / 60:.1f} minutes"),
        *sentences.environment_facts(record.environment),
    ]
