"""An audit in words and tables: the verdict first, then what it rests on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oneway.audit.controls import BROKEN_BELOW, HOLDS_ABOVE, READ_ABOVE
from oneway.report.table import LABEL_LEAKS, Listing, knows

Record = Mapping[str, Any]

PAGES = "docs/flags"
"""Where every flag has a page."""


NO_CONTROLS = "No controls were run: nothing vouches for these attackers."


def verdict(record: Record) -> list[str]:
    """Say what an audit found, in sentences; the first is the verdict."""
    lines = [judgement(record).sentence]
    baselines = record["baselines"]
    lines.append(
        f"Baselines (mean squared error): best attack on clean scores {baselines['clean']:.4f}, "
        f"given the label alone {baselines['label']:.4f}, mean of all {baselines['prior']:.4f}. "
        f"Strongest attack on the release: {record['adaptive_error']:.4f} "
        f"({', '.join(sorted(set(record['strongest'])))})."
    )
    lines.append(_people(record))
    if not record["controls"]:
        lines.append(NO_CONTROLS)
    elif not record["void"]:
        lines.append(_controls(record))
    left_out = record["plan"]["left_out"]
    if left_out:
        lines.append(f"Left out for lack of time: {'; '.join(left_out)}.")
    seeds = len(record["seeds"])
    trained = (
        "until twice the epochs gained nothing" if record["plateau_shown"] else "not to the end"
    )
    lines.append(
        f"Decoders were trained on up to {record['auxiliary']} queried examples, for "
        f"{record['epochs']} epochs ({trained}), {seeds} seed{'s' if seeds > 1 else ''}; "
        f"{record['queries']} test queries. They reconstruct no better than this; a stronger "
        "attacker may exist."
    )
    if record["stopped"]:
        missing = record["plan"]["seeds"] - len(record["seeds"])
        lines.append(f"Not measured: {missing} more of the seeds ({record['stopped']}).")
    failed = record["utility"]["cost"]["failed"]
    if failed:
        lines.append(f"Not measured: what answers cost the server ({failed}).")
    lines.append(LABEL_LEAKS)
    return lines


@dataclass(frozen=True)
class Judgement:
    """What an audit comes to.

    Attributes:
        tone: ``void``, ``bad``, ``mixed`` or ``good``.
        stamp: In a few words.
        sentence: In a sentence, with the number.
    """

    tone: str
    stamp: str
    sentence: str


def judgement(record: Record) -> Judgement:
    """Return the verdict of an audit."""
    if record["void"]:
        failed = [name for name, one in record["controls"].items() if one["passed"] is False]
        return Judgement(
            "void",
            "VOID: believe nothing below",
            f"VOID: these attackers misjudged {', '.join(failed)}, whose leak is known. Nothing "
            "below says anything about the release.",
        )
    gap, interval = record["closed_gap"], record["closed_gap_interval"]
    if record["defense"] == "none":
        return _undefended(record)
    if gap is None:
        return Judgement(
            "mixed",
            "No gap to close",
            "There is no gap to close: clean scores tell these attackers no more than the label. "
            "Either nothing leaks, or the attackers are too weak to see it.",
        )
    if interval is not None and not _ends(interval):
        return Judgement(
            "mixed",
            "These queries do not tell",
            "These queries do not tell: clean scores give these attackers hardly more than the "
            "label does, so that G may be anything. Ask more queries, or give more time.",
        )
    sure = "" if interval is None else f" (95 % of resampled queries: {between(interval)})"
    told = f"The release closes G = {gap:.2f} of the gap{sure}{_tail(record)}"
    tail = record["closed_gap_least_confident"]
    if gap < 0:
        told += ": whoever retrains learns more than from clean scores."
        return Judgement("bad", "It leaks more than no defense", told)
    if gap < 0.5:
        told += ": most of what clean scores tell still leaks."
        return Judgement("bad", "Most of it still leaks", told)
    if gap < 0.9:
        told += ": part of what clean scores tell still leaks."
        return Judgement("mixed", "Part of it still leaks", told)
    if tail is not None and tail < 0.9:
        ends = _ends(record["closed_gap_least_confident_interval"])
        certain = ends and record["closed_gap_least_confident_interval"]["high"] < 0.9
        more = "does" if certain else "may"
        told += f": on average little leaks, but of the least confident queries more {more}."
        return Judgement("mixed", "Little leaks, but not of every query", told)
    told += ": next to nothing leaks beyond the label, to these attackers."
    return Judgement("good", "Next to nothing leaks, to these attackers", told)


def _undefended(record: Record) -> Judgement:
    gained = 1 - record["adaptive_error"] / record["baselines"]["label"]
    if gained > 0:
        return Judgement(
            "bad",
            "No defense: the scores leak",
            f"Undefended, the scores take {100 * gained:.0f} % off the error that the label alone "
            "leaves: that much of a query leaks besides its label.",
        )
    return Judgement(
        "mixed",
        "No defense, and no leak seen",
        "Undefended, the scores tell these attackers no more than the label does.",
    )


def _tail(record: Record) -> str:
    """Say how it is for the least confident queries, and on how many that rests."""
    tail, interval = (
        record["closed_gap_least_confident"],
        record["closed_gap_least_confident_interval"],
    )
    if tail is None:
        return ""
    queries = f"the least confident 5 % of queries ({record['least_confident_queries']})"
    if not _ends(interval):
        return f"; {queries} do not tell it for themselves"
    return f", and {tail:.2f} ({between(interval)}) for {queries}"


def _ends(interval: Mapping[str, Any]) -> bool:
    """Say whether an interval ends: an infinite end is a text."""
    return not any(isinstance(end, str) for end in interval.values())


def between(interval: Mapping[str, Any]) -> str:
    """Return an interval in words."""
    ends = (interval["low"], interval["high"])
    low, high = (end if isinstance(end, str) else f"{end:.2f}" for end in ends)
    return f"{low} to {high}"


def _people(record: Record) -> str:
    """Say how often a reconstruction finds its own true input."""
    privacy = record["privacy"]
    gallery = privacy["released"]["gallery"]
    shares = {who: 100 * one["reidentified_rank_1"] for who, one in privacy.items()}
    return (
        f"Among {gallery} true inputs, a reconstruction's nearest is its own for "
        f"{shares['released']:.1f} % of queries, as {privacy['released']['reidentified_by']} "
        f"makes them, who does best at this ({shares['clean']:.1f} % from clean scores, "
        f"{shares['label']:.1f} % from the label alone, {100 / gallery:.1f} % by chance)."
    )


def _controls(record: Record) -> str:
    passed = [name for name, one in record["controls"].items() if one["passed"]]
    unclear = [name for name, one in record["controls"].items() if one["passed"] is None]
    told = f"Controls as they must be: {', '.join(passed)}." if passed else ""
    if unclear:
        names = ", ".join(unclear)
        told += f" Not to be told, since what they tell is no more than the label: {names}."
    return told.strip()


def flag_lines(record: Record) -> list[str]:
    """Return one line per raised flag, with where to read on."""
    return [
        f"flag {flag['name']}: {flag['detail']} [{PAGES}/{flag['name']}.md]"
        for flag in record["flags"]
    ]


ATTACK_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "attacker": lambda row: str(row["name"]),
    "error": lambda row: f"{row['error']:.4f}",
    "re-identified": lambda row: f"{row['rank_1']:.4f}",
    "what it knows": lambda row: knows(str(row["name"])),
}


def attackers_table(record: Record) -> Listing:
    """Return each attacker's error on the release, mean over seeds; and rank 1 of the first."""
    rows = [
        {"name": name, "error": error, **record["reidentified"][name]}
        for name, error in record["errors"].items()
    ]
    return Listing("Attackers on the release", ATTACK_COLUMNS, rows)


def _cell(value: Any, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


PRIVACY = {
    "error": "error per entry",
    "error_worst_5_percent": "error, worst 5 % of queries",
    "error_worst_1_percent": "error, worst 1 % of queries",
    "psnr_decibels": "PSNR, dB",
    "ssim": "SSIM",
    "reidentified_rank_1": "re-identified, rank 1 (best attacker)",
    "reidentified_rank_5": "re-identified, rank 5 (best attacker)",
}

Row = Mapping[str, Any]


def privacy_table(record: Record) -> Listing:
    """Return how like the truth the reconstructions are."""
    privacy = record["privacy"]
    rows: list[Row] = [
        {"measure": told, **{who: one.get(name) for who, one in privacy.items()}}
        for name, told in PRIVACY.items()
        if name in privacy["released"]
    ]
    for name, one in privacy["released"].get("columns", {}).items():
        kind = "accuracy" if one["kind"] == "categorical" else "error"
        own = {who: all_of["columns"][name]["value"] for who, all_of in privacy.items()}
        rows.append({"measure": f"{name}, {kind}", **own})
    columns: dict[str, Callable[[Row], str]] = {
        "reconstructed from": lambda row: str(row["measure"]),
        "the release": lambda row: _cell(row["released"]),
        "clean scores": lambda row: _cell(row["clean"]),
        "the label": lambda row: _cell(row["label"]),
    }
    return Listing("What is reconstructed (by the strongest attacker)", columns, rows)


UTILITY = {
    "top_1": ("accuracy", 4),
    "top_5": ("top-5 accuracy", 4),
    "negative_log_likelihood": ("negative log-likelihood", 4),
    "expected_calibration_error": ("expected calibration error", 4),
    "brier_score": ("Brier score", 4),
    "failure_auroc": ("AUROC of the top score for mistakes", 4),
}
COST = {
    "p50_milliseconds": ("one query, ms (median)", 2),
    "p99_milliseconds": ("one query, ms (99th percentile)", 2),
    "queries_per_second": ("queries per second, in batches", 0),
}


def utility_table(record: Record) -> Listing:
    """Return what users and the server pay."""
    useful = record["utility"]
    rows: list[Row] = []
    for names, before, after in (
        (UTILITY, useful["clean"], useful["released"]),
        (COST, useful["cost"]["bare"], useful["cost"]["guarded"]),
    ):
        for name, (told, digits) in names.items():
            one = {"clean": before[name], "released": after[name]}
            rows.append({"measure": told, "digits": digits, **one})
    columns: dict[str, Callable[[Row], str]] = {
        "utility and cost": lambda row: str(row["measure"]),
        "clean scores": lambda row: _cell(row["clean"], row["digits"]),
        "the release": lambda row: _cell(row["released"], row["digits"]),
    }
    return Listing("What users and the server pay", columns, rows)


def distortion_line(record: Record) -> str:
    """Say how far released scores are from clean ones."""
    useful = record["utility"]
    logits = useful["logit_distortion"]
    return (
        f"Distortion: L1 of probabilities {useful['l1_mean']:.4f} (p99 {useful['l1_p99']:.4f}, "
        f"most {useful['l1_max']:.4f}), logits "
        f"{'infinite (zeros)' if logits is None else f'{logits:.3f}'}; "
        f"{record['label_changes']} labels changed; "
        f"top-5 agreement {useful['top_5_agreement']:.3f}, "
        f"rank correlation {useful['rank_correlation']:.3f}."
    )


MUST = {"broken": "broken: G at most", "read": "read: at least", "holds": "unbroken: G at least"}
"""What a control must be, and what its number is held against."""

LIMITS = {"broken": BROKEN_BELOW, "read": READ_ABOVE, "holds": HOLDS_ABOVE}

PASSED = {True: "yes", False: "NO", None: "cannot be told"}

CONTROLS: dict[str, Callable[[Row], str]] = {
    "control": lambda row: str(row["name"]),
    "must be": lambda row: f"{MUST[row['expected']]} {LIMITS[row['expected']]:g}",
    "measured": lambda row: _cell(row["measured"], 2),
    "as it must be": lambda row: PASSED[row["passed"]],
    "vouches for": lambda row: f"{row['attack']}, {row['input_transform']}",
}


def controls_table(record: Record) -> Listing:
    """Return releases whose leak is known, and what was found of them."""
    rows = list(record["controls"].values())
    return Listing("Controls: releases whose leak is known", CONTROLS, rows)
