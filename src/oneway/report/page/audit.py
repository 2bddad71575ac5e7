"""The page of an audit: the verdict first, then pictures, numbers, and what they rest on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneway.audit import SEEDS
from oneway.report.audit import (
    NO_CONTROLS,
    attackers_table,
    between,
    controls_table,
    distortion_line,
    judgement,
    privacy_table,
    utility_table,
    verdict,
)
from oneway.report.frontier import LOWEST
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
from oneway.report.page.charts import (
    NEAR,
    Chart,
    Level,
    Place,
    Point,
    line_chart,
    plane_chart,
    reliability_chart,
)
from oneway.report.page.flags import flag_texts
from oneway.report.page.pictures import Gallery, Pictures, picture_row, shown_size
from oneway.report.page.words import (
    CONFIDENTIAL,
    GAP_WORDS,
    environment_facts,
    limits,
    seeds_notice,
)
from oneway.report.table import LABEL_LEAKS, Listing, knows

Record = Mapping[str, Any]


def audit_page(record: Record, pictures: Gallery | None = None) -> Page:
    """Return the page of an audit.

    Args:
        record: From ``audit.json``.
        pictures: From ``pictures.npz``, beside it; None: no images on the page.
    """
    found = judgement(record)
    raised: dict[str, list[str]] = {}
    for flag in record["flags"]:
        raised.setdefault(flag["name"], []).append(flag["detail"])
    notices = [LABEL_LEAKS]
    if len(record["seeds"]) < SEEDS:
        notices.append(seeds_notice(len(record["seeds"])))
    if not record["controls"]:
        notices.append(NO_CONTROLS)
    if pictures:
        notices.append(CONFIDENTIAL)
    words = verdict(record)[1:-1]
    sections = [
        Section("numbers", "In numbers", [_figures(record), Prose(GAP_WORDS)]),
        *_examples(record, pictures),
        Section("baselines", "Where the attackers stand", [_baselines(record)]),
        *_frontier(record),
        Section("words", "In words", [Bullets(words)]),
        Section(
            "attackers",
            "Who attacked, and what was reconstructed",
            [Grid(attackers_table(record)), Grid(privacy_table(record), PRIVACY_NOTE)],
        ),
        Section("controls", "What vouches for the attackers", _controls(record)),
        Section("users", "Utility and cost", _utility(record)),
    ]
    if raised:
        sections.append(Section("flags", "Flags, and what they mean", flag_texts(raised)))
    sections += [
        Section("how", "How it was measured", [Facts(_how(record))]),
        Section("limits", "What may be claimed", [Bullets(limits(record))]),
    ]
    return Page(
        kind="audit",
        title=_title(record),
        subtitle=_subtitle(record),
        tone=found.tone,
        stamp=found.stamp,
        verdict=found.sentence,
        notices=notices,
        sections=sections,
        flags=list(raised),
    )


PRIVACY_NOTE = (
    "The lower an error, the better a query was reconstructed. Re-identified at rank 1: among the "
    "true inputs of a gallery, the one most like the reconstruction is its own. Worst queries: "
    "those that were reconstructed best."
)


def _title(record: Record) -> str:
    if record["defense"] == "none":
        return "Audit of a model without a defense"
    if record["defense"] == "guarded endpoint":
        return "Audit of a guarded endpoint"
    options = ", ".join(f"{name} {value}" for name, value in record["options"].items())
    return f"Audit of {record['release']}" + (f" ({options})" if options else "")


def _subtitle(record: Record) -> str:
    return (
        f"{record['queries']:,} test queries ({_shape(record)}), {record['classes']} classes; the "
        f"attackers had {record['auxiliary']:,} of their own."
    )


def _shape(record: Record) -> str:
    shape = record["shape"]
    if len(shape) != 3:
        return f"records of {shape[0]} numbers"
    color = {1: "gray ", 3: "color "}.get(shape[0], "")
    return f"{color}images of {shape[1]} x {shape[2]} pixels"


def _figures(record: Record) -> Figures:
    useful, privacy = record["utility"], record["privacy"]
    items = []
    for name, told, more in (
        ("closed_gap", "Closed gap G", "0: nothing is hidden; 1: no more is told than the label"),
        (
            "closed_gap_least_confident",
            "G, least confident 5 %",
            f"{record['least_confident_queries']} queries of which the model was least sure",
        ),
    ):
        gap, interval = record[name], record[f"{name}_interval"]
        value = "none" if gap is None else f"{gap:.2f}"
        note = more if interval is None else f"95 %: {between(interval)}. {more}"
        items.append(Figure(value, told, note))
    shares = {who: 100 * one["reidentified_rank_1"] for who, one in privacy.items()}
    items += [
        Figure(
            f"{shares['released']:.1f} %",
            "Queries re-identified",
            f"among {privacy['released']['gallery']}; {shares['clean']:.1f} % from clean scores, "
            f"{shares['label']:.1f} % from the label alone",
        ),
        Figure(
            f"{record['adaptive_error']:.4f}",
            "Strongest attacker's error",
            f"{', '.join(sorted(set(record['strongest'])))}; clean "
            f"{record['baselines']['clean']:.4f}, label alone {record['baselines']['label']:.4f}",
        ),
        Figure(
            f"{useful['l1_mean']:.4f}",
            "Probabilities moved",
            f"L1 distance, from 0 to 2; at most {useful['l1_max']:.4f}",
        ),
        Figure(
            str(record["label_changes"]),
            "Labels changed",
            f"of {record['queries']:,}",
        ),
    ]
    before, after = useful["clean"]["top_1"], useful["released"]["top_1"]
    if after is not None:
        items.append(Figure(f"{100 * after:.2f} %", "Accuracy", f"undefended {100 * before:.2f} %"))
    cost = useful["cost"]["guarded"]["p50_milliseconds"]
    if cost is not None:
        bare = useful["cost"]["bare"]["p50_milliseconds"]
        told = "" if bare is None else f"undefended {bare:.2f} ms"
        items.append(Figure(f"{cost:.2f} ms", "One answer, median", told))
    return Figures(items)


def _baselines(record: Record) -> Chart:
    baselines, strongest = record["baselines"], set(record["strongest"])
    levels = [
        Level("clean scores", baselines["clean"]),
        Level("the label alone", baselines["label"]),
        Level("the mean of all", baselines["prior"]),
    ]
    places = [
        Place(
            f"{name}, the strongest" if name in strongest else name,
            error,
            f"{error:.4f}",
            name in strongest,
        )
        for name, error in sorted(record["errors"].items(), key=lambda pair: pair[1])
    ]
    columns: dict[str, Callable[[tuple[str, float]], str]] = {
        "baseline or attacker": lambda row: row[0],
        "error": lambda row: f"{row[1]:.4f}",
    }
    rows = [(f"baseline: {one.told}", one.value) for one in levels]
    rows += [(f"attacker: {one.told}", one.value) for one in places]
    title = "Error of each attacker on the release, between the baselines (left: more was read)"
    return line_chart(
        "baselines-chart",
        title,
        "A line of mean squared errors. The shaded band reaches from the best attack on clean "
        f"scores, {baselines['clean']:.4f}, to the best given the label alone, "
        f"{baselines['label']:.4f}. Attackers on the release: "
        + "; ".join(f"{one.told} {one.text}" for one in places)
        + ".",
        levels,
        places,
        numbers=Listing(title, columns, rows),
    )


SEEN = {
    "truth": ("As it was sent", ""),
    "clean": ("From clean scores", "before any defense, {attack}"),
    "static": ("Static attacker", "trained before the defense was there"),
    "strongest": ("Strongest attacker", "{attack}"),
    "label": ("From the label alone", "whatever the scores"),
}
"""Rows of pictures, and what is known of who sees them."""


def _examples(record: Record, pictures: Gallery | None) -> list[Section]:
    """Return queries side by side with what became of them, and those that were read best."""
    examples = record.get("examples")
    if not examples:
        return []
    shown, worst = examples["shown"], examples["worst"]
    sections = []
    if pictures:
        first = {who: images[: len(shown)] for who, images in pictures.items()}
        title = "Some queries, and what attackers make of them"
        sections.append(
            Section(
                "seen",
                "What attackers see",
                [_strips(title, first, shown, examples["attackers"], record["queries"])],
            )
        )
    title = "Queries that the strongest attacker reconstructs best"
    blocks: list[Block] = [
        Prose(
            (
                "A mean hides those few who are recognized. These are the "
                f"{len(worst)} of {record['queries']:,} queries that the strongest attacker of the "
                "first seed reconstructs best, and how sure the model was of each.",
            )
        )
    ]
    if pictures:
        last = {who: images[len(shown) :] for who, images in pictures.items()}
        blocks.append(_strips(title, last, worst, examples["attackers"], record["queries"]))
    else:
        blocks.append(Grid(Listing(title, WORST, worst)))
    return [*sections, Section("worst", "The worst cases", blocks)]


WORST: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "query": lambda row: f"{row['query']}",
    "strongest attacker's error": lambda row: f"{row['errors']['strongest']:.4f}",
    "from clean scores": lambda row: f"{row['errors']['clean']:.4f}",
    "from the label alone": lambda row: f"{row['errors']['label']:.4f}",
    "confidence": lambda row: f"{row['confidence']:.3f}",
}


def _strips(
    title: str,
    images: Mapping[str, NDArray[np.generic]],
    facts: Sequence[Mapping[str, Any]],
    attackers: Mapping[str, str],
    queries: int,
) -> Pictures:
    rows = [
        picture_row(
            told,
            note.format(attack=attackers.get(who, "")),
            images[who],
            [f"Query {one['query']}: {told[0].lower()}{told[1:]}" for one in facts],
        )
        for who, (told, note) in SEEN.items()
    ]
    numbers = (
        ("Strongest attacker's error", tuple(f"{one['errors']['strongest']:.4f}" for one in facts)),
        ("Model's confidence", tuple(f"{one['confidence']:.3f}" for one in facts)),
    )
    heads = tuple(f"no. {one['query']}" for one in facts)
    return Pictures(
        f"{title} (numbers of {queries:,} test queries, from 0)",
        heads,
        tuple(rows),
        numbers,
        shown_size(images["truth"]),
    )


def _frontier(record: Record) -> list[Section]:
    """Return the release on a plane; nothing where there is no defense, which changes nothing."""
    if record["defense"] == "none":
        return []
    moved = record["utility"]["l1_mean"]
    points = [Point("undefended", 0.0, 0.0, label="undefended")]
    for name, told, mark, nudge in (
        ("closed_gap", "this release", "disc", -9),
        (
            "closed_gap_least_confident",
            "this release, least confident 5 % of queries",
            "diamond",
            9,
        ),
    ):
        gap, interval = record[name], record[f"{name}_interval"]
        if gap is None:
            continue
        ends = {} if interval is None else {"low": interval["low"], "high": interval["high"]}
        bounded = {end: value for end, value in ends.items() if not isinstance(value, str)}
        points.append(
            Point(told, moved, gap, **bounded, on=True, label=f"{gap:.2f}", mark=mark, nudge=nudge)
        )
    columns: dict[str, Callable[[Point], str]] = {
        "what": lambda point: point.told,
        "L1 of probabilities": lambda point: f"{point.across:.4f}",
        "G": lambda point: f"{point.up:.2f}",
        "95 % from": lambda point: "-" if point.low is None else f"{point.low:.2f}",
        "to": lambda point: "-" if point.high is None else f"{point.high:.2f}",
    }
    title = "How much of the gap is closed, against how far probabilities move"
    chart = plane_chart(
        "frontier-chart",
        title,
        f"A plane: across, the L1 distance of probabilities, here {moved:.4f}; up, the closed gap. "
        + "; ".join(f"{one.told} {one.up:.2f}" for one in points)
        + ". Up and to the left is better.",
        points,
        across="mean L1 distance of probabilities",
        up="closed gap G",
        levels=(
            Level("1: no more than the label", 1.0),
            Level("0: as much as without a defense", 0.0),
        ),
        lowest=LOWEST if any(one.up < NEAR for one in points) else NEAR,
        size=(440, 320),
        spare=0.25,
        numbers=Listing(title, columns, points),
        legend=(
            ("disc", "strong", "all queries"),
            ("diamond", "strong", "the least confident 5 %"),
            ("ring", "plain", "no defense"),
        ),
    )
    return [Section("frontier", "What it hides, and what it changes", [chart])]


def _controls(record: Record) -> list[Block]:
    if not record["controls"]:
        return [Prose((NO_CONTROLS,))]
    return [
        Prose(
            (
                "The same attackers were let loose on releases whose leak is known. If they miss a "
                "leak that is there, or see one where there is none, the audit is void.",
            )
        ),
        Grid(
            controls_table(record),
            "Measured is G, or, of planted-leak, the share of the label-only error that is gone.",
        ),
    ]


def _utility(record: Record) -> list[Block]:
    reliability = record["utility"].get("reliability") or {}
    clean, released = reliability.get("clean"), reliability.get("released")
    blocks: list[Block] = [Grid(utility_table(record)), Prose((distortion_line(record),))]
    if not clean or not released:
        return blocks
    columns: dict[str, Callable[[tuple[str, Mapping[str, Any]]], str]] = {
        "scores": lambda row: row[0],
        "queries": lambda row: str(row[1]["count"]),
        "how sure": lambda row: f"{row[1]['confidence']:.3f}",
        "how often right": lambda row: f"{row[1]['accuracy']:.3f}",
    }
    both = (("clean scores", "ring", clean), ("the release", "disc", released))
    title = "Do probabilities mean what they say? On the dashed line they do"
    errors = [record["utility"][who]["expected_calibration_error"] for who in ("clean", "released")]
    blocks.append(
        reliability_chart(
            "reliability-chart",
            title,
            "A square: across, how sure answers say they are; up, how often they are right, in 15 "
            "bins. Expected calibration error: clean "
            f"{errors[0]:.4f}, released {errors[1]:.4f}.",
            [
                (told, mark, [(one["confidence"], one["accuracy"]) for one in bins])
                for told, mark, bins in both
            ],
            numbers=Listing(
                title, columns, [(told, one) for told, _, bins in both for one in bins]
            ),
        )
    )
    return blocks


def _how(record: Record) -> list[tuple[str, str]]:
    plan = record["plan"]
    facts = []
    if record.get("command"):
        facts.append(("Command", record["command"]))
    facts += [
        ("Data", f"{record['auxiliary']:,} auxiliary rows, {record['queries']:,} test queries"),
        ("Attackers", "; ".join(f"{name}: {knows(name)}" for name in record["errors"])),
        ("Input transforms", ", ".join(plan["input_transforms"])),
        ("Decoder widths", ", ".join(map(str, plan["widths"]))),
        (
            "Epochs",
            f"{record['epochs']}; twice as many "
            + ("gained nothing" if record["plateau_shown"] else "were not seen to gain nothing"),
        ),
        ("Seeds", ", ".join(map(str, record["seeds"]))),
        ("Left out for lack of time", "; ".join(plan["left_out"]) or "nothing"),
        ("Answers", "random" if record["random"] else "the same every time"),
        ("Took", f"{record['seconds'] / 60:.1f} minutes"),
    ]
    return facts + environment_facts(record["environment"])
